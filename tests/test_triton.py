"""Functions that launch Triton kernels, on the CPU in Triton's interpreter: `--impl` takes them as any function."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "1", "CI": "true", "OMP_NUM_THREADS": "1"}
CASES = {
    "rescale": "b=2,i=3,j=40,d=8,values=peaked",
    "corner": "i=3,j=20,d=8,causal=True",
    "groups": "heads=4/2,i=3,j=5,d=8",
    "strides": "heads=2/2,i=3,j=5,d=8,layout=strided",
    "tail": "i=3,j=19,d=8",
    "base": "i=3,j=5,d=8,scale=2.0",
}
PROGRAM = """
import json, sys
import triton_attention
from attnspec.adapters import resolve
from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.meeting import meet

cases = {name: Case.parse("wrt=none," + token) for name, token in json.loads(sys.argv[1]).items()}
found = {}
for name in ("attend", *cases):
    subject = meet(resolve(f"triton_attention.{name}")[0].on("cpu"), "cpu", {}, None, ("float32",)) if name == "attend" else subject
    subject.adapter.function = getattr(triton_attention, name)
    found[name] = []
    for asked, case in cases.items():
        problem = subject.problem(case)
        answer = subject.run(problem)
        if answer.refusal or subject.judge(answer, subject.solve(problem)).findings:
            found[name].append(asked)
print(json.dumps([subject.read_from, dict(subject.dialect.__dict__), found]))
"""


def test_a_kernel_is_right_in_the_interpreter_and_six_wrong_ones_are_not():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CASES)], env={**ENVIRONMENT, "PYTHONPATH": str(HERE)}, capture_output=True,
        text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read_from, dialect, found = json.loads(done.stdout.splitlines()[-1])
    assert read_from == "observed in plain calls"
    assert dialect["causal_alignment"] == "bottom_right"
    assert found.pop("attend") == []
    assert {name: name in found[name] for name in CASES} == dict.fromkeys(CASES, True)


def test_the_command_judges_it_in_a_process_of_its_own(tmp_path):
    """That process has the environment of the command, so that the interpreter is asked for before triton is imported."""
    command = [
        sys.executable, "-m", "pytest", f"--impl={HERE / 'triton_attention.py'}:attend", "--tier=smoke", "--impl-dtypes=float32",
        "--clauses=CAUSAL-2", "--without=backward", "--budget=60", "-p", "no:cacheprovider",
    ]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
