"""--attnspec-seed=random: nobody who is tested can know the seed, and everybody can repeat the search afterwards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from judging import judge

from attnspec.conformance import check
from attnspec.conformance.plugin.options import OPTIONS
from attnspec.conformance.verdicts.cli import main
from attnspec.conformance.verdicts.diff import asked_differently
from attnspec.conformance.verdicts.lines import read

ASKED = ("--impl-dtypes=float32", "--clauses=PURITY-4", "--attnspec-seed=random")
FILES = ("v.jsonl", "v.html", "v.md")
SEEN: list[str] = []


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SEEN.clear()


def looks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Right, and reads what the suite has written so far."""
    SEEN[:] = [Path(name).read_text(encoding="utf-8") for name in FILES if Path(name).exists()]
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


def interrupts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Ends the run when it has seen enough."""
    SEEN.append("")
    if len(SEEN) > 40:
        raise KeyboardInterrupt
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


def seed_of(screen: str) -> int:
    (seed,) = re.findall(r"the seed was (\d+); --attnspec-seed=\1 searches the same again", screen)
    return int(seed)


def test_the_seed_is_told_at_the_end_and_not_before() -> None:
    outcome = judge("test_hidden_seed.looks", *ASKED, "--verdicts=v.jsonl", "--verdict-report=v.html", tier="standard")
    assert outcome.exit == 0, outcome.screen
    seed = seed_of(outcome.screen)
    assert seed == outcome.run.seed
    before, _, after = outcome.screen.partition("attention conformance ===")
    assert "search with a random seed, told at the end" in before
    assert str(seed) not in before
    assert str(seed) in after
    assert len(SEEN) == 3
    assert not any(str(seed) in text for text in SEEN)
    header, *_, footer = (json.loads(line) for line in Path("v.jsonl").read_text().splitlines())
    assert header["seed"] == "random"
    assert footer["seed"] == read("v.jsonl").seed == seed
    assert f"seed {seed}" in Path("v.html").read_text()
    assert f"seed {seed}" in Path("v.md").read_text()
    schema = pytest.importorskip("jsonschema")
    rules = schema.Draft202012Validator(json.loads((Path(read.__code__.co_filename).parent / "verdicts.schema.json").read_text()))
    for line in (header, footer):
        rules.validate(line)
    # Another run draws another one, and who compares the two is told.
    other = judge("test_hidden_seed.looks", *ASKED, "--verdicts=w.jsonl", tier="standard")
    assert seed_of(other.screen) != seed
    assert any(line.startswith(f"seed: {seed} → ") for line in asked_differently(read("v.jsonl"), read("w.jsonl")))
    # The seed that was told repeats the search, to the bit.
    again = judge("test_hidden_seed.looks", *ASKED[:2], f"--attnspec-seed={seed}", tier="standard")
    assert f"search with seed {seed}" in again.screen
    assert again.record.worst == outcome.record.worst
    assert again.run.subjects[0].elements == outcome.run.subjects[0].elements


def test_a_run_that_is_interrupted_tells_it_too() -> None:
    outcome = judge("test_hidden_seed.interrupts", *ASKED, "--verdicts=v.jsonl", tier="standard")
    assert outcome.exit == 2
    assert read("v.jsonl").seed == seed_of(outcome.screen) == outcome.run.seed


def test_workers_search_with_one_seed() -> None:
    options = ("--clauses=PURITY-4", "--impl-dtypes=float32,float64", "-n", "2", "-p", "xdist", "--verdicts=v.jsonl")
    here = f"{__file__}:looks"  # a worker of xdist knows no folder that only this process has on its path
    outcome = judge(here, *options, "--attnspec-seed=random", tier="standard")
    assert outcome.exit == 0, outcome.screen
    again = judge(here, *options, f"--attnspec-seed={seed_of(outcome.screen)}", tier="standard")
    assert again.record.worst == outcome.record.worst


def test_check_tells_it() -> None:
    result = check(looks, "standard", clauses="PURITY-4", dtypes="float32", seed="random")
    assert result.ok
    assert seed_of(str(result)) < 2**32


def test_what_is_no_seed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "told when the run has ended" in dict(OPTIONS)["--attnspec-seed"]["help"]
    assert pytest.main(["--impl=sdpa-math", "--attnspec-seed=later", "-p", "no:cacheprovider"]) == 4
    assert "'later' is no seed; write a whole number, or random" in capsys.readouterr().err
    with pytest.raises(ValueError, match="seed"):
        check(looks, clauses="PURITY-4", seed="later")


def test_a_file_that_was_cut_off_says_that_it_was_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    judge("test_hidden_seed.looks", *ASKED, "--verdicts=v.jsonl", tier="standard")
    lines = Path("v.jsonl").read_text().splitlines(keepends=True)
    Path("v.jsonl").write_text("".join(lines[:-1]))
    assert read("v.jsonl").seed == "random"
    assert main(["report", "v.jsonl", "-o", "v.html"]) == 0
    assert "seed random" in Path("v.html").read_text()
