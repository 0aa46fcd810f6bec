"""What a call must leave as it was: the global state of the process (PURITY-3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

RANDOM = "the random state"
STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the determinism flag": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "the matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    RANDOM: (
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda state: torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8)),
    ),
}


@contextlib.contextmanager
def watched(apart_from: Iterable[str] = (), leave: Iterable[str] = ()) -> Iterator[dict[str, str]]:
    """Watch the global state while something runs: the mapping that is yielded is filled when it ends, by name, in words.

    What changed is set back, but for the names in `leave`. Names in `apart_from` are neither looked at nor set back.
    """
    changes: dict[str, str] = {}
    before = {name: read() for name, (read, _) in STATE.items() if name not in apart_from}
    try:
        yield changes
    finally:
        for name, value in before.items():
            read, write = STATE[name]
            after = read()
            if after == value:
                continue
            changes[name] = name if name == RANDOM else f"{name} from {value} to {after}"
            if name not in leave:
                write(value)
