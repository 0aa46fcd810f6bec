"""The text parses into an index that code and tests are bound to; a problem refuses what is no attention call."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnspec import conformance
from attnspec.adapters import same_bits
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.testing import audit
from attnspec.spec import (
    CANONICAL,
    CHOICES,
    TENSORS,
    Dialect,
    Problem,
    SpecError,
    implementations,
    implements,
    index,
    lock,
    twin,
)
from attnspec.spec.index import LEVELS as MUST_SHOULD_MAY
from attnspec.spec.index import Clause, _implementations, parse

CLAUSE = """# TASTE

Words that are no clause.

### TASTE-1 · It tastes
MUST · value · since 0.1 · feature mask · dialect empty_row = zero
The answer tastes
good.

```
o = good
```

> Why: nobody likes
> the bad.
> Stops: a#1, b#2
"""


# THE INDEX


def test_every_clause_is_whole() -> None:
    """Id, title, level, since, a sentence that ends, a reason, and a formula."""
    assert len(index()) > 50
    for id_, clause in index().items():
        assert id_ == clause.id
        assert re.fullmatch(rf"{clause.chapter}-[1-9]\d*", id_)
        assert clause.level in MUST_SHOULD_MAY
        assert re.fullmatch(r"\d+\.\d+", clause.since)
        assert re.search(r"[.]$", clause.sentence), id_
        assert clause.title
        assert clause.formula, f"{id_} has no formula"
        assert clause.why.endswith("."), f"{id_} says no reason"
        assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?#\d+", bug) for bug in clause.stops), f"{id_} stops {clause.stops}"
        assert clause.binding == (clause.level == "MUST")


def test_chapters_number_their_clauses_from_one() -> None:
    """One file a chapter, and ids in order, so that a gap is an id that was given up."""
    by_source: dict[str, list[str]] = {}
    for clause in index().values():
        by_source.setdefault(clause.source, []).append(clause.id)
    for source, ids in by_source.items():
        chapter = source[3:-3].upper()
        numbers = [int(id_.removeprefix(f"{chapter}-")) for id_ in ids]
        assert numbers == sorted(set(numbers)), source
        assert numbers[0] == 1


def test_a_clause_that_names_a_choice_names_one_that_exists() -> None:
    for clause in index().values():
        if clause.dialect is not None:
            key, _, value = clause.dialect.partition(" = ")
            assert value in CHOICES[key].values, clause.id


def test_the_parser_reads_every_field() -> None:
    [clause] = parse(CLAUSE, "taste.md")
    assert (clause.id, clause.chapter, clause.title) == ("TASTE-1", "TASTE", "It tastes")
    assert (clause.level, clause.since, clause.feature, clause.dialect) == ("MUST", "0.1", "mask", "empty_row = zero")
    assert clause.sentence == "The answer tastes good."
    assert clause.formula == "o = good"
    assert clause.why == "nobody likes the bad."
    assert clause.stops == ("a#1", "b#2")
    assert clause.source == "taste.md"
    assert [x.id for x in parse(CLAUSE + CLAUSE.replace("TASTE-1", "TASTE-2"), "taste.md")] == ["TASTE-1", "TASTE-2"]


@pytest.mark.parametrize(
    ("text", "instead", "message"),
    [
        ("TASTE-1 · It tastes", "TASTE-1: It tastes", r"heading '### TASTE-1: It tastes' is not of the form"),
        ("TASTE-1", "taste-1", r"is not of the form '### CHAPTER-n · title'"),
        (
            "MUST",
            "OUGHT",
            r"TASTE-1: the line of fields is 'OUGHT · value · since .*expected 'MUST\|SHOULD\|MAY · value\|relation\|conduct",
        ),
        ("value · since", "since", r"TASTE-1: the line of fields is 'MUST · since .*expected 'MUST"),
        ("value", "price", r"TASTE-1: the line of fields is 'MUST · price .*expected 'MUST"),
        ("· since 0.1 ", "", r"the line of fields"),
        ("feature mask", "colour red", r"the line of fields"),
        ("The answer tastes\ngood.", "", r"needs a sentence and a '> Why:' line"),
        ("> Why: nobody likes\n> the bad.\n", "", r"taste.md, TASTE-1: a clause needs a sentence and a '> Why:' line"),
    ],
)
def test_the_parser_says_what_is_missing_and_where(text: str, instead: str, message: str) -> None:
    assert text in CLAUSE
    with pytest.raises(SpecError, match=message) as raised:
        parse(CLAUSE.replace(text, instead, 1) if text != "TASTE-1" else CLAUSE.replace(text, instead), "taste.md")
    assert str(raised.value).startswith("taste.md")


def test_an_id_stands_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chapters with one id, and no chapter at all, are errors of the text."""
    module = importlib.import_module("attnspec.spec.index")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "index.py"))
    with pytest.raises(SpecError, match="no clause found"):
        module.index.__wrapped__()
    (tmp_path / "clauses").mkdir()
    for name in ("01-taste.md", "02-taste.md"):
        (tmp_path / "clauses" / name).write_text(CLAUSE, encoding="utf-8")
    with pytest.raises(SpecError, match=r"02-taste.md: TASTE-1 is already in 01-taste.md; ids are unique"):
        module.index.__wrapped__()


