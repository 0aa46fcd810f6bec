"""WINDOW: a query sees the keys around its own position."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.window import meant
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.choosing import must_follow_a_choice
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import NotApplicable, may_answer, must_agree, must_answer, must_be_right, must_keep_bits
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.relations import garbage, hidden_keys, with_hidden
from attnspec.spec import Problem
from attnspec.spec.words import OUTPUTS

Window = tuple[int | None, int | None]
LENGTHS = ((4, 7), (6, 6), (9, 3), (12, 3))  # more keys than queries, as many, and more queries by more than one
EDGES = (17, 33, 65, 129, 257)


def shown(case: Case) -> bool:
    """There is a window."""
    return case.window != "none"


def alone(case: Case) -> bool:
    """There is a window, and nothing else that hides a key."""
    return shown(case) and case.mask == "none" and not case.causal and not (case.bias != "none" and case.biases == "inf")


def asked(subject: Subject, case: Case, i: int, j: int, window: Window, causal: bool = False) -> Problem:
    """A small problem with this window, whose scores differ much; causal where a window has no other end behind the query.

    Raises NotApplicable where one of that is not offered.
    """
    causal = causal or (subject.offers("causal") and not subject.offers("window_right"))
    sides = ":".join("" if side is None else str(side) for side in window)
    small = Case(dtype=case.dtype, heads=case.heads, i=i, j=j, d=case.d, values="peaked", causal=causal, window=sides, wrt="none")
    found = fit(small, subject.adapter)
    if found.window != sides or found.causal != causal:
        raise NotApplicable
    return subject.problem(found)


def only(subject: Subject, window: Window) -> Window:
    """The numbers that say a window with these offsets in the count that is followed."""
    count, (left, right) = subject.dialect.window_count, window
    if count != "inclusive" and left is not None:
        left += 1
    if count == "total" and right is not None:
        right += 1
    return left, right


@clause("WINDOW-1")
@agrees(*OUTPUTS, offering=("window",), where=shown, mask="none", bias="none", j=0, q_start="none")
def test_a_window_shows_what_is_near(subject: Subject, case: Case) -> None:
    """As many queries as keys, and nothing else that hides one but causal."""


@clause("WINDOW-2", "WINDOW-3", "WINDOW-4", "WINDOW-5")
@agrees(*OUTPUTS, offering=("window",), where=shown)
def test_one_count_for_all_problems(subject: Subject, case: Case) -> None:
    """Every length, dtype, mask and bias: the count that was promised or seen."""


@clause("WINDOW-5")
@once("window")
def test_one_of_the_counts_is_followed(subject: Subject, case: Case) -> None:
    """The problem on which the count is observed: six queries, six keys, three or four in the window."""
    must_follow_a_choice(subject, "window_count", case.dtype)


@clause("WINDOW-6")
@agrees(
    *OUTPUTS, offering=("window",), where=lambda case: shown(case) and case.i != case.keys, mask="none", bias="none", q_start="none"
)
def test_the_window_lies_where_causal_does(subject: Subject, case: Case) -> None:
    """Fewer and more queries than keys."""


@clause("WINDOW-7")
@agrees(*OUTPUTS, offering=("window",), where=lambda case: shown(case) and not alone(case))
def test_window_and_everything_else_hold(subject: Subject, case: Case) -> None:
    """Beside causal, masks of every form and biases of −∞."""


@clause("WINDOW-8")
@once("window")
def test_a_row_whose_window_is_empty(subject: Subject, case: Case) -> None:
    """More queries than keys: the first rows, or the last ones, have no key. And so many that whole tiles have none."""
    for i, j, window in ((9, 3, (1, 1)), (9, 3, (0, None)), (70, 5, (1, 1)), (150, 20, (3, None)), (300, 40, (2, 2))):
        try:
            problem = asked(subject, case, i, j, only(subject, window))
        except NotApplicable:
            continue
        if subject.solve(problem).empty.any():
            must_be_right(subject, problem, f"{i} queries, {j} keys and a window of {problem.window}", ("o",))


@clause("WINDOW-8")
@once("window", "causal")
def test_a_leading_tile_that_is_hidden(subject: Subject, case: Case) -> None:
    """A long row whose window begins behind the first blocks of keys: what the sweep has seen until then is nothing."""
    for n in EDGES:
        for i, j in ((n, n), (3, n)):
            problem = asked(subject, case, i, j, only(subject, (1, None)), causal=True)
            must_be_right(subject, problem, f"{i} causal queries, {j} keys, of which the last two are seen", ("o",))


@clause("WINDOW-9")
@agrees("dk", "dv", offering=("window", "backward"), where=lambda case: shown(case) and case.wrt in ("all", "k", "v", "qv"))
def test_what_no_window_holds_gets_no_gradient(subject: Subject, case: Case) -> None:
    """Zero, and not merely small."""


@clause("WINDOW-10")
@on_cases(offering=("window",), where=lambda case: shown(case) and case.layout != "expanded")
def test_what_lies_outside_has_no_influence(subject: Subject, case: Case) -> None:
    """Keys and values that no window holds become ±10³⁰, or what float16 can multiply: no bits change."""
    problem = subject.problem(case)
    hidden = hidden_keys(subject.solve(problem))
    before = must_answer(subject, problem)
    for number in (garbage(problem), -garbage(problem)):
        for names in (("k",), ("v",)):
            other = with_hidden(problem, hidden, number, names)
            after = must_answer(subject, other)
            what = f"with {number:g} in every {'key' if names == ('k',) else 'value'} outside of all windows"
            must_keep_bits(subject, problem, before.o, after.o, "o", what, other)
            for name, gradient in before.gradients.items():
                must_keep_bits(subject, problem, gradient, after.gradients.get(name), name, what, other)


@clause("WINDOW-15")
@on_cases(offering=("window",), where=lambda case: shown(case) and case.layout != "expanded")
def test_not_even_nan_gets_in(subject: Subject, case: Case) -> None:
    """NaN and infinity in keys and values that no window holds."""
    problem = subject.problem(case)
    hidden = hidden_keys(subject.solve(problem))
    for number in (float("nan"), float("inf")):
        for names in (("k",), ("v",)):
            what = f"with {number} in every {'key' if names == ('k',) else 'value'} outside of all windows"
            must_be_right(subject, with_hidden(problem, hidden, number, names), what)


@clause("WINDOW-15")
@once("window", "causal", "backward")
def test_what_a_cache_has_let_go(subject: Subject, case: Case) -> None:
    """Two causal queries that see three keys of many: NaN in all others."""
    for j in (9, 40, 150):
        problem = asked(subject, case, 2, j, only(subject, (2, None)), causal=True)
        do = torch.ones_like(problem.q[..., :1]).expand(problem.b, problem.h, problem.i, problem.e).contiguous()
        problem = problem.replace(do=do, wrt=("q", "k", "v"))
        hidden = hidden_keys(subject.solve(problem))
        must_be_right(subject, with_hidden(problem, hidden, float("nan")), f"{j} keys, NaN in all that no window holds")


@clause("WINDOW-11")
@on_cases(offering=("window",), where=shown)
def test_a_window_without_end_is_none(subject: Subject, case: Case) -> None:
    """No limit on both sides, and no window at all."""
    problem = subject.problem(case).replace(window=None)
    before = may_answer(subject, problem)
    other = problem.replace(window=(None, None))
    after = must_be_right(subject, other, "with a window that has no limits")
    must_agree(subject, after.o, before.o, subject.solve(problem), "o", "a window that has no limits, and none", other)


@clause("WINDOW-11")
@once("window")
def test_a_window_as_long_as_the_keys(subject: Subject, case: Case) -> None:
    """As many, one less and one more than there are keys and queries, on each side, with causal and without."""
    for i, j in LENGTHS:
        for causal in (False, True) if subject.offers("causal") else (False,):
            for window in _long_windows(i, j):
                try:
                    problem = asked(subject, case, i, j, window, causal)
                except NotApplicable:
                    continue
                what = f"{i}{' causal' if causal else ''} queries, {j} keys and a window of {window}"
                must_be_right(subject, problem, what, ("o",))


def _long_windows(i: int, j: int) -> Iterator[Window]:
    for left in dict.fromkeys((j - 1, j, j + 1, i - 1, i)):
        yield left, None
    for right in dict.fromkeys((i - 2, i - 1, i, j - 1, j, j + 1)):
        yield None, right
    yield j - 1, i - 1
    yield j, j
    yield i, i


@clause("WINDOW-12")
@on_cases(offering=("window", "window_right", "causal"), where=lambda case: shown(case) or case.causal)
def test_causal_is_a_window(subject: Subject, case: Case) -> None:
    """A window that ends at the query and begins anywhere, with causal beside it, instead of it, and causal alone."""
    causal = subject.problem(case).replace(causal=True, window=None)
    window = only(subject, (None, 0))
    before, exact = may_answer(subject, causal), subject.solve(causal)
    for other, what in (
        (causal.replace(causal=False, window=window), "instead of causal"),
        (causal.replace(window=window), "beside causal"),
    ):
        after = must_be_right(subject, other, f"with a window of {window} {what}")
        must_agree(subject, after.o, before.o, exact, "o", f"a window of {window} {what}, and causal", other)


@clause("WINDOW-13")
@on_cases(
    offering=("window", "window_right"),
    where=lambda case: shown(case) and not case.causal and case.i == case.keys and not case.first_tokens,
    mask="none",
    bias="none",
    q_start="none",
)
def test_reversed_in_time_left_is_right(subject: Subject, case: Case) -> None:
    """Queries and keys in the opposite order, with the two numbers exchanged."""
    if subject.dialect.window_count == "exclusive":
        raise NotApplicable  # its two numbers count otherwise
    problem = subject.problem(case)
    left, right = meant(case.window) or (None, None)

    def back(x: torch.Tensor) -> torch.Tensor:
        return x.flip(-2)

    other = problem.replace(
        q=back(problem.q),
        k=back(problem.k),
        v=back(problem.v),
        do=None if problem.do is None else back(problem.do),
        window=(right, left),
    )
    before, after = may_answer(subject, problem), must_be_right(subject, other, "reversed in time")
    must_agree(subject, back(after.o), before.o, subject.solve(problem), "o", "reversed in time", other)


@clause("WINDOW-14")
@on_cases(
    offering=("window",), where=lambda case: shown(case) and case.i > 1 and case.layout == "contiguous", wrt="none", q_start="none"
)
def test_a_decode_step_is_the_last_row(subject: Subject, case: Case) -> None:
    """The last query alone, against all keys."""
    if subject.dialect.causal_alignment != "bottom_right":
        raise NotApplicable
    problem = subject.problem(case)
    changes = {
        name: x[..., -1:, :]
        for name, x in (("mask", problem.mask), ("bias", problem.bias))
        if x is not None and not (name == "mask" and x.ndim == 2) and x.shape[-2] == problem.i
    }
    other = problem.replace(q=problem.q[:, :, -1:], **changes)
    before, after = may_answer(subject, problem), must_be_right(subject, other, "the last query alone, against all keys", ("o",))
    exact = subject.solve(other)
    must_agree(subject, after.o, before.o[:, :, -1:], exact, "o", "the last query alone, and as the last of many", other)


@clause("WINDOW-1", "WINDOW-5")
@once("window")
def test_how_many_keys_a_window_holds(subject: Subject, case: Case) -> None:
    """Queries of zeros and one-hot values: each output is one over the number of keys that the query sees, at those keys."""
    for i, j in LENGTHS[1:2] if not subject.offers("causal") else LENGTHS:
        for window in ((0, 0), (2, 0), (0, 2), (1, 3), (None, 2), (2, None)):
            try:
                plain = asked(subject, case, i, j, only(subject, window))
            except NotApplicable:
                continue
            v = torch.zeros_like(plain.v)
            v[..., torch.arange(plain.j), torch.arange(plain.j) % plain.e] = 1
            counted = plain.replace(q=torch.zeros_like(plain.q), v=v)
            must_be_right(subject, counted, f"{plain.i} queries of zeros, {plain.j} keys and a window of {plain.window}", ("o",))


@clause("WINDOW-1", "WINDOW-6")
@once("window")
def test_the_ends_at_block_edges(subject: Subject, case: Case) -> None:
    """No block that an end of the window crosses is special."""
    for n in EDGES:
        for i, j in ((n, n), (n - 2, n), (n, n - 2), (2, n)):
            for window in ((n // 3, 1), (16, None), (None, 16), (1, n // 3)):
                try:
                    problem = asked(subject, case, i, j, only(subject, window))
                except NotApplicable:
                    continue
                must_be_right(subject, problem, f"{i} queries, {j} keys and a window of {problem.window}", ("o",))


@clause("WINDOW-5")
@once("window")
def test_windows_in_turn(subject: Subject, case: Case) -> None:
    """Different windows over the same tensors, as a kernel that is kept under a key without them would confuse."""
    earlier: tuple[Problem, ...] = ()
    for window in ((2, None), (5, None), (2, 2), None, (0, 0), (2, None)):
        try:
            problem = asked(subject, case, 9, 9, only(subject, window or (None, None)))
        except NotApplicable:
            continue
        problem = problem.replace(window=None) if window is None else problem
        must_be_right(subject, problem, f"a window of {problem.window}, in a series of several", ("o",), earlier=earlier)
        earlier += (problem,)


@clause("WINDOW-16")
@agrees(*OUTPUTS, offering=("window", "first_tokens"), where=lambda case: case.first_tokens > 0)
def test_first_tokens_stay_visible(subject: Subject, case: Case) -> None:
    """One, several, more than a block, beside masks and gradients."""


@clause("WINDOW-16")
@once("window", "first_tokens", "causal")
def test_first_tokens_far_before_the_window(subject: Subject, case: Case) -> None:
    """A long row whose window begins many blocks behind the first tokens, which end within a block, at its edge and behind it."""
    for n in EDGES:
        for i, j in ((n, n), (3, n)):
            for first in (1, 16, 21):
                problem = asked(subject, case, i, j, only(subject, (1, None)), causal=True).replace(first_tokens=first)
                must_be_right(subject, problem, f"{i} causal queries, {j} keys, the first {first} and the last two seen", ("o",))


@clause("WINDOW-17")
@on_cases(offering=("window", "first_tokens"), where=shown, q_start="none")
def test_first_tokens_that_are_seen_anyway(subject: Subject, case: Case) -> None:
    """Without a limit on the left, with a window that begins among them, and as many as there are keys."""
    problem = subject.problem(case)
    left, right = meant(case.window) or (None, None)
    everything = problem.replace(window=(None, right), first_tokens=0)
    before, exact = may_answer(subject, everything), subject.solve(everything)
    for changes, what in (
        ({"window": (None, right), "first_tokens": 3}, "three first tokens and no limit on the left"),
        ({"window": (left, right), "first_tokens": problem.j}, "as many first tokens as keys"),
        ({"window": (max(problem.i, problem.j), right), "first_tokens": 3}, "three first tokens in a long window"),
    ):
        other = problem.replace(**changes)
        after = must_be_right(subject, other, f"with {what}")
        must_agree(subject, after.o, before.o, exact, "o", f"{what}, and no limit on the left", other)
