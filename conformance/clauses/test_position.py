"""POSITION: where the queries stand on the key axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from attnspec.adapters import Answer
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import compare, together
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.start import Start, meant, written
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import (
    Broken,
    NotApplicable,
    NotOffered,
    may_answer,
    must_agree,
    must_answer,
    must_be_right,
    refused,
)
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.relations import one_item, some_keys, some_queries, with_keys_in_front
from attnspec.reference import Exact, to_float64
from attnspec.spec import Problem
from attnspec.spec.words import OUTPUTS

EDGES = (15, 16, 17, 31, 33, 63, 65, 127, 129)


def placed(case: Case) -> bool:
    """There is a start, and something that it moves."""
    return case.q_start != "none" and (case.causal or case.window != "none")


def several(case: Case) -> bool:
    """The batch items have different starts."""
    start = meant(case)
    return isinstance(start, tuple) and len(set(start)) > 1


def asked(
    subject: Subject,
    case: Case,
    i: int,
    j: int,
    start: Start | None,
    *,
    causal: bool = True,
    window: str = "none",
    wrt: str = "none",
) -> Problem:
    """A small problem with this start, whose scores differ much, two batch items. Raises NotApplicable where it is not offered."""
    level = "none" if start is None else written(start)
    small = Case(
        dtype=case.dtype, heads=case.heads, b=2, i=i, j=j, d=case.d, values="peaked", causal=causal, window=window, wrt=wrt
    )
    small = replace(small, q_start=level)
    found = fit(small, subject.adapter)
    if (found.q_start, found.causal, found.window, found.i, found.j) != (level, causal, window, i, j):
        raise NotApplicable
    return subject.problem(found)


def some_asked(subject: Subject, case: Case, all_of: list[tuple[Any, ...]], **options: Any) -> Iterator[Problem]:
    """Those of several problems (i, j, start, window) that are offered, with causal and, beside a window, without."""
    for i, j, start, window in all_of:
        for causal in (True, False):
            if not causal and window == "none":
                continue
            try:
                yield asked(subject, case, i, j, start, causal=causal, window=window, **options)
            except NotApplicable:
                continue


def said(problem: Problem) -> str:
    """A problem in words."""
    window = "" if problem.window is None else f"a window of {problem.window}"
    ways = [*(["causal"] if problem.causal else []), *([window] if window else [])]
    what = f"{problem.i} queries from position {problem.q_start} on, {problem.j} keys"
    return f"{what}, {' and '.join(ways) or 'neither causal nor window'}"


@clause("POSITION-1", "POSITION-4")
@agrees(*OUTPUTS, offering=("q_start", "causal"), where=lambda case: placed(case) and case.causal)
def test_the_start_is_the_position(subject: Subject, case: Case) -> None:
    """Under causal: every length, dtype, mask and bias, one start and several."""


@clause("POSITION-1")
@once("q_start", "causal")
def test_how_many_keys_a_position_shows(subject: Subject, case: Case) -> None:
    """Queries of zeros and one-hot values: each output is one over the number of keys that the query sees, at those keys."""
    for i, j, start in (
        (4, 7, 0),
        (4, 7, 1),
        (4, 7, 3),
        (4, 7, 5),
        (4, 4, 2),
        (9, 3, 1),
        (1, 7, 0),
        (1, 7, 4),
        (2, 40, 20),
        (20, 40, 9),
    ):
        plain = asked(subject, case, i, j, start)
        v = torch.zeros_like(plain.v)
        v[..., torch.arange(plain.j), torch.arange(plain.j) % plain.e] = 1
        counted = plain.replace(q=torch.zeros_like(plain.q), v=v)
        must_be_right(subject, counted, f"queries of zeros: {said(counted)}", ("o",))


@clause("POSITION-1", "POSITION-2")
@once("q_start")
def test_starts_at_block_edges(subject: Subject, case: Case) -> None:
    """No tile that the diagonal crosses, and none that an end of the window crosses, is special: chunks begin anywhere."""
    shapes = [(i, n + 40, n, window) for n in EDGES for i in (1, 3, 17) for window in ("none", "16:", "5:2")]
    for problem in some_asked(subject, case, shapes):
        must_be_right(subject, problem, said(problem), ("o",))


@clause("POSITION-1")
@once("q_start", each_dtype=True)
def test_positions_that_half_types_do_not_hold(subject: Subject, case: Case) -> None:
    """Positions are whole numbers: from 257 on bfloat16 has not each of them, from 2049 on float16."""
    shapes = [
        (i, j, start, window) for i, j, start in ((3, 300, 257), (2, 1100, 1027), (3, 2100, 2049)) for window in ("none", "16:")
    ]
    for problem in some_asked(subject, case, shapes):
        must_be_right(subject, problem, said(problem), ("o",))


@clause("POSITION-1")
@once("q_start", "causal", "backward")
def test_gradients_at_block_edges(subject: Subject, case: Case) -> None:
    """Backward goes over tiles of its own."""
    for n in EDGES[::2]:
        for i in (2, 33):
            problem = asked(subject, case, i, n + 20, n, wrt="all")
            must_be_right(subject, problem, said(problem))


@clause("POSITION-2", "POSITION-4")
@agrees(*OUTPUTS, offering=("q_start", "window"), where=lambda case: placed(case) and case.window != "none")
def test_the_window_lies_around_the_position(subject: Subject, case: Case) -> None:
    """With causal and without."""


@clause("POSITION-3")
@agrees(
    *OUTPUTS,
    offering=("q_start", "q_start_negative"),
    where=lambda case: placed(case) and case.causal and np.min(meant(case)) < 0,  # type: ignore[arg-type]
)
def test_queries_before_the_first_key(subject: Subject, case: Case) -> None:
    """Beside every option."""


@clause("POSITION-3")
@once("q_start", "q_start_negative")
def test_rows_before_the_first_key(subject: Subject, case: Case) -> None:
    """A few rows, whole tiles of rows, and all rows."""
    shapes = [(5, 4, -1), (5, 4, -2), (5, 4, -5), (5, 4, -900), (1, 7, -1), (1, 7, -7), (70, 5, -66), (40, 40, -17), (33, 70, -32)]
    wrt = "all" if subject.offers("backward") else "none"
    for problem in some_asked(subject, case, [(*shape, window) for shape in shapes for window in ("none", "2:", "9:3")], wrt=wrt):
        must_be_right(subject, problem, said(problem))


@clause("POSITION-4")
@once("q_start")
def test_queries_behind_the_last_key(subject: Subject, case: Case) -> None:
    """At the last key, one and several behind it, and far from it; a window that still holds a key, and one that holds none."""
    starts = (5, 6, 7, 8, 40, 1 << 20, (1 << 30) - 1)
    shapes = [(i, 7, start, window) for i in (1, 4) for start in starts for window in ("none", "3:", "2:1", "100:200")]
    shapes += [(3, 40, start, window) for start in (37, 40, 47, 64) for window in ("none", "17:3")]
    for problem in some_asked(subject, case, shapes):
        must_be_right(subject, problem, said(problem), ("o",))


@clause("POSITION-5")
@on_cases(offering=("q_start",), where=lambda case: case.q_start != "none", causal=False, window="none", alibi_slopes="none")
def test_alone_it_says_nothing(subject: Subject, case: Case) -> None:
    """With the start and without it, beside masks and biases."""
    problem = subject.problem(case)
    plain = problem.replace(q_start=None)
    before, exact = may_answer(subject, plain), subject.solve(plain)
    after = must_be_right(subject, problem, f"with a start of {problem.q_start} and neither causal nor window")
    must_agree(
        subject, after.o, before.o, exact, "o", f"a start of {problem.q_start} with neither causal nor window, and none", problem
    )


@clause("POSITION-5")
@once("q_start")
def test_beside_nothing_it_says_nothing(subject: Subject, case: Case) -> None:
    """Without mask and bias, too: one query and several."""
    for i, j, start in ((1, 9, 0), (1, 9, 4), (4, 9, 0), (4, 9, 3), (9, 4, 2), (33, 40, 5), (4, 9, 20)):
        problem = asked(subject, case, i, j, start, causal=False)
        must_be_right(subject, problem, said(problem), ("o",))


@clause("POSITION-6")
@agrees(*OUTPUTS, offering=("q_start", "q_start_batch"), where=lambda case: placed(case) and several(case))
def test_each_item_has_its_own_start(subject: Subject, case: Case) -> None:
    """Different starts in one call."""


@clause("POSITION-6")
@once("q_start", "q_start_batch")
def test_starts_far_apart(subject: Subject, case: Case) -> None:
    """One item that sees nearly nothing beside one that sees everything, in both orders; and the same start twice."""
    shapes = [
        (i, j, start, window)
        for i, j in ((1, 9), (4, 9), (20, 70))
        for start in ((0, j), (j, 0), (3, 4), (1, j // 2), (2, 2), (j - 1, 1))
        for window in ("none", "4:")
    ]
    for problem in some_asked(subject, case, shapes):
        must_be_right(subject, problem, said(problem), ("o",))


@clause("POSITION-7")
@on_cases(
    offering=("q_start", "q_start_batch"),
    where=lambda case: placed(case) and several(case) and case.layout != "expanded",
    wrt="none",
)
def test_an_item_with_its_start_is_alone(subject: Subject, case: Case) -> None:
    """Each batch item by itself, its start as one number."""
    problem = subject.problem(case)
    together_ = may_answer(subject, problem)
    assert isinstance(problem.q_start, tuple)
    for n, start in enumerate(problem.q_start):
        alone = one_item(problem, n).replace(q_start=start)
        exact = subject.solve(alone)
        answer = must_be_right(subject, alone, f"batch item {n} by itself, with a start of {start}", ("o",), exact)
        must_agree(subject, together_.o[n : n + 1], answer.o, exact, "o", f"batch item {n} among others and by itself", problem)


@clause("POSITION-8")
@on_cases(offering=("q_start",), where=lambda case: case.causal or case.window != "none", q_start="none")
def test_both_alignments_are_starts(subject: Subject, case: Case) -> None:
    """No start, and the one that the alignment says."""
    plain = subject.problem(case)
    start = plain.j - plain.i if subject.dialect.causal_alignment == "bottom_right" else 0
    if start < 0 and not subject.offers("q_start_negative"):
        raise NotApplicable
    problem = plain.replace(q_start=start)
    before = may_answer(subject, plain)
    after = must_be_right(subject, problem, f"with a start of {start}, which is {subject.dialect.causal_alignment} alignment")
    must_agree(subject, after.o, before.o, subject.solve(plain), "o", f"a start of {start}, and none", problem)


@clause("POSITION-9")
@on_cases(offering=("q_start",), where=lambda case: placed(case) and case.i > 1, layout="contiguous", wrt="none")
def test_chunks_of_the_queries_are_the_whole(subject: Subject, case: Case) -> None:
    """Three or four chunks of different sizes, the last first."""
    problem = subject.problem(case)
    _chunks_agree(subject, problem, _between(0, 1, problem.i // 3, 2 * problem.i // 3 + 1, problem.i))


@clause("POSITION-9")
@once("q_start")
def test_a_long_prompt_in_chunks(subject: Subject, case: Case) -> None:
    """Chunks of the size of a tile and of other sizes; then two chunks from both ends, as a zig-zag gives them to each rank."""
    shapes = [(70, 70, 0, "none"), (70, 90, 20, "none"), (70, 70, 0, "16:"), (70, 90, 20, "5:2")]
    by_tiles, others = [(0, 16, 32, 48, 64, 70), (0, 35, 70)], [(0, 7, 8, 41, 70), (0, 9, 17, 26, 35, 43, 52, 61, 70)]
    for problem in some_asked(subject, case, shapes):
        for cuts in others if problem.q_start else by_tiles:
            _chunks_agree(subject, problem, _between(*cuts))


def _between(*cuts: int) -> list[tuple[int, int]]:
    """The chunks between cuts, from both ends in turn, the last first."""
    chunks = [(a, b) for a, b in pairwise(sorted(set(cuts))) if a < b]
    return [chunks[-1 - n // 2] if n % 2 == 0 else chunks[n // 2] for n in range(len(chunks))]


def _chunks_agree(subject: Subject, problem: Problem, chunks: list[tuple[int, int]]) -> None:
    whole = may_answer(subject, problem)
    for a, b in chunks:
        chunk = some_queries(problem, a, b)
        exact = subject.solve(chunk)
        what = f"queries {a} to {b - 1} by themselves, from position {chunk.q_start} on"
        answer = must_be_right(subject, chunk, what, ("o",), exact)
        must_agree(subject, answer.o, whole.o[:, :, a:b], exact, "o", f"{what}, and in one call", problem)


@clause("POSITION-10")
@on_cases(offering=("q_start",), where=lambda case: placed(case) and case.i > 1, layout="contiguous", wrt="none")
def test_a_decode_step_is_a_row(subject: Subject, case: Case) -> None:
    """The first query, one in the middle and the last one, each alone."""
    problem = subject.problem(case)
    _chunks_agree(subject, problem, [(row, row + 1) for row in sorted({0, problem.i // 2, problem.i - 1})])


@clause("POSITION-10")
@once("q_start")
def test_decode_steps_one_by_one(subject: Subject, case: Case) -> None:
    """Against a cache that is longer than what a step may see."""
    for problem in some_asked(subject, case, [(9, 20, 4, "none"), (9, 20, 4, "3:"), (18, 70, 25, "none"), (18, 70, 25, "16:")]):
        _chunks_agree(subject, problem, [(row, row + 1) for row in range(problem.i)])


@clause("POSITION-11")
@on_cases(
    offering=("q_start", "backward"),
    where=lambda case: placed(case) and case.i > 1,
    layout="contiguous",
    bias="none",
    wrt="all",
    do="dense",
)
def test_gradients_of_chunks_add_up(subject: Subject, case: Case) -> None:
    """Two or three chunks: the sums of dk and dv, and the rows of dq."""
    problem = subject.problem(case)
    whole, exact = may_answer(subject, problem), subject.solve(problem)
    class_ = subject.required_class(case.dtype)
    total = {name: np.zeros(exact.values[name].shape) for name in ("dk", "dv")}
    bounds = {name: _tolerated(exact, class_, name) for name in total}
    for a, b in pairwise(sorted({0, problem.i // 3 + 1, 2 * problem.i // 3 + 1, problem.i})):
        chunk = some_queries(problem, a, b)
        own = subject.solve(chunk)
        what = f"queries {a} to {b - 1} by themselves, from position {chunk.q_start} on"
        answer = must_be_right(subject, chunk, what, ("o", "dq", "dk", "dv"), own)
        must_agree(
            subject, answer.gradients["dq"], must_have(whole, "dq")[:, :, a:b], own, "dq", f"{what}, and in one call", problem
        )
        for name, x in total.items():
            x += to_float64(must_have(answer, name))
            (bound, exempt), (more, skip) = bounds[name], _tolerated(own, class_, name)
            bounds[name] = bound + more, exempt | skip
    for name, x in total.items():
        bound, exempt = bounds[name]
        # Zeros of a chunk are exact, and so are their sums: what is left of a bound is that of the others.
        finding, _ = compare(x, to_float64(must_have(whole, name)), bound, exempt, name)
        if finding is not None:
            margin = np.where(exempt, np.inf, bound)
            raise Broken(
                replace(finding, kind="relation", message=f"{name} summed over chunks of the queries"), problem, exact, None, margin
            )


def must_have(answer: Answer, name: str) -> torch.Tensor:
    """A gradient. Raises NotApplicable where there is none: the clause of what is missing says so."""
    x = answer.gradients.get(name)
    if x is None:
        raise NotApplicable
    return x


def _tolerated(exact: Exact, class_: str, name: str) -> tuple[Any, Any]:
    """The bound of an output, and where nothing is asked of it."""
    tolerance = exact.tolerance(class_)
    return together(exact, tolerance.bound, tolerance.exempt, name)[1:]


@clause("POSITION-12")
@agrees("dk", "dv", offering=("q_start", "backward"), where=lambda case: placed(case) and case.wrt in ("all", "k", "v", "qv"))
def test_keys_that_no_query_sees_get_no_gradient(subject: Subject, case: Case) -> None:
    """Zero, and not merely small."""


@clause("POSITION-13")
@on_cases(
    offering=("q_start", "key_padding"),
    where=lambda case: placed(case) and case.mask in ("none", "padding") and case.layout != "expanded",
    bias="none",
    first_tokens=0,  # these are counted from the first key
)
def test_keys_in_front_move_the_start(subject: Subject, case: Case) -> None:
    """One key and a tile of keys, hidden, before the first."""
    problem = subject.problem(case)
    before, exact = may_answer(subject, problem), subject.solve(problem)
    if exact.reaches_hidden:
        raise NotApplicable
    for count in (1, 16):
        other = with_keys_in_front(problem, count)
        what = f"with {count} hidden keys in front, from position {other.q_start} on"
        after = must_be_right(subject, other, what)
        must_agree(subject, after.o, before.o, exact, "o", f"{what}, and without", other)
        if "dq" in before.gradients:
            must_agree(subject, after.gradients.get("dq"), before.gradients["dq"], exact, "dq", f"{what}, and without", other)


@clause("POSITION-14")
@on_cases(
    offering=("q_start",),
    where=lambda case: placed(case) and case.keys > 1 and case.biases != "lowest",
    layout="contiguous",
    wrt="none",
    first_tokens=0,  # these are counted from the first key
)
def test_parts_of_the_keys_are_the_whole(subject: Subject, case: Case) -> None:
    """Two or three parts of different sizes."""
    problem = subject.problem(case)
    if problem.alibi_slopes is not None and subject.dialect.alibi_form == "column":
        raise NotApplicable  # a column counts from the first key of a part: the lse of a part does not say what it weighs
    _parts_agree(subject, problem, (0, problem.j // 3, problem.j // 2 + 1, problem.j))


@clause("POSITION-14")
@once("q_start")
def test_a_ring_of_keys_and_queries(subject: Subject, case: Case) -> None:
    """Queries in two chunks, keys in four parts, of which some lie before or behind them."""
    for problem in some_asked(subject, case, [(40, 70, 20, "none"), (40, 70, 20, "16:"), (9, 20, 13, "none"), (9, 20, 13, "4:2")]):
        for a, b in ((0, problem.i // 2), (problem.i // 2, problem.i)):
            _parts_agree(subject, some_queries(problem, a, b), (0, problem.j // 4, problem.j // 2, 3 * problem.j // 4, problem.j))


def _parts_agree(subject: Subject, problem: Problem, cuts: tuple[int, ...]) -> None:
    """The outputs of parts, weighted by what the reference says that each part weighs, and the output of one call."""
    exact, class_ = subject.solve(problem), subject.required_class(str(problem.dtype).removeprefix("torch."))
    whole = may_answer(subject, problem)
    output, (bound, exempt) = np.zeros(exact.o.shape), _tolerated(exact, class_, "o")
    exempt = exempt | exact.empty[..., None]
    for a, b in pairwise(sorted(set(cuts))):
        part = some_keys(problem, a, b)
        if np.min(part.q_start) < 0 and not subject.offers("q_start_negative"):  # type: ignore[arg-type]
            raise NotApplicable
        own = subject.solve(part)
        answer = must_be_right(
            subject, part, f"keys {a} to {b - 1} by themselves, queries from position {part.q_start} on", ("o",), own
        )
        none = own.empty | exact.empty
        weight = np.where(none, 0.0, np.exp(np.where(none, 0.0, own.lse) - np.where(none, 0.0, exact.lse)))
        # What float64 leaves of the two lse moves the weight by as much of itself.
        off = np.zeros(exact.lse.shape)
        for x in (own, exact):
            off += np.where(x.empty, 0.0, x.tolerance("A", "float64").bound["lse"])
        more, skip = _tolerated(own, class_, "o")
        seen = (weight > 0)[..., None]
        o = np.where(seen, to_float64(answer.o), 0.0)
        output += weight[..., None] * o
        bound = bound + np.where(seen, weight[..., None] * (more + 2 * off[..., None] * np.abs(o)), 0.0)
        exempt = exempt | (seen & skip)
    finding, _ = compare(output, to_float64(whole.o), bound, exempt, "o")
    if finding is not None:
        margin = np.where(exempt, np.inf, bound)
        raise Broken(
            replace(finding, kind="relation", message="parts of the keys merged, and one call"), problem, exact, None, margin
        )


@clause("POSITION-15")
@once("q_start")
def test_starts_in_turn(subject: Subject, case: Case) -> None:
    """Different starts over the same tensors, as a kernel that is kept under a key without them, or that counts, would confuse."""
    earlier: tuple[Problem, ...] = ()
    for i, j in ((5, 12), (1, 12)):
        for start in (3, 6, 3, None, 0, 7, (2, 9), (9, 2), 3, -1, 3):
            for window in ("none", "2:"):
                try:
                    problem = asked(subject, case, i, j, start, causal=subject.offers("causal"), window=window)
                except NotApplicable:
                    continue
                must_be_right(subject, problem, f"{said(problem)}, in a series of several", ("o",), earlier=earlier)
                earlier += (problem,)


@clause("POSITION-16")
@once("q_start")
def test_the_start_is_left_as_it_was(subject: Subject, case: Case) -> None:
    """What is handed over as a start holds after forward and backward what it held before."""
    wrt = "all" if subject.offers("backward") else "none"
    for problem in some_asked(subject, case, [(i, 9, start, "none") for i in (1, 4) for start in (0, 3, (3, 3), (2, 5))], wrt=wrt):
        answer = subject.run(problem)
        written_to = [name for name in answer.changed if name.partition(" ")[0] not in {*problem.inputs(), "do"}]
        if written_to:
            what = f"the call wrote to the start that it was given as {' and '.join(written_to)}"
            raise Broken(Finding("changed", "call", what), problem, subject.solve(problem))
        must_answer(subject, problem)


@clause("POSITION-17")
@once("q_start", "causal")
def test_a_start_that_is_not_offered(subject: Subject, case: Case) -> None:
    """Different starts, and negative ones, where they are not offered: refused, or right."""
    starts: list[Start] = [] if subject.offers("q_start_batch") else [(3, 0), (0, 3), (5, 2)]
    starts += [] if subject.offers("q_start_negative") else [-1, -3]
    if not starts:
        raise NotApplicable
    declined = []
    for start in starts:
        problem = asked(subject, case, 4, 7, 2).replace(q_start=start)
        answer = subject.run(problem)
        if answer.unsupported is not None:
            declined.append(answer.unsupported)
        if refused(answer, problem) is None:
            must_be_right(
                subject, problem, f"a start of {start} is not offered, but the call gave an answer, which is wrong", ("o",)
            )
    if len(declined) == len(starts):
        raise NotOffered(declined[0])
