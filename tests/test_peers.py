"""The peers in examples/: built, judged, and what they say is in the schema of the protocol. The wrong one stays red."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from test_protocol import must_be_valid, plain, traffic

from attnspec.adapters import resolve
from attnspec.adapters.remote.isolated import isolated
from attnspec.conformance import check

__all__ = ["traffic"]  # a fixture
PEERS = Path(__file__).parent.parent / "examples" / "peers"
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
CARGO, NODE = shutil.which("cargo"), shutil.which("node")
# What each peer must be right in; the whole smoke tier takes a minute and is in results/.
CLAUSES = "CAUSAL-2,MASK-2,MASK-4,BIAS-3,EMPTY-4,SHARED-2,GRAD-3,GRAD-7,ERROR-1,ERROR-2"

needs_c = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
needs_rust = pytest.mark.skipif(CARGO is None, reason="there is no cargo")
needs_node = pytest.mark.skipif(
    NODE is None or not (PEERS / "node" / "node_modules").exists(),
    reason="there is no node, or no `npm install` was run in examples/peers/node",
)


def run(*command: Any, folder: Path) -> None:
    done = subprocess.run([str(x) for x in command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in the comment of attention.c, and that nothing is to be warned of."""
    peer = tmp_path_factory.mktemp("c") / "peer"
    command = "-O2 -std=c99 -Wall -Wextra -pedantic -Werror"
    run(COMPILER, *command.split(), "-o", peer, PEERS / "c" / "attention.c", "-lm", folder=peer.parent)
    return peer


@pytest.fixture(scope="module")
def rust(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("rust")
    run(CARGO, "build", "--release", "--offline", "--locked", "--target-dir", target, folder=PEERS / "rust")
    return target / "release" / "peer"


def judged(command: str, **how: Any) -> Any:
    return check(command, search=False, **{"clauses": CLAUSES, "dtypes": "float32", **how})


@needs_c
def test_the_peer_in_c_conforms_and_says_what_the_schema_has(c: Path, traffic: list[dict[str, Any]]) -> None:
    result = judged(f"cmd:{c}")
    result.raise_for_failures()
    assert result.judged > 100
    must_be_valid(traffic)
    assert {message["op"] for message in traffic} == {"start", "describe", "run", "stop"}


@needs_c
def test_the_wrong_peer_in_c_is_red_with_its_clause(c: Path) -> None:
    result = judged(f"cmd:{c} --wrong", clauses="CAUSAL,MASK-2")
    assert not result.ok
    assert result.broken == ("CAUSAL-1",)


@needs_c
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_peer_in_c_adds_the_gradients_of_one_tensor(c: Path, dtype: torch.dtype) -> None:
    """All of q, k and v one tensor: two names that are told in one request."""
    peer, sdpa = isolated(f"cmd:{c}")[0], resolve("sdpa-math")[0]
    x = plain().k.to(dtype)
    problem = plain(q=x, k=x, v=x, do=torch.ones_like(x), wrt=("q", "k", "v"))
    found, expected = peer.ask(problem), sdpa.ask(problem)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient)
    peer.peer.close()


@needs_rust
def test_the_peer_in_rust_conforms(rust: Path) -> None:
    result = judged(f"cmd:{rust}")
    result.raise_for_failures()
    assert result.judged > 100


@needs_node
def test_the_peer_in_javascript_is_judged(traffic: list[dict[str, Any]]) -> None:
    """onnxruntime-web is right where keys are hidden, and refuses scales that are not above zero (results/)."""
    result = judged(f"cmd:node {PEERS / 'node' / 'peer.mjs'} Attention --spread", clauses="CAUSAL-1,CAUSAL-3,MASK-2,BIAS-3,SCALE-3")
    assert result.broken == ("SCALE-3",)
    assert any("scale must be greater than 0" in failure.shown for failure in result.failures)
    must_be_valid(traffic)


@needs_node
def test_onnxs_own_bytes_are_read_as_they_were_meant(tmp_path: Path) -> None:
    """The model that the peer writes by hand is one for the package onnx, too."""
    onnx = pytest.importorskip("onnx")
    code = """
import { modelOf } from './onnx.mjs';
import { writeFileSync } from 'node:fs';
const node = { type: 'Attention', domain: '', version: 23, attributes: { is_causal: 1, scale: { float: 0.5 } } };
const given = ['Q', 'K', 'V'].map((name) => ({ name, dtype: 'F32', rank: 4 }));
writeFileSync(process.argv[1], modelOf(node, given, 'F32'));
"""
    run(NODE, "--input-type=module", "-e", code, tmp_path / "one.onnx", folder=PEERS / "node")
    model = onnx.load(tmp_path / "one.onnx")
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Attention"]
    assert {a.name: onnx.helper.get_attribute_value(a) for a in model.graph.node[0].attribute} == {"is_causal": 1, "scale": 0.5}
