"""How a call is put, beside its problem: all by name, so that it can be put in another process, too."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

COMPILED = "compiled "  # and the backend
SECOND = "second derivative"
STREAM = "another stream"  # than the default one, on which the inputs come late
CAPTURED = "captured graph"  # of the device, replayed with other numbers than it was captured with
TESTING = ("pytest", "_pytest", "pluggy", "xdist", "hypothesis")  # what a kernel might look for


@dataclass(frozen=True)
class Call:
    """One call, ready to make: function(**arguments). `source` are lines of Python that define the name `attend`."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    source: tuple[str, ...]


class Within(NamedTuple):
    """What surrounds a call.

    surroundings: one of SURROUNDINGS, COMPILED with a backend of torch.compile, STREAM, CAPTURED, or SECOND: the derivative of
    ⟨dq, r⟩ with respect to q in the place of the gradients, r as :func:`direction` has it. seed: of torch's random state before
    the call. checked: False where the problem may be none, for its sizes contradict each other; only the output is asked for then.
    kept: the answer is kept, to be read again after the next call; see :meth:`attnspec.adapters.Adapter.again`.
    """

    surroundings: str = ""
    seed: int | None = None
    checked: bool = True
    kept: bool = False

    def source(self, call: str, device: str) -> str:
        """Python that makes the call in these surroundings. `call` is the line that makes it plainly."""
        if self.surroundings.startswith(COMPILED):
            backend = self.surroundings.removeprefix(COMPILED)
            return f'attend = torch.compile(attend, backend="{backend}")\nwith torch.no_grad():\n    {call}'
        if self.surroundings in QUEUED:
            return QUEUED[self.surroundings].replace("{call}", call)
        made = SURROUNDINGS[self.surroundings].source if self.surroundings in SURROUNDINGS else "{call}"
        return made.format(call=call, device=torch.device(device).type)


PLAINLY = Within()


class Surroundings(NamedTuple):
    """A context, made of the adapter and the type of device, and Python that makes the same around '{call}'."""

    enter: Callable[[Any, str], contextlib.AbstractContextManager[Any]]
    source: str = "{call}"


def surrounded(within: Within, adapter: Any, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of the surroundings that a name stands for."""
    if within.surroundings not in SURROUNDINGS:
        return contextlib.nullcontext()
    return SURROUNDINGS[within.surroundings].enter(adapter, device.type)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """An implementation's warnings are its own: they neither fail a run under -W error nor fill the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _unwatched(adapter: Any, device: str) -> Iterator[None]:
    """No test framework can be found among the modules or in the environment."""
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in TESTING}
    variables = {name: value for name, value in os.environ.items() if name.startswith(("PYTEST_", "HYPOTHESIS_"))}
    for name in modules:
        del sys.modules[name]
    for name in variables:
        del os.environ[name]
    try:
        yield
    finally:
        sys.modules.update(modules)
        os.environ.update(variables)


@contextlib.contextmanager
def _unmerged(adapter: Any, device: str) -> Iterator[None]:
    """Mask and causal are handed over as they are, although the convention merges them."""
    adapter.torch_convention = False
    try:
        yield
    finally:
        adapter.torch_convention = True


def _after_a_draw(adapter: Any, device: str) -> contextlib.AbstractContextManager[Any]:
    """A number is drawn before, so that a call that always sets the same random state is seen to set it."""
    torch.rand(1)
    return contextlib.nullcontext()


@contextlib.contextmanager
def _loaded(adapter: Any, device: str) -> Iterator[None]:
    """Other threads multiply matrices meanwhile, on the same device."""
    over, busy = threading.Event(), threading.Barrier(3, timeout=60)

    def work() -> None:
        with torch.inference_mode():
            x = torch.ones(192, 192, device=device)
            with contextlib.suppress(threading.BrokenBarrierError):
                busy.wait()
            while not over.is_set():
                torch.mm(x, x)
                if device != "cpu":
                    torch.get_device_module(device).synchronize()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        busy.wait()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def _other_threads(adapter: Any, device: str) -> Iterator[None]:
    """Torch computes with another number of threads: one, or three where it has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 3)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _flagged(adapter: Any, device: str) -> Iterator[None]:
    """The same bits are asked for: by torch's flag, and by a parameter `deterministic` where there is one."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    _set_flag(True, True)
    adapter.flagged = True
    try:
        yield
    finally:
        adapter.flagged = False
        _set_flag(before, warns)


