"""Streams, graphs, and a device that answers nothing any more: the clauses and the endings, on a device that is faked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from device_kernels import FAKED
from judging import judge

from attnspec.adapters import device
from attnspec.adapters.within import CAPTURED, STREAM, Within
from attnspec.conformance.run.ending import nothing_judged


@pytest.fixture
def faked(monkeypatch):
    FAKED.asked = FAKED.captured = 0
    monkeypatch.setattr(device, "streams", lambda where: FAKED)
    monkeypatch.setattr(device, "MATMULS", 0)
    return FAKED


def _broken(outcome) -> set[str]:
    return {failure.clause for failure in outcome.failures}


@pytest.mark.parametrize("tier", ["smoke", "standard"])
def test_what_is_right_is_right_on_every_stream_and_in_graphs(tier, faked):
    outcome = judge("device_kernels.right", "--clauses=MODE-6,MODE-7", "--impl-dtypes=float32,bfloat16", tier=tier)
    assert not outcome.failures
    assert faked.asked > 6
    assert faked.captured > 3
    assert "MODE-6" in outcome.screen


@pytest.mark.parametrize(
    ("name", "clauses"),
    [
        ("on_default_stream", {"MODE-6"}),
        ("backward_on_default_stream", {"MODE-6"}),
        ("plan_of_warm_up", {"MODE-7"}),
        ("planned_on_host", {"MODE-6", "MODE-7"}),
    ],
)
def test_work_on_the_default_stream_and_plans_of_the_host_are_seen(name, clauses, faked):
    outcome = judge(f"device_kernels.{name}", "--clauses=MODE-1,MODE-6,MODE-7", "--impl-dtypes=float32")
    assert _broken(outcome) == clauses


def test_who_looks_at_numbers_on_the_host_can_not_be_captured_and_is_told_so(faked):
    outcome = judge("device_kernels.looks_at_its_mask", "--clauses=MODE-6,MODE-7", "--impl-dtypes=float32", tier="standard")
    assert not outcome.failures
    refused = [line for line in outcome.run.record.lines.kept if "can't be captured" in json.dumps(line)]
    assert refused


def test_the_cpu_has_no_streams():
    outcome = judge("device_kernels.right", "--clauses=MODE-6,MODE-7", "--impl-dtypes=float32")
    assert not outcome.failures
    assert "cpu has no streams" in nothing_judged(outcome.run)
    assert {Within(STREAM).surroundings, Within(CAPTURED).surroundings} == {"another stream", "captured graph"}


# A DEVICE THAT IS LOST

LOST = """
import torch
from lost import gone


def attend(query, key, value, attn_mask=None, is_causal=False):
    if gone:
        raise RuntimeError(gone[0])
    if is_causal:
        gone.append("AcceleratorError: CUDA error: an illegal memory access was encountered")
        raise RuntimeError(gone[0])
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask)
"""
SAYS = """
from attnspec.adapters import device

gone = []
device.lost = lambda where: gone[0] if gone else ""
"""


def _asked(tmp_path: Path, *options: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, screen and verdict file of a run with a kernel that breaks its device where it is asked for causal masking."""
    (tmp_path / "gpu_kernel.py").write_text(LOST)
    (tmp_path / "lost.py").write_text(SAYS)
    command = [
        sys.executable, "-m", "pytest", f"--impl={tmp_path / 'gpu_kernel.py'}:attend", "--tier=smoke", "--impl-dtypes=float32",
        "--clauses=SHAPE-1,CAUSAL,MASK-1", "--explain-budget=5", "--verdicts=v.jsonl", "-p", "no:cacheprovider", "-p", "lost",
        "--dialect", "causal_alignment=bottom_right", *options,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout, [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]


def test_with_isolate_a_lost_device_is_a_crash_and_the_rest_is_asked(tmp_path):
    code, screen, lines = _asked(tmp_path, "--isolate")
    assert code == 1
    assert "its device answers nothing any more: AcceleratorError: CUDA error: an illegal memory access" in screen
    failures = [line for line in lines if line["kind"] == "failure"]
    assert failures
    cells = {line["clause"]: set(line["problems"]) for line in lines if line["kind"] == "cell"}
    assert {line["clause"] for line in failures} == {clause for clause, said in cells.items() if "CRASH" in said}
    assert "FAIL" not in set().union(*cells.values())
    assert cells["MASK-1"] == {"PASS"}


def test_in_one_process_a_lost_device_ends_the_run_which_leaves_its_report(tmp_path):
    code, screen, lines = _asked(tmp_path, "--in-process")
    assert code == 2
    assert "with --isolate such a call is a CRASH, and all others are asked" in screen
    assert "attnspec itself failed" not in screen
    assert len([line for line in lines if line["kind"] == "failure"]) == 1
    assert [line["clause"] for line in lines if line["kind"] == "cell" and "CRASH" in line["problems"]]
    assert lines[-1]["kind"] in ("interrupted", "footer"), lines[-1]


@pytest.mark.skipif(os.name == "nt" or not shutil.which("timeout"), reason="a script for bash, with timeout")
def test_the_script_for_a_gpu_runs_what_a_cpu_can(tmp_path):
    script = Path(__file__).parent.parent / "benchmarks" / "device.sh"
    environment = {**os.environ, "DEVICE": "cpu", "ONLY": "ieee-as-class-T,no-such-step", "SHARE": "0.1", "PYTHON": sys.executable}
    done = subprocess.run([str(script), str(tmp_path)], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| ieee-as-class-T | 0 | 0 |" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "ieee-as-class-T.jsonl").exists()
