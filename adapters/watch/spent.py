"""The time that a question costs: what this thread computed, and what it waited for an implementation in another process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

_waited = 0.0


def spent() -> float:
    """Seconds so far. What other processes of this machine do meanwhile does not count."""
    return time.thread_time() + _waited


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Around what waits for an answer."""
    global _waited
    began = time.monotonic()
    try:
        yield
    finally:
        _waited += time.monotonic() - began
