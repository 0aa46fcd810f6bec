"""First contact: in which order of axes, out of which tuple, in whose arrays and with which masks plain calls are right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, product
from math import prod

from torch import Tensor

from attnspec.adapters import Answer, ResolveError
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
ENDINGS = 3  # plain calls that end the process, after which no other is tried
DTYPES, WIDTHS = ("float32", "bfloat16", "float64"), (64, 128)  # that are tried, until a call is answered
LENGTHS = (((5, 7), (4, 4)), ((4, 4), (6, 6)))  # the second where only as many keys as queries are taken


class Gone(Exception):
    """Plain calls ended the process of the implementation too often."""


@dataclass
class Looking:
    """Plain calls, read in one way after the other."""

    subject: Subject
    answered: bool = False  # whether any call was
    ends: int = 0

    def ask(self, problem: Problem, reading: Reading) -> Answer:
        """The answer, so read. Raises Gone."""
        self.subject.adapter.reading = reading
        answer = self.subject.run(problem)
        self.answered = self.answered or answer.refusal is None
        self.ends += bool(answer.ended)
        if self.ends == ENDINGS:
            raise Gone
        return answer

    def right(self, problem: Problem, reading: Reading) -> bool:
        """Whether an answer is right, so read."""
        exact = solve(problem, self.subject.dialect)
        return not judge(self.ask(problem, reading), exact, self.subject.required_class(str(problem.dtype)[6:])).findings

    def found(self, problems: list[Problem], first: Iterable[Reading]) -> Reading | None:
        """The first reading in which these problems are all right: one of these, or one that answers show."""
        each = chain(first, self._shown(problems[0]))
        return next((reading for reading in each if all(self.right(problem, reading) for problem in problems)), None)

    def _shown(self, problem: Problem) -> Iterator[Reading]:
        """Those in which an answer to a problem has the shape of an output, in each order of axes and each framework's arrays."""
        known, given = self.subject.adapter.reading, self.subject.adapter.given
        for arrays in dict.fromkeys((known.arrays, "", *self.subject.adapter.arrays)):
            for layout in LAYOUTS:
                if layout != given.get("layout", layout):
                    continue
                asked = Reading(layout, arrays=arrays, mask=known.mask)
                answer = self.ask(problem, asked)
                if answer.o is None:
                    continue
                places = () if isinstance(answer.o, Tensor) else (("o", "other"), ("other", "o"), ("other", "other", "o"))
                if not isinstance(answer.o, Tensor) and not kind_of(answer.o).startswith(("a tuple of", "a list")):
                    continue
                for returns in places or ((),):
                    so = replace(asked, returns=returns)
                    o = self.ask(problem, so).o if returns else answer.o
                    for output in _outputs(o, problem, layout) if isinstance(o, Tensor) else ():
                        found = replace(so, output=output)
                        if all(getattr(found, name) == x for name, x in given.items()):
                            yield found


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
    looking = Looking(subject)
    with suppress(Gone):
        for dtype, width, lengths in product(adapter.dtypes or DTYPES, (subject.width, *WIDTHS), LENGTHS):
            if looking.answered and lengths == LENGTHS[0]:
                break
            asked = _problems(subject, Case(b=2, heads="3/3", d=width, wrt="none", dtype=dtype), lengths)
            found = looking.found(asked, [promised])
            if found is not None:
                # What is right as it is now was not so a moment ago: its answers vary, and how they are read is not why.
                varies = found != promised and all(looking.right(problem, promised) for problem in asked)
                adapter.reading, subject.width = promised if varies or adapter.read_by else found, width
                if adapter.reading != found and not varies:
                    raise ResolveError(_otherwise(subject, found))
                subject.read_from = subject.read_from if adapter.read_by else f"{OBSERVED} in plain calls"
                if adapter.reading.arrays in WITHOUT_GRADIENTS:
                    adapter.offers = frozenset(adapter.offers) - {"backward", *gradient_features(FEATURES)}
                return
    adapter.reading = promised


def _problems(subject: Subject, plain: Case, lengths: tuple[tuple[int, int], ...]) -> list[Problem]:
    """The same case with each of these numbers of queries and keys."""
    return [subject.problem(fit(replace(plain, i=i, j=j, seed=n), subject.adapter)) for n, (i, j) in enumerate(lengths)]


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
    given, looking = adapter.reading, Looking(subject)
    with suppress(Gone):
        for lengths in LENGTHS:
            plain = Case(b=2, heads="3/3", d=subject.width, wrt="none", mask="padding", dtype=subject.dtypes[0])
            asked = _problems(subject, plain, lengths)
            for reading in (replace(given, mask=mask) for mask in MASKS if mask in adapter.masks):
                if all(looking.right(problem, reading) for problem in asked):
                    adapter.reading, subject.masks_from = reading, f"{OBSERVED} in plain calls"
                    return
    adapter.reading, subject.masks_from = given, f"{ASSUMED}: calls with a mask are right in no reading"


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
