"""Versions of the spec: what came after one is left out as of it, and each new test of an old clause is named in CHANGELOG."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from judging import judge

from attnspec import spec
from attnspec.adapters import ResolveError
from attnspec.conformance import check
from attnspec.conformance.testing import audit, clause
from attnspec.spec import index

CHANGELOG = Path(__file__).parent.parent / "CHANGELOG.md"
SCALE_1 = "test_the_default_is_one_over_the_root_of_the_query_width"


def test_the_changelog_names_each_test_that_is_newer_than_its_clause(monkeypatch: pytest.MonkeyPatch) -> None:
    text = CHANGELOG.read_text(encoding="utf-8")

    def unnamed() -> list[str]:
        return [test for test in audit.NEW if test.rpartition(".")[2] not in text]

    clause.tests_of(())  # imports all
    assert unnamed() == []
    monkeypatch.setitem(audit.NEW, "clauses.test_mask.test_made_up", (("MASK-1",), "0.2"))
    assert unnamed() == ["clauses.test_mask.test_made_up"]


def test_the_audit_knows_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = audit.audit(complete=False)
    monkeypatch.setitem(audit.NEW, "test_a", (("MASK-1",), "0.1"))
    monkeypatch.setitem(audit.NEW, "test_b", (("MASK-1",), "9.9"))
    monkeypatch.setitem(index(), "MASK-2", replace(index()["MASK-2"], since="0.7"))
    sentence, unknown, old = (problem for problem in audit.audit(complete=False) if problem not in before)
    assert sentence == "MASK-2 is since 0.7, which is no version of the spec; choose from 0.1"
    assert unknown == "test_b is since 9.9, which is no version of the spec; choose from 0.1"
    assert old.startswith("test_a is since 0.1, and so are its clauses; ")


@pytest.fixture
def newer_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spec 0.2: CAUSAL-3 came with it, and a test of SCALE-1, which is older."""
    for module in (spec, sys.modules["attnspec.spec.index"], audit):
        monkeypatch.setattr(module, "SPEC_VERSIONS", ("0.1", "0.2"))
    monkeypatch.setitem(index(), "CAUSAL-3", replace(index()["CAUSAL-3"], since="0.2"))
    clause.tests_of(())
    judge("sdpa-math", "--clauses=SCALE", "--collect-only")  # pytest imports the tests under a name of its own
    for module in [module for name, module in sys.modules.items() if name.endswith("conformance.clauses.test_scale")]:
        monkeypatch.setattr(getattr(module, SCALE_1), "since", "0.2")


@pytest.mark.usefixtures("newer_version")
def test_what_came_later_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And said: in the header, in the verdict file, and in the command that asks again."""
    monkeypatch.chdir(tmp_path)
    assert clause.left_out("0.1") == ["CAUSAL-3 (0.2)", f"{SCALE_1} of SCALE-1 (0.2)"]
    assert clause.left_out("0.2") == []
    clauses = {}
    for version in ("0.1", "0.2"):
        options = ("--impl-dtypes=float32", f"--spec={version}", f"--verdicts={version}.jsonl")
        outcome = judge("sdpa-math", "--clauses=CAUSAL,SCALE", *options)
        assert outcome.exit == 0
        assert f"--spec={version}" in outcome.run.command
        clauses[version] = {cell[0] for cell in outcome.record.counts}
        (header, *_) = map(json.loads, Path(f"{version}.jsonl").read_text(encoding="utf-8").splitlines())
        assert header["only"] == ["CAUSAL", "SCALE", *(["what spec 0.1 has"] if version == "0.1" else [])]
        left = f"CAUSAL-3 (0.2), {SCALE_1} of SCALE-1 (0.2)" if version == "0.1" else "nothing"
        assert f"  as of spec {version}; left out, for they came later: {left}\n" in outcome.screen
    assert clauses["0.2"] - clauses["0.1"] >= {"CAUSAL-3"}
    assert "CAUSAL-2" in clauses["0.1"]


@pytest.mark.usefixtures("newer_version")
@pytest.mark.parametrize("clauses", ["", "SCALE"])
def test_a_test_that_came_later_is_not_collected(clauses: str) -> None:
    for version in ("0.1", "0.2"):
        screen = judge("sdpa-math", f"--spec={version}", f"--clauses={clauses}", "--collect-only").screen
        assert (f"<Function {SCALE_1}" in screen) == (version == "0.2")
        assert "test_a_given_scale_is_used_once" in screen


@pytest.mark.usefixtures("newer_version")
def test_the_function_leaves_out_the_same() -> None:
    asked = {
        version: {entry["clause"] for entry in check("sdpa-math", clauses="CAUSAL,SCALE", dtypes="float32", spec=version).verdicts}
        for version in ("0.1", "0.2", None)
    }
    assert "CAUSAL-3" not in asked["0.1"]
    assert "CAUSAL-3" in asked["0.2"]
    assert asked["0.2"] == asked[None]


@pytest.mark.usefixtures("newer_version")
def test_a_clause_that_came_later_can_not_be_asked_for() -> None:
    with pytest.raises(ResolveError, match=r"--clauses CAUSAL-3: it came with spec 0\.2, and --spec asks for 0\.1"):
        check("sdpa-math", clauses="CAUSAL-3", spec="0.1")


def test_an_unknown_version_is_a_usage_error() -> None:
    with pytest.raises(ResolveError, match=r"^--spec 0\.7: unknown version of the spec; choose from 0\.1$"):
        check("sdpa-math", spec="0.7")
    assert pytest.main(["--impl=sdpa-math", "--spec=0.7", "-p", "no:cacheprovider"]) == 4
