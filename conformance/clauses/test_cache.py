"""CACHE: keys of earlier calls, of which each sequence has a slot."""

from __future__ import annotations

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.ragged import form_of
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import must_agree, must_answer, must_be_right
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.sequences import asked, carried, must_be_as, must_leave, must_not_see, one_token_after_another


def cached(case: Case) -> bool:
    """A cache."""
    return form_of(case) == "cached"


def plain(case: Case) -> bool:
    """A cache that the call only reads, with slots in order and keys from the first row on."""
    return case.carrier == "cached"


def has(word: str):  # type: ignore[no-untyped-def]
    """A cache with something beside it."""
    return lambda case: cached(case) and word in case.carrier.split("+")


@clause("CACHE-1")
@agrees("o", "lse", offering=("cached",), where=plain)
def test_the_filled_rows_are_attended_to(subject: Subject, case: Case) -> None:
    """All kinds of lengths; the rest of each slot is poison."""


@clause("CACHE-2")
@agrees("o", "lse", offering=("cached_append",), where=has("append"))
def test_new_keys_are_attended_to(subject: Subject, case: Case) -> None:
    """As many as queries, and fewer where a sequence has no more keys."""


@clause("CACHE-3")
@on_cases(offering=("cached",), where=lambda case: cached(case) and case.carrier != "cached")
def test_other_rows_have_no_influence(subject: Subject, case: Case) -> None:
    """NaN, huge numbers and others' keys behind the filled rows, before the first key and in slots that are free."""
    must_not_see(subject, subject.problem(case))


@clause("CACHE-3")
@once("cached")
def test_rows_behind_the_filled_ones_have_no_influence(subject: Subject, case: Case) -> None:
    """More of them than a block of a kernel has."""
    must_not_see(subject, asked(subject, case, carrier="cached", lengths="mixed"), room=150)


@clause("CACHE-4")
@on_cases(offering=("cached",), where=cached)
def test_new_rows_are_written_and_nothing_else(subject: Subject, case: Case) -> None:
    """Every bit of every slot is compared."""
    must_leave(subject, subject.problem(case))


@clause("CACHE-4")
@once("cached", "strided")
def test_caches_that_are_views_of_one_tensor(subject: Subject, case: Case) -> None:
    """Keys and values side by side: what is written to one does not lie in the other."""
    append = "+append" if subject.offers("cached_append") else ""
    for e in (0, 5):
        problem = asked(subject, case, carrier=f"cached{append}+fused", lengths="mixed", e=e)
        must_be_right(subject, problem, "caches of keys and of values in one tensor")


@clause("CACHE-5")
@on_cases(offering=("cached",), where=cached)
def test_capacity_is_room_and_no_length(subject: Subject, case: Case) -> None:
    """One row more, and 256."""
    problem = carried(subject.problem(case), room=0)
    before = must_answer(subject, problem)
    for room in (1, 256):
        other = carried(problem, room=room)
        what = f"the cache has room for {room} more {'row' if room == 1 else 'rows'}"
        must_be_as(subject, before, must_answer(subject, other), problem, list(range(problem.b)), what, other)


@clause("CACHE-6")
@agrees("o", "lse", offering=("cached_left",), where=has("left"))
def test_rows_before_the_first_key_are_no_keys(subject: Subject, case: Case) -> None:
    """Another number of them for each sequence."""


@clause("CACHE-7")
@agrees("o", "lse", offering=("cached_slots",), where=has("slots"))
def test_each_sequence_has_its_slot(subject: Subject, case: Case) -> None:
    """The other way round, with a free slot."""


@clause("CACHE-8")
@agrees(
    "o",
    "lse",
    offering=("cached",),
    where=lambda case: cached(case) and (case.causal or case.window != "none" or case.alibi_slopes != "none"),
)
def test_the_last_query_stands_at_the_last_key(subject: Subject, case: Case) -> None:
    """Causal, windows and slopes, each sequence by its own number of keys."""


@clause("CACHE-9")
@once("cached_append", "causal")
def test_one_token_at_a_time_is_all_at_once(subject: Subject, case: Case) -> None:
    """Three tokens behind six, and behind none."""
    for j in (9, 3):
        problem = asked(subject, case, b=1, carrier="cached+append", lengths=f"3:{j}", causal=True, j=j)
        whole = must_be_right(subject, problem, "all tokens in one call", ("o",))
        exact = subject.solve(problem)
        for n, one in enumerate(one_token_after_another(problem, 0, 3)):
            o = must_be_right(subject, one, f"token {n} of 3 alone", ("o",), earlier=(problem,)).o
            got = whole.o.clone()
            got[:, :, n : n + 1] = o
            must_agree(
                subject, got, whole.o, exact, "o", f"token {n} of 3 in a call of its own, and in one call with the others", one
            )


@clause("CACHE-10")
@once("cached")
def test_a_cache_that_is_full_and_one_that_is_empty(subject: Subject, case: Case) -> None:
    """The longest sequence fills its slot to the last row; another one has no key, or only new ones."""
    append = subject.offers("cached_append")
    for lengths in ("3:9/3:0", "3:0/3:9", *(("3:3/3:9",) if append else ())):
        carrier = "cached+append" if append and lengths == "3:3/3:9" else "cached"
        problem = carried(asked(subject, case, b=2, carrier=carrier, lengths=lengths), room=0)
        must_be_right(subject, problem, "a slot that is full beside one in which nothing was", ("o",))


@clause("CACHE-11")
@once("cached")
def test_the_next_call_begins_anew(subject: Subject, case: Case) -> None:
    """Other lengths in tensors of the same shapes."""
    problem = asked(subject, case, carrier="cached", lengths="3:9/3:4/3:8", causal=subject.offers("causal"))
    other = asked(subject, case, carrier="cached", lengths="3:8/3:9/3:4", causal=subject.offers("causal"))
    must_be_right(subject, problem, "the first call", ("o",))
    must_be_right(subject, other, "after a call with other lengths", ("o",), earlier=(problem,))
    must_be_right(subject, problem, "after a call with other lengths", ("o",), earlier=(problem, other))
