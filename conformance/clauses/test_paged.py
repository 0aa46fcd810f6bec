"""PAGED: keys and values in pages, and a table of each sequence's."""

from __future__ import annotations

from dataclasses import replace

from attnspec.adapters.restrictions import sizes
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.ragged import SIZE, form_of, lengths_of
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import NotApplicable, must_answer, must_be_right, must_keep_bits
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.sequences import asked, carried, carrier_of, in_order, must_be_as, must_leave, must_not_see
from attnspec.spec.ragged import Paged

UNUSED = (-1, 1 << 20, -(1 << 31))


def paged(case: Case) -> bool:
    """Pages."""
    return form_of(case) == "paged"


def read_alone(case: Case) -> bool:
    """Pages that the call only reads."""
    return paged(case) and "append" not in case.carrier


def rows_of_a_page(subject: Subject) -> int:
    """A size of pages that is offered."""
    return sizes(subject.adapter.restrictions).get("page_size") or (3 if subject.offers("paged_any_size") else SIZE)


def pages_of(subject: Subject) -> str:
    """The level of pages of that size."""
    size = rows_of_a_page(subject)
    return "paged" if size == SIZE else f"paged+{size}"


@clause("PAGED-1")
@agrees("o", "lse", offering=("paged",), where=read_alone)
def test_the_table_says_where_a_key_lies(subject: Subject, case: Case) -> None:
    """Pages in order and dealt out, of several sizes."""


@clause("PAGED-1")
@once("paged", "strided")
def test_pages_that_are_views_of_one_pool(subject: Subject, case: Case) -> None:
    """Each page of keys beside the page of values that belongs to it."""
    size = "+3" if subject.offers("paged_any_size") else ""
    append = "+append" if subject.offers("paged_append") else ""
    for carrier in dict.fromkeys((f"paged{size}+dealt+fused", f"paged{size}{append}+dealt+fused")):
        problem = asked(subject, case, carrier=carrier, lengths="1:9/1:4/1:6", i=1, e=5)
        must_be_right(subject, problem, "pages of keys and of values in one pool")


@clause("PAGED-2")
@on_cases(offering=("paged",), where=paged)
def test_where_a_page_lies_does_not_matter(subject: Subject, case: Case) -> None:
    """Two other placements, one in a larger pool."""
    problem = carried(subject.problem(case), seed=0)
    before = must_answer(subject, problem)
    for seed, spare in ((7, 0), (11, 5)):
        other = carried(problem, seed=seed, spare=spare)
        what = f"the pages lie elsewhere{' in a larger pool' if spare else ''}"
        must_be_as(subject, before, must_answer(subject, other), problem, list(range(problem.b)), what, other)


@clause("PAGED-3")
@on_cases(offering=("paged",), where=paged)
def test_what_no_sequence_has_has_no_influence(subject: Subject, case: Case) -> None:
    """NaN, huge numbers and others' keys in free pages and behind the last key."""
    must_not_see(subject, subject.problem(case))


@clause("PAGED-3")
@once("paged")
def test_the_rest_of_the_last_page_has_no_influence(subject: Subject, case: Case) -> None:
    """A page that a sequence has only one row of, and free pages between those that are not free."""
    size = rows_of_a_page(subject)
    problem = asked(subject, case, carrier=pages_of(subject), lengths=f"1:{size + 1}/1:1", b=2, i=1, j=size + 1)
    must_not_see(subject, problem, spare=4, seed=3)


@clause("PAGED-4")
@once("paged_any_entry")
def test_entries_that_are_not_used_may_hold_any_number(subject: Subject, case: Case) -> None:
    """−1, one beyond the pool, and the lowest number of int32."""
    size = rows_of_a_page(subject)
    problem = asked(subject, case, carrier=pages_of(subject), lengths=f"1:{2 * size}/1:1/1:{size}", i=1, j=2 * size)
    first = carried(problem, columns=3, unused=0)
    before = must_answer(subject, first)
    for unused in UNUSED:
        other = carried(first, unused=unused)
        what = f"entries of the table that are not used hold {unused}"
        must_keep_bits(subject, first, before.o, must_answer(subject, other).o, "o", what, other)


@clause("PAGED-5")
@agrees("o", "lse", offering=("paged",), where=lambda case: paged(case) and any(0 in lengths for lengths in lengths_of(case)))
def test_a_sequence_without_keys(subject: Subject, case: Case) -> None:
    """No queries, no keys, or neither."""


@clause("PAGED-5")
@once("paged_queries")
def test_one_query_at_most_beside_a_sequence_without_one(subject: Subject, case: Case) -> None:
    """Decode with a slot that is idle: first, and between others."""
    for lengths in ("0:5/1:9/1:4", "1:9/0:0/1:4"):
        must_be_right(
            subject, asked(subject, case, i=1, carrier="paged", lengths=lengths), "one query at most, and none in a sequence"
        )


