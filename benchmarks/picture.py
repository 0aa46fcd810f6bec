"""How the plots in docs/ look: SVG that can be read on white and on black, the same bytes for the same numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INK = "#808080"


@contextmanager
def picture(path: Path, *grid: int, size: tuple[float, float], font: int = 9, sharey: bool = False) -> Iterator[tuple[Any, Any]]:
    """matplotlib's figure and its axes, to draw on; at the end the figure is written, with half of its digits: half the size."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    look = {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK}
    with mpl.rc_context(look | {"font.size": font, "svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure, axes = plt.subplots(*grid, figsize=size, sharey=sharey, layout="constrained")
        yield figure, axes
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)
    path.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", path.read_text(encoding="utf-8")), encoding="utf-8")
