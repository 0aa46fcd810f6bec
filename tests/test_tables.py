"""The tables of docs/torch.md and docs/seeds.md come from verdict files as they are written today."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from verdict_lines import cell, verdicts

ROOT = Path(__file__).parent.parent


def test_a_complete_file_becomes_three_tables(tmp_path: Path) -> None:
    lines = verdicts(cell("CAUSAL-2", "float32", {"PASS": 1, "FAIL": 2}), cell("MASK-5", "float32", {"FAIL": 1})).lines()
    (tmp_path / "mine.attend.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    command = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "mine.attend", "--verdicts", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split("\n\n") == [
        "| chapter | mine.attend |\n|---|---|\n| SHAPE | 40/40 |\n| CAUSAL | 61/63 ✗ |\n| MASK | 20/21 (✗) |",
        "| variant | MUST broken | SHOULD broken | not offered | not run |\n|---|---|---|---|---|\n"
        "| mine.attend | CAUSAL-2 | MASK-5 | – | – |",
        "| best class that held | float32 | bfloat16 |\n|---|---|---|\n| mine.attend | A | B |",
    ]


def test_a_run_that_gives_no_verdicts_is_said(tmp_path: Path) -> None:
    """A name that does not exist ends with what pytest said, and no empty table."""
    command = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "no.such.name", "--verdicts", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no.such.name" in done.stderr
    assert not done.stdout
