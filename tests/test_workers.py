"""Several processes say what one says: the verdict file of -n 2 is that of a single run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = """
import torch

def attend(q, k, v, mask, causal, scale, diagonal=0, factor=1.0):
    s = q @ k.mT * ((q.shape[-1] or 1) ** -0.5 if scale is None else factor * scale)
    if mask is not None:
        s = s.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else s + mask
    if causal:
        s = s.masked_fill(~torch.ones(s.shape[-2:], dtype=torch.bool).tril(s.shape[-1] - s.shape[-2] + diagonal), float("-inf"))
    empty = (s == float("-inf")).all(-1, keepdim=True)
    return torch.softmax(s.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0) @ v

def one(q, k, v, *, attn_mask=None, is_causal=False, scale=None):
    return attend(q, k, v, attn_mask, is_causal, scale, diagonal=1)

def two(q, k, v, *, attn_mask=None, is_causal=False, scale=None):
    return attend(q, k, v, attn_mask, is_causal, scale, diagonal=1, factor=1.5)

def flash(q, k, v, *, is_causal=False, scale=None):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale)

def plain(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)

def dies(q, k, v, *, attn_mask=None, is_causal=False, scale=None):
    import os
    if q.dtype == torch.float64 and is_causal and q.shape[-2] > 3:
        os._exit(0)
    return attend(q, k, v, attn_mask, is_causal, scale)
"""
DTYPES = "--impl-dtypes=float32,bfloat16"


def ask(folder: Path, impl: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The outcome of a run of smoke in a folder, which leaves v.jsonl there."""
    (folder / "kernels.py").write_text(KERNELS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", f"--impl={impl}", "--tier=smoke", "--verdicts=v.jsonl", "-p", "no:cacheprovider"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*command, *options]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600)


def lines(folder: Path) -> list[str]:
    """The lines of its verdict file, without what may differ between two runs."""
    found = []
    for text in (folder / "v.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["kind"] == "header":
            line |= {"command": "", "started": ""}
        found.append(json.dumps(line))
    return found


@pytest.mark.parametrize(
    ("impl", "code", "clauses"),
    [
        ("sdpa-math", 0, "MASK-5,PURITY-2,SCALE-3"),
        ("kernels.py:one", 1, "CAUSAL-5,MASK-5"),
        ("kernels.py:two", 1, "CAUSAL-5,SCALE-2"),
        ("kernels.py:plain", 0, "SHAPE-1"),  # of long rows in a half type a note says how far they lie off
        ("kernels.py:flash", 1, "SCALE-3,ERROR-5"),  # both are inherited, and shown once
    ],
)
def test_two_workers_write_the_file_of_one_process(impl: str, code: int, clauses: str, tmp_path: Path) -> None:
    """Answers, elements, cells with their shares, failures, faults and notes, line by line."""
    options = (f"--clauses={clauses}", DTYPES, "--explain-budget=600")
    found = []
    for name, more in (("one", ()), ("two", ("-n2",))):
        folder = tmp_path / name
        folder.mkdir()
        run = ask(folder, impl, *options, *more)
        assert run.returncode == code, run.stdout + run.stderr
        found.append(lines(folder))
    assert found[0] == found[1]
    assert len(found[0]) > 3


def test_a_worker_that_dies_is_not_asked_the_same_again(tmp_path: Path) -> None:
    """The test in which it died is lost, the rest of its share is asked by another, and what the others saw is there."""
    run = ask(tmp_path, "kernels.py:dies", "--in-process", "--clauses=CAUSAL-1,PURITY-2", "--impl-dtypes=float32,float64", "-n2")
    assert run.returncode == 1, run.stdout + run.stderr
    assert run.stdout.count("died during a test") >= 1
    cells = [line for line in map(json.loads, lines(tmp_path)) if line["kind"] == "cell"]
    assert {"CAUSAL-1", "PURITY-2"} <= {cell["clause"] for cell in cells if cell["dtype"] == "float32"}
    assert "PURITY-2" in {cell["clause"] for cell in cells if cell["dtype"] == "float64"}