# WHAT IS BOUND TO IT


def test_code_can_only_claim_clauses_that_exist() -> None:
    with pytest.raises(SpecError, match=r"function implements MASK-999, which is not in the spec"):

        @implements("MASK-999")
        def function() -> None: ...

    assert "MASK-999" not in implementations()


@pytest.fixture
def all_tests() -> None:
    """Every test module of the suite, imported."""
    for path in sorted((Path(conformance.__file__).parent / "clauses").glob("test_*.py")):
        importlib.import_module(f"attnspec.conformance.clauses.{path.stem}")


@pytest.mark.usefixtures("all_tests")
def test_text_reference_and_tests_fit() -> None:
    """Every clause has a test, every MUST a reference function, and no test speaks of a clause that is not there."""
    importlib.import_module("attnspec.reference")
    assert audit.audit(complete=True) == []


@pytest.mark.usefixtures("all_tests")
def test_the_audit_reports_each_kind_of_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(audit.TESTED, "MASK-999", ["test_a", "test_b"])
    monkeypatch.delitem(audit.TESTED, "SCALE-1")
    monkeypatch.delitem(_implementations, "SCALE-2")
    of_paths = {**index(), "MODE-3": replace(index()["MODE-3"], feature="paths")}
    monkeypatch.setattr(audit, "index", lambda: of_paths)
    unknown, unoffered, untested, unclaimed = audit.audit(complete=True)
    assert unknown == "test_a, test_b names MASK-999, which is not in the spec"
    assert untested == "SCALE-1 has no test"
    assert unclaimed == "SCALE-2 is a MUST of kind value, and no reference function claims it"
    assert unoffered.startswith("MODE-3 is bound to feature paths, which an adapter can't offer; choose from mha, mqa, ")
    assert audit.audit(complete=False) == [unknown, unoffered, unclaimed]


# DIALECTS


def test_a_dialect_knows_its_choices() -> None:
    assert Dialect("bottom_right", "zero", "blocked") == CANONICAL
    assert CANONICAL.with_choice("empty_row", "nan") == Dialect(empty_row="nan")
    for key, choice in CHOICES.items():
        values = choice.values
        assert getattr(CANONICAL, key) == values[0]
        with pytest.raises(ValueError, match=rf"{key} is 'sideways'; it can be {re.escape(' | '.join(values))}"):
            Dialect(**{key: "sideways"})
        with pytest.raises(ValueError, match=f"{key} is 'sideways'"):
            CANONICAL.with_choice(key, "sideways")
    with pytest.raises(ValueError, match=r"unknown choice 'colour'; choose from causal_alignment, empty_row"):
        CANONICAL.with_choice("colour", "red")


# PROBLEMS


