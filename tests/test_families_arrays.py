"""The families of other array frameworks: who is of them, what they are asked, and that right and wrong answers are told apart."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from families import family, findings, instead, met, off, write_script
from judging import ended
from torch.nn.functional import scaled_dot_product_attention as torch_sdpa

from attnspec.adapters import resolve
from attnspec.adapters.conventions.layout import Reading
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build

os.environ.setdefault("DEV", "PYTHON")  # of tinygrad's devices the one that needs no compiler
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # half of the time of JAX is that of its compiler
HERE = Path(__file__).parent
SIGNATURES = {
    "JAX": "query, key, value, bias=None, mask=None, *, scale=None, is_causal=False, query_seq_lengths=None, "
    "key_value_seq_lengths=None, local_window_size=None, implementation=None, return_residual=False",
    "flax linen": "query, key, value, bias=None, mask=None, broadcast_dropout=True, dropout_rng=None, dropout_rate=0.0, "
    "deterministic=False, dtype=None, precision=None, module=None, force_fp32_for_softmax=False, einsum_dot_general=None, "
    "qk_attn_weights_einsum=None, attn_weights_value_einsum=None",
    "flax nnx": "query, key, value, bias=None, mask=None, broadcast_dropout=True, dropout_rng=None, dropout_rate=0.0, "
    "deterministic=False, dtype=None, precision=None, module=None, promote_dtype=None, is_causal=False",
    "MLX": "q, k, v, *, scale, mask=None, sinks=None, force_fused=False, stream=None",
    "tinygrad": "self, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, enable_gqa=False",
}
KERAS = "query, key, value, bias=None, mask=None, scale=None, is_causal=False, flash_attention=None, attn_logits_soft_cap=None"
CASES = {
    "plain": Case(b=2, heads="2/2", i=3, j=7),
    "key padding": Case(b=2, heads="2/2", i=3, j=7, mask="padding", wrt="none"),
    "mask": Case(b=2, heads="2/2", i=3, j=7, mask="bhij", holes="empty_row", wrt="none"),
    "bias": Case(b=2, heads="2/2", i=3, j=7, bias="bhij"),
    "causal": Case(b=2, heads="2/2", i=3, j=7, causal=True),
    "causal, more queries": Case(b=2, heads="2/2", i=7, j=3, causal=True, wrt="none"),
    "grouped": Case(b=2, heads="4/2", i=3, j=7),
    "one head": Case(b=2, heads="4/1", i=3, j=7, wrt="none"),
    "scale": Case(b=2, heads="2/2", i=3, j=7, scale=0.3, wrt="none"),
    "wide values": Case(b=2, heads="2/2", i=3, j=7, e=9, wrt="none"),
    "sinks": Case(b=2, heads="2/2", i=3, j=7, sinks="normal"),
    "left": Case(b=2, heads="2/2", i=3, j=7, window="1:", wrt="none"),
    "right": Case(b=2, heads="2/2", i=3, j=7, window=":1", wrt="none"),
    "window": Case(b=2, heads="2/2", i=3, j=7, window="1:1"),
    "lse": Case(b=2, heads="2/2", i=3, j=7, lse="returned"),
}
FAMILIES = {
    "jax.nn.dot_product_attention": (
        "JAX",
        Reading("b i h d", arrays="jax"),
        "plain|mask|bias|causal|grouped|scale|left|window|lse",
    ),
    "flax.linen.dot_product_attention": ("flax linen", Reading(arrays="jax"), "plain|mask|bias|wide values"),
    "flax.nnx.dot_product_attention": ("flax nnx", Reading(arrays="jax"), "plain|mask|bias|causal|grouped"),
    "mlx.core.fast.scaled_dot_product_attention": (
        "MLX",
        Reading(arrays="mlx"),
        "plain|key padding|mask|bias|causal|causal, more queries|grouped|one head|scale|sinks",
    ),
    "tinygrad.Tensor.scaled_dot_product_attention": (
        "tinygrad",
        Reading(arrays="tinygrad"),
        "plain|key padding|causal|grouped|wide values",
    ),
}
OFFERS = {
    "JAX": "gqa mqa mask key_padding bias bias_grad causal scale window window_right lse",
    "flax linen": "mask key_padding rank3 bias bias_grad dropout value_width",
    "flax nnx": "gqa mqa mask key_padding rank3 bias bias_grad causal dropout value_width",
    "MLX": "gqa mqa mask key_padding rank3 bias bias_grad causal scale sinks sinks_grad",
    "tinygrad": "gqa mqa mask key_padding rank3 bias bias_grad causal dropout value_width",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_shows_the_family(name: str) -> None:
    assert family(SIGNATURES[name]).name == name


@pytest.mark.parametrize("path", FAMILIES)
def test_a_package_is_asked_as_it_wants_and_is_right(path: str) -> None:
    pytest.importorskip(path.partition(".")[0], reason="the package is not installed", exc_type=ImportError)
    name, reading, cases = FAMILIES[path]
    subject = met(path)
    assert subject.adapter.convention.name == name  # type: ignore[attr-defined]
    assert (subject.adapter.reading, subject.read_from) == (reading, f"promised by {name}")
    assert set(subject.adapter.offers) == {"mha", "backward", *OFFERS[name].split()}
    for case in cases.split("|"):
        assert findings(subject, CASES[case]) == [], case
    wrong = instead(subject, off(subject.adapter.kernel))
    assert wrong.adapter.convention.name == name  # type: ignore[attr-defined]
    assert findings(wrong, CASES["plain"])[0].kind == "value"


@pytest.mark.parametrize("path", ["flax.linen.dot_product_attention", "flax.nnx.dot_product_attention"])
def test_flax_drops_by_torchs_seed(path: str) -> None:
    pytest.importorskip("flax", reason="the package flax is not installed")
    (adapter,) = resolve(path)
    problem = build(Case(b=2, heads="2/2", i=3, j=8, wrt="none"))
    problem = problem.replace(dropout=0.5, training=True, v=torch.eye(8).expand(2, 2, 8, 8))
    kept = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        kept.append(adapter.run(problem).o != 0)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0][0, 0], kept[0][0, 1])  # each head for itself
    assert adapter.run(problem.replace(training=False)).o.ne(0).all()


def test_mlx_has_sinks_in_the_dtype_of_the_queries() -> None:
    """It refuses wider ones."""
    pytest.importorskip("mlx.core", reason="the package mlx is not installed", exc_type=ImportError)
    subject = met("mlx.core.fast.scaled_dot_product_attention")
    for dtype in ("float16", "bfloat16"):
        assert findings(subject, replace(CASES["sinks"], dtype=dtype)) == []


def dot_product_attention(
    query, key, value, bias=None, mask=None, scale=None, is_causal=False, flash_attention=None, attn_logits_soft_cap=None
):
    """What keras computes on torch, by torch."""
    hidden = torch.zeros(query.shape[1], key.shape[1], dtype=torch.bool)
    if is_causal:
        hidden = torch.ones_like(hidden).triu(1)
    if mask is not None:
        hidden = hidden | ~mask
    added = torch.zeros(1).masked_fill(hidden, -1e38) + (0 if bias is None else bias)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return torch_sdpa(q, k, v, added, scale=scale, enable_gqa=True).transpose(1, 2)


def test_a_function_with_the_signature_of_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where keras itself is not imported, such a function takes torch's tensors."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    assert family(KERAS).name == "keras on torch"
    subject = met(dot_product_attention)
    assert subject.adapter.reading == Reading("b i h d")
    for case in ("plain", "key padding", "mask", "bias", "causal", "causal, more queries", "grouped", "one head", "scale"):
        assert findings(subject, CASES[case]) == [], case
    assert findings(instead(subject, off(dot_product_attention)), CASES["plain"])[0].kind == "value"


BACKENDS = {
    "torch": ("", "strided backward bias_grad"),
    "jax": ("jax", "backward bias_grad"),
    "numpy": ("numpy", ""),
    "openvino": ("numpy", ""),
}
ASKED = """
import sys
from families import findings, instead, met, off
from test_families_arrays import CASES, KERAS
from keras.ops import dot_product_attention
from dataclasses import replace
subject = met("keras.ops.dot_product_attention")
print(subject.adapter.convention.name, repr(subject.adapter.reading.arrays), *sorted(subject.adapter.offers), sep="|")
graded = "backward" in subject.adapter.offers
cases = [case if graded else replace(case, wrt="none") for case in map(CASES.get, sys.argv[1:])]
print(*[found for case in cases for found in findings(subject, case)], sep="|")
print(*[found.kind for found in findings(instead(subject, off(dot_product_attention)), cases[0])], sep="|")
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_keras_takes_the_arrays_of_its_backend(backend: str) -> None:
    if find_spec("keras") is None or find_spec(backend) is None:
        pytest.skip(f"keras or {backend} is not installed")
    cases = ["plain", "key padding", "causal", "scale", "bias"]
    cases += ["mask", "grouped"] if backend in ("torch", "jax") else []  # the others can't share heads, which keras promises of all
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(HERE)}
    done = subprocess.run([sys.executable, "-c", ASKED, *cases], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    known, found, wrong = done.stdout.splitlines()
    arrays, offers = BACKENDS[backend]
    said = sorted({"mha", "gqa", "mqa", "mask", "rank3", "key_padding", "bias", "causal", "scale", *offers.split()})
    assert known.split("|")[1:] == [repr(arrays), *said]
    assert known.split("|")[0].casefold() == f"keras on {backend}"
    assert found == ""
    assert wrong.startswith("value")


SCALED = {
    "mlx.core.fast": """
import mlx.core as mx
def attention(q, k, v, *, scale, mask=None, sinks=None, force_fused=False, stream=None):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale * FACTOR, mask=mask, sinks=sinks)
""",
    "flax": """
from flax import nnx
def attention(query, key, value, bias=None, mask=None, broadcast_dropout=True, dropout_rng=None, dropout_rate=0.0,
              deterministic=False, promote_dtype=None, is_causal=False):
    return nnx.dot_product_attention(query * FACTOR, key, value, bias, mask, is_causal=is_causal)
""",
    "jax": """
import jax
def attention(query, key, value, bias=None, mask=None, *, scale=None, is_causal=False, query_seq_lengths=None,
              key_value_seq_lengths=None):
    return jax.nn.dot_product_attention(query * FACTOR, key, value, bias, mask, scale=scale, is_causal=is_causal)
""",
}


@pytest.mark.parametrize("package", SCALED)
def test_the_script_of_a_failure_runs_alone(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(package, reason="the package is not installed", exc_type=ImportError)
    name = f"kernel_of_{package.partition('.')[0]}"
    file, path = tmp_path / f"{name}.py", tmp_path / "repro.py"
    monkeypatch.syspath_prepend(tmp_path)
    file.write_text("FACTOR = 1.5" + SCALED[package])
    importlib.invalidate_caches()
    write_script(met(f"{file}:attention"), CASES["causal"], path)
    assert "attnspec" not in path.read_text().replace("Found with attnspec", "").replace("from attnspec.adapters", "")
    for factor, code in ((1.5, 1), (1.0, 0)):
        file.write_text(f"FACTOR = {factor}" + SCALED[package])
        done = ended(path)
        assert done.returncode == code, done.stdout + done.stderr
