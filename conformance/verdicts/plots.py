"""Errors as a share of their bound, drawn as SVG that stands inside of a page and takes its colours."""

from __future__ import annotations

import io
import re
from typing import Any

from attnspec.conformance.verdicts.lines import Verdicts
from attnspec.spec.words import CLASSES, OUTPUTS

# Colours that no plot has, to be replaced by the page's own, which follow light, dark and paper.
TEXT, INSIDE, OUTSIDE, FAINT = "#010101", "#010102", "#010103", "#010104"
PAINT = {TEXT: "currentColor", INSIDE: "var(--good)", OUTSIDE: "var(--bad)", FAINT: "var(--line)"}
LEAST, MOST = 1e-3, 1e3  # what is smaller or larger is drawn at the edge


def accuracy_plot(verdicts: Verdicts, variant: str, device: str) -> str:
    """The largest error of each clause, tensor and dtype as a share of its bound; '' where nothing was measured."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    points: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for (_, dtype, *where), cell in verdicts.cells.items():
        for output, worst in cell.get("worst", {}).items() if tuple(where) == (variant, device) else ():
            points.setdefault((dtype, output), []).append((float(worst["share"]), worst["class"]))
    order = [dtype for s in verdicts.header["subjects"] for dtype in s["dtypes"]]
    lanes = sorted(points, key=lambda lane: (order.index(lane[0]), OUTPUTS.index(lane[1])), reverse=True)
    if not lanes:
        return ""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": f"{variant} {device}", "font.size": 9, "text.color": TEXT}
    with rc_context(settings):
        figure = Figure(figsize=(4.6, 0.75 + 0.19 * len(lanes)), layout="constrained")
        axes = figure.subplots()
        farthest = max(x for lane in points.values() for x, _ in lane)
        labels, last = [], ""
        for y, lane in enumerate(lanes):
            held = verdicts.strands.get((lane[0], variant, device), {}).get("held", CLASSES[-1])
            for inside in (True, False):
                for filled in (True, False):
                    xs = [x for x, class_ in points[lane] if (x <= 1, x > 1 or class_ == held) == (inside, filled)]
                    colour = INSIDE if inside else OUTSIDE
                    axes.scatter(
                        [min(max(x, LEAST), MOST) for x in xs],
                        [y] * len(xs),
                        s=16 if inside else 30,
                        marker="o" if inside else "X",
                        facecolors=colour if filled else "none",
                        edgecolors=colour,
                        linewidths=0.7,
                        zorder=3,
                    )
            labels.append(f"{lane[0]}  {lane[1]}  ({held})")
            if last and lane[0] != last:
                axes.axhline(y - 0.5, color=FAINT, linewidth=0.6)
            last = lane[0]
        axes.axvline(1, color=TEXT, linewidth=1)
        axes.set_xscale("log")
        axes.set_xlim(LEAST * 0.7, 2 if farthest <= 1 else min(farthest, MOST) * 2)
        axes.set_ylim(-0.6, len(lanes) - 0.4)
        axes.set_yticks(range(len(lanes)), labels)
        axes.set_xlabel("error as a share of the bound", color=TEXT)
        axes.tick_params(colors=TEXT, which="both", length=2)
        axes.grid(axis="x", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_visible(False)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(drawn.getvalue(), f"{variant}-{device}")


def _inline(svg: str, name: str) -> str:
    """An SVG file as an element of a page: no prologue, ids of its own, the page's colours and letters."""
    svg = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg ([^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r'<svg \1style="max-width:calc(\2px * 1.35)"', svg)
    for sign, colour in PAINT.items():
        svg = svg.replace(sign, colour)
    return svg.replace("<svg ", '<svg role="img" aria-label="error as a share of the bound" ', 1)
