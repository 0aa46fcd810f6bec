"""What a problem asks beside queries, keys and values, in float64: all of it, or what concerns some rows and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.reference.numbers import to_float64
from attnspec.reference.stages import dropout, scores
from attnspec.spec import OPTIONS, Dialect, Problem


@dataclass(frozen=True)
class Given:
    """The options of a problem in a dialect. keep (b h i j) bool is the mask that dropout drew, in training.

    rows: indices of queries, keys: a slice of the keys; None is all of them.
    """

    problem: Problem
    dialect: Dialect
    keep: Array | None = None
    rows: Sequence[int] | None = None
    keys: slice | None = None
    _operands: dict[str, Array | None] = field(default_factory=dict)

    @cached_property
    def scale(self) -> float:
        """What the products of queries and keys are multiplied by."""
        given = self.problem.scale
        return scores.default_scale(self.problem.d) if given is None else float(given)

    @property
    def positions(self) -> Array:
        """The places of the keys on the whole key axis."""
        return np.arange(*(self.keys or slice(None)).indices(self.problem.j))

    def operand(self, name: str) -> Array | None:
        """A tensor that is an option, in its own shape (OPTIONS has its axes): bool, or numbers in float64; None without one."""
        if name not in self._operands:
            x = getattr(self.problem, name)
            self._operands[name] = None if x is None else self._read(x, OPTIONS[name].axes)
        return self._operands[name]

    @property
    def slopes(self) -> Array | None:
        """The slopes (h) or (b h) in float64; None without them."""
        return self.operand("alibi_slopes")

    def _read(self, x: torch.Tensor, axes: str) -> Array:
        """Of its dimensions, the last of these axes, those of queries and keys are cut to the rows and keys that are asked for."""
        axes = "bj" if x.ndim == 2 and x.dtype == torch.bool else axes[len(axes) - x.ndim :]  # key padding
        for n, letter in enumerate(axes):
            wanted = {"i": self.rows, "j": self.keys}.get(letter)
            if wanted is not None and x.shape[n] != 1:
                x = x[(slice(None),) * n + (wanted,)]
        return x.cpu().numpy() if x.dtype == torch.bool else to_float64(x)

    @cached_property
    def factor(self) -> Array | float:
        """What dropout multiplies each probability with; 1 without it."""
        return dropout.keep_factor(self.keep, self.problem.dropout if self.problem.training else 0.0)