@clause("PAGED-6")
@agrees("o", "lse", offering=("paged_queries",), where=lambda case: paged(case) and len(set(lengths_of(case)[0])) > 1)
def test_sequences_with_different_numbers_of_queries(subject: Subject, case: Case) -> None:
    """Prompts and single tokens in one call."""


@clause("PAGED-7")
@agrees("o", "lse", offering=("paged_append",), where=lambda case: paged(case) and "append" in case.carrier)
def test_new_keys_are_attended_to_in_pages(subject: Subject, case: Case) -> None:
    """In pages of several sizes, across their borders."""


@clause("PAGED-7")
@on_cases(offering=("paged",), where=paged)
def test_new_rows_of_pages_are_written_and_nothing_else(subject: Subject, case: Case) -> None:
    """Every bit of every page is compared."""
    must_leave(subject, subject.problem(case))


@clause("PAGED-8")
@once("paged")
def test_any_length_ends_its_page(subject: Subject, case: Case) -> None:
    """One key, one less and one more than a page, whole pages."""
    size = rows_of_a_page(subject)
    for j in sorted({1, size - 1, size, size + 1, 2 * size, 2 * size + 1} - {0}):
        problem = asked(subject, case, b=2, i=1, carrier=pages_of(subject), lengths=f"1:{j}/1:{size}", j=max(j, size))
        must_be_right(subject, carried(problem, seed=5), f"{j} keys in pages of {size}", ("o",))


@clause("PAGED-9")
@once("paged")
def test_pages_may_be_shared(subject: Subject, case: Case) -> None:
    """Two pages at the beginning of each of three sequences are the same."""
    size = rows_of_a_page(subject)
    lengths = f"1:{3 * size}/1:{2 * size}/1:{2 * size + 1}"
    problem = asked(subject, case, i=1, carrier=pages_of(subject), lengths=lengths, j=3 * size)
    if getattr(carrier_of(problem), "new", ()):  # a page that is written is not shared
        raise NotApplicable
    k, v = problem.k.clone(), problem.v.clone()
    k[:, :, : 2 * size], v[:, :, : 2 * size] = k[:1, :, : 2 * size].clone(), v[:1, :, : 2 * size].clone()
    problem = problem.replace(k=k, v=v)
    must_be_right(subject, problem, "sequences with the same beginning, each with pages of its own", ("o",))
    must_be_right(subject, carried(problem, shared=2, seed=5), "the same with two pages that all of them have", ("o",), alone=False)


@clause("PAGED-10")
@on_cases(offering=("paged",), where=paged)
def test_the_table_may_be_wider(subject: Subject, case: Case) -> None:
    """One column more, and seven."""
    problem = carried(subject.problem(case), columns=0, unused=0)
    before = must_answer(subject, problem)
    for columns in (1, 7):
        other = carried(problem, columns=columns)
        what = f"the table has {columns} more {'column' if columns == 1 else 'columns'} than are used"
        must_be_as(subject, before, must_answer(subject, other), problem, list(range(problem.b)), what, other)


@clause("PAGED-11")
@on_cases(offering=("paged",), where=lambda case: paged(case) and case.b > 1)
def test_sequences_may_change_places(subject: Subject, case: Case) -> None:
    """The other way round, with their rows of the table."""
    problem = subject.problem(case)
    order = list(range(problem.b))[::-1]
    other = in_order(problem, order)
    before, after = must_answer(subject, problem), must_answer(subject, other)
    must_be_as(subject, before, after, problem, order, "the sequences come the other way round", other)


@clause("PAGED-12")
@once("paged")
def test_the_next_call_reads_its_own_table(subject: Subject, case: Case) -> None:
    """Other lengths and another table in tensors of the same shapes."""
    size = rows_of_a_page(subject)
    ends = (3 * size, size + 1, 2 * size)
    problem, other = (
        asked(
            subject,
            case,
            i=1,
            carrier=pages_of(subject),
            lengths="/".join(f"1:{j}" for j in some),
            j=3 * size,
            causal=subject.offers("causal"),
        )
        for some in (ends, (ends[1], ends[2], ends[0]))
    )
    if not isinstance(carrier_of(problem), Paged):
        raise NotApplicable
    other = other.replace(carrier=replace(carrier_of(other), seed=9))  # type: ignore[call-arg]
    must_be_right(subject, problem, "the first call", ("o",))
    must_be_right(subject, other, "after a call with other lengths and another table", ("o",), earlier=(problem,))
    must_be_right(subject, problem, "after a call with other lengths and another table", ("o",), earlier=(problem, other))
