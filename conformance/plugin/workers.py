"""Workers of pytest-xdist: which tests each gets, and what is taken over of what it saw.

All tests of one variant in one dtype on one device go to one worker, in the order in which one process would ask them. What the
suite keeps from test to test (answers that it has judged, the class that was held, failures that were explained) is kept for each
of these alone; so several workers say what one process says.
"""

from __future__ import annotations

from typing import Any

import pytest

from attnspec.conformance.run.run import Run


def strand(nodeid: str) -> str:
    """What tests that belong together have in common: variant, device and dtype, as their id ends with; else the test itself."""
    return nodeid.rpartition("[")[2] if nodeid.endswith("]") else nodeid


class Controller:
    """The plugin of the process that starts the workers, and shows and writes what they saw."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Divide the tests by strand, unless --dist asks for something else than what -n alone means."""
        return _scheduler(config, log) if config.getvalue("dist") == "load" else None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """All search with one seed, also where it was drawn."""
        node.workerinput["attnspec_seed"] = self.run.seed

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test has ended in a worker, whose verdicts are taken over at once."""
        if hasattr(report, "attnspec") and hasattr(report, "node"):
            self.run.absorb(report.attnspec)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        """A worker ends: take over what is left of what it saw. One that died took its last test with it."""
        if "attnspec" in getattr(node, "workeroutput", {}):
            seen, self.run.collected, ended = node.workeroutput["attnspec"]
            self.run.absorb(seen)
            self.run.ended += ended
        else:
            self.run.record.interrupt(f"worker {node.gateway.id} died during a test; the verdicts of that test are lost")


class Worker:
    """The plugin of a worker."""

    def __init__(self, run: Run, count: int) -> None:
        self.run, self.count = run, count
        run.take()  # the controller has met the implementation, too

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """What was seen travels with the report of its test."""
        result = yield
        if call.when == "teardown":
            result.attnspec = self.run.take()
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """With a budget, a test gets its share of the time: it is divided among the tests that this worker may get."""
        strands = sum(len(subject.dtypes) for subject in self.run.subjects)
        mine = self.run.collected * -(-strands // self.count) // strands
        self.run.share(mine - self.run.ended)
        return (yield)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """What is left, and how much was asked."""
        self.run.note_fallbacks()
        self.run.note_endings()
        self.run.weigh_again()
        session.config.workeroutput["attnspec"] = [self.run.take(), self.run.collected, self.run.ended]  # type: ignore[attr-defined]


def _scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling  # where it is asked for it is installed

    class Strands(LoadScopeScheduling):  # type: ignore[misc,unused-ignore]
        """Whole strands, each to one worker."""

        def _split_scope(self, nodeid: str) -> str:
            return strand(nodeid)

        def remove_node(self, node: Any) -> Any:
            """A worker is gone. The test in which it died is not asked again, and what was asked before it is not, either."""
            units = self.assigned_work[node]
            left = {scope: {test: False for test, done in unit.items() if not done} for scope, unit in units.items()}
            died = next((test for unit in left.values() for test in unit), None)
            left = {scope: rest for scope, unit in left.items() if (rest := {test: False for test in unit if test != died})}
            self.assigned_work[node] = left
            if left:
                super().remove_node(node)
            else:
                self.assigned_work.pop(node)
            return died

    return Strands(config, log)
