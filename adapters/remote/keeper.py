"""Keeps a process that answers: where it ends, another takes its place, and what was imported needs no second import.

A crash costs the start of a process. Most of that is the import of torch, two seconds; the keeper imports it once, and forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from attnspec.adapters.remote.process import MARK

PR_SET_PDEATHSIG = 1


def keep(serve: Callable[[], None]) -> None:
    """Let `serve` answer in a process of its own, again and again, until nobody asks. It must not return.

    What asks is told of each process by a line: born, with its number, and ended, with its exit code, or minus its signal. Only
    where processes can be forked after torch is imported, which is on Linux; elsewhere `serve` answers here.
    """
    if sys.platform != "linux":
        serve()
        return
    die_with_parent()
    asked = select.poll()
    asked.register(0, 0)  # POLLHUP always comes
    while not any(event & select.POLLHUP for _, event in asked.poll(0)):
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            die_with_parent()
            serve()
        with contextlib.suppress(OSError):  # it may have done so, or have ended
            os.setpgid(child, child)
        _tell(op="born", pid=child)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it started
        os.write(2, b"\n" + MARK + b"\n")
        _tell(op="ended", code=code)


def die_with_parent() -> None:
    """Ask the system to end this process when its parent ends: a call may go on for ever. Only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _tell(**message: Any) -> None:
    os.write(1, b"\n" + json.dumps(message).encode() + b"\n")  # a process that ended may have left half a line
