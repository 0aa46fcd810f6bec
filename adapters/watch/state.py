"""What a call must leave as it was: the global state of the process (PURITY-3)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch


def current_accelerator() -> torch.device | None:
    """The accelerator of this machine; None where there is none, or where torch is too old (before 2.6) to say."""
    accelerator = getattr(torch, "accelerator", None)
    if accelerator is None:
        return torch.device("cuda") if torch.cuda.is_available() else None
    return accelerator.current_accelerator() if accelerator.is_available() else None


class State(NamedTuple):
    """One thing that is global: how it is read and set, and what changed of it in words ('' where that is no change)."""

    read: Callable[[], Any]
    write: Callable[[Any], Any]
    says: Callable[[Any, Any], str] = lambda before, after: f" from {before} to {after}"


def _numpy_random() -> Any:
    """What is at the generator's address, 624 words and a position: to ask it for its state takes fifty times as long."""
    generator = np.random.mtrand.get_bit_generator()
    if type(generator).__name__ != "MT19937":
        return np.random.get_state(legacy=False)
    return ctypes.string_at(generator.ctypes.state_address, 4 * 625)


def _set_numpy_random(state: Any) -> None:
    if not isinstance(state, bytes):
        np.random.set_state(state)
        return
    *key, position = np.frombuffer(state, np.uint32)
    np.random.set_state(("MT19937", np.array(key, np.uint32), int(position), 0, 0.0))


_SMALLEST = sys.float_info.min
_SWITCHES = {  # one call to read each, one to set it
    "flash SDPA": ("flash_sdp_enabled", "enable_flash_sdp"),
    "memory-efficient SDPA": ("mem_efficient_sdp_enabled", "enable_mem_efficient_sdp"),
    "math SDPA": ("math_sdp_enabled", "enable_math_sdp"),
    "cuDNN SDPA": ("cudnn_sdp_enabled", "enable_cudnn_sdp"),
}
_CUDNN = ("enabled", "benchmark", "deterministic")


def _set_cudnn(before: dict[str, bool]) -> None:
    for name, value in before.items():
        setattr(torch.backends.cudnn, name, value)


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "a folder that is gone"


def _set_folder(path: str) -> None:
    with contextlib.suppress(OSError):
        os.chdir(path)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _environment() -> dict[Any, Any]:
    data = getattr(os.environ, "_data", None)  # encoded: a copy of os.environ itself decodes each name and value
    return dict(data) if isinstance(data, dict) else dict(os.environ)


def _set_environment(before: dict[Any, Any]) -> None:
    for name, value in before.items():
        name, value = (os.fsdecode(x) for x in (name, value))
        if os.environ.get(name) != value:
            os.environ[name] = value


