"""Memory in which one tensor after another can lie, at one address: what a kernel keeps by address is seen there."""

from __future__ import annotations

import itertools
import sys
import weakref

import numpy as np
import torch
from torch import Tensor

ALIGNED = 64  # bytes; torch's allocator for the CPU aligns so
_NUMBERS = itertools.count()
_PLACES: weakref.WeakSet[Place] = weakref.WeakSet()


class Place:
    """Room for tensors of at most `size` bytes on the CPU. It is itself no tensor, and holds none."""

    def __init__(self, size: int) -> None:
        self.size, self.number = size, next(_NUMBERS)
        self._memory = np.empty(size + ALIGNED, np.uint8)
        self._start = -self._memory.ctypes.data % ALIGNED
        self._free = sys.getrefcount(self._memory)
        _PLACES.add(self)

    @property
    def taken(self) -> bool:
        """Whether a tensor that lies here is still alive."""
        return sys.getrefcount(self._memory) > self._free

    @property
    def address(self) -> int:
        """Of the first byte."""
        return self._memory.ctypes.data + self._start

    def lay(self, x: Tensor, at: int = 0) -> Tensor:
        """A new tensor with these numbers, here, from byte `at` on."""
        start = self._start + at
        self._memory[start : start + x.nbytes] = x.flatten().view(torch.uint8).numpy()
        return torch.frombuffer(self._memory, dtype=x.dtype, count=x.numel(), offset=start).view(x.shape)


def place_of(x: Tensor) -> tuple[Place, int] | None:
    """The place in which the memory of a tensor begins, and at which byte; None for all other memory."""
    if not _PLACES or x.device.type != "cpu":
        return None
    address = x.untyped_storage().data_ptr()
    return next(((p, address - p.address) for p in _PLACES if 0 <= address - p.address < p.size), None)
