"""The page that stands in every set of vectors: what its files hold, and how an answer is compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnspec.conformance.vectors.format import Vector

README = "README.md"
PAGE = Path(__file__).parent / "page.md"


def text(vectors: Sequence[Vector], said: Mapping[str, Any]) -> str:
    """The page of a set, from what the set says of itself."""
    dtypes = Counter(vector.dtype for vector in vectors)
    left = [f"{n} problems of the tier {why}." for why, n in said["left_out"].items() if n]
    return PAGE.read_text(encoding="utf-8").format(
        problems=len(vectors),
        suite=said["suite"],
        spec=said["spec"],
        tier=f"Tier {said['tier']}",
        counts=", ".join(f"{n} in {dtype}" for dtype, n in dtypes.items()),
        offers=", ".join(said["offers"]),
        dialect=", ".join(f"{name} = {value}" for name, value in said["dialect"].items()),
        classes=", ".join(f"{class_} for {dtype}" for dtype, class_ in said["classes"].items()),
        left_out="\n".join(left) or "Every problem of the tier is in here.",
    )
