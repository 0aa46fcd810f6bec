"""The measurement that no correct kernel is called wrong: it goes on where it stopped, and it would see one that is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import capped
import complete
import lsed
import pytest
import sloped
import sunk
from chains import FILLED
from variants import HONEST, TF32

ROOT = Path(__file__).parent.parent
NAMES = ["sdpa", "sdpa-math", "sdpa-flash", *HONEST, *FILLED, *TF32]
PLANTED = """
from mutants.implementations import tail_of_16_keys_dropped as wrong
"""

WITHOUT = """complete import honest
from functools import wraps

@wraps(honest)
def wrong(*tensors, **options):
    return honest(*tensors, **(options | {{{!r}: None}}))
"""


def corridor(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/corridor.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty of forty problems, and a line that an interrupt cut off."""
    folder = tmp_path_factory.mktemp("corridor")
    done = corridor("--problems", 20, "--chunk", 20, "--into", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    with (folder / "chunks.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"first": 20, "probl')
    return folder


def test_it_goes_on_where_it_stopped_and_finds_nothing(folder: Path) -> None:
    report = folder / "corridor.md"
    done = corridor("--problems", 40, "--chunk", 20, "--into", folder, "--markdown", report)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "20/20 problems" in done.stderr
    header, *chunks = (json.loads(line) for line in (folder / "chunks.jsonl").read_text().splitlines())
    assert sorted(header["implementations"]) == sorted(NAMES)
    assert [(chunk["first"], chunk["problems"]) for chunk in chunks] == [(0, 20), (20, 20)]
    text = report.read_text()
    assert text.startswith("# No false alarm, measured\n\n**40 random problems")
    assert ": 0 outside their bounds" in text
    assert [name for name in NAMES if f"| {name} |" not in text] == []
    if importlib.util.find_spec("matplotlib"):
        assert "<svg" in (folder / "corridor.svg").read_text()
    again = corridor("--tabulate", "--into", folder)
    assert again.returncode == 0
    assert again.stdout.splitlines()[2] == done.stdout.splitlines()[2]


def test_results_of_other_problems_are_not_mixed(folder: Path) -> None:
    done = corridor("--problems", 40, "--seed", 1, "--into", folder)
    assert done.returncode != 0
    assert "another seed" in done.stderr


def test_a_wrong_kernel_is_a_violation(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    done = corridor("--problems", 20, "--into", tmp_path, "--also", f"{tmp_path / 'planted.py'}:wrong=D")
    assert done.returncode == 1, done.stderr[-2000:]
    violations = done.stdout.split("## Outside their bounds")[1].splitlines()
    named = {line.split("|")[2].strip() for line in violations if line.startswith("|")}
    assert named == {"implementation", "---", "wrong"}


def test_kernels_with_a_soft_cap_are_asked_with_one(tmp_path: Path) -> None:
    """Each in its order of cap and bias."""
    done = corridor("--problems", 12, "--into", tmp_path, "--extension", "softcap")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    header, chunk = (json.loads(line) for line in (tmp_path / "chunks.jsonl").read_text().splitlines())
    assert len(header["implementations"]) == len(capped.HONEST) + len(capped.AFTER)
    assert chunk["problems"] == 12
    (tmp_path / "planted.py").write_text('from capped import AFTER\n\nother_order = AFTER["eager"][0]\n')
    done = corridor("--replay", 3, "--extension", "softcap", f"--also={tmp_path / 'planted.py'}:other_order=C")
    assert done.returncode == 1
    assert {json.loads(line)["implementation"] for line in done.stdout.splitlines() if line.startswith("{")} == {"other_order"}


@pytest.mark.parametrize(
    ("extension", "count", "planted"),
    [
        ("lse", len(lsed.HONEST), 'lsed import HONEST\n\nwrong = HONEST["returned in base 2"][0]'),
        ("alibi", 3 * len(sloped.HONEST), 'sloped import COLUMN\n\nwrong = COLUMN["eager"][0]'),
        ("sink", len(sunk.HONEST), WITHOUT.format("sinks")),
        ("together", len(complete.HONEST), WITHOUT.format("softcap")),
    ],
    ids=["lse", "alibi", "sink", "together"],
)
def test_kernels_of_an_extension_are_asked_with_it(extension: str, count: int, planted: str, tmp_path: Path) -> None:
    """None is outside, and one that is wrong in it is."""
    (tmp_path / "planted.py").write_text(f"from {planted}\n")
    done = corridor("--problems", 16, "--into", tmp_path, "--extension", extension, "--also", f"{tmp_path / 'planted.py'}:wrong=C")
    assert done.returncode == 1, done.stderr[-2000:]
    header = json.loads((tmp_path / "chunks.jsonl").read_text().splitlines()[0])
    assert len(header["implementations"]) == count + 1
    violations = done.stdout.split("## Outside their bounds")[1].splitlines()
    assert {line.split("|")[2].strip() for line in violations if line.startswith("|")} == {"implementation", "---", "wrong"}


def test_a_slope_is_off_by_no_more_than_slopes_are_apart() -> None:
    """Beside the lowest bias the error of a score times a large value was infinite in float64, and the bound of dq and dk NaN."""
    done = corridor("--seed", 0, "--replay", 773, "--extension", "softcap")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_an_lse_that_eager_code_takes_in_a_half_type_is_inside() -> None:
    """torch.logsumexp rounds s − m, e^, the sum and its log, where scores are as exact as beside a scale of zero."""
    done = corridor("--seed", 0, "--replay", 2578, "--extension", "lse")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("number", [6507, 10787])
def test_at_a_scale_of_zero_what_overflows_before_it_is_no_fault(number: int) -> None:
    """dk is 0 · (dSᵀ q), which float16 may hold as 0 · ∞: two honest chains were outside, in one head and in the sum of a group."""
    done = corridor("--seed", 0, "--replay", number)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
