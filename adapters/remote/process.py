"""A peer's process: started, spoken to line by line, with a limit of time for each answer, and ended.

Nothing here needs torch: the process starts before this one imports it, so that both do it at once.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnspec.adapters.watch.spent import waiting

# A process that finds attnspec, and all else, where this one does: somebody may have put it on the path, or started a bare clone.
BEGIN = """import json, sys, types
sys.path[:], own = json.loads(sys.argv.pop())
sys.modules["attnspec"] = types.ModuleType("attnspec")
sys.modules["attnspec"].__path__ = own
from attnspec.adapters.remote.worker import main
main()"""
COMMAND = "cmd:"  # how an implementation is named that is a command of its own
LOG = 64  # lines of a peer's log that are kept
HIDDEN = ("PYTEST_", "HYPOTHESIS_")  # variables that say who asks
GRACE = 2.0  # seconds that a process which says no more has to end
MARK = b"\0attnspec: the log of a process ends here"  # a line by its keeper


def worker() -> list[str]:
    """The command that starts our own peer, the same as `python -m attnspec.adapters.remote.worker`."""
    found = [x for x in sys.path if x], list(sys.modules["attnspec"].__path__)
    return [sys.executable, "-c", BEGIN, json.dumps(found)]


class Misspoken(Exception):
    """What a peer says is not of the protocol; the message says what, and what there is to say."""


class Ended(Exception):
    """The process ended before it answered, or its time was up (`timeout`). `how` and `brief` say it in words, `log` is its end."""

    def __init__(self, how: str, brief: str, log: Sequence[str] = (), *, timeout: bool = False) -> None:
        super().__init__(how)
        self.how, self.brief, self.log, self.timeout = how, brief, tuple(log), timeout


MEMORY, ROOM = "/dev/shm", 1 << 30  # a container may have little of it: then files do


def _memory_file_system() -> str | None:
    """A folder in memory with room for tensors, or None."""
    if not os.path.isdir(MEMORY) or not os.access(MEMORY, os.W_OK):
        return None
    for left in Path(MEMORY).glob("attnspec-*-*"):  # by a run that was killed
        owner = left.name.split("-")[1]
        if owner.isdecimal() and not _runs(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    return MEMORY if shutil.disk_usage(MEMORY).free >= ROOM else None


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


_ALIVE: weakref.WeakSet[Process] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for process in list(_ALIVE):
        process.close()


class Process:
    """One process that speaks the protocol: JSON objects in lines, on its standard input and output.

    All other lines, and its standard error, are its log. folder: a folder on a memory file system, for tensors; it is removed at
    the end. Behind the lines there may be a keeper, see :mod:`attnspec.adapters.remote.keeper`: then another process answers once
    one has ended, and `kept` is True.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"attnspec-{os.getpid()}-", dir=_memory_file_system()))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
        try:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=kept,
                start_new_session=True,  # Ctrl-C is for who asks, and all that it starts can be ended with it
                bufsize=0,
            )
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.log: deque[str] = deque(maxlen=LOG)
        self._new: deque[str] = deque(maxlen=4096)  # lines of the log that nobody has taken
        self._buffer = b""
        self._keeper = False  # whether there is one
        self._child: int | None = None  # the process that answers, where a keeper made it
        self._logged_out = threading.Event()  # nothing more will come to the log from a process that ended
        self._reader = threading.Thread(target=self._drain, name="attnspec-log", daemon=True)
        self._reader.start()
        _ALIVE.add(self)

    # TALKING

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one line. Raises Ended where nobody reads it."""
        assert self.process.stdin is not None
        try:
            data = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
            while data:
                data = data[self.process.stdin.write(data) :]
        except (BrokenPipeError, OSError):
            raise self._ended() from None

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next message. Raises Ended where none comes in time, or ever, and Misspoken where one can't be read."""
        end = time.monotonic() + seconds
        assert self.process.stdout is not None
        while True:
            line, found, rest = self._buffer.partition(b"\n")
            if found:
                self._buffer = rest
                message = self._message(line)
                if message is not None and not self._of_keeper(message):
                    return message
                continue
            left = end - time.monotonic()
            with waiting():
                there = left > 0 and bool(select.select([self.process.stdout], [], [], left)[0])
            if not there:
                raise Ended(f"it had not answered after {seconds:.3g} s", "too slow", self.cut(), timeout=True)
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                raise self._ended()
            self._buffer += data

    def _message(self, line: bytes) -> dict[str, Any] | None:
        text = line.decode("utf-8", "backslashreplace")
        if text.lstrip().startswith("{") and '"op"' in text:
            try:
                found = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise Misspoken(f"it wrote a message that is no JSON ({error}): {text.strip()[:200]}") from None
            if "op" in found:
                return dict(found)
        self._logged(text)
        return None

    def _of_keeper(self, message: Mapping[str, Any]) -> bool:
        """Whether a message is one of a keeper. Raises Ended where it says that the process which answered has ended."""
        if message["op"] == "born":
            self._keeper, self._child = True, int(message["pid"])
            self.log.clear()
            return True
        if message["op"] == "ended" and self._keeper:
            self._child = None
            self._logged_out.wait(GRACE)
            self._logged_out.clear()
            raise _said(int(message["code"]), list(self.log))
        return False

    def limit_memory(self, most: int) -> None:
        """Let it, and what it starts from now on, use this many bytes at most. Only Linux can."""
        if sys.platform == "linux":
            import resource

            resource.prlimit(self.process.pid, resource.RLIMIT_DATA, (most, most))

    def taken(self) -> list[str]:
        """The lines of the log that came since the last call."""
        lines = []
        while self._new:
            lines.append(self._new.popleft())
        return lines

    def _logged(self, line: str) -> None:
        line = line.rstrip("\r\n")
        if line:
            self.log.append(line)
            self._new.append(line)

    def _drain(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            for line in iter(self.process.stderr.readline, b""):
                if line.rstrip() == MARK:
                    self._logged_out.set()
                    continue
                self._logged(line.decode("utf-8", "backslashreplace"))

    # ENDING

    def _ended(self) -> Ended:
        """What became of a process that says no more."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        code = self.process.poll()
        log = self._stop()
        if code is None:
            closed = "closed the line to the suite and went on"
            return Ended(f"its process {closed}", closed, log)
        return _said(code, log)

    @property
    def kept(self) -> bool:
        """Whether it can be asked again, by its keeper, who has not ended."""
        return self._keeper and self.process.poll() is None

    def cut(self) -> list[str]:
        """End what is not to answer any more, and let its keeper live. Returns the last lines of its log."""
        child, self._child = self._child, None
        if child is None:
            return self._stop()
        _kill(child)
        try:
            while True:  # what it said before that is nobody's
                self.receive(GRACE)
        except Ended as ended:
            return list(ended.log)
        except Misspoken:
            return self._stop()

    def _stop(self) -> list[str]:
        """End the process and all that it started. Returns the last lines of its log."""
        for group in (self._child, self.process.pid):
            if group is not None:
                _kill(group)
        self._child = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        self._reader.join(GRACE)
        return list(self.log)

    def close(self) -> None:
        """End it, and remove its folder."""
        if self.process.poll() is None:
            with contextlib.suppress(Ended, OSError, subprocess.TimeoutExpired):
                self.send({"op": "stop"})
                if not self._keeper:
                    self.process.wait(0.2)
        self._stop()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _said(code: int, log: Sequence[str]) -> Ended:
    """How a process ended, by its exit code, or minus the signal that ended it."""
    if code >= 0:
        return Ended(f"its process ended with exit code {code}", f"ended with exit code {code}", log)
    name = signal.Signals(-code).name if -code in {int(s) for s in signal.Signals} else f"signal {-code}"
    return Ended(f"{name} ended its process", f"{name} ended", log)
