"""What comes back from an implementation, read so that nothing it is made of can trip the reader.

A tensor may be of a class that answers for it, hold no numbers, or say that they are negated; an exception may have no text.
"""

from __future__ import annotations

import dis
import inspect
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


@dataclass(frozen=True)
class NoTensor:
    """Something that was returned and is no tensor; `kind` says what it is. It was returned in another process."""

    kind: str


class Elsewhere(Exception):
    """An exception that was raised in another process: its line, and whether it says that there was no memory."""

    def __init__(self, line: str, *, memory: bool = False) -> None:
        super().__init__(line)
        self.line, self.memory = line, memory


def kind_of(x: Any) -> str:
    """What something is that is no tensor."""
    if isinstance(x, NoTensor):
        return x.kind
    if isinstance(x, tuple):
        return f"a tuple of {tuple.__len__(x)}"
    return "nothing (None)" if x is None else f"a {type(x).__name__}"


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


def pair(returned: Any) -> tuple[Any, Any]:
    """Output and lse of a call that was asked for both; None for an lse that it did not return."""
    if isinstance(returned, tuple | list) and len(returned) == 2:
        return returned[0], returned[1]
    return returned, None


def readable(x: Any) -> bool:
    """Whether something that `plain` gave is a dense tensor of numbers, on a device that holds them."""
    return isinstance(x, Tensor) and x.layout == torch.strided and x.dtype in NUMBERS and x.device.type != "meta"


def words(error: BaseException) -> str:
    """The class and the text of an exception in one line of at most 240 characters; some have no text that can be read."""
    if isinstance(error, Elsewhere):
        return error.line
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
    return said.partition(": ")[2] if isinstance(error, Elsewhere) else said.removeprefix(f"{_exact(type(error).__name__)}: ")


# How allocators say, in a plain RuntimeError, that there is no memory: torch's for CPUs and for Apple's, XLA's, cuBLAS's.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "RESOURCE_EXHAUSTED", "STATUS_ALLOC_FAILED")


def no_memory(error: BaseException | None) -> bool:
    """Whether an exception says that there was no memory. A limit of the chip, such as shared memory, is none."""
    if isinstance(error, Elsewhere):
        return error.memory
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = text(error) if isinstance(error, RuntimeError) else ""
    return any(words in said for words in NO_MEMORY)


def _exact(said: str) -> str:
    """A str of no subclass, without lone surrogates, which no file and no terminal takes."""
    return str.encode(said, "utf-8", "backslashreplace").decode("utf-8")


# WHO RAISED IT

RAISE = dis.opmap["RAISE_VARARGS"]


def raised_in(error: BaseException, kernel: Any) -> bool:
    """Whether the package of a function or class raised an error itself, by `raise` or `assert`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    if trace.tb_frame.f_code.co_code[trace.tb_lasti] != RAISE:
        return False
    own = inspect.unwrap(kernel)
    module = getattr(own, "__module__", None) or type(own).__module__
    here = trace.tb_frame.f_globals.get("__name__", "")
    return here.partition(".")[0] == module.partition(".")[0]


_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGALRM", "SIGVTALRM", "SIGPROF", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGHUP", "SIGINT")
    if hasattr(signal, name)
)
nobody_interrupts = False  # in a process of its own, to which no Ctrl-C comes
_handler = getattr(signal.getsignal, "__wrapped__", signal.getsignal)  # without the names of what it returns: faster


def handlers() -> frozenset[CodeType]:
    """The code of all signal handlers that are installed: a time limit of pytest-timeout is one."""
    found = (getattr(_handler(number), "__code__", None) for number in _SIGNALS)
    return frozenset(code for code in found if code is not None)


def interrupted(error: BaseException, installed: frozenset[CodeType]) -> bool:
    """Whether an exception is no answer: Ctrl-C, or one raised in a signal handler that was installed before the call."""
    if isinstance(error, KeyboardInterrupt):
        return not nobody_interrupts
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in installed:
            return True
        trace = trace.tb_next
    return False
