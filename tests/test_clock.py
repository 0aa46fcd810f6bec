"""The line of times at the end of a run."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from attnspec.conformance.run import clock


@pytest.mark.parametrize(
    ("seconds", "cores", "there", "alone", "advice"),
    [
        (61, 2, True, True, "; add -n 2 to use more than one core"),
        (61, 64, True, True, "; add -n 8 to use more than one core"),
        (61, 2, False, True, "; with pytest-xdist and -n 2 more than one core is used"),
        (59, 2, True, True, ""),  # not worth a second import of torch
        (61, 1, True, True, ""),
        (61, 2, True, False, ""),  # there are workers
    ],
)
def test_a_long_run_says_how_to_use_more_cores(
    monkeypatch: pytest.MonkeyPatch, seconds: float, cores: int, there: bool, alone: bool, advice: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(clock, "find_spec", lambda _: there or None)
    now = time.monotonic()
    line = clock.phases(SimpleNamespace(started=now - seconds, explaining=0.0), now, alone)
    assert line.startswith("time: ")
    assert line.endswith(f"s to report{advice}")
