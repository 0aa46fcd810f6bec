"""ROTARY: queries and new keys that a call turns by their positions."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch

from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.choosing import must_follow_a_choice
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import (
    Broken,
    NotApplicable,
    must_agree,
    must_answer,
    must_be_right,
    offered,
)
from attnspec.conformance.testing.plan import on_cases, once
from attnspec.conformance.testing.sequences import (
    carried,
    carrier_of,
    must_be_as,
    must_leave,
    one_token_after_another,
)
from attnspec.conformance.testing.turning import appended, by_hand, kinds, pairs, placed, small, turning, widths
from attnspec.spec import Problem
from attnspec.spec.ragged import Kept

OUTPUTS = ("o", "lse")


def must_turn(subject: Subject, problem: Problem, what: str) -> None:
    """A call that turns new keys and queries must give what the reference gives of turned ones. What it writes is ROTARY-8's."""
    answer, exact = subject.answered(problem)
    findings = subject.judge(replace(offered(answer), changed=()), exact).of(OUTPUTS)
    if findings:
        first = findings[0]
        raise Broken(replace(first, message=f"{what}: {first.message}" if first.message else what), problem, exact)


@clause("ROTARY-1")
@on_cases(offering=("rotary",), where=lambda case: appended(case) and case.i == 1, right=OUTPUTS)
def test_a_new_key_is_turned_by_its_position(subject: Subject, case: Case) -> None:
    """One query and one new key, which stand at one position, of all kinds of lengths."""
    must_turn(subject, turning(subject, subject.problem(case)), "queries and new keys turned by their positions")


@clause("ROTARY-1")
@once("rotary")
def test_each_sequence_counts_by_itself(subject: Subject, case: Case) -> None:
    """One token each behind 8, 3, 7 and no keys, and as many as a page holds."""
    for kind in kinds(subject):
        for lengths in ("1:9/1:4/1:8", "1:1/1:9", "1:17/1:16"):
            problem = small(subject, case, kind, i=1, j=17, lengths=lengths)
            must_turn(subject, problem, f"one new key behind each of the sequences {lengths}")


@clause("ROTARY-2")
@on_cases(offering=("rotary", "causal"), where=lambda case: appended(case) and placed(case), right=OUTPUTS)
def test_queries_are_turned_by_positions_of_their_own(subject: Subject, case: Case) -> None:
    """As many queries as new keys, causal and under windows."""
    must_turn(subject, turning(subject, subject.problem(case)), "queries and new keys turned, each by its position")


@clause("ROTARY-2")
@once("rotary", "causal")
def test_the_queries_of_a_prompt_are_turned(subject: Subject, case: Case) -> None:
    """Behind keys of an earlier call, and behind none; more tokens than a block of a kernel has."""
    for kind in kinds(subject):
        for i, j in ((3, 9), (3, 3), (70, 75)):
            problem = small(subject, case, kind, b=2, i=i, j=j, lengths=f"{i}:{j}/{i}:{i}", causal=True)
            must_turn(subject, problem, f"{i} causal queries at the end of {j} and {i} keys")


@clause("ROTARY-2")
@once("rotary", "window")
def test_queries_under_a_window_are_turned(subject: Subject, case: Case) -> None:
    """Before, behind and on both sides, beside causal and without it, in each form."""
    asked = False
    for kind, window, causal in product(kinds(subject), ("3:", ":1", "2:1"), (False, True)):
        problem = small(subject, case, kind, window=window, causal=causal)
        if problem.window is None or problem.causal != causal:  # what is not offered, or only beside the other
            continue
        asked = True
        must_turn(subject, problem, f"{problem.i} queries under a window, each turned by its position")
    if not asked:
        raise NotApplicable


