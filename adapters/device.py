"""What a device has beside arithmetic: streams, graphs, and errors after which it answers nothing any more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attnspec.adapters.reading import no_memory, words

WARM_UP = 3  # calls before a graph is captured, as torch asks for
MATMULS, WIDTH = 64, 4096  # the time in which a stream has its inputs not yet: 9 TFLOP, some tenths of a second on a fast device


class DeviceLost(Exception):
    """A device answers nothing any more, in this process; the text says what it says instead."""


class Streams:
    """Streams and graphs of a device, as torch has them."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.module = device, torch.get_device_module(device)

    @contextlib.contextmanager
    def another(self) -> Iterator[None]:
        """All that is asked in it goes to a stream that is not the default one. At its end that stream is empty."""
        stream = self.module.Stream(self.device)
        stream.wait_stream(self.module.current_stream(self.device))
        with self.module.stream(stream):
            try:
                yield
            finally:
                stream.synchronize()

    def write(self, memory: Tensor, numbers: Tensor, *, late: bool = False) -> None:
        """Write into memory in the order of the current stream; late: after long work, while who asks goes on."""
        if late:
            x = torch.ones(WIDTH, WIDTH, device=self.device)
            for _ in range(MATMULS):
                torch.mm(x, x)
        memory.copy_(numbers)

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked."""
        self.module.synchronize(self.device)

    def capture(self, call: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        """What a call gives, and a function that runs its captured graph once; until then nothing is computed."""
        graph = self.module.CUDAGraph()
        with self.module.graph(graph):
            found = call()
        return found, graph.replay


def streams(device: torch.device) -> Streams | None:
    """The streams of a device; None where torch knows none of which the order is seen."""
    return Streams(device) if device.type == "cuda" else None


def on_another_stream(at: Streams, memories: list[tuple[Tensor, Tensor]], call: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What a call gives on a stream that is not the default one, on which the inputs come so late that the host is past the call.

    Who does not wait for that stream reads what was there before: NaN, and a mask that hides all. The host must not wait either, so
    the call looks at no number.
    memories: the bytes in which inputs lie, and one of those inputs.
    """
    with _kept(at, memories) as true:
        for memory, x in memories:
            memory.fill_(0xFF if x.is_floating_point() else 0)
        with at.another():
            for n, ((memory, _), numbers) in enumerate(zip(memories, true, strict=True)):
                at.write(memory, numbers, late=not n)
            return call()


def captured(at: Streams, memories: list[tuple[Tensor, Tensor]], call: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What the graph of a call gives when it runs with other numbers than those with which it was captured, and ran once.

    Raises what the call raises while it is captured.
    """
    with _kept(at, memories) as true:
        for memory, x in memories:
            memory.copy_(_backwards(memory, x.element_size()))
        with at.another():
            for _ in range(WARM_UP):
                call()
        found, replay = at.capture(call)
        replay()
        for (memory, _), numbers in zip(memories, true, strict=True):
            at.write(memory, numbers)
        replay()
        at.synchronize()
        return [x.clone() for x in found]


def _backwards(memory: Tensor, size: int) -> Tensor:
    """The same elements from the last to the first: other numbers, of the same kind."""
    whole = memory.numel() // size * size
    return torch.cat([memory[:whole].view(-1, size).flip(0).flatten(), memory[whole:]])


@contextlib.contextmanager
def _kept(at: Streams, memories: list[tuple[Tensor, Tensor]]) -> Iterator[list[Tensor]]:
    """What stands in memories now, which stands there again in the end, whatever the device was asked meanwhile."""
    true = [memory.clone() for memory, _ in memories]
    try:
        yield true
    finally:
        at.synchronize()
        for (memory, _), numbers in zip(memories, true, strict=True):
            memory.copy_(numbers)


def lost(device: torch.device) -> str:
    """What a device says instead of an answer, since an error that stays; '' where it answers.

    After an access beyond the memory of a CUDA device everything raises that error, until the process ends.
    """
    if device.type == "cpu":
        return ""
    try:
        torch.zeros(1, device=device).add_(1).item()
    except Exception as error:
        return "" if no_memory(error) else words(error)
    return ""
