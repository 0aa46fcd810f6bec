"""Run the conformance suite on something, inside this process, and say what it said."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from attnspec.conformance.plugin import hooks as plugin
from attnspec.conformance.run.run import Run
from attnspec.conformance.verdicts.record import Failure, Record

HERE = Path(__file__).parent


@dataclass
class Outcome:
    """Exit code, the run with its record, and what stood on the screen."""

    exit: int
    run: Run
    screen: str

    @property
    def record(self) -> Record:
        return self.run.record

    @property
    def failures(self) -> list[Failure]:
        return self.record.failures

    def broken(self) -> dict[str, int]:
        """MUST clauses that failed, and how often each was shown."""
        from attnspec.spec import index

        counts: dict[str, int] = {}
        for failure in self.failures:
            if index()[failure.clause].binding:
                counts[failure.clause] = counts.get(failure.clause, 0) + 1
        return counts


class _Keep:
    run: Run | None = None

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.run = session.config.stash[plugin._RUN]
        assert self.run is not None


def judge(impl: str, *options: str, tier: str = "smoke") -> Outcome:
    """The outcome of `pytest --impl=… --tier=…`, run where the process stands: scripts of failures are written there.

    In this process, where what is tested can be looked into, unless the options say --isolate.
    """
    keep = _Keep()
    # In CI nothing is replayed that an earlier run found.
    with contextlib.redirect_stdout(io.StringIO()) as screen, mock.patch.dict(os.environ, {"CI": "true"}):
        code = pytest.main(
            [
                f"--impl={impl}",
                f"--tier={tier}",
                *([] if "--isolate" in options or impl.startswith("cmd:") else ["--in-process"]),
                "-p",
                "no:cacheprovider",
                "--rootdir",
                str(HERE.parent),
                "-c",
                str(HERE.parent / "pyproject.toml"),
                *options,
            ],
            plugins=[keep],
        )
    assert keep.run is not None, f"--impl={impl} {' '.join(options)} did not start: exit {code}\n{screen.getvalue()}"
    return Outcome(int(code), keep.run, screen.getvalue())


def ended(script: str | Path) -> subprocess.CompletedProcess[str]:
    """The script of a failure, run to its end without the suite, where what it tests may stand in this folder."""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    return subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=60)