@clause("ROTARY-3")
@once("rotary")
def test_pairs_are_those_that_are_said(subject: Subject, case: Case) -> None:
    """Where a call can name them, both, and the default."""
    for kind in kinds(subject):
        problem = small(subject, case, kind, i=1, lengths="1:9/1:4/1:8")
        for how in pairs(subject):
            says = f"interleaved={how['interleaved']}" if how["told"] else f"no word of the pairs, which are {name(how)}"
            must_turn(subject, carried(problem, **how), says)


def name(how: dict[str, bool]) -> str:
    """The value of the choice."""
    return "interleaved" if how["interleaved"] else "halves"


def several(case: Case) -> bool:
    """Several queries to which neither causal nor a window gives a position."""
    return appended(case) and not placed(case) and case.i > 1


def must_turn_a_few(subject: Subject, case: Case, what: str) -> None:
    """Two, three and five queries without causal, behind other keys and behind none, in each form."""
    for kind in kinds(subject):
        for lengths in ("3:9/3:4/3:8", "3:3/3:9", "2:9/2:4", "5:9/5:5"):
            must_turn(subject, small(subject, case, kind, i=int(lengths[0]), lengths=lengths), what)


@clause("ROTARY-4")
@once("rotary")
def test_a_few_queries_without_causal(subject: Subject, case: Case) -> None:
    """Three queries behind keys of an earlier call, and behind none."""
    must_turn_a_few(subject, case, "queries that see all keys, each turned by its own position")


@clause("ROTARY-4")
@on_cases(offering=("rotary",), where=several, right=OUTPUTS)
def test_each_query_has_its_position_without_causal(subject: Subject, case: Case) -> None:
    """Two queries and more."""
    must_turn(subject, turning(subject, subject.problem(case)), "queries that see all keys, each turned by its own position")


@clause("ROTARY-5")
@once("rotary")
def test_a_few_queries_like_the_first(subject: Subject, case: Case) -> None:
    """Three queries behind keys of an earlier call, and behind none."""
    must_turn_a_few(subject, case, "queries that see all keys, all turned by the first one's position")


@clause("ROTARY-5")
@on_cases(offering=("rotary",), where=several, right=OUTPUTS)
def test_all_queries_have_the_first_position_without_causal(subject: Subject, case: Case) -> None:
    """Two queries and more."""
    must_turn(subject, turning(subject, subject.problem(case)), "queries that see all keys, all turned by the first one's position")


@clause("ROTARY-6")
@once("rotary")
def test_rotary_choices_are_followed(subject: Subject, case: Case) -> None:
    """The pairs where no call names them, and the position of queries that see all keys."""
    asked = False
    for choice in ("rotary_pairs", "rotary_query"):
        if choice in subject.observed | subject.assumed:
            must_follow_a_choice(subject, choice, case.dtype)
            asked = True
    if not asked:
        raise NotApplicable


@clause("ROTARY-7")
@once("rotary")
def test_other_channels_stay(subject: Subject, case: Case) -> None:
    """Two channels or sixteen, half of them, and all, of widths that are no power of two, too."""
    any_width = subject.offers("rotary_any_width")
    for kind in kinds(subject):
        for d in (8, 12, 32) if any_width else (32, 48, 64):
            if subject.adapter.widths is not None and d not in subject.adapter.widths:
                continue
            problem = small(subject, case, kind, d=d, i=1, lengths="1:9/1:4/1:8")
            for width in sorted({2 if any_width else 16, *widths(subject, d)}):
                turns = carried(problem, rotary=width)
                must_turn(subject, turns, f"{width} of {d} channels turned")
                must_write_what_is_turned(subject, turns)


@clause("ROTARY-8")
@on_cases(offering=("rotary",), where=appended, right=())
def test_keys_are_written_turned(subject: Subject, case: Case) -> None:
    """Every bit of every row is compared, but for the signs of zeros."""
    must_write_what_is_turned(subject, turning(subject, subject.problem(case)))


def must_write_what_is_turned(subject: Subject, problem: Problem) -> None:
    """What a call leaves is what was there before, and its new keys, turned once, and its new values behind it."""
    must_leave(subject, problem, "holds other rows than before and, behind them, the new ones, of which keys are turned")


