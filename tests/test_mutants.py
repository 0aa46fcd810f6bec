"""Every mutant is wrong, says which clause it breaks, and dies of it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from honest import split_k, tiled
from mutants import softcaps, witness
from mutants.base import FAMILIES, MUTANTS, Mutant, load, with_sdpa_signature
from mutants.not_emulated import EQUIVALENT, NOT_EMULATED
from mutants.softcaps import with_softcap
from mutants.tools import Steps, dense

from attnspec.adapters import Adapter, resolve
from attnspec.spec import index

ROOT = Path(__file__).parent.parent
FUNCTIONS = [one for one in load().values() if one.kind == "function"]
BUG = re.compile(r"[\w.-]+/[\w.-]+#[0-9]+")
WITNESSES = json.loads(witness.FILE.read_text(encoding="utf-8"))


def adapters(mutant: Mutant) -> list[Adapter]:
    return resolve(mutant.make())


# THE TABLE


def test_every_mutant_says_what_it_does() -> None:
    assert len(MUTANTS) >= 550
    for one in MUTANTS.values():
        assert one.clause in index() or (one.kind == "liar" and not one.clause), one.name
        assert one.what.endswith("."), one.name
        assert all(BUG.fullmatch(source) for source in one.sources), one.name


def test_every_family_and_every_chapter_has_mutants() -> None:
    assert {one.family for one in FUNCTIONS} == set(FAMILIES)
    assert {one.clause.partition("-")[0] for one in MUTANTS.values() if one.clause} == {
        clause.chapter for clause in index().values()
    }


def test_what_has_no_mutant_is_listed_with_its_reason() -> None:
    cited = {source for one in MUTANTS.values() for source in one.sources}
    assert not cited & NOT_EMULATED.keys()
    assert all(BUG.fullmatch(source) and reason for source, reason in NOT_EMULATED.items())
    assert all(EQUIVALENT.values())


# WITNESSES


@pytest.mark.parametrize("family", FAMILIES)
def test_every_mutant_has_a_witness(family: str) -> None:
    """A call that it answers wrongly, or calls that contradict each other. tests/mutants/witness.py finds new ones."""
    without = []
    for one in MUTANTS.values():
        if one.family == family and one.kind != "liar":  # what liars do is seen in test_liars.py
            found = WITNESSES.get(one.name)
            if found is None or not any(witness.shows(adapter, one, found) for adapter in adapters(one)):
                without.append(one.name)
    assert not without


def test_an_honest_kernel_has_none() -> None:
    steps = with_sdpa_signature(Steps())
    dense_ = with_sdpa_signature(lambda call: call.run(dense))
    for kernel in (tiled, split_k, steps, dense_):
        (adapter,) = resolve(kernel)
        assert not [name for name in witness.RELATIONS if witness.shows(adapter, None, name)]
    tokens = sorted({found for found in WITNESSES.values() if found not in witness.RELATIONS and found != "its own"})
    for kernel in (steps, with_softcap(softcaps.Honest())):
        (adapter,) = resolve(kernel)
        assert not [token for token in tokens if witness.shows(adapter, None, token)]
    for one in MUTANTS.values():
        assert one.family != "softcap" or one.witness is None or not one.witness(with_softcap(softcaps.Honest()))


# THE SUITE STOPS THEM


def test_the_stored_matrix_is_good_enough() -> None:
    """Every mutant is in it, or said to be not measured yet; of smoke 97 in a hundred are stopped, of standard all."""
    stored = json.loads((ROOT / "docs" / "kill-matrix.json").read_text(encoding="utf-8"))
    every = {name for name, one in load().items() if one.clause}
    for tier, share in (("standard", 1.0), ("smoke", 0.97)):
        verdicts = stored[tier]["verdicts"]
        assert verdicts.keys() | set(stored[tier]["not measured"]) == every
        assert sum(verdict in ("own", "chapter", "other") for verdict in verdicts.values()) >= share * len(verdicts), tier
        assert not stored[tier]["false alarms"]


def test_a_sample_still_dies_in_smoke(tmp_path: Path) -> None:
    """Every twelfth mutant and the controls: were one of these to survive, nothing that the matrix says would count."""
    command = [sys.executable, "benchmarks/kill_matrix.py", "--sample", "45", "--into", str(tmp_path)]
    done = subprocess.run([*command, "--check", "docs/kill-matrix.json"], cwd=ROOT, capture_output=True, text=True, check=False)
    results = [json.loads(line) for line in (tmp_path / "smoke.jsonl").read_text(encoding="utf-8").splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(results) >= 45
    assert all(one["verdict"] in ("own", "chapter", "other") for one in results if one["family"] == "control")


# THE MATRIX


@pytest.fixture(scope="module")
def matrix():
    spec = importlib.util.spec_from_file_location("kill_matrix", ROOT / "benchmarks" / "kill_matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(name: str, verdict: str, **more: object) -> dict:
    one = {
        "name": name,
        "tier": "smoke",
        "verdict": verdict,
        "kind": "function",
        "family": "mask",
        "clause": "MASK-1",
        "broken": [],
    }
    return {**one, **more}


def test_the_matrix_counts_what_it_did_not_stop_and_sees_what_got_worse(matrix, tmp_path: Path, monkeypatch) -> None:
    first = {"clause": "MASK-1", "seconds": 2.0, "cpu": 1.0, "test": "test_it", "judged": 3}
    results = [
        result("dies", "own", first=first),
        result("lives", "survived"),
        result("hangs", "timeout"),
        result("honest.tiled", "passed", kind="honest"),
        result("honest.eager", "false alarm", kind="honest"),
    ]
    path = tmp_path / "smoke.jsonl"
    path.write_text("\n".join(map(json.dumps, results)) + '\n{"name": "cut o')
    read = matrix.read(path)
    assert list(read) == ["dies", "lives", "hangs", "honest.tiled", "honest.eager"]
    page = matrix.markdown({"smoke": read}, [])
    assert "stops 1 of 3 mutants" in page
    assert "False alarms: 1 on 2 honest kernels: honest.eager" in page
    stored = {"smoke": matrix.summary(read)}
    assert matrix.check(stored, {"smoke": read}) == [f"smoke: {name} is gone" for name in ("dies", "hangs", "lives")]
    made = {name: SimpleNamespace(clause="MASK-1") for name in (*read, "new")} | {"liar": SimpleNamespace(clause="")}
    monkeypatch.setattr(matrix, "load", lambda: made)
    assert not matrix.check(stored, {"smoke": read})
    assert matrix.summary({name: one for name, one in read.items() if name != "hangs"})["not measured"] == [
        "hangs",
        "honest.eager",
        "honest.tiled",
        "new",
    ]
    read["dies"]["verdict"] = "survived"
    read["honest.tiled"]["verdict"] = "false alarm"
    assert matrix.check(stored, {"smoke": read}) == [
        "smoke: dies was stopped and is not: survived",
        "smoke: false alarm on honest.tiled",
    ]


def test_results_are_entered_and_all_else_stays(matrix, tmp_path: Path, monkeypatch) -> None:
    made = {name: SimpleNamespace(clause="MASK-1", family="mask") for name in ("dies", "lives", "new", "later")}
    monkeypatch.setattr(matrix, "load", lambda: made)
    verdicts, page, results = tmp_path / "stored.json", tmp_path / "page.md", tmp_path / "smoke.jsonl"
    stored = {"smoke": {"verdicts": {"dies": "own", "lives": "own"}, "false alarms": [], "not measured": ["later", "new"]}}
    verdicts.write_text(json.dumps(stored))
    page.write_text(f"before\n\n{matrix.LATEST}\n\nanother\n")
    results.write_text("\n".join(map(json.dumps, (result("new", "chapter"), result("lives", "survived"), result("gone", "own")))))
    command = ["kill_matrix.py", "--enter", str(results), "--json", str(verdicts), "--markdown", str(page)]
    for _ in range(2):  # what is entered twice is there once
        monkeypatch.setattr(sys, "argv", command)
        assert matrix.main() == 0
        assert json.loads(verdicts.read_text()) == {
            "smoke": {
                "verdicts": {"dies": "own", "lives": "survived", "new": "chapter"},
                "false alarms": [],
                "not measured": ["later"],
            }
        }
        before, _, behind = page.read_text().partition("| mask | smoke | 4 | 1 | 1 | · | 1 | · | · | 1 |")
        assert (before.count(matrix.LATEST), behind.count("| smoke | lives | MASK-1 | survived |")) == (1, 1)
        assert before.startswith("before\n\n")
        assert "another\n" not in before + behind