def tensors(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    usual = {"q": (2, 4, 3, 5), "k": (2, 2, 6, 5), "v": (2, 2, 6, 7)}
    return {name: torch.zeros(shape) for name, shape in (usual | shapes).items()}


def mask(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (tensors(q=(4, 3, 5)), r"expected q \(b h i d\).*found q \(4, 3, 5\)"),
        (tensors(k=(2, 5)), r"expected q.*k \(2, 5\)"),
        (tensors(v=(2, 6, 7)), r"expected q.*v \(2, 6, 7\)"),
        (tensors(k=(2, 2, 6, 4)), r"do not agree: .*k \(2, 2, 6, 4\)"),
        (tensors(v=(2, 2, 5, 7)), r"do not agree: .*v \(2, 2, 5, 7\)"),
        (tensors(v=(2, 1, 6, 7)), r"do not agree: .*v \(2, 1, 6, 7\)"),
        (tensors(k=(1, 2, 6, 5), v=(1, 2, 6, 7)), r"do not agree: q \(2, 4, 3, 5\), k \(1, 2, 6, 5\)"),
        (tensors(k=(2, 3, 6, 5), v=(2, 3, 6, 7)), r"4 query heads can't be shared evenly among 3 key/value heads"),
        (tensors() | {"mask": torch.zeros(2, 6)}, r"a mask is bool \(True = may attend\), found torch.float32"),
        (tensors() | {"mask": mask(3, 6)}, r"mask \(3, 6\) does not broadcast to \(2, 6\)"),
        (tensors() | {"mask": mask(2, 4, 3, 5)}, r"mask \(2, 4, 3, 5\) does not broadcast to \(2, 4, 3, 6\)"),
        (tensors() | {"mask": mask(2, 3, 6)}, r"mask \(2, 3, 6\) does not broadcast to \(2, 4, 3, 6\)"),
        (tensors() | {"mask": mask(1, 1, 1, 3, 6)}, r"mask \(1, 1, 1, 3, 6\) does not broadcast"),
        (tensors() | {"bias": torch.zeros(4, 1, 3, 6)}, r"bias \(4, 1, 3, 6\) does not broadcast to \(2, 4, 3, 6\)"),
        (tensors() | {"bias": torch.zeros(6, 3)}, r"bias \(6, 3\) does not broadcast"),
        (tensors() | {"dropout": 1.5}, r"dropout is a probability, found 1.5"),
        (tensors() | {"dropout": -0.1}, r"dropout is a probability, found -0.1"),
        (tensors(do=(2, 4, 3, 5)), r"the cotangent has shape \(2, 4, 3, 5\), the output \(2, 4, 3, 7\)"),
    ],
)
def test_a_problem_refuses_what_does_not_fit(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Problem(**fields)


def test_a_problem_knows_its_sizes() -> None:
    problem = Problem(**tensors())
    assert [getattr(problem, letter) for letter in "bhgijde"] == [2, 4, 2, 3, 6, 5, 7]
    assert not problem.shared
    shared = Problem(**tensors(k=(2, 6, 5), v=(2, 6, 7)))
    assert shared.shared
    assert [getattr(shared, letter) for letter in "bhgijde"] == [2, 4, 1, 3, 6, 5, 7]
    assert list(shared.inputs()) == ["q", "k", "v"]


@pytest.mark.parametrize("dtype", LEVELS["dtype"])
@pytest.mark.parametrize("layout", LEVELS["layout"])
@pytest.mark.parametrize("heads", ["2/2", "4/2", "3/shared"])
def test_a_problem_comes_back_from_a_file(layout: str, heads: str, dtype: str) -> None:
    """Bit by bit, with its strides, its offsets and its options, in every layout."""
    case = Case(
        dtype=dtype,
        heads=heads,
        b=2,
        i=5,
        j=7,
        e=3,
        mask="bhj",
        holes="empty_row",
        bias="hj",
        biases="inf",
        causal=True,
        scale=-0.5,
        layout=layout,
        do="expanded",
        wrt="qv",
        seed=3,
    )
    problem = build(case).replace(dropout=0.25, training=True)
    check_round_trip(problem)
    for name in ("q", "k", "v", "do"):
        copy, x = twin(getattr(problem, name)), getattr(problem, name)
        assert same_bits(copy, x)
        assert (copy.stride(), copy.storage_offset()) == (x.stride(), x.storage_offset())
        assert copy.data_ptr() != x.data_ptr()


def test_an_empty_problem_comes_back_from_a_file() -> None:
    check_round_trip(Problem(**tensors(k=(2, 2, 0, 5), v=(2, 2, 0, 7)), mask=mask(2, 0)))


def test_nan_and_minus_zero_come_back_from_a_file() -> None:
    x = torch.tensor([float("nan"), -0.0, float("inf")]).view(1, 1, 3, 1)
    check_round_trip(Problem(x, x, x, mask(1, 1, 3, 3)))


def check_round_trip(problem: Problem) -> None:
    back = Problem.from_bytes(problem.to_bytes())
    for name in TENSORS:
        x, y = getattr(problem, name), getattr(back, name)
        assert (x is None) == (y is None), name
        if x is not None:
            assert same_bits(x, y), name
            assert x.stride() == y.stride() or not x.numel(), name
            assert x.storage_offset() == y.storage_offset() or not x.numel(), name
    for name in ("causal", "scale", "dropout", "training", "wrt"):
        assert getattr(problem, name) == getattr(back, name)


# THE LOCK


def test_no_clause_changed_without_its_version() -> None:
    """Where this is red, a sentence or a formula is not what it was in the version that it still has."""
    locked = lock.read(lock.LOCK.read_text(encoding="utf-8"))
    assert lock.changed(locked, index()) == []
    assert lock.behind(locked, index()) == [], "python -m attnspec.spec.lock"


def test_the_lock_sees_what_changes_goes_and_comes_back() -> None:
    [clause] = parse(CLAUSE, "taste.md")
    locked = {"TASTE-1": lock.Entry(clause.since, lock.digest(clause))}
    assert lock.changed(locked, {"TASTE-1": clause}) == lock.behind(locked, {"TASTE-1": clause}) == []
    for other in (replace(clause, sentence="It smells."), replace(clause, formula="x = 1"), replace(clause, level="MAY")):
        assert "TASTE-1 does not read as in version 0.1" in lock.changed(locked, {"TASTE-1": other})[0]
        assert lock.changed(locked, {"TASTE-1": replace(other, since="9.9")}) == []
        assert lock.behind(locked, {"TASTE-1": replace(other, since="9.9")}) == ["TASTE-1"]
    assert lock.changed(locked, {"TASTE-1": replace(clause, why="because", title="Other")}) == []
    assert "TASTE-1 is gone" in lock.changed(locked, {})[0]
    assert lock.changed({"TASTE-1": lock.Entry("0.1", lock.WITHDRAWN)}, {}) == []
    assert "TASTE-1 was withdrawn" in lock.changed({"TASTE-1": lock.Entry("0.1", lock.WITHDRAWN)}, {"TASTE-1": clause})[0]


def test_a_sentence_can_be_reworded_and_demand_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its version stays, and the lock keeps the hash of the wording that the version was made with."""
    [clause] = parse(CLAUSE, "taste.md")
    other, later = replace(clause, sentence="What is good is the taste."), replace(clause, since="9.9", sentence="It smells.")
    monkeypatch.setattr(lock, "LOCK", tmp_path / "clauses.lock")
    lock.LOCK.write_text(f"TASTE-1 0.1 {lock.digest(clause)}\n", encoding="utf-8")

    def run(text: Clause, *arguments: str) -> int:
        monkeypatch.setattr(lock, "index", lambda: {"TASTE-1": text})
        return lock.main(arguments)

    assert run(other) == 1
    assert "--reworded TASTE-1" in capsys.readouterr().err
    assert run(other, "--reworded", "TASTE-1") == 0
    locked = lock.read(lock.LOCK.read_text(encoding="utf-8"))
    assert locked == {"TASTE-1": lock.Entry("0.1", lock.digest(other), (lock.digest(clause),))}
    assert lock.changed(locked, {"TASTE-1": other}) == lock.behind(locked, {"TASTE-1": other}) == []
    assert "TASTE-1 does not read as in version 0.1" in lock.changed(locked, {"TASTE-1": clause})[0]
    for text, id_ in ((other, "TASTE-1"), (later, "TASTE-1"), (other, "TASTE-2")):
        with pytest.raises(SystemExit):
            run(text, "--reworded", id_)
    assert run(later) == 0
    assert lock.read(lock.LOCK.read_text(encoding="utf-8")) == {"TASTE-1": lock.Entry("9.9", lock.digest(later))}
