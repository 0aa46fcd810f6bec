"""Few shapes: for implementations that compile anew for each, and calls that are slow only then."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import replace

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject

# heads, batch items, queries, keys (0: as many), width of q and k, width of v (0: the same), by the way heads are shared.
SHAPES: dict[str, tuple[tuple[str, int, int, int, int, int], ...]] = {
    "mha": (("2/2", 2, 17, 0, 8, 0), ("3/3", 1, 1, 33, 40, 0), ("2/2", 2, 17, 129, 8, 24), ("1/1", 1, 33, 7, 64, 0)),
    "gqa": (("4/2", 2, 17, 0, 8, 0), ("4/2", 1, 3, 17, 40, 24)),
    "mqa": (("4/1", 1, 3, 17, 8, 0),),
    "shared_kv": (("3/shared", 2, 8, 17, 8, 0),),
}
SLOW = 0.5  # seconds that the first call in a shape takes at least, where that is called slow
TIMES = 5.0  # and how many times a second call in that shape


def few(case: Case, subject: Subject) -> Case:
    """The case in one of a few shapes, with its options and numbers: fewer, as many or more queries than keys, as it had."""
    shapes = SHAPES[case.sharing]

    def distance(shape: tuple[str, int, int, int, int, int]) -> tuple[bool, bool, bool]:
        _, b, i, j, *_ = shape
        sign = (i > (j or i)) - (i < (j or i))
        return sign != (case.i > case.keys) - (case.i < case.keys), (i == 1) != (case.i == 1), (b > 1) != (case.b > 1)

    heads, b, i, j, d, e = min(shapes, key=distance)
    return fit(replace(case, heads=heads, b=b, i=i, j=j, d=d, e=e), subject.adapter)


def fewer(cases: Iterable[Case], subject: Subject) -> list[Case]:
    """The cases in few shapes, each combination of shape and options once."""
    seen: dict[Case, Case] = {}
    for case in cases:
        small = few(case, subject)
        seen.setdefault(replace(small, seed=0), small)
    return list(seen.values())


def slow_on_new(subject: Subject) -> str:
    """What was measured, where a call in a shape never seen takes long and the next one does not; '' where that is not so.

    Three shapes, for what is generic after the second one is slow no more.
    """
    first: list[float] = []
    second: list[float] = []
    for n in (5, 11, 19):
        case = fit(Case(dtype=subject.dtypes[0], heads="2/2", i=n, j=n + 4, wrt="none"), subject.adapter)
        problem = subject.problem(case)
        for times in (first, second):
            start = time.perf_counter()
            subject.run(problem)
            times.append(time.perf_counter() - start)
        if first[-1] < SLOW:
            return ""
    new, again = min(first), statistics.median(second)
    return f"{new:.1f} s for a call in a new shape, {again:.2g} s for the next one" if new > TIMES * again else ""


def note_of_fallbacks(subjects: list[Subject]) -> str:
    """What a reader must know where torch.compile gave up on a function inside the implementation; '' where it did not."""
    gave_up = [(before, name) for subject in subjects for name, before in subject.gave_up.items()]
    if not gave_up:
        return ""
    (before, name), calls = min(gave_up), sum(subject.calls for subject in subjects)
    return (
        f"torch.compile gave up on {name} after {before} of {calls} calls, at its limit for recompiling: the other "
        f"{calls - before} ran uncompiled where their shapes or options were new. Raise torch._dynamo.config.recompile_limit "
        "where the implementation is imported, or ask with --few-shapes, to test what is compiled"
    )