@clause("ROTARY-9")
@once("cached_rotary", "cached_left")
def test_rows_before_the_first_key_count(subject: Subject, case: Case) -> None:
    """Another number of them for each sequence."""
    for causal in (False, True) if subject.offers("causal") else (False,):
        i = 3 if causal else 1
        problem = small(subject, case, "cached", word="+left", i=i, lengths=f"{i}:9/{i}:4/{i}:8", causal=causal)
        must_turn(subject, problem, "positions that count from the first row of a slot")


@clause("ROTARY-10")
@on_cases(offering=("rotary",), where=appended, right=OUTPUTS)
def test_to_turn_in_the_call_is_to_turn_before_it(subject: Subject, case: Case) -> None:
    """The same call with keys and queries that are turned already."""
    problem = subject.problem(case)
    turns = turning(subject, problem)
    if case.i > 1 and not placed(case) and subject.dialect.rotary_query == "first":
        raise NotApplicable
    before, after = must_answer(subject, problem), must_answer(subject, turns)
    what = "the call turns queries and new keys, and those of the other one are turned already"
    must_be_as(subject, before, after, problem, list(range(problem.b)), what, turns)


@clause("ROTARY-11")
@once("cached_rotary", "cached_left")
def test_distances_alone_matter(subject: Subject, case: Case) -> None:
    """The same numbers four positions later, and one; the tables grow by the same for each position."""
    causal = subject.offers("causal")
    i = 3 if causal else 1
    problem = small(subject, case, "cached", word="+left", b=1, i=i, j=9, lengths=f"{i}:9", causal=causal)
    problem = carried(problem, left=(1,), steady=True)
    before = must_answer(subject, problem)
    for more in (1, 4):
        later = carried(problem, left=(1 + more,))
        later = later.replace(q=by_hand(later, [more] * i, "q"), k=by_hand(later, [more] * later.j, "k"))
        what = f"all positions are {more} later"
        must_be_as(subject, before, must_answer(subject, later), problem, [0], what, later)


@clause("ROTARY-12")
@once("rotary", "causal")
def test_one_turned_token_at_a_time_is_all_at_once(subject: Subject, case: Case) -> None:
    """Three tokens behind six, and behind none."""
    for kind in kinds(subject):
        for j in (9, 3):
            problem = small(subject, case, kind, b=1, i=3, j=j, lengths=f"3:{j}", causal=True)
            whole, exact = must_be_right(subject, problem, "all tokens in one call", ("o",)), subject.solve(problem)
            for n, one in enumerate(one_token_after_another(problem, 0, 3)):
                got = whole.o.clone()
                got[:, :, n : n + 1] = must_be_right(subject, one, f"token {n} of 3 alone", ("o",), earlier=(problem,)).o
                what = f"token {n} of 3 in a call of its own, and in one call with the others"
                must_agree(subject, got, whole.o, exact, "o", what, one)


@clause("ROTARY-13")
@once("rotary", "rotary_told")
def test_other_pairs_are_another_order_of_channels(subject: Subject, case: Case) -> None:
    """Interleaved pairs, and halves with the channels in that order."""
    for kind in kinds(subject):
        halves = carried(small(subject, case, kind, i=1, lengths="1:9/1:4/1:8"), interleaved=False, told=True)
        carrier = carrier_of(halves)
        assert isinstance(carrier, Kept)
        width = carrier.rotary
        order = torch.arange(halves.d, device=halves.q.device)
        order[0:width:2], order[1:width:2] = torch.arange(width // 2), torch.arange(width // 2, width)
        other = carried(halves, interleaved=True).replace(q=halves.q[..., order], k=halves.k[..., order])
        before, after = must_answer(subject, halves), must_answer(subject, other)
        what = "pairs are interleaved, and the channels are in that order"
        must_be_as(subject, before, after, halves, list(range(halves.b)), what, other)
