"""The pytest plugin: `pytest --impl=mypackage.Attend` in any directory."""

from __future__ import annotations

import faulthandler
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnspec.conformance.plugin.options import OPTIONS, apart, run_of
from attnspec.conformance.run import clock

TESTS = Path(__file__).parent.parent / "clauses"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, in a group of their own."""
    group = parser.getgroup("attnspec", "attention conformance")
    for name, settings in OPTIONS:
        group.addoption(name, **settings)


def pytest_configure(config: pytest.Config) -> None:
    """Without paths, --impl means the conformance suite and nothing else, wherever it is run."""
    config.addinivalue_line("markers", "clause(*ids): the clauses of the attention spec that a test decides")
    if config.getoption("--impl") is None:
        return
    config.stash[_ADVICE] = clock.wait_without_spinning()
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:  # pytest's own comes later than the first questions
        faulthandler.enable(sys.__stderr__)
    if config.args_source != pytest.Config.ArgsSource.ARGS:
        config.args = [str(path) for path in sorted(TESTS.glob("test_*.py"))]
    # The summary has a line for each failure in CI too, where pytest would print the whole text once more.
    config.option.force_short_summary = True
    # A foreign project's patterns for its own tests are not ours.
    if all(arg.startswith("attnspec.") or Path(arg.split("::")[0]).absolute().is_relative_to(TESTS) for arg in config.args):
        config.getini("python_functions")[:] = ["test_*"]
        config.getini("python_files")[:] = ["test_*.py"]
    from attnspec.conformance.plugin.process import Signals

    config.stash[_SIGNALS] = signals = Signals()
    signals.watch()
    try:
        _meet(config)
        if signals.caught:
            raise KeyboardInterrupt
    except BaseException as error:
        signals.leave()
        # What a signal raises may be swallowed where it comes, and something else breaks by it: numpy in the middle of its import.
        if not (signals.caught or isinstance(error, KeyboardInterrupt)):
            raise
        who = f"{signals.caught} came" if signals.caught else str(error) or "KeyboardInterrupt was raised without a signal"
        print(f"\nattnspec: {who} while {config.getoption('--impl')} was imported and asked the first questions", file=sys.stderr)
        raise KeyboardInterrupt(signals.caught) from error
    from attnspec.conformance.plugin.workers import Controller, Worker

    config.stash[_SURROUNDINGS].keep_streams()
    worker = getattr(config, "workerinput", None)
    own = Controller(config.stash[_RUN]) if worker is None else Worker(config.stash[_RUN], worker["workercount"])
    config.pluginmanager.register(own, "attnspec-workers")


def _meet(config: pytest.Config) -> None:
    """Find the implementation, and ask it the first questions. Raises UsageError, with what the user can do."""
    process = apart(config)
    from attnspec.adapters import ResolveError
    from attnspec.conformance.plugin.process import Surroundings, streams_kept
    from attnspec.spec import SpecError

    config.stash[_SURROUNDINGS] = Surroundings()
    try:
        with streams_kept():
            config.stash[_RUN] = run_of(config, process)
    except (ResolveError, SpecError, ValueError) as error:
        from attnspec.conformance.verdicts.text import visible

        raise pytest.UsageError("\n".join(map(visible, str(error).split("\n")))) from None


_RUN: pytest.StashKey[Any] = pytest.StashKey()
_SIGNALS: pytest.StashKey[Any] = pytest.StashKey()
_SURROUNDINGS: pytest.StashKey[Any] = pytest.StashKey()
_TROUBLE: pytest.StashKey[list[str]] = pytest.StashKey()
_EXIT: pytest.StashKey[int] = pytest.StashKey()
_ADVICE: pytest.StashKey[str] = pytest.StashKey()
_ASKED: pytest.StashKey[float] = pytest.StashKey()  # when the last test had ended


# COLLECTION


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A conformance test is asked of every subject and dtype."""
    if not hasattr(metafunc.function, "clauses"):
        return
    run = metafunc.config.stash.get(_RUN, None)
    if run is None:
        raise pytest.UsageError("these are conformance tests: say what to test with --impl=package.module.name")
    from attnspec.conformance.testing.clause import dtypes_of

    pairs = [(subject, dtype) for subject in run.subjects for dtype in dtypes_of(metafunc.function, run, subject)]
    several = len({s.device for s in run.subjects}) > 1
    ids = ["-".join(x for x in (s.adapter.variant, s.device if several else "", dtype) if x) for s, dtype in pairs]
    metafunc.parametrize(("subject", "dtype"), pairs, ids=ids)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bind tests to clauses, both ways, keep those that --clauses asks for, and put first what stops the most.

    That is the sweep over the array, which the first clause asks for, in every dtype: it costs what one test costs, and a kernel
    may be wrong in half types only. Then everything in one dtype: of the mutants in docs/kill-matrix.md most fail in all of them.
    So for each variant, the first before the others but for their sweep in one dtype. What a kernel may not survive, such as no
    heads, comes last.
    """
    run = config.stash.get(_RUN, None)
    if run is None:
        return
    from attnspec.conformance.testing.audit import audit
    from attnspec.conformance.testing.clause import clauses_of, wanted
    from attnspec.spec import index

    ours = [item for item in items if clauses_of(item)]
    strangers = [item.nodeid for item in items if Path(str(item.path)).parent == TESTS and item not in ours]
    problems = audit(complete={Path(str(item.path)) for item in ours} >= set(TESTS.glob("test_*.py")))
    problems += [f"{name} is a test without a clause" for name in strangers]
    if problems:
        raise pytest.UsageError("the suite is not well formed:\n  " + "\n  ".join(problems))
    for item in ours:
        item.user_properties.append(("clauses", ", ".join(item.function.clauses)))  # type: ignore[attr-defined]
    order = {id_: n for n, id_ in enumerate(index())}

    def rank(item: Any) -> int:
        return min((order[id_] for id_ in clauses_of(item)), default=-1)

    sweep = min(map(rank, ours), default=-1)

    known = set(ours)

    def place(item: Any) -> tuple[bool, bool, int, int]:
        if item not in known:
            return False, False, -1, rank(item)
        subject, dtype = (item.callspec.params[name] for name in ("subject", "dtype"))
        first, sweeps = dtype == subject.dtypes[0], rank(item) == sweep
        variant = -1 if first and sweeps else run.subjects.index(subject)
        return item.function.plan.dangerous, not (first or sweeps), variant, rank(item)

    items.sort(key=place)
    if run.clauses or run.spec:
        keep = [item for item in ours if wanted(item.function, run.clauses, run.spec)]  # type: ignore[attr-defined]
        config.hook.pytest_deselected(items=[item for item in items if item not in keep])
        items[:] = keep
    if run.shard is not None:
        keep = [item for item in items if run.shard.owns(clauses_of(item), run.clauses)]
        if not keep:
            raise pytest.UsageError(f"--shard {run.shard}: it has no clause, because there are more shards than clauses; use fewer")
        config.hook.pytest_deselected(items=[item for item in items if item not in keep])
        items[:] = keep


def pytest_collection_finish(session: pytest.Session) -> None:
    """Remember how many tests are to be asked.

    What they log is not shown, so pytest need not look for it around each of them, unless somebody asked for it.
    """
    config = session.config
    run = config.stash.get(_RUN, None)
    if run is None:
        return
    run.collected = len(session.items)
    from attnspec.conformance.plugin.live import shows_logs
    from attnspec.conformance.testing.clause import clauses_of

    if all(map(clauses_of, session.items)) and config.pluginmanager.hasplugin("logging-plugin") and not shows_logs(config):
        config.pluginmanager.unregister(name="logging-plugin")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """With a budget, every test asks its first problems before any goes on. Workers of pytest-xdist don't know which are theirs."""
    run = session.config.stash.get(_RUN, None)
    if run is None or session.config.getoption("collectonly") or hasattr(session.config, "workerinput") or session.testsfailed:
        return
    from attnspec.conformance.testing.clause import clauses_of

    ours = [item for item in session.items if clauses_of(item)]
    askings = (item.function.asking(run, *(item.callspec.params[name] for name in ("subject", "dtype"))) for item in ours)  # type: ignore[attr-defined]
    most = session.config.getvalue("maxfail") or float("inf")
    run.begin(askings, lambda: bool(session.shouldstop) or sum(bool(asking.shown) for asking in run.begun.values()) >= most)


