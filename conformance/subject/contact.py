"""First contact: in which order of axes, out of which tuple, in whose arrays and with which masks plain calls are right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

from torch import Tensor

from attnspec.adapters import ResolveError
from attnspec.adapters.arrays import WITHOUT_GRADIENTS
from attnspec.adapters.conventions.layout import AXES, LAYOUTS, OUTPUTS, Reading
from attnspec.adapters.reading import kind_of
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import ASSUMED, OBSERVED, Subject
from attnspec.reference import solve
from attnspec.spec import Problem
from attnspec.spec.problem import gradient_features
from attnspec.spec.words import FEATURES, MASKS

PROMISED = "promised by"
DTYPES, WIDTHS = ("float32", "bfloat16", "float64"), (64, 128)  # that are tried, until a call is answered
LENGTHS = (((5, 7), (4, 4)), ((4, 4), (6, 6)))  # the second where only as many keys as queries are taken


def look(subject: Subject) -> None:
    """Settle how the calls of an implementation are read: as its convention promises, or as its plain calls show.

    Only what a convention calls is looked at: an adapter says itself how it is called. Two problems must be right, of sizes that
    differ from each other. Raises ResolveError where a convention promises one reading, and plain calls are right in another.
    """
    adapter = subject.adapter
    if adapter.kernel is None or not subject.offers("mha"):
        return
    promised = adapter.reading = replace(adapter.reading, **adapter.given)
    subject.read_from = f"{PROMISED} {adapter.read_by}" if adapter.read_by else f"{ASSUMED}: plain calls are right in no reading"
    for dtype, width in product(adapter.dtypes or DTYPES, (subject.width, *WIDTHS)):
        plain, heard = Case(b=2, heads="3/3", d=width, wrt="none", dtype=dtype), False
        for lengths in LENGTHS:
            asked = [subject.problem(fit(replace(plain, i=i, j=j, seed=n), subject.adapter)) for n, (i, j) in enumerate(lengths)]
            heard = heard or not all(_asked(subject, asked[0], Reading(x)).refusal for x in (promised.layout, *LAYOUTS))
            found = next((r for r in (promised, *_readings(subject, asked[0])) if all(_right(subject, x, r) for x in asked)), None)
            if found is not None:
                subject.width = width
                # What is right as it is now was not so a moment ago: its answers vary, and how they are read is not why.
                varies = found != promised and all(_right(subject, x, promised) for x in asked)
                adapter.reading = promised if varies or adapter.read_by else found
                if adapter.reading != found and not varies:
                    raise ResolveError(_otherwise(subject, found))
                subject.read_from = subject.read_from if adapter.read_by else f"{OBSERVED} in plain calls"
                if adapter.reading.arrays in WITHOUT_GRADIENTS:
                    adapter.offers = frozenset(adapter.offers) - {"backward", *gradient_features(FEATURES)}
                return
        if heard:
            break
    adapter.reading = promised


def _otherwise(subject: Subject, found: Reading) -> str:
    """What is said where a convention promises one reading, and plain calls are right in another."""
    promised = subject.adapter.reading
    return (
        f"{subject.adapter.name}: {subject.adapter.read_by} promises that {_said(promised)}; its plain calls are wrong so, "
        f"and right where {_said(found)}. Add {found.options or f'--layout={AXES!r}'} to test it so."
    )


def _said(reading: Reading) -> str:
    return " and ".join(reading.words) or f"q, k, v and the output are ({AXES})"


def look_at_masks(subject: Subject) -> None:
    """Settle what a mask says, where nobody promises it and calls show it."""
    adapter = subject.adapter
    if len(tuple(adapter.masks)) == 1 or not subject.offers("key_padding"):
        return
    given = adapter.reading
    for lengths in LENGTHS:
        plain = Case(b=2, heads="3/3", d=subject.width, wrt="none", mask="padding", dtype=subject.dtypes[0])
        asked = [subject.problem(fit(replace(plain, i=i, j=j, seed=n), adapter)) for n, (i, j) in enumerate(lengths)]
        for reading in (replace(given, mask=mask) for mask in MASKS if mask in adapter.masks):
            if all(_right(subject, problem, reading) for problem in asked):
                adapter.reading, subject.masks_from = reading, f"{OBSERVED} in plain calls"
                return
    adapter.reading, subject.masks_from = given, f"{ASSUMED}: calls with a mask are right in no reading"


def _readings(subject: Subject, problem: Problem) -> Iterator[Reading]:
    """Those in which an answer to a problem has the shape of an output, in each order of axes and each framework's arrays."""
    known, given = subject.adapter.reading, subject.adapter.given
    for arrays in dict.fromkeys((known.arrays, "", *subject.adapter.arrays)):
        for layout in LAYOUTS:
            if layout != given.get("layout", layout):
                continue
            asked = Reading(layout, arrays=arrays, mask=known.mask)
            answer = _asked(subject, problem, asked)
            if answer.o is None:
                continue
            places = () if isinstance(answer.o, Tensor) else (("o", "other"), ("other", "o"), ("other", "other", "o"))
            if not isinstance(answer.o, Tensor) and not kind_of(answer.o).startswith(("a tuple of", "a list")):
                continue
            for returns in places or ((),):
                so = replace(asked, returns=returns)
                o = _asked(subject, problem, so).o if returns else answer.o
                for output in _outputs(o, problem, layout) if isinstance(o, Tensor) else ():
                    found = replace(so, output=output)
                    if all(getattr(found, name) == x for name, x in given.items()):
                        yield found


def _outputs(o: Tensor, problem: Problem, layout: str) -> Iterator[str]:
    """The orders of axes in which an output that came as `layout` has this shape; "" for the layout itself."""
    sizes = dict(zip(AXES.split(), problem.shape_of("o"), strict=True))
    came = tuple(o.shape)
    if came == problem.shape_of("o"):  # it was turned back, and fits
        yield ""
        return
    if o.ndim == 4 and layout != AXES:  # it was turned back where it should not have been
        turned = dict(zip(AXES.split(), came, strict=True))
        came = tuple(turned[letter] for letter in layout.split())
    for output in OUTPUTS:
        parts = output.replace("(b i)", "b*i").replace("(h d)", "h*d").split()
        if tuple(_length(part, sizes) for part in parts) == came:
            yield output


def _length(part: str, sizes: dict[str, int]) -> int:
    return prod(sizes[letter] for letter in part.split("*"))


def _asked(subject: Subject, problem: Problem, reading: Reading) -> Any:
    subject.adapter.reading = reading
    return subject.run(problem)


def _right(subject: Subject, problem: Problem, reading: Reading) -> bool:
    answer = _asked(subject, problem, reading)
    return not judge(answer, solve(problem, subject.dialect), subject.required_class(str(problem.dtype)[6:])).findings
