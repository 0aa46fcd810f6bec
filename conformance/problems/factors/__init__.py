"""What a case is made of: each factor is one value, and what is said of it anywhere follows from that."""

from __future__ import annotations

from typing import Any

from attnspec.conformance.problems.factors.core import CORE, NOT_DENSE

__all__ = ["ALIKE", "COST", "LEVELS", "NOT_DENSE", "OPEN_SIZES", "alike", "level_by_value", "level_of"]

_BY_NAME = {factor.name: factor for factor in CORE}
# The levels of each factor of the core, the simplest first. j = 0 is as many keys as queries, e = 0 values as wide as keys.
LEVELS: dict[str, tuple[Any, ...]] = {name: factor.levels for name, factor in _BY_NAME.items()}
# What a level stands for, where that is more than itself: rows of an array take these values in turn, so that each occurs in
# every array without a level of its own. Lengths are primes, block edges, and one less and one more; forms are all sixteen.
ALIKE: dict[str, dict[Any, tuple[Any, ...]]] = {name: dict(factor.alike) for name, factor in _BY_NAME.items() if factor.alike}
OPEN_SIZES = tuple(name for name, factor in _BY_NAME.items() if factor.size)
COST = 1 << 20  # elements of (b h i j max(d, e)) that one searched problem may have


def alike(factor: str, level: Any) -> tuple[Any, ...]:
    """The values that a level stands for, itself first."""
    return _BY_NAME[factor].values(level)


def level_by_value(factor: str) -> dict[Any, Any]:
    """The level of each value that one stands for."""
    return _BY_NAME[factor].level_by_value


def level_of(factor: str, value: Any) -> Any:
    """The level that a value belongs to; a value that no level stands for is its own."""
    return _BY_NAME[factor].level_of(value)
