"""Errors as a share of their bound, drawn as SVG that stands inside of a page and takes its colours."""

from __future__ import annotations

from html import escape
from math import ceil, floor, inf, log10

from attnspec.conformance.verdicts.lines import Verdicts
from attnspec.spec.words import CLASSES, OUTPUTS

LEAST, MOST = 1e-3, 1e3  # what is smaller or larger is drawn at the edge
LEFT, RIGHT, LANE, FOOT = 126, 352, 19, 40  # where the axis begins and ends, the height of a lane, and what is below them
# colours of the page, which follow light, dark and paper
GOOD, BAD, OPEN, LINE = "var(--good)", "var(--bad)", "var(--open)", "var(--line)"


def accuracy_plot(verdicts: Verdicts, variant: str, device: str) -> str:
    """The largest error of each clause, tensor and dtype as a share of its bound; '' where nothing was measured."""
    points: dict[tuple[str, str], list[tuple[float, str, bool]]] = {}
    for (clause, dtype, *where), cell in verdicts.cells.items():
        for output, worst in cell.get("worst", {}).items() if tuple(where) == (variant, device) else ():
            share = float(worst["share"])
            share = share if share == share else inf  # NaN is outside
            points.setdefault((dtype, output), []).append((share, worst["class"], verdicts.decides(clause)))
    order = [dtype for s in verdicts.header["subjects"] for dtype in s["dtypes"]]
    lanes = sorted(points, key=lambda lane: (order.index(lane[0]), OUTPUTS.index(lane[1])))
    if not lanes:
        return ""
    farthest = max(x for lane in points.values() for x, *_ in lane)
    axis = _Axis(LEAST * 0.7, 2 if farthest <= 1 else min(farthest, MOST) * 2)
    bottom = 8 + LANE * len(lanes)
    parts = _grid(axis, bottom)
    for n, (dtype, output) in enumerate(lanes):
        held = verdicts.strands.get((dtype, variant, device), {}).get("held", CLASSES[-1])
        y = 8 + LANE * n + LANE // 2
        if n and dtype != lanes[n - 1][0]:
            parts.append(_line(LEFT, y - LANE / 2, RIGHT, y - LANE / 2, LINE))
        parts.append(_text(LEFT - 8, y + 4, f"{dtype} {output} ({held})", "end"))
        # Those outside come last, and of these what decides, and so lie above; of those at one place one is drawn.
        dots = (
            _circle(axis.place(x), y, filled=class_ == held) if x <= 1 else _cross(axis.place(x), y, BAD if decides else OPEN)
            for x, class_, decides in sorted(points[dtype, output], key=lambda point: (point[0] > 1, point[2], point))
        )
        parts += dict.fromkeys(dots)
    parts.append(_text((LEFT + RIGHT) / 2, bottom + 34, "error as a share of the bound", "middle"))
    size = f'viewBox="0 0 {RIGHT + 14} {bottom + FOOT}" style="max-width:{1.35 * (RIGHT + 14):.0f}px"'
    label = 'role="img" aria-label="error as a share of the bound"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {label} {size} font-size="12" fill="currentColor">{"".join(parts)}</svg>'


class _Axis:
    """A logarithmic axis."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.last = log10(first), log10(last)

    def place(self, x: float) -> float:
        """Where a value lies, as the picture counts."""
        inner = log10(min(max(x, LEAST), MOST))
        return LEFT + (inner - self.first) / (self.last - self.first) * (RIGHT - LEFT)

    def decades(self) -> range:
        """The powers of ten that lie on it."""
        return range(ceil(self.first), floor(self.last) + 1)


def _grid(axis: _Axis, bottom: float) -> list[str]:
    """A line and a number for each power of ten; the bound, which is 1, in the colour of the text."""
    parts = []
    for n in axis.decades():
        x = axis.place(10.0**n)
        parts.append(_line(x, 8, x, bottom, "currentColor" if n == 0 else LINE))
        edge = "≤" if 10.0**n <= LEAST else "≥" if 10.0**n >= MOST else ""
        parts.append(_text(x + 12 if edge == "≤" else x, bottom + 16, f"{edge}{10.0**n:g}", "end" if edge == "≤" else "middle"))
    return parts


def _line(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{colour}" stroke-width="0.8"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _circle(x: float, y: float, *, filled: bool) -> str:
    """An error within its bound; hollow where the bound is not that of the class that is held."""
    return f'<circle cx="{x:.1f}" cy="{y}" r="3" fill="{GOOD if filled else "none"}" stroke="{GOOD}" stroke-width="0.8"/>'


def _cross(x: float, y: float, colour: str) -> str:
    """An error outside of its bound."""
    return f'<path d="M{x - 4:.1f} {y - 4}l8 8m0 -8l-8 8" stroke="{colour}" stroke-width="2.5"/>'
