"""What comes back from an implementation, read so that nothing it is made of can trip the reader.

A tensor may be of a class that answers for it, hold no numbers, or say that they are negated; an exception may have no text.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Unreadable:
    """A tensor whose numbers can't be read; `what` says what it is."""

    what: str


def plain(x: Any) -> Any:
    """A tensor as torch.Tensor itself, whatever its class says of it; Unreadable where it has no numbers; all else as it is.

    It shares memory and graph with what was given.
    """
    kind = type(x)
    if not issubclass(kind, Tensor):
        return x
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return Unreadable(f"a {kind.__name__}, a tensor that holds its numbers elsewhere or has none")
    if kind is not Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            x = Tensor.as_subclass(x, Tensor)
    if x.is_nested:
        return Unreadable("a nested tensor")
    if x.layout != torch.strided or x.dtype not in NUMBERS or x.device.type == "meta" or not x.numel():
        return x
    try:
        last = x.storage_offset() + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
        if x.untyped_storage().nbytes() < (last + 1) * x.element_size():
            return Unreadable("a tensor whose memory was freed")
        x.detach()[(0,) * x.ndim].item()
    except RuntimeError as error:
        return Unreadable(f"a tensor whose numbers can't be read ({words(error)})")
    return x


def readable(x: Any) -> bool:
    """Whether something that `plain` gave is a dense tensor of numbers, on a device that holds them."""
    return isinstance(x, Tensor) and x.layout == torch.strided and x.dtype in NUMBERS and x.device.type != "meta"


def words(error: BaseException) -> str:
    """The class and the text of an exception in one line of at most 240 characters; some have no text that can be read."""
    name = _exact(type(error).__name__)
    try:
        text = " ".join(_exact(str(error)).split())
    except KeyboardInterrupt:
        raise
    except BaseException:
        return f"{name} (whose text can't be read)"
    return f"{name}: {text[:240]}" if text else name


def text(error: BaseException) -> str:
    """What an exception says, without its class."""
    said = words(error)
    return said.removeprefix(f"{_exact(type(error).__name__)}: ")


def _exact(said: str) -> str:
    """A str of no subclass, without lone surrogates, which no file and no terminal takes."""
    return str.encode(said, "utf-8", "backslashreplace").decode("utf-8")


# WHO RAISED IT

_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGALRM", "SIGVTALRM", "SIGPROF", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGHUP", "SIGINT")
    if hasattr(signal, name)
)
_handler = getattr(signal.getsignal, "__wrapped__", signal.getsignal)  # without the names of what it returns: faster


def handlers() -> frozenset[CodeType]:
    """The code of all signal handlers that are installed: a time limit of pytest-timeout is one."""
    found = (getattr(_handler(number), "__code__", None) for number in _SIGNALS)
    return frozenset(code for code in found if code is not None)


def interrupted(error: BaseException, installed: frozenset[CodeType]) -> bool:
    """Whether an exception is no answer: Ctrl-C, or one raised in a signal handler that was installed before the call."""
    if isinstance(error, KeyboardInterrupt):
        return True
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in installed:
            return True
        trace = trace.tb_next
    return False
