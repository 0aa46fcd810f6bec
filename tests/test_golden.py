"""What a reader sees is kept as files, docs/examples/*.txt, so that a change of a message shows in the diff.

ATTNSPEC_GOLDEN=write pytest tests/test_golden.py      # write them anew, then read the diff
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
MUTANTS = "tests/mutants/implementations.py:"
FLOAT32 = ("--impl-dtypes=float32",)
# By name of the file: what is tested, and what is asked of it. Ten mutants of ten kinds, a package, and what is no verdict.
RUNS: dict[str, tuple[str, ...]] = {
    "conforms": ("tests/honest.py:tiled", *FLOAT32, "--clauses=CAUSAL,MASK-5"),
    "another-alignment": (f"{MUTANTS}causal_bottom_right", *FLOAT32, "--clauses=CAUSAL"),
    "mask-inverted": (f"{MUTANTS}mask_inverted", *FLOAT32, "--clauses=MASK"),
    "tail-dropped": (f"{MUTANTS}tail_of_16_keys_dropped", *FLOAT32, "--clauses=SHAPE-2"),
    "scale-missing": (f"{MUTANTS}scale_missing", *FLOAT32, "--clauses=SCALE"),
    "delta-missing": (f"{MUTANTS}gradient_without_delta", *FLOAT32, "--clauses=GRAD-1,GRAD-2"),
    "dropout-not-rescaled": (f"{MUTANTS}dropout_not_rescaled", *FLOAT32, "--clauses=DROPOUT"),
    "no-maximum": (f"{MUTANTS}softmax_without_maximum", *FLOAT32, "--clauses=SOFTMAX"),
    "coarse-arithmetic": (f"{MUTANTS}float32_with_bfloat16_probabilities", *FLOAT32, "--clauses=ACCURACY-1,ACCURACY-2"),
    "strides-ignored": (f"{MUTANTS}key_read_without_strides", *FLOAT32, "--clauses=LAYOUT"),
    "cached-answer": (f"{MUTANTS}AnswerCachedByShape", *FLOAT32, "--clauses=PURITY-5"),
    "module-flash-ignores-mask": (f"{MUTANTS}FlashIgnoresLastKeysMask", *FLOAT32, "--clauses=MASK-2,MODE-3"),
    "seed-audiolm": ("audiolm-pytorch", *FLOAT32, "--clauses=CAUSAL"),
    "known-issue": ("sdpa", *FLOAT32, "--clauses=SCALE-3", "--known-issues=conformance/known-issues-torch.toml"),
    "error-no-such-name": ("tests/honest.py:attention",),
    "error-no-such-clause": ("sdpa-math", "--clauses=CAUSAL-99"),
    "error-no-such-dialect": ("sdpa-math", "--dialect=causal_alignment=left"),
    "error-refuses-everything": (f"{ROOT / 'docs'}/examples/refuses.py:attend",),
}
NUMBER = re.compile(r"-?\b\d+(?:\.\d+)?(?:e[+-]?\d+)?\b")


def shown(impl: str, *options: str) -> str:
    """The screen of a command, without what differs from machine to machine."""
    command = [sys.executable, "-m", "pytest", f"--impl={impl}", "--impl-device=cpu", "--tier=smoke", *options]
    command += ["--explain-budget=600"]  # what is explained may not depend on the machine
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", "--color=no"]
    # CI is where most are read; pytest prints more there unless it is told not to.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "132", "PYTEST_ADDOPTS": "", "CI": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    said = " ".join(x for x in (f"--impl={impl}", "--tier=smoke", *options) if x).replace(f"{ROOT}/", "")
    text = f"$ pytest {said}\n{done.stdout}{done.stderr}exit code {done.returncode}\n".replace(f"{ROOT}/", "").replace(
        str(ROOT), "."
    )
    for pattern, instead in (
        (r"^(platform|plugins|rootdir|configfile|hypothesis profile|collecting|collected).*\n", ""),
        (r"\b(torch|numpy|Python|attnspec|spec) \d[\w.+]*", r"\1 …"),
        (r" on (cpu|cuda:\d+) \([^)]*\)", r" on \1"),
        (r" in \d+\.\d+s( \(\d+:\d\d:\d\d\))?", ""),
        (r"^=+ (\d+ (?:passed|failed|skipped).*?) =+$", r"== \1 =="),  # as wide as the seconds leave
        (r"^time: .*\n", ""),
        (r"(engine|telling)\.py:\d+", r"\1.py"),
        (r"^\S*test_\w+\.py [.sFExX]+ *(\[ *\d+%\])?\n", ""),
        (r"^[.sFExX]+ *(\[ *\d+%\])?\n", ""),
        (r"[ \t]+$", ""),
    ):
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    return text


def masked(text: str) -> list[str]:
    """Lines without their numbers, whose last digits are the machine's."""
    return [NUMBER.sub("#", line) for line in text.splitlines()]


@pytest.mark.parametrize("name", RUNS)
def test_what_a_reader_sees_is_what_was_reviewed(name: str) -> None:
    if name.startswith("seed-") and not find_spec(name.removeprefix("seed-") + "_pytorch"):
        pytest.skip(f"{name.removeprefix('seed-')}-pytorch is not installed (requirements-seeds.txt)")
    file, text = EXAMPLES / f"{name}.txt", shown(*RUNS[name])
    if os.environ.get("ATTNSPEC_GOLDEN") == "write":
        file.write_text(text, encoding="utf-8")
    assert masked(file.read_text(encoding="utf-8")) == masked(text)


def test_no_file_is_left_over() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.txt")} == RUNS.keys()
