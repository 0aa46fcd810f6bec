"""The largest error of each output as a bar, for the table of a terminal."""

from __future__ import annotations

from collections.abc import Callable

from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.verdicts.lines import Share, worse
from attnspec.conformance.verdicts.record import Record
from attnspec.conformance.verdicts.views import share
from attnspec.spec.words import OUTPUTS

CELLS = 6  # letters of a whole bar, which is the bound
EIGHTHS = " ▏▎▍▌▋▊▉█"

Paint = Callable[..., str]  # text, and the colours as pytest's terminal writer takes them


def bars(record: Record, subject: Subject, dtypes: list[str], paint: Paint) -> list[str]:
    """A line for each output, with a bar for each dtype; none where nothing was measured."""
    largest: dict[str, dict[str, Share]] = {}
    for (_, dtype, *where), worst in record.worst.items():
        for output, one in worst.items() if tuple(where) == (subject.label, subject.device) else ():
            largest.setdefault(output, {})[dtype] = worse(largest.get(output, {}).get(dtype), one)
    lines = ["  largest error as a share of its bound, which the whole bar is"] if largest else []
    for output in sorted(largest, key=OUTPUTS.index):
        drawn = (_drawn(largest[output].get(dtype), paint) for dtype in dtypes)
        lines.append(f"  {output:12}{''.join(drawn)}")
    return lines


def _drawn(worst: Share | None, paint: Paint) -> str:
    """A bar and its number, 18 letters wide."""
    if worst is None:
        return f"{'':18}"
    x = worst.of_bound
    text = share(x)
    outside = not x <= 1
    return f"{'':{max(1, 18 - CELLS - 1 - max(6, len(text)))}}{paint(bar(x), red=outside, green=not outside)} {text:>6}"


def bar(x: float) -> str:
    """A share of the bound as CELLS letters: 0.4 is ██▍···. What is outside of the bound fills it."""
    eighths = 8 * CELLS if not x <= 1 else min(8 * CELLS, max(1, round(8 * CELLS * x))) if x else 0
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(CELLS, "·")
