"""A device with streams and graphs that is faked on the CPU.

What a stream is asked after something late is late, too: an operator gives numbers of no meaning at first, and the right ones when
the stream has come so far. One on the default stream does not wait for another stream. A graph is the list of operators that ran
while it was captured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

LOOKS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)  # at numbers, on the host


Asked = tuple[Any, tuple[Any, ...], dict[str, Any], Any]  # an operator, its arguments, and what it gave


class FakedStreams:
    """Takes the place of :class:`attnspec.adapters.device.Streams`."""

    def __init__(self) -> None:
        self.late: list[Asked] = []  # what the other stream has not done yet
        self.waits = True  # whether operators are on the stream that is late
        self.graph: list[Asked] | None = None
        self.captured = self.asked = 0

    @contextlib.contextmanager
    def another(self) -> Iterator[None]:
        self.asked += 1
        with _Order(self):
            yield
        self.synchronize()

    @contextlib.contextmanager
    def default(self) -> Iterator[None]:
        """What a kernel asks in it is on the default stream, whatever stream is the current one."""
        self.waits = False
        try:
            yield
        finally:
            self.waits = True

    def write(self, memory: Tensor, numbers: Tensor, *, late: bool = False) -> None:
        if late or self.late:
            self.late.append((Tensor.copy_, (memory, numbers), {}, None))
        else:
            memory.copy_(numbers)

    def synchronize(self) -> None:
        late, self.late = self.late, []
        with _disable_current_modes():
            _run(late)

    def capture(self, call: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        self.captured += 1
        self.graph = graph = []
        try:
            with _Order(self):
                found = call()
        finally:
            self.graph = None
        return found, lambda: _run(graph)


class _Order(TorchDispatchMode):
    def __init__(self, device: FakedStreams) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in LOOKS:
            if self.device.graph is not None:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.device.synchronize()
        found = function(*args, **(kwargs or {}))
        asked = (function, args, kwargs or {}, found)
        if self.device.graph is not None:
            self.device.graph.append(asked)
        elif self.device.late and self.device.waits:
            self.device.late.append(asked)
        return found


def _run(operators: list[Asked]) -> None:
    """Do it once more, and put what comes out where it came out the first time."""
    for function, args, kwargs, found in operators:
        if "empty" in str(function):  # numbers of no meaning
            continue
        again = function(*args, **kwargs)
        for old, new in zip(*((x if isinstance(x, tuple | list) else (x,)) for x in (found, again)), strict=True):
            own = isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr()
            if own and old.shape == new.shape:  # no view, and not made one later
                old.data.copy_(new)
