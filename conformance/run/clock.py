"""What a run takes, by phase, and how its threads wait for each other. Imported before torch is, and imports none."""

from __future__ import annotations

import os
import sys
import time
from importlib.util import find_spec
from typing import Any

BEGAN = time.monotonic()  # when the plugin was imported
LONG = 60  # seconds of asking from which it is worth a word how to use more cores
MOST = 8  # workers that are recommended: each imports torch and the implementation for itself
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


def wait_without_spinning() -> str:
    """Tell OpenMP that threads which wait do not spin, unless the user has said how; the advice to give where it is too late.

    The problems of the suite are small. Beside other processes a thread that spins takes the core from the one that it waits
    for. The runtime reads these variables once, when torch is imported.
    """
    if WAITING.keys() & os.environ.keys():
        return ""
    if "torch" in sys.modules:
        settings = " ".join(f"{name}={value}" for name, value in WAITING.items())
        return f"torch was imported before attnspec; on a machine that others use, put this before the command: {settings}"
    os.environ.update(WAITING)
    return ""


def phases(run: Any, asked_until: float, alone: bool) -> str:
    """The line at the end: seconds of each phase, on the clock. alone: this process has no workers."""
    explained = run.explaining
    parts = {
        "to import and to ask the first questions": run.started - BEGAN,
        "to ask": asked_until - run.started - explained,
        "to explain": explained,
        "to report": time.monotonic() - asked_until,
    }
    line = "time: " + ", ".join(f"{max(seconds, 0.0):.0f} s {what}" for what, seconds in parts.items())
    return f"{line}; {advice}" if alone and parts["to ask"] > LONG and (advice := on_more_cores()) else line


def on_more_cores() -> str:
    """What to add to the command so that all cores of this machine are used; "" where there is one, or no pytest-xdist."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return ""
    if find_spec("xdist") is None:
        return f"with pytest-xdist and -n {min(cores, MOST)} more than one core is used"
    return f"add -n {min(cores, MOST)} to use more than one core"
