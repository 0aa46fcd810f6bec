"""VARLEN: many sequences in one call are many calls in one."""

from __future__ import annotations

from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.ragged import form_of, lengths_of
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import Broken, must_answer, must_be_right, refused
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.sequences import asked, carried, in_order, must_be_as, must_not_see, with_one_more
from attnspec.spec.words import OUTPUTS


def packed(case: Case) -> bool:
    """Sequences one behind the other, without gaps."""
    return form_of(case) == "packed" and "gaps" not in case.carrier


def with_gaps(case: Case) -> bool:
    """Sequences one behind the other, with rows between them that belong to none."""
    return "packed+gaps" in case.carrier


def padded(case: Case) -> bool:
    """Dense tensors with lengths."""
    return form_of(case) == "padded"


def moved(case: Case) -> bool:
    """Causal, a window or slopes, beside sequences of different lengths."""
    return packed(case) and (case.causal or case.window != "none" or case.alibi_slopes != "none")


def without_rows(case: Case) -> bool:
    """Some sequence has no queries, or no keys."""
    return packed(case) and any(0 in lengths for lengths in lengths_of(case))


@clause("VARLEN-1")
@agrees("o", "lse", offering=("packed",), where=packed)
def test_each_sequence_is_attended_alone(subject: Subject, case: Case) -> None:
    """Lengths of all kinds, in one pack."""


@clause("VARLEN-1")
@once("packed", "strided")
def test_keys_and_values_that_are_views_of_one_tensor(subject: Subject, case: Case) -> None:
    """Side by side, as one projection leaves them."""
    for lengths in ("mixed", "full"):
        must_be_right(subject, asked(subject, case, carrier="packed+fused", lengths=lengths, e=5), "keys and values in one tensor")


@clause("VARLEN-2")
@agrees("o", "lse", offering=("packed",), where=moved)
def test_positions_follow_the_sequence(subject: Subject, case: Case) -> None:
    """Causal, windows and slopes, beside longer and shorter sequences."""


@clause("VARLEN-3")
@agrees(*OUTPUTS, offering=("packed",), where=without_rows)
def test_a_sequence_without_rows(subject: Subject, case: Case) -> None:
    """No queries, no keys, or neither: first, in the middle and last."""


@clause("VARLEN-4")
@agrees("dq", "dk", "dv", offering=("packed", "backward"), where=lambda case: packed(case) and case.wrt != "none")
def test_the_gradients_of_a_sequence_are_its_own(subject: Subject, case: Case) -> None:
    """All kinds of lengths, with cotangents of the output and of the lse."""


@clause("VARLEN-5")
@on_cases(offering=("packed",), where=lambda case: form_of(case) == "packed" and ("tail" in case.carrier or "gaps" in case.carrier))
def test_what_belongs_to_no_sequence_has_no_influence(subject: Subject, case: Case) -> None:
    """NaN, huge numbers, and the rows of others."""
    must_not_see(subject, subject.problem(case))


@clause("VARLEN-5")
@once("packed")
def test_what_is_behind_the_last_sequence_has_no_influence(subject: Subject, case: Case) -> None:
    """More rows behind the last sequence than a block of a kernel has."""
    for wrt in ("all", "none") if subject.offers("backward") else ("none",):
        for lengths in ("mixed", "zero_last", "3:9/3:0"):
            must_not_see(subject, asked(subject, case, carrier="packed+tail", lengths=lengths, wrt=wrt), tail=70)


@clause("VARLEN-6")
@on_cases(offering=("packed",), where=packed)
def test_the_longest_lengths_are_bounds(subject: Subject, case: Case) -> None:
    """One more, twice as many, and more than a block."""
    problem = carried(subject.problem(case), slack=0)
    before = must_answer(subject, problem)
    for slack in (1, max(problem.i, problem.j), 150):
        longer = carried(problem, slack=slack)
        what = f"the longest lengths are told as {slack} more than they are"
        must_be_as(subject, before, must_answer(subject, longer), problem, list(range(problem.b)), what, longer)


@clause("VARLEN-7")
@on_cases(offering=("packed",), where=lambda case: packed(case) and case.b > 1)
def test_the_order_of_sequences_does_not_matter(subject: Subject, case: Case) -> None:
    """The other way round, and the last one first."""
    problem = carried(subject.problem(case), order=())
    before = must_answer(subject, problem)
    for order in (list(range(problem.b))[::-1], [problem.b - 1, *range(problem.b - 1)]):
        other = in_order(problem, order)
        places = [order.index(n) for n in range(problem.b)]
        must_be_as(subject, before, must_answer(subject, other), problem, places, f"the sequences come in the order {order}", other)


@clause("VARLEN-8")
@on_cases(offering=("packed",), where=packed)
def test_a_sequence_without_rows_changes_nothing(subject: Subject, case: Case) -> None:
    """Before, between and behind the others."""
    problem = carried(subject.problem(case), order=())
    before = must_answer(subject, problem)
    for place in sorted({0, problem.b // 2, problem.b}):
        other = with_one_more(problem, place)
        places = [n + (n >= place) for n in range(problem.b)]
        what = f"a sequence without queries and keys is put at place {place}"
        must_be_as(subject, before, must_answer(subject, other), problem, places, what, other)


@clause("VARLEN-9")
@agrees(*OUTPUTS, offering=("packed_gaps",), where=with_gaps)
def test_a_slot_may_hold_fewer_rows(subject: Subject, case: Case) -> None:
    """Rows behind each sequence that belong to none."""


@clause("VARLEN-10")
@once("packed")
def test_lengths_in_int64(subject: Subject, case: Case) -> None:
    """Where int64 is not offered, an error is an answer."""
    for lengths in ("mixed", "decode"):
        problem = carried(asked(subject, case, carrier="packed", lengths=lengths), long=True)
        if not subject.offers("packed_long") and refused(subject.run(problem), problem) is not None:
            continue
        must_be_right(subject, problem, "cumulative lengths in int64", ("o",))


@clause("VARLEN-11")
@on_cases(offering=("packed",), where=lambda case: form_of(case) == "packed")
def test_lengths_and_inputs_stay_as_they_were(subject: Subject, case: Case) -> None:
    """The packed tensors with their gaps, and the cumulative lengths."""
    problem = subject.problem(case)
    answer = subject.run(problem)
    if answer.changed:
        raise Broken(Finding("changed", "call", f"the call changed {' and '.join(answer.changed)}"), problem)


@clause("VARLEN-12")
@agrees(*OUTPUTS, offering=("padded",), where=padded)
def test_a_length_of_each_batch_item(subject: Subject, case: Case) -> None:
    """Padding is poison."""


@clause("VARLEN-12")
@on_cases(offering=("padded",), where=lambda case: padded(case) and case.lengths != "full")
def test_padding_has_no_influence(subject: Subject, case: Case) -> None:
    """NaN, huge numbers, and what another batch item has there."""
    must_not_see(subject, subject.problem(case))


@clause("VARLEN-13")
@once("packed")
def test_other_lengths_in_the_next_call(subject: Subject, case: Case) -> None:
    """The same total, in tensors of the same shapes, and other sequences in it."""
    problem = asked(subject, case, carrier="packed", lengths="3:9/2:4/1:8", causal=subject.offers("causal"))
    other = asked(subject, case, carrier="packed", lengths="1:8/2:9/3:4", causal=subject.offers("causal"))
    must_be_right(subject, problem, "the first call", ("o",))
    must_be_right(subject, other, "after a call with other lengths and the same total", ("o",), earlier=(problem,))
    must_be_right(subject, problem, "after a call with other lengths and the same total", ("o",), earlier=(problem, other))