@pytest.fixture(scope="session")
def attnspec_run(request: pytest.FixtureRequest) -> Any:
    """The run that the options ask for. What was tested, and with what, is told to JUnit XML."""
    run = request.config.stash[_RUN]
    if request.config.pluginmanager.hasplugin("junitxml"):
        tell, header = request.getfixturevalue("record_testsuite_property"), run.record.lines.kept[0]
        for name in ("suite", "spec", "tier", "seed", "command"):
            tell(f"attnspec {name}", header[name])
        for name, version in header["versions"].items():
            tell(f"version {name}", version)
    return run


# WHAT IS SHOWN


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin the verdict file, whatever the terminal shows."""
    run = session.config.stash.get(_RUN, None)
    if run is not None:
        from attnspec.conformance.plugin.live import Live, goes_on_in_a_line
        from attnspec.conformance.plugin.process import escape_letters
        from attnspec.conformance.report.header import header_data

        if goes_on_in_a_line(session.config):
            session.config.pluginmanager.register(Live(run, session.config), "attnspec-live")
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            escape_letters(getattr(reporter._tw, "_file", None))
        run.record.open(header_data(run))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What was resolved, and the choices it follows."""
    run = config.stash.get(_RUN, None)
    if run is None:
        return []
    from attnspec.conformance.report.header import header

    return header(run) + [f"  {advice}" for advice in (config.stash[_ADVICE],) if advice]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failure is headed by its clause; an error of ours is said to be ours."""
    if call.excinfo is not None and _RUN in item.config.stash:
        from attnspec.conformance.plugin.process import cut_at_no_line

        cut_at_no_line(call.excinfo.value)
    result = yield
    clauses = getattr(getattr(item, "function", None), "clauses", None)
    run = item.config.stash.get(_RUN, None)
    if run is not None and call.when == "call":
        run.look_at_originals()
        item.config.stash[_SURROUNDINGS].open_streams()
    expected = call.excinfo is not None and call.excinfo.errisinstance(pytest.xfail.Exception)
    if clauses and run is not None and result.failed and not expected:
        assert call.excinfo is not None
        if call.excinfo.errisinstance(pytest.fail.Exception):
            result.longrepr = str(call.excinfo.value)
            broken = getattr(call.excinfo.value, "broken", ())  # a time limit of whoever runs the tests names no clause
            file, line, test = result.location
            result.location = (file, line, f"{', '.join(broken)}, found by {test}")
            # What hundreds of calls logged, and what torch.compile traced, is not what a reader looks for.
            result.sections = [(name, _cut(said)) for name, said in result.sections if not name.startswith("Captured log")]
        else:
            from attnspec.adapters.reading import words
            from attnspec.conformance.verdicts.text import visible
            from attnspec.conformance.verdicts.verdict import Verdict

            params = item.callspec.params  # type: ignore[attr-defined]
            cell = (clauses[0], params["dtype"], params["subject"].label, params["subject"].device)
            if call.excinfo.errisinstance(MemoryError):  # of the process, which the implementation fills, too
                said = (
                    run.no_memory(cell, item.name, words(call.excinfo.value))
                    + ": the problem is too large for this machine, or the implementation keeps what it allocates"
                )
            else:
                said = "attnspec itself failed here; this says nothing about the implementation. Please report it with"
                run.record.count(cell, Verdict.HARNESS_ERROR, 1, words(call.excinfo.value))
            result.longrepr = (
                f"{said}\n{run.command} --clauses={clauses[0]}\n\n"
                + "\n".join(
                    f"{Path(str(entry.path)).name}:{entry.lineno + 1} in {entry.name}" for entry in call.excinfo.traceback[-4:]
                )
                + f"\n{visible(words(call.excinfo.value))}"
            )
    if clauses and result.skipped and isinstance(result.longrepr, tuple):
        from attnspec.conformance.verdicts.text import visible

        result.longrepr = (*result.longrepr[:2], visible(result.longrepr[2]))
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_keyboard_interrupt(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """A signal may come where Python knows no line."""
    from attnspec.conformance.plugin.process import cut_at_no_line

    cut_at_no_line(excinfo.value)


def _cut(said: str, most: int = 4000) -> str:
    """The end of what a kernel printed: a thousand calls print the same."""
    from attnspec.conformance.verdicts.text import visible

    left = f"({len(said) - most} characters before are left out)\n" if len(said) > most else ""
    return left + visible(said[-most:], keep="\n\t")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Count the tests that were asked to their end."""
    run = item.config.stash.get(_RUN, None)
    result = yield
    if run is not None:
        run.ended += 1
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """A test that searches tells Hypothesis's statistics, where they are asked for."""
    run = item.config.stash.get(_RUN, None)
    if run is None or not run.searches or not item.config.getoption("--hypothesis-show-statistics", False):
        return (yield)
    from attnspec.conformance.plugin import statistics

    with statistics.watch(item):
        return (yield)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Notes, then the table clause × dtype, and what held."""
    run = config.stash.get(_RUN, None)
    if run is None:
        return
    from attnspec.conformance.plugin.live import pictures
    from attnspec.conformance.report.table import faults, table

    paint = terminalreporter._tw.markup if pictures(config) else None
    sections = {"notes": lambda: run.record.notes, "faults": lambda: faults(run)}
    for title, say in {**sections, "attention conformance": lambda: table(run, paint)}.items():
        lines: list[str] = []
        _attempt(config, f"the section {title}", lambda say=say, lines=lines: lines.extend(say()))  # type: ignore[misc]
        if lines:
            terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
    alone = not config.pluginmanager.hasplugin("dsession")
    terminalreporter.write_line(clock.phases(run, config.stash.get(_ASKED, time.monotonic()), alone))
    for name in ("--verdicts", "--verdict-report"):
        if config.getoption(name):
            terminalreporter.write_line(f"{name.removeprefix('--').replace('-', ' ')}: {config.getoption(name)}")
    for line in config.stash.get(_TROUBLE, ()):
        terminalreporter.write_line(f"ERROR: {line}")


def _attempt(config: pytest.Config, what: str, do: Callable[[], Any]) -> bool:
    """Do what may fail at the end of a run: it then costs one line, and nothing else."""
    try:
        do()
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        config.stash.setdefault(_TROUBLE, []).append(f"{what} could not be written: {text}")
        return False
    return True


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Close the verdict file and write the page; the exit code follows the verdicts."""
    config = session.config
    run = config.stash.get(_RUN, None)
    if run is None:
        return
    config.stash[_ASKED] = time.monotonic()
    hypothesis = config.pluginmanager.get_plugin("hypothesispytest")
    if hypothesis is not None and "hypothesis" not in sys.modules:  # its summary, of nothing, would import it
        config.pluginmanager.unregister(hypothesis)
    from attnspec.conformance.plugin.process import threads_note
    from attnspec.conformance.run.ending import NOTHING, exit_code, nothing_judged
    from attnspec.conformance.testing.pinned import ask_pinned
    from attnspec.conformance.verdicts import page
    from attnspec.conformance.verdicts.lines import collect

    run.look_at_originals()
    config.stash[_SURROUNDINGS].put_back()
    if hasattr(config, "workeroutput"):  # pytest-xdist: the controller shows and writes what its workers saw
        return
    run.note_at_the_end()
    left = threads_note(config.stash[_SURROUNDINGS].new_threads())
    # Where workers of pytest-xdist or a process of the kernel's own answer, the threads here are of those who talk to them.
    isolated = any(subject.adapter.isolated for subject in run.subjects)
    if left and not config.pluginmanager.hasplugin("dsession") and not isolated:
        run.record.note(left)
    if config.getoption("collectonly"):
        return
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        if not _attempt(config, "what is known of the known issues", lambda: ask_pinned(run)):
            exitstatus = pytest.ExitCode.TESTS_FAILED
        _attempt(config, "the draft of known issues", run.write_draft)
    stopped = session.shouldfail or session.shouldstop or _STOPPED.get(int(exitstatus), "")
    if exitstatus == pytest.ExitCode.INTERRUPTED and not (session.shouldfail or session.shouldstop):
        stopped = _who_stopped(run, config.stash[_SIGNALS].caught)
    if run.ended < run.collected or int(exitstatus) in _STOPPED:
        run.record.interrupt(f"{run.ended} of {run.collected} tests ran" + (f": {stopped}" if stopped else ""))
    session.exitstatus = exit_code(run, int(exitstatus))
    if session.exitstatus == NOTHING:
        print(f"\n{nothing_judged(run)}", file=sys.stderr)
    _attempt(config, "the end of the verdicts", lambda: run.close(int(session.exitstatus)))
    target = config.getoption("--verdict-report")
    if target:
        target = config.stash[_SURROUNDINGS].folder / target
        _attempt(config, f"the page {target}", lambda: page.write(collect(run.record.lines.kept), target))
    if run.record.lines.trouble:
        config.stash.setdefault(_TROUBLE, []).append(run.record.lines.trouble)
    config.stash[_EXIT] = int(session.exitstatus)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Signals are pytest's own again; a thread that the implementation left does not keep the process from ending."""
    if config.stash.get(_RUN, None) is None:
        return
    from attnspec.conformance.plugin.process import end_despite

    config.stash[_SIGNALS].leave()
    config.stash[_SURROUNDINGS].leave_streams()
    for subject in config.stash[_RUN].subjects:
        subject.adapter.close()
    threads = config.stash[_SURROUNDINGS].left_running()
    if threads and _EXIT in config.stash:
        end_despite(threads, config.stash[_EXIT])


def _who_stopped(run: Any, signal: str) -> str:
    """Why a run was interrupted: a signal came, or the implementation raised what a signal raises."""
    at = f" at {run.asking}" if run.asking else ""
    if signal:
        return f"interrupted{at} by {'Ctrl-C' if signal == 'SIGINT' else signal}"
    return run.gone or f"KeyboardInterrupt was raised{at} without a signal: by the implementation, or by a plugin"


_STOPPED = {
    int(pytest.ExitCode.INTERRUPTED): "interrupted",
    int(pytest.ExitCode.INTERNAL_ERROR): "an internal error of pytest or of a plugin",
    int(pytest.ExitCode.USAGE_ERROR): "a wrong use of the command line",
}