def _lost(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> str:
    """Names of variables, never their values. What is set anew is a package's own, torch's among them."""
    names = sorted(os.fsdecode(name) for name, value in before.items() if after.get(name) != value)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f": {', '.join(names[:4])}{more} changed or gone" if names else ""


def _gone(before: list[str], after: list[str]) -> str:
    """Folders that are added are a package's own."""
    n = len([x for x in before if x not in after])
    return f": {n} of its {len(before)} entries are gone" if n else ""


def _differ(before: dict[str, Any], after: dict[str, Any]) -> str:
    return ": " + ", ".join(f"{name} from {value} to {after[name]}" for name, value in before.items() if after[name] != value)


def _silent(before: Any, after: Any) -> str:
    return " "


def _stream(name: str) -> State:
    return State(lambda: getattr(sys, name), lambda x: setattr(sys, name, x), lambda before, after: ": it is another stream now")


RANDOM = ("the random state", "Python's random state", "NumPy's random state")
STATE: dict[str, State] = {
    "the default device": State(  # to ask torch for it takes ten times as long as to see where a new tensor lies
        lambda: torch.empty(0).device, lambda x: torch.set_default_device(None if x == torch.device("cpu") else x)
    ),
    "the default dtype": State(torch.get_default_dtype, torch.set_default_dtype),
    "grad mode": State(torch.is_grad_enabled, torch.set_grad_enabled),
    "the number of threads": State(torch.get_num_threads, torch.set_num_threads),
    "the determinism flag": State(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "the matmul precision": State(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "anomaly mode": State(
        lambda: {"detection": torch.is_anomaly_enabled(), "check of NaN": torch.is_anomaly_check_nan_enabled()},
        lambda x: torch.autograd.set_detect_anomaly(*x.values()),
        _differ,
    ),
    # torch can set it and not read it.
    "flush-denormal": State(lambda: _SMALLEST / 2 == 0, torch.set_flush_denormal),
    "a switch of torch": State(
        lambda: {name: getattr(torch.backends.cuda, read)() for name, (read, _) in _SWITCHES.items()},
        lambda x: [getattr(torch.backends.cuda, write)(x[name]) for name, (_, write) in _SWITCHES.items()],
        _differ,
    ),
    "cuDNN": State(
        lambda: {name: getattr(torch.backends.cudnn, name) for name in _CUDNN},
        _set_cudnn,
        _differ,
    ),
    "NumPy's error handling": State(np.geterr, lambda x: np.seterr(**x), _differ),
    "garbage collection": State(lambda: "on" if gc.isenabled() else "off", lambda x: gc.enable() if x == "on" else gc.disable()),
    "the working directory": State(_folder, _set_folder),
    "the umask": State(_umask, os.umask, lambda before, after: f" from {before:03o} to {after:03o}"),
    "the recursion limit": State(sys.getrecursionlimit, sys.setrecursionlimit),
    "the environment": State(_environment, _set_environment, _lost),
    "sys.path": State(lambda: list(sys.path), lambda x: sys.path.extend(y for y in x if y not in sys.path), _gone),
    "sys.stdout": _stream("stdout"),
    "sys.stderr": _stream("stderr"),
    RANDOM[0]: State(
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda state: torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8)),
        _silent,
    ),
    RANDOM[1]: State(random.getstate, random.setstate, _silent),
    RANDOM[2]: State(_numpy_random, _set_numpy_random, _silent),
}
# How a package that is imported sets up itself, its users and their torch; it is judged as they have it.
SETUP = ("the number of threads", "the matmul precision", "a switch of torch", "cuDNN", "the environment", "sys.path")


@contextlib.contextmanager
def watched(apart_from: Iterable[str] = (), leave: Iterable[str] = ()) -> Iterator[dict[str, str]]:
    """Watch the global state while something runs: the mapping that is yielded is filled when it ends, by name, in words.

    What changed is set back, but for the names in `leave`. Names in `apart_from` are neither looked at nor set back. Standard
    output and error can't be closed meanwhile.
    """
    changes: dict[str, str] = {}
    before = {name: state.read() for name, state in STATE.items() if name not in apart_from}
    try:
        with _kept_open(changes):
            yield changes
    finally:
        for name, value in before.items():
            state = STATE[name]
            after = state.read()
            if after == value:
                continue
            says = state.says(value, after)
            if says:
                changes[name] = (name + says).strip()
            if name not in leave:
                state.write(value)


@contextlib.contextmanager
def _kept_open(changes: dict[str, str]) -> Iterator[None]:
    """Who closes standard output closes what the reader of a run looks at; the stream stays, and the attempt is noted."""
    guarded: list[tuple[Any, Any]] = []
    for name in ("sys.stdout", "sys.stderr"):
        stream: Any = getattr(sys, name[4:])
        both: tuple[Any, Any] = (stream, getattr(stream, "buffer", None))
        for x in both:
            before = getattr(x, "__dict__", {}).get("close")
            try:
                x.close = lambda name=name: changes.update({name: f"{name}: it closed it"})
            except AttributeError:  # no stream, or one that can't be guarded
                continue
            guarded.append((x, before))
    try:
        yield
    finally:
        for x, before in guarded:
            if before is None:
                del x.close
            else:
                x.close = before


@contextlib.contextmanager
def no_second_run() -> Iterator[None]:
    """A child that the kernel forks inside, and that comes back, ends here: the suite goes on in one process only."""
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != process:
            os._exit(1)
