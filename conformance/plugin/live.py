"""On a terminal: a line that says where the run is, and each failure as soon as it is found.

A pipe, a file, CI, -n and -s get what pytest itself prints, and so does a terminal without colours or without UTF-8.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Any

import pytest

from attnspec.conformance.run.run import Run
from attnspec.conformance.testing.clause import clauses_of
from attnspec.conformance.verdicts.record import Failure

EACH = 0.2  # seconds between two lines
ERASE = "\r\x1b[2K"


def pictures(config: pytest.Config) -> bool:
    """Whether a person looks at what is shown, on a terminal that has colours and the letters of UTF-8."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not reporter._tw.hasmarkup or os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    file = reporter._tw._file
    utf_8 = str(getattr(file, "encoding", "")).lower().replace("-", "").startswith("utf8")
    return utf_8 and bool(file.isatty())


def goes_on_in_a_line(config: pytest.Config) -> bool:
    """Whether nothing else writes to the terminal while the run goes on, so that a line can be written over and over."""
    option = config.getoption
    silent = option("capture") in ("fd", "sys") and option("verbose") <= 0 and not option("setupshow", False)
    debugged = option("usepdb", False) or option("trace", False)
    alone = option("dist", "no") == "no" and not hasattr(config, "workerinput") and not option("collectonly")
    # With a budget the first problems come before any test, and what a kernel in this process prints there is not captured.
    heard = option("--in-process", False) and option("--budget", None) is not None
    dots = hasattr(_reporter(config), "_show_progress_info")  # those of pytest's own reporter, in whose place the line stands
    return pictures(config) and dots and silent and alone and not (debugged or shows_logs(config) or heard)


def shows_logs(config: pytest.Config) -> bool:
    """Whether somebody asked for what tests log."""
    if config.pluginmanager.get_plugin("logging-plugin") is None:
        return False
    asked = any(config.getoption(name, None) or config.getini(name) for name in ("log_cli_level", "log_file"))
    return asked or bool(config.getini("log_cli"))


def _reporter(config: pytest.Config) -> Any:
    return config.pluginmanager.get_plugin("terminalreporter")


class Live:
    """The plugin that draws the line, in a thread of its own, and shows failures.

    It writes to a copy of the terminal's descriptor: while a test runs, pytest captures what goes to the other.
    """

    def __init__(self, run: Run, config: pytest.Config) -> None:
        self.run, self.reporter = run, _reporter(config)
        file = self.reporter._tw._file
        self._stream = os.fdopen(os.dup(file.fileno()), "w", encoding=file.encoding, errors="backslashreplace")
        self._writer = type(self.reporter._tw)(self._stream)
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._told: list[Failure] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Any:
        """While the tests run the line stands in the place of pytest's dots."""
        if not all(map(clauses_of, session.items)):
            return (yield)
        self.reporter.showfspath = self.reporter._show_progress_info = False
        self.run.tell = self._tell
        thread = threading.Thread(target=self._go, name="attnspec-live", daemon=True)
        thread.start()
        try:
            return (yield)
        finally:
            self._done.set()
            thread.join()
            with self._lock:
                self._write(ERASE)

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self) -> Any:
        """A test is counted, and no letter is written for it."""
        category, letter, word = yield
        return (category, letter, word) if self._done.is_set() or self.run.tell != self._tell else (category, "", "")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Keep which failures a report holds, for the end."""
        report = yield
        failures = getattr(call.excinfo and call.excinfo.value, "failures", ())
        report.attnspec_shown = bool(failures) and all(any(one is told for told in self._told) for one in failures)
        report.attnspec_more = "\n\n".join(getattr(call.excinfo and call.excinfo.value, "more", ()))
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self) -> Any:
        """The list at the end leaves out what was shown already: of a test that printed something it has this alone."""
        for report in self.reporter.stats.get("failed", ()):
            if not getattr(report, "attnspec_shown", False):
                continue
            if report.sections or report.attnspec_more:
                report.longrepr = f"its failures stand above, where they were found\n{report.attnspec_more}".rstrip()
            else:
                report._pdbshown = True  # pytest's own sign of a report that was shown before
        return (yield)

    # WHAT IS WRITTEN

    def _tell(self, failure: Failure) -> None:
        where = failure.dtype if failure.variant == "only" else f"{failure.dtype}, {failure.variant}"
        with self._lock:
            self._told.append(failure)
            self._write(ERASE)
            self._writer.sep("_", f"{failure.clause} in {where}, found by {failure.data['test']}", red=True, bold=True)
            self._writer.line(f"{failure.shown}\n")
            self._write(self.line())

    def _go(self) -> None:
        while not self._done.wait(EACH):
            with self._lock:
                self._write(ERASE + self.line())

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that is gone costs no verdict
            self._stream.write(text)
            self._stream.flush()

    def line(self) -> str:
        """Where the run is, in the width of the terminal: tests, answers, failures, the time, and what is asked now."""
        run, n = self.run, len(self._told)
        spent = int(time.monotonic() - run.started)
        answers = sum(subject.judged for subject in run.subjects)
        parts = [f"{run.ended} of {run.collected} tests", f"{answers:,} answers", f"{n} failure{'s' * (n != 1)}"]
        parts.append(f"{spent // 60}:{spent % 60:02}")
        if run.budget is not None:
            parts.append(f"{max(0, run.budget - spent):.0f} s left")
        said = " · ".join([*parts, *filter(None, [run.asking])])[: max(0, self._writer.fullwidth - 1)]
        return said.replace(parts[2], self._writer.markup(parts[2], red=True, bold=True), 1) if n else said
