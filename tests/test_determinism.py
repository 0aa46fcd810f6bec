"""DETERMINISM and BATCH: honest kernels that promise all, some or nothing, what a promise is, and the calls that ask for it."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mutants.determinism import PartsByCapacity, PartsByTheLongest, broken
from steady import Atomic, Shared, Steady

from attnspec.adapters import Adapter, Unsupported, resolve
from attnspec.adapters.remote.isolated import isolated
from attnspec.adapters.restrictions import forbidden
from attnspec.adapters.within import FLAGGED, LOADED, OTHER_THREADS, SURROUNDINGS, Call, Within, with_flag
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.report.header import header
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.companions import carried_companies, dense_companies, forms_of, must_be_the_same, pieces
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, NotOffered, must_keep_bits
from attnspec.reference import solve
from attnspec.spec import Dialect, index
from attnspec.spec.words import FEATURES, PROMISES, REPEATING

ALL = ("DETERMINISM", "BATCH")
OF_PROMISES = tuple(x.id for x in index().values() if x.feature in PROMISES)


def offering(kind: type[Adapter], *without: str) -> Adapter:
    """An adapter that does not offer some of what its class does."""
    adapter = kind()
    adapter.offers = frozenset(adapter.offers) - set(without)
    return adapter


# HONEST KERNELS


@pytest.mark.parametrize("chapter", ALL)
def test_who_keeps_every_promise_is_never_red(chapter: str) -> None:
    assert not broken(offering(Steady, "padded", "paged"), chapter)
    assert not broken(offering(Steady, "packed", "cached"), "BATCH-3", "BATCH-5")


def test_who_repeats_bits_and_splits_by_the_batch_is_never_red() -> None:
    """It does not promise what it does not keep, and is red where it does."""
    assert not broken(offering(Shared, "cached", "paged"), "DETERMINISM-2", "DETERMINISM-3", "BATCH-1", "BATCH-2")
    liar = offering(Shared, "cached", "paged", "packed")
    liar.offers |= {"batch_invariant", "batch_invariant_backward"}
    assert set(broken(liar, "BATCH-3", "BATCH-4", "BATCH-5")) == {
        "test_companions_change_no_bit",
        "test_companions_change_no_bit_of_a_gradient",
    }


def test_who_adds_up_in_any_order_and_promises_nothing_is_never_red() -> None:
    assert not broken(offering(Atomic, "cached", "paged"), *ALL)


def test_each_promise_is_asked_by_itself() -> None:
    """Who makes one that it does not keep is red there, and nowhere else."""
    stopped = {
        "deterministic": "test_the_output_has_the_same_bits_on_every_call",
        "deterministic_backward": "test_the_gradients_have_the_same_bits_on_every_call",
        "deterministic_flag": "test_under_the_flag_the_same_bits_come_on_every_call",
        "same_when_asked": "test_what_else_is_asked_for_changes_no_bit",
        "batch_invariant": "test_companions_change_no_bit",
        "batch_invariant_backward": "test_companions_change_no_bit_of_a_gradient",
        "row_invariant": "test_other_queries_change_no_bit_of_a_row",
    }
    assert stopped.keys() == PROMISES.keys()
    for promise, test in stopped.items():
        liar = offering(Atomic, "packed", "cached", "paged")
        liar.offers |= {promise}
        beside = {"test_the_flag_changes_no_bit_of_the_output"} if promise == "deterministic_flag" else set()
        assert set(broken(liar, *OF_PROMISES)) - beside == {test}


def test_in_each_form_room_is_none_of_a_sequences_business() -> None:
    for kind, form in ((PartsByTheLongest, "packed"), (PartsByCapacity, "cached")):
        others = {"packed", "cached", "paged"} - {form}
        assert list(broken(offering(kind, *others), "BATCH-3")) == ["test_other_sequences_change_no_bit"]


# PROMISES


def test_what_was_seen_is_said_where_nobody_promises() -> None:
    def notes(adapter: Adapter) -> list[str]:
        subject = Subject(adapter, dialect=Dialect(**adapter.dialect), dtypes=("float32",))
        run = Run("", [subject])
        broken(adapter, "DETERMINISM-1", into=run)
        other = Run("", [Subject(adapter, dtypes=("float32",))])
        other.absorb(run.take())  # from a worker
        other.note_at_the_end()
        return [note for note in other.record.notes if "repeated calls" in note]

    assert not notes(offering(Steady, "packed", "cached", "paged"))
    (same,) = notes(offering(Steady, "packed", "cached", "paged", *PROMISES))
    assert same.endswith(
        "repeated calls gave the same bits each time; who wants to be held to that offers deterministic, deterministic_backward"
    )
    (other,) = notes(offering(Atomic, "packed", "cached", "paged"))
    assert "repeated calls gave other bits of o in float32, " in other
    assert "dq in float32" in other


def test_the_header_names_promises_that_are_made_and_no_others() -> None:
    def lines(adapter: Adapter) -> str:
        return "\n".join(header(Run("", [Subject(adapter, dtypes=("float32",))])))

    assert not any(f" {name}" in lines(offering(Steady, *PROMISES)) for name in PROMISES)
    assert "\n    promises bits: batch_invariant\n" in lines(offering(Steady, *(PROMISES.keys() - {"batch_invariant"})))
    simple = offering(Steady, *PROMISES)
    simple.deterministic = True
    assert "\n    promises bits: deterministic, deterministic_backward\n" in lines(simple)


def test_the_attribute_is_short_for_two_features() -> None:
    class Simple(Adapter):
        deterministic = True

        def attend(self, q, k, v):
            return v

    subject = Subject(Simple())
    assert subject.offers(*REPEATING)
    assert subject.repeats("o")
    assert subject.repeats("dq")
    assert not subject.offers("batch_invariant")
    one = Subject(offering(Steady, "deterministic_backward"))
    assert one.repeats("lse")
    assert not one.repeats("dk")
    assert PROMISES.keys() <= FEATURES.keys()


def test_a_promise_is_not_excused_by_what_is_repeated() -> None:
    problem = build(Case(i=3, j=40, heads="2/2", wrt="none"))
    x = torch.zeros(problem.shape_of("o"))
    subject = Subject(Atomic())
    must_keep_bits(subject, problem, x, x, "o", "the same")
    with pytest.raises(Broken):
        must_keep_bits(subject, problem, x, x + 2.0**-40, "o", "some bits", promised=True)


# CALLS


@pytest.mark.parametrize("alignment", ["bottom_right", "top_left"])
def test_parts_of_a_call_are_what_they_are_alone(alignment: str) -> None:
    """In the reference: dense, and in each form that is offered, where a cache has an alignment of its own."""
    dialect = replace(Dialect(**Steady.dialect), causal_alignment=alignment)
    case, subject = Case(), Subject(Steady(), dialect=dialect, width=4)
    asked = [*dense_companies(subject, case, wrt="all")]
    assert set(forms_of(subject)) == {"packed", "cached", "paged"}
    for form in forms_of(subject):
        asked += [*carried_companies(subject, case, form, wrt="all"), *pieces(subject, case, form)]
    asked += pieces(subject, case, "")
    assert len(asked) == 2 + 3 * (2 + 5) + 5
    for alone, companies in asked:
        exact = solve(alone, subject.dialect)
        for company in companies:
            whole = solve(company.problem, subject.dialect)
            for name in alone.outputs:
                x, a, b = exact.values[name], company.place, company.row
                there = whole.values[name][a : a + len(x), :, b : b + x.shape[2]]
                np.testing.assert_allclose(there, x, rtol=1e-12, atol=1e-14, err_msg=f"{company.what}: {name}")


def test_who_always_appends_is_asked_in_its_form_with_new_keys() -> None:
    adapter = offering(Steady, "packed", "paged")
    adapter.restrictions = frozenset({"always_causal", "always_append"})
    subject = Subject(adapter, dialect=Dialect(**Steady.dialect), width=4)
    asked = [*carried_companies(subject, Case(), "cached"), *pieces(subject, Case(), "cached")]
    assert asked
    for alone, companies in asked:
        for problem in (alone, *(company.problem for company in companies)):
            assert problem.carrier.new == problem.carrier.q_lengths  # type: ignore[union-attr]
            assert not forbidden(adapter.restrictions, problem)


def test_a_form_without_words_hides_no_other() -> None:
    """What is refused in one form is asked in the others. Where nothing is left, a reader is told why."""

    class InPagesAlone(Steady):
        def attend_cached(self, *arguments: Any, **options: Any) -> Any:
            raise Unsupported("no words")

    case, subject = Case(dtype="float32"), Subject(offering(InPagesAlone, "packed"), dialect=Dialect(**Steady.dialect), width=4)
    made = {form: [*pieces(subject, case, form)] for form in ("", "cached", "paged")}
    must_be_the_same(subject, iter(made["cached"]), iter(made["paged"]), bits=True)
    with pytest.raises(NotOffered, match="no words"):
        must_be_the_same(subject, iter(made["cached"]), bits=True)
    whole = replace(made["paged"][0][1][0], row=1)
    with pytest.raises(Broken):
        must_be_the_same(subject, iter(made["cached"]), iter([(made["paged"][0][0], [whole])]), bits=True)
    with pytest.raises(NotApplicable):
        must_be_the_same(subject, bits=False)
    subject.adapter.restrictions = frozenset({"equal_lengths"})
    with pytest.raises(NotOffered, match="restricted: equal_lengths"):
        must_be_the_same(subject, iter([]), bits=False)


def test_what_surrounds_a_call_is_gone_after_it() -> None:
    seen = []

    def look(q, k, v):
        seen.append((threading.active_count(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v

    (adapter,) = resolve(look)
    problem = build(Case(i=3, j=5, heads="2/2", wrt="none"))
    for name in ("", LOADED, OTHER_THREADS, FLAGGED, ""):
        answer = adapter.ask(problem, Within(name))
        assert answer.refusal is None
        assert not answer.disturbed, name
    before, loaded, threads, flag, after = seen
    assert before == after
    assert loaded == (before[0] + 2, *before[1:])
    assert threads == (before[0], 1 if before[1] > 1 else 3, before[2])
    assert flag == (*before[:2], True)


def test_torchs_compiler_is_told_of_the_flag_where_somebody_imported_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on, *, warn_only: told.append((on, warn_only)))
    for name in ("torch._dynamo", "torch._inductor"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with SURROUNDINGS[FLAGGED].enter(SimpleNamespace(), "cpu"):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert not told
    monkeypatch.setitem(sys.modules, "torch._dynamo", SimpleNamespace())
    with SURROUNDINGS[FLAGGED].enter(SimpleNamespace(), "cpu"):
        pass
    assert told == [(True, True), (False, False)]


def test_a_parameter_for_the_same_bits_is_given_where_nobody_else_gives_it() -> None:
    def takes(q, k, v, deterministic=False):
        return deterministic

    def takes_none(q, k, v):
        return False

    assert with_flag(Call(takes, {}, ())).arguments == {"deterministic": True}
    assert with_flag(Call(takes, {"deterministic": False}, ())).arguments == {"deterministic": False}  # flax's, of dropout
    assert with_flag(Call(takes_none, {}, ())).arguments == {}
    given = []

    class Has(Adapter):
        def attend(self, q, k, v, *, deterministic=False):
            given.append(deterministic)
            return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v

    for name in ("", FLAGGED, ""):
        assert Has().ask(build(Case(i=3, j=5, heads="2/2", wrt="none")), Within(name)).refusal is None
    assert given == [False, True, False]


def test_another_process_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "counting.py"
    file.write_text(
        "import torch\nCALLS = []\ndef attend(q, k, v):\n    CALLS.append(1)\n    return torch.full_like(q, len(CALLS))\n"
    )
    (adapter,) = isolated(f"{file}:attend")
    problem = build(Case(i=3, j=5, heads="2/2", wrt="none"))
    other = None
    try:
        assert [float(adapter.on("cpu").ask(problem).o.max()) for _ in range(3)] == [1, 2, 3]
        other = adapter.on("cpu").elsewhere()
        assert other is not None
        assert float(other.ask(problem).o.max()) == 1
        assert float(adapter.ask(problem).o.max()) == 4
    finally:
        adapter.close()
        if other is not None:
            other.close()
    assert Adapter().elsewhere() is None
