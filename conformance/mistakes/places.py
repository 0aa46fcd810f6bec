"""Operands read at another place than their own."""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel

LETTERS = "bhij"
OVER = {"b": "batch items", "h": "heads", "i": "queries", "j": "keys"}


def first_alone(x: Array, axis: int) -> Array:
    """A gradient that goes to the first place along an axis: its sum there, zero elsewhere."""
    out = np.zeros_like(x)
    np.moveaxis(out, axis, 0)[0] = x.sum(axis)
    return out


def of_first(x: Array, axis: int) -> Array | None:
    """What stands first along an axis, everywhere; None where there is no other, or no such axis."""
    return np.broadcast_to(x.take([0], axis), x.shape) if x.ndim >= -axis and x.shape[axis] > 1 else None


def swapped(x: Array, least: int = 2) -> Array | None:
    """The last two axes exchanged; None where they differ, are one, or there are less than `least`."""
    return x.swapaxes(-1, -2) if x.ndim >= least and x.shape[-1] == x.shape[-2] > 1 else None


def shifted(x: Array | None, letter: str, step: int) -> Array | None:
    """A mask or bias read at its neighbour along an axis; None where it does not vary there."""
    axis = LETTERS.index(letter) - 4
    return None if x is None or x.ndim < -axis or x.shape[axis] < 2 else np.roll(x, step, axis)


def of_kv_head(x: Kernel, operand: Array) -> Array | None:
    """What stands at the number of the key/value head in the place of the query head's."""
    return operand.take(x.kv_head, -3) if operand.ndim > 2 and operand.shape[-3] > 1 and x.g < x.h else None
