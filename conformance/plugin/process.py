"""The process that a kernel shares with the suite: what it does to it must not cost the verdicts."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

PATIENCE = 5.0  # seconds that the process waits for threads that were left running


@dataclass
class Signals:
    """SIGTERM and SIGHUP end a run as Ctrl-C does; the second one acts as ever. caught: which one came."""

    caught: str = ""
    _before: dict[int, Any] = field(default_factory=dict)

    def watch(self) -> None:
        """Take over what nobody else has taken over: `nohup`, a debugger and a host program keep their own handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            before = signal.getsignal(number) if number is not None else None
            if number is not None and before in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = before
                signal.signal(number, self._come)

    def _come(self, number: int, frame: FrameType | None) -> None:
        self.caught = signal.Signals(number).name
        self.leave()
        raise KeyboardInterrupt(self.caught)

    def leave(self) -> None:
        """Put the handlers back."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._come:
                signal.signal(number, before)
        self._before.clear()


@dataclass
class Surroundings:
    """What the end of a run needs of its process, as it was at the start."""

    folder: Path = field(default_factory=Path.cwd)
    path: list[str] = field(default_factory=lambda: list(sys.path))
    depth: int = field(default_factory=sys.getrecursionlimit)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    threads: frozenset[threading.Thread] = field(default_factory=lambda: frozenset(threading.enumerate()))
    streams: dict[int, int] = field(default_factory=dict)  # copies of their descriptors

    def keep_streams(self) -> None:
        """From here on standard output and error can be opened again."""
        self.streams = {number: _copy(number) for number in (1, 2)}

    def leave_streams(self) -> None:
        """Nothing is kept any more."""
        for kept in self.streams.values():
            with contextlib.suppress(OSError):
                os.close(kept)
        self.streams.clear()

    def open_streams(self) -> None:
        """Standard output and error are open again where a kernel closed them, so that the report has where to go."""
        for number, kept in self.streams.items():
            try:
                os.fstat(number)
            except OSError:
                with contextlib.suppress(OSError):
                    os.dup2(kept, number)

    def put_back(self) -> None:
        """The working folder, where modules are found, how deep calls may be, and variables that are gone."""
        sys.path[:] = [*sys.path, *(x for x in self.path if x not in sys.path)]
        sys.setrecursionlimit(max(self.depth, sys.getrecursionlimit()))
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)
        with contextlib.suppress(OSError):
            os.chdir(self.folder)

    def left_running(self) -> list[threading.Thread]:
        """Threads for which the process would wait at its end, and which were not there at the start."""
        return [t for t in self.new_threads() if not t.daemon]

    def new_threads(self) -> list[threading.Thread]:
        """Threads that run and were not there at the start."""
        return [t for t in threading.enumerate() if t.is_alive() and t not in self.threads]


def cut_at_no_line(error: BaseException) -> None:
    """End a traceback before a frame of which Python knows no line, such as of generated code: pytest fails on one."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        if at.tb_next.tb_lineno is None:
            at.tb_next = None
        at = at.tb_next


def threads_note(threads: list[threading.Thread], most: int = 4) -> str:
    """What is said of threads that run when nothing is asked any more; '' where there are none."""
    if not threads:
        return ""
    names = ", ".join(dict.fromkeys(thread.name for thread in threads[:most]))
    more = f" and {len(threads) - most} more" if len(threads) > most else ""
    return f"still running after the last call, and not there before the first: thread {names}{more}"


def _copy(number: int) -> int:
    """A copy of a descriptor, away from the small numbers that are closed in passing; -1 where it is closed already."""
    try:
        from fcntl import F_DUPFD_CLOEXEC, fcntl

        return fcntl(number, F_DUPFD_CLOEXEC, 200)
    except ImportError:  # Windows
        return os.dup(number)
    except OSError:
        return -1


@contextlib.contextmanager
def streams_kept() -> Iterator[None]:
    """Standard output and error are afterwards what they were, whatever replaced or closed them."""
    objects, copies = (sys.stdout, sys.stderr), {}
    for number in (1, 2):
        with contextlib.suppress(OSError):
            copies[number] = os.dup(number)
    try:
        yield
    finally:
        for number, kept in copies.items():
            try:
                os.fstat(number)
            except OSError:
                os.dup2(kept, number)
            os.close(kept)
        sys.stdout, sys.stderr = (_open(number, kept) for number, kept in zip((1, 2), objects, strict=True))


def escape_letters(stream: Any) -> None:
    """Letters that a terminal does not have are written as \\u2717. pytest would write the whole text so, in one line."""
    try:
        "· ✗ ≤ −∞ Σ".encode(stream.encoding)
    except UnicodeEncodeError:
        with contextlib.suppress(Exception):
            stream.reconfigure(errors="backslashreplace")
    except (AttributeError, TypeError, LookupError):  # no terminal
        return


def _open(number: int, stream: Any) -> Any:
    """A stream, or where it was closed a new one on the same descriptor."""
    closed = stream is not None and stream.closed
    return os.fdopen(number, "w", encoding=stream.encoding, closefd=False) if closed else stream


def end_despite(threads: list[threading.Thread], code: int) -> None:
    """Let the process end with its exit code although these threads do not end; it waits for them for a while.

    Nothing happens before the main thread is done, so a program that runs the suite and then something else is not cut off.
    """
    names = ", ".join(thread.name for thread in threads)

    def wait() -> None:
        while threading.main_thread().is_alive():
            time.sleep(0.1)
        end = time.monotonic() + PATIENCE
        while any(thread.is_alive() for thread in threads):
            if time.monotonic() > end:
                with contextlib.suppress(Exception):
                    print(f"attnspec: the implementation left {names} running; the process ends without it", file=sys.__stderr__)
                    sys.__stdout__.flush()  # type: ignore[union-attr]
                    sys.__stderr__.flush()  # type: ignore[union-attr]
                os._exit(code)
            time.sleep(0.1)

    threading.Thread(target=wait, name="attnspec-end", daemon=True).start()
