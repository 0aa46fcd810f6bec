"""What a case is made of: each factor, its levels, and what stands for the same level."""

from __future__ import annotations

from functools import cache
from typing import Any

from attnspec.spec.words import DTYPES

# The levels of each factor, the simplest first. j = 0 is as many keys as queries, e = 0 values as wide as keys.
LEVELS: dict[str, tuple[Any, ...]] = {
    "dtype": DTYPES,
    "heads": ("1/1", "2/2", "3/3", "4/1", "4/2", "6/2", "2/shared", "3/shared"),
    "b": (1, 2, 3),
    "i": (1, 2, 3, 8, 17, 33, 65),
    "j": (0, 1, 2, 7, 15, 16, 17, 129, 255),
    "d": (8, 1, 3, 4, 40, 64, 160),
    "e": (0, 9, 24),
    "mask": ("none", "padding", "bhij", "ij", "bj", "hij", "bij", "bhj", "bhi", "j", "rank3"),
    "holes": ("random", "prefix", "suffix", "band", "single", "first_block", "empty_row", "all"),
    "bias": ("none", "bhij", "ij", "hij", "bj", "hj", "bhi", "rank2", "rank3"),
    "biases": ("normal", "steep", "inf", "shift", "lowest"),
    "causal": (False, True),
    "scale": (None, 1.0, 0.3, -0.5, 0.0),
    "layout": ("contiguous", "bihd", "fused", "offset", "strided", "turned", "expanded"),
    "values": ("normal", "peaked", "needle", "integers", "one_hot", "ties", "large", "negative", "offset", "tiny"),
    "wrt": ("all", "q", "k", "v", "bias", "qv", "none"),
    "do": ("dense", "turned", "expanded", "one_row"),
}
# What a level stands for, where that is more than itself: rows of an array take these values in turn, so that each occurs in
# every array without a level of its own. Lengths are primes, block edges, and one less and one more; forms are all sixteen.
ALIKE: dict[str, dict[Any, tuple[Any, ...]]] = {
    "heads": {
        "2/2": ("2/2", "8/8", "16/16", "32/32"),
        "4/1": ("4/1", "8/1", "16/1"),
        "4/2": ("4/2", "8/2", "32/8", "64/8"),
        "2/shared": ("2/shared", "8/shared", "16/shared"),
    },
    "i": {
        3: (3, 5, 7, 11, 13),
        8: (8, 4, 16, 32),
        17: (17, 15),
        33: (33, 31),
        65: (65, 63, 64, 127, 128, 129, 255, 256, 257, 513, 1025, 4096),
    },
    "j": {
        7: (7, 3, 5, 11, 13),
        15: (15, 31, 63, 127),
        16: (16, 32, 64, 128),
        17: (17, 33, 65),
        129: (129, 257, 513, 1025, 2049),
        255: (255, 256, 512, 1024, 4096),
    },
    "d": {8: (8, 16), 1: (1, 2), 3: (3, 5, 7), 4: (4, 6), 40: (40, 59), 64: (64, 80, 96, 128), 160: (160, 192, 256, 512)},
    "e": {9: (9, 1, 5), 24: (24, 40, 72, 160)},
    "holes": {"first_block": ("first_block", "inner_blocks")},
    "mask": {"bhj": ("bhj", "hj"), "bhi": ("bhi", "hi", "bi", "i", "bh", "h", "b", "one")},
    "bias": {"hij": ("hij", "bij"), "bj": ("bj", "bhj"), "hj": ("hj", "j"), "bhi": ("bhi", "hi", "bi", "i", "bh", "h", "b", "one")},
}
NOT_DENSE = ("strided", "turned")
OPEN_SIZES = ("b", "i", "j", "d", "e")
COST = 1 << 20  # elements of (b h i j max(d, e)) that one searched problem may have


def alike(factor: str, level: Any) -> tuple[Any, ...]:
    """The values that a level stands for, itself first."""
    return ALIKE.get(factor, {}).get(level, (level,))


@cache
def _level_of(factor: str) -> dict[Any, Any]:
    return {value: level for level in LEVELS[factor] for value in alike(factor, level)}


def level_of(factor: str, value: Any) -> Any:
    """The level that a value belongs to; a value that no level stands for is its own."""
    return _level_of(factor).get(value, value)


SIMPLER_FIRST = (
    "bias",
    "biases",
    "mask",
    "holes",
    "causal",
    "scale",
    "layout",
    "do",
    "wrt",
    "values",
    "heads",
    "e",
    "b",
    "j",
    "i",
    "d",
    "seed",
)