def _set_flag(on: bool, warns: bool) -> None:
    """Set torch's flag. The usual way imports torch's compiler, to tell it, too; where nobody has imported it, nobody compiles."""
    if "torch._dynamo" in sys.modules or "torch._inductor" in sys.modules:
        torch.use_deterministic_algorithms(on, warn_only=warns)
    else:
        torch.set_deterministic_debug_mode(int(on) * (1 if warns else 2))


LOADED, OTHER_THREADS, FLAGGED = "under load", "another number of threads", "a flag for the same bits"
SURROUNDINGS: dict[str, Surroundings] = {
    "no_grad": Surroundings(lambda adapter, device: torch.no_grad(), "with torch.no_grad():\n    {call}"),
    "inference_mode": Surroundings(lambda adapter, device: torch.inference_mode(), "with torch.inference_mode():\n    {call}"),
    "autocast": Surroundings(
        lambda adapter, device: torch.autocast(device, dtype=torch.bfloat16),
        'with torch.autocast("{device}", dtype=torch.bfloat16):\n    {call}',
    ),
    "unwatched": Surroundings(_unwatched),
    "unmerged": Surroundings(_unmerged),
    "after a draw": Surroundings(_after_a_draw),
    LOADED: Surroundings(_loaded),
    OTHER_THREADS: Surroundings(_other_threads, "torch.set_num_threads(1 if torch.get_num_threads() > 1 else 3)\n{call}"),
    FLAGGED: Surroundings(_flagged, "torch.use_deterministic_algorithms(True, warn_only=True)\n{call}"),
}


# What device.py does, for a script: the tensors that have names in it are the inputs.
_INPUTS = (
    "inputs = {id(x): x for x in list(globals().values()) if isinstance(x, torch.Tensor) and x.is_cuda}\n"
    "true = {n: x.detach().clone() for n, x in inputs.items()}\n"
)
QUEUED = {
    STREAM: _INPUTS + "with torch.no_grad():\n"
    "    {call}  # once before, for it may compile\n"
    "    for x in inputs.values():\n"
    "        x.fill_(float('nan') if x.is_floating_point() else 0)\n"
    "torch.cuda.synchronize()\n"
    "with torch.cuda.stream(torch.cuda.Stream()):\n"
    "    work = torch.ones(4096, 4096, device=DEVICE)\n"
    "    for _ in range(64):  # some tenths of a second, after which the inputs are there\n"
    "        torch.mm(work, work)\n"
    "    with torch.no_grad():\n"
    "        for n, x in inputs.items():\n"
    "            x.copy_(true[n])\n"
    "    {call}\n"
    "    torch.cuda.current_stream().synchronize()",
    CAPTURED: _INPUTS + "with torch.no_grad():\n"
    "    for x in inputs.values():\n"
    "        x.copy_(x.clone().flatten().flip(0).view(x.shape))\n"
    "    with torch.cuda.stream(torch.cuda.Stream()):\n"
    "        for _ in range(3):\n"
    "            {call}\n"
    "    torch.cuda.synchronize()\n"
    "    graph = torch.cuda.CUDAGraph()\n"
    "    with torch.cuda.graph(graph):\n"
    "        {call}\n"
    "    graph.replay()\n"
    "    for n, x in inputs.items():\n"
    "        x.copy_(true[n])\n"
    "    graph.replay()\n"
    "    torch.cuda.synchronize()",
}


# THE CALL ITSELF, MADE OTHERWISE


def made(call: Call, within: Within) -> Call:
    """The call, compiled where it is to be."""
    if within.surroundings.startswith(COMPILED):
        torch.compiler.reset()  # what was compiled too often runs as it is, and would say nothing
        return replace(call, function=torch.compile(call.function, backend=within.surroundings.removeprefix(COMPILED)))
    return call


def with_flag(call: Call) -> Call:
    """The call with its parameter `deterministic` True, where it has one that nobody else gives a value."""
    try:
        parameters = inspect.signature(call.function).parameters
    except (TypeError, ValueError):
        return call
    if "deterministic" not in parameters or "deterministic" in call.arguments:
        return call
    return replace(call, arguments={**call.arguments, "deterministic": True})


def direction(q: torch.Tensor) -> torch.Tensor:
    """The r of ⟨dq, r⟩, whose derivative is asked for: standard normal numbers in the shape of q, float64, the same each time."""
    return torch.randn(q.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
