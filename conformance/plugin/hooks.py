"""The pytest plugin: `pytest --impl=mypackage.Attend` in any directory."""

from __future__ import annotations

import faulthandler
import re
import shlex
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnspec.conformance.diagnosis.purse import EXPLAIN_BUDGET
from attnspec.conformance.run import clock

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("--impl", {"help": "what to test: a dotted path, file.py:name, or a shipped name such as sdpa-math"}),
    ("--impl-kwargs", {"default": "", "help": "constructor arguments: heads=8,dim=64 or a JSON object"}),
    ("--impl-device", {"action": "append", "help": "cpu, cuda, … (default: cpu and whatever accelerator torch reports)"}),
    ("--impl-dtypes", {"help": "float32,bfloat16,… that are promised (default: those that a plain call accepts)"}),
    ("--without", {"default": "", "help": "features that are not promised after all, such as backward,gqa"}),
    ("--tier", {"choices": ("smoke", "standard", "thorough", "soak"), "default": "standard", "help": "how much is asked"}),
    ("--budget", {"type": float, "help": "seconds after which nothing new is asked; what was not reached is counted"}),
    ("--allow-incomplete", {"action": "store_true", "help": "what was not reached does not decide the exit code"}),
    ("--few-shapes", {"action": "store_true", "help": "ask in a few shapes only, for what compiles for each"}),
    ("--explain-budget", {"type": float, "default": EXPLAIN_BUDGET, "help": "seconds for explaining what fails, in all"}),
    ("--dialect", {"action": "append", "default": [], "help": "causal_alignment=top_left, empty_row=uniform, … or canonical"}),
    ("--accuracy", {"choices": ("A", "T", "B", "B*", "C", "C*", "D"), "help": "the accuracy class claimed for every dtype"}),
    ("--clauses", {"default": "", "help": "only these chapters or clauses: CAUSAL,GRAD-4"}),
    ("--case", {"help": "only this case, as a failure prints it"}),
    ("--attnspec-seed", {"type": int, "default": 0, "help": "seed of the search; change it nightly"}),
    ("--no-search", {"action": "store_true", "help": "ask the pinned problems only: the same ones whatever the seed; for gates"}),
    ("--shard", {"help": "1/4: of four machines this is the first; each takes the tests of some clauses"}),
    ("--known-issues", {"help": "TOML file of what is known to fail; '' for none (default: that of pyproject.toml)"}),
    ("--inherited", {"choices": ("fail", "note"), "default": "fail", "help": "note: what torch breaks in it does not decide"}),
    ("--write-known-issues", {"help": "draft such a file from what fails here"}),
    ("--enforce-should", {"action": "store_true", "help": "a broken SHOULD decides the exit code too"}),
    ("--show", {"choices": ("hex",), "help": "hex: the numbers of a failure to the bit, and how many ulp they are apart"}),
    ("--verdicts", {"help": "write verdicts to this file, JSON lines, as they come"}),
    ("--verdict-report", {"help": "write a page for people to this file, out.html, and out.md beside it for a pull request"}),
]
TESTS = Path(__file__).parent.parent / "clauses"
_HEADING = re.compile(r"[A-Z]+-\d+ · ")


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
    alone = config.args_source != pytest.Config.ArgsSource.ARGS
    if alone:
        config.args = [str(path) for path in sorted(TESTS.glob("test_*.py"))]
    # The summary has a line for each failure in CI too, where pytest would print the whole text once more.
    config.option.force_short_summary = True
    # A foreign project's patterns for its own tests are not ours.
    if all(arg.startswith("attnspec.") or Path(arg.split("::")[0]).absolute().is_relative_to(TESTS) for arg in config.args):
        config._inicache["python_functions"] = ["test_*"]  # type: ignore[attr-defined]
        config._inicache["python_files"] = ["test_*.py"]  # type: ignore[attr-defined]
    from attnspec.adapters import ResolveError
    from attnspec.conformance.plugin.process import Signals, Surroundings, streams_kept
    from attnspec.spec import SpecError

    config.stash[_SIGNALS], config.stash[_SURROUNDINGS] = signals, _ = Signals(), Surroundings()
    signals.watch()
    try:
        with streams_kept():
            config.stash[_RUN] = _make_run(config)
    except (ResolveError, SpecError, ValueError) as error:
        from attnspec.conformance.verdicts.text import visible

        signals.leave()
        raise pytest.UsageError("\n".join(map(visible, str(error).split("\n")))) from None
    except KeyboardInterrupt:
        signals.leave()
        who = f"{signals.caught} came" if signals.caught else "KeyboardInterrupt was raised, and no signal had come,"
        print(f"\nattnspec: {who} while {config.getoption('--impl')} was imported and asked the first questions", file=sys.stderr)
        raise
    from attnspec.conformance.plugin.workers import Controller, Worker

    worker = getattr(config, "workerinput", None)
    own = Controller(config.stash[_RUN]) if worker is None else Worker(config.stash[_RUN], worker["workercount"])
    config.pluginmanager.register(own, "attnspec-workers")
    hypothesis = config.pluginmanager.get_plugin("hypothesispytest")
    if alone and hypothesis is not None and not config.stash[_RUN].tier.searched:  # it would be imported for an empty summary
        config.pluginmanager.unregister(hypothesis)


_RUN: pytest.StashKey[Any] = pytest.StashKey()
_SIGNALS: pytest.StashKey[Any] = pytest.StashKey()
_SURROUNDINGS: pytest.StashKey[Any] = pytest.StashKey()
_TROUBLE: pytest.StashKey[list[str]] = pytest.StashKey()
_EXIT: pytest.StashKey[int] = pytest.StashKey()
_ADVICE: pytest.StashKey[str] = pytest.StashKey()
_ASKED: pytest.StashKey[float] = pytest.StashKey()  # when the last test had ended


def _make_run(config: pytest.Config) -> Any:
    from attnspec.adapters import ResolveError, parse_kwargs, resolve
    from attnspec.conformance.verdicts.record import Record

    option, command = config.getoption, shlex.join(["pytest", *map(str, config.invocation_params.args)])
    path = Path(option("--verdicts")).absolute() if option("--verdicts") and not hasattr(config, "workerinput") else None
    try:  # nothing of an earlier run is left: whatever the kernel does from here on, it is not taken for this one's
        if path is not None and path.parent.is_dir():
            path.write_text("", encoding="utf-8")
        if option("--verdict-report"):
            from attnspec.conformance.verdicts import page

            page.check_target(Path(option("--verdict-report")))
            if not hasattr(config, "workerinput") and not option("collectonly"):
                page.announce(Path(option("--verdict-report")), command)
    except OSError as error:
        raise ResolveError(f"{error.filename} can't be written: {error.strerror}; name a file in another folder") from None
    record = Record(path)
    kwargs = parse_kwargs(option("--impl-kwargs"))
    adapters = loaded(lambda: resolve(option("--impl"), kwargs), record)
    run = make_run(_with_pyproject(config, adapters), adapters, record)
    run.enough = min(run.enough, config.getoption("maxfail") or run.enough)
    run.asked = command
    return run


def loaded(load: Callable[[], list[Any]], record: Any) -> list[Any]:
    """The adapters that `load` gives; what importing the implementation changes of the global state is noted.

    How many threads there are, how products are rounded and which of torch's kernels are on is for a package to choose, and
    it is judged as its users have it; the rest is set back.
    """
    from attnspec.adapters.watch.state import SETUP, no_second_run, watched

    with no_second_run(), watched(leave=SETUP) as changes:
        adapters = load()
    for how in changes.values():
        record.note(f"importing it changed {how}, before anything was called")
    return adapters


def _with_pyproject(config: pytest.Config, adapters: list[Any]) -> Callable[[str], Any]:
    """The options, with the known issues that the pyproject.toml of pytest's rootdir names, if they are this implementation's."""
    from attnspec.adapters import ResolveError
    from attnspec.conformance.known.file import OtherImplementation, read

    path = config.rootpath / "pyproject.toml"
    if config.getoption("--known-issues") is not None or not path.is_file():
        return config.getoption
    named = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("attnspec", {}).get("known-issues", "")
    if not isinstance(named, str):
        raise ResolveError(f"{path}: known-issues under [tool.attnspec] is {named!r}; write the path of one file")
    if not named:
        return config.getoption
    file = str(config.rootpath / named)
    try:
        read(Path(file), {adapter.name for adapter in adapters})
    except OtherImplementation:
        return config.getoption
    return lambda name: file if name == "--known-issues" else config.getoption(name)


def make_run(option: Callable[[str], Any], adapters: list[Any], record: Any) -> Any:
    """The run that the options ask for. Raises ResolveError or ValueError with one clear message."""
    from attnspec.adapters import FEATURES, ResolveError
    from attnspec.conformance.known.draft import Draft, new_file
    from attnspec.conformance.known.file import read
    from attnspec.conformance.known.inherited import Inherited
    from attnspec.conformance.known.issues import KnownIssues
    from attnspec.conformance.problems.case import Case
    from attnspec.conformance.run.run import TIERS, Run
    from attnspec.conformance.run.shapes import Fallbacks, slow_on_new
    from attnspec.conformance.subject.meeting import meet
    from attnspec.conformance.verdicts.merge import Shard
    from attnspec.reference.bounds.accuracy import UNIT
    from attnspec.spec import CHOICES

    without = {x for x in option("--without").split(",") if x}
    if without - FEATURES.keys():
        raise ResolveError(f"--without names {', '.join(sorted(without - FEATURES.keys()))}; there are {', '.join(FEATURES)}")
    if without & {"backward", "bias"}:
        without.add("bias_grad")
    dialect: dict[str, str] = {}
    for choice in option("--dialect"):
        if choice == "canonical":
            dialect |= {name: open_.values[0] for name, open_ in CHOICES.items()}
            continue
        key, _, value = choice.partition("=")
        if key not in CHOICES or value not in CHOICES[key].values:
            raise ResolveError(
                f"--dialect {choice!r}: there are canonical; "
                + "; ".join(f"{open_.name}={'|'.join(open_.values)}" for open_ in CHOICES.values())
            )
        dialect[key] = value
    dtypes = tuple(x for x in (option("--impl-dtypes") or "").split(",") if x) or None
    if dtypes and set(dtypes) - UNIT.keys():
        raise ResolveError(f"--impl-dtypes {option('--impl-dtypes')}: there are {', '.join(UNIT)}")
    case = Case.parse(option("--case")) if option("--case") else None
    if option("--verdicts") and not Path(option("--verdicts")).absolute().parent.is_dir():
        raise ResolveError(f"--verdicts {option('--verdicts')}: there is no folder {Path(option('--verdicts')).parent}")
    clauses = tuple(x for x in option("--clauses").split(",") if x)
    _check_clauses(clauses)
    names = {adapter.name for adapter in adapters}
    known = read(Path(option("--known-issues")), names) if option("--known-issues") else KnownIssues()
    inherited = Inherited(accepted=option("--inherited") == "note")
    shard = Shard.parse(option("--shard")) if option("--shard") else None
    draft = Draft(new_file(option("--write-known-issues")) if option("--write-known-issues") else None)

    subjects = []
    for adapter in adapters:
        adapter.offers = frozenset(adapter.offers) - without
        for device in _devices(adapter, option("--impl-device")):
            subjects.append(
                meet(adapter.on(device), device, dialect, option("--accuracy"), dtypes or ((case.dtype,) if case else None))
            )
    for subject in subjects:
        if not subject.dtypes:
            raise ResolveError(_refuses_everything(subject))
        seen = subject.backend
        if getattr(subject.adapter, "flash", False) and seen is not None and seen.unfused:
            record.note(
                f"{subject.adapter.name} {subject.label} on {subject.device} ran no fused kernel: a plain {subject.dtypes[0]} call "
                f"is {', '.join(seen.parts)}; which kernel answers is no part of the answer, and decides nothing"
            )
        subject.siblings = tuple(s for s in subjects if s is not subject and s.device == subject.device)
        tier = TIERS[option("--tier")]
        subject.slow, subject.generic, subject.compiled = tier.slow, tier.generic, tier.compiled
        sides = known.same_side(subject), inherited.same_side(subject)
        subject.same_side = lambda met, other, sides=sides: all(same(met, other) for same in sides)
    small = set()
    for subject in subjects:
        measured = "" if option("--few-shapes") else slow_on_new(subject)
        if measured:
            record.note(f"{subject.label} on {subject.device} is slow on new shapes ({measured}); it is asked as with --few-shapes")
        if measured or option("--few-shapes"):
            small.add(id(subject))
    fallbacks = Fallbacks(subjects)
    fallbacks.watch()
    kept = ("--impl", "--impl-kwargs", "--impl-device", "--without", "--dialect", "--accuracy")
    words = ["pytest"]
    for name in kept:
        value = option(name)
        for item in value if isinstance(value, list) else [value] if value else []:
            words.append(shlex.quote(f"{name}={item}"))
    return Run(
        command=" ".join(words),
        subjects=subjects,
        tier=TIERS[option("--tier")],
        seed=option("--attnspec-seed"),
        budget=option("--budget"),
        explain_budget=option("--explain-budget"),
        case=case,
        clauses=clauses,
        enforce_should=option("--enforce-should"),
        allow_incomplete=option("--allow-incomplete"),
        pinned_only=option("--no-search"),
        few_shapes=frozenset(small),
        fallbacks=fallbacks,
        shard=shard,
        record=record,
        show=option("--show"),
        known=known,
        inherited=inherited,
        draft=draft,
    )


def _check_clauses(clauses: tuple[str, ...]) -> None:
    from attnspec.adapters import ResolveError
    from attnspec.spec import index

    known = {clause.chapter for clause in index().values()}
    for name in clauses:
        if name not in index() and name not in known:
            raise ResolveError(f"--clauses {name}: there is no such chapter or clause; chapters are {', '.join(sorted(known))}")


def _devices(adapter: Any, asked: list[str] | None) -> list[str]:
    from attnspec.adapters import ResolveError
    from attnspec.adapters.watch.state import current_accelerator

    present = ["cpu"]
    accelerator = current_accelerator()
    if accelerator is not None:
        present.append(accelerator.type)
    devices = asked or [d for d in present if adapter.devices is None or d in adapter.devices]
    if not devices:
        raise ResolveError(
            f"{adapter.name} runs on {' and '.join(adapter.devices)} only, and this machine has {' and '.join(present)}; "
            "nothing was tested"
        )
    for device in devices:
        if device.split(":")[0] not in present:
            raise ResolveError(f"--impl-device {device}: this machine has {' and '.join(present)}")
    return devices


def _refuses_everything(subject: Any) -> str:
    from attnspec.conformance.subject.meeting import widths

    reasons = sorted(set(subject.refused_dtypes.values()))
    return (
        f"{f'{subject.adapter.name} {subject.adapter.variant}'.strip()} answers no plain call on {subject.device}: "
        f"q, k, v of shape (1, 2, 4, d) and no option, with d = {', '.join(map(str, widths(subject)))}, in "
        f"{', '.join(subject.refused_dtypes)}. It raised {'; '.join(reasons)}. "
        "Check that it takes (b h i d) tensors, or write an adapter with attend(q, k, v, ...) that calls it as it wants."
    )


# COLLECTION


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A conformance test is asked of every subject and dtype."""
    if not hasattr(metafunc.function, "clauses"):
        return
    run = metafunc.config.stash.get(_RUN, None)
    if run is None:
        raise pytest.UsageError("these are conformance tests: say what to test with --impl=package.module.name")
    pairs = [(subject, dtype) for subject in run.subjects for dtype in subject.dtypes]
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
    from attnspec.spec import index

    ours = [item for item in items if hasattr(getattr(item, "function", None), "clauses")]
    strangers = [item.nodeid for item in items if Path(str(item.path)).parent == TESTS and item not in ours]
    problems = audit(complete={Path(str(item.path)) for item in ours} >= set(TESTS.glob("test_*.py")))
    problems += [f"{name} is a test without a clause" for name in strangers]
    if problems:
        raise pytest.UsageError("the suite is not well formed:\n  " + "\n  ".join(problems))
    for item in ours:
        item.user_properties.append(("clauses", ", ".join(item.function.clauses)))  # type: ignore[attr-defined]
    order = {id_: n for n, id_ in enumerate(index())}

    def rank(item: Any) -> int:
        return min((order[id_] for id_ in getattr(getattr(item, "function", None), "clauses", ())), default=-1)

    sweep = min(map(rank, ours), default=-1)

    def place(item: Any) -> tuple[bool, bool, int, int]:
        if item not in ours:
            return False, False, -1, rank(item)
        subject, dtype = (item.callspec.params[name] for name in ("subject", "dtype"))
        first, sweeps = dtype == subject.dtypes[0], rank(item) == sweep
        variant = -1 if first and sweeps else run.subjects.index(subject)
        return item.function.dangerous, not (first or sweeps), variant, rank(item)

    items.sort(key=place)
    if run.clauses:
        wanted = set(run.clauses)
        keep = [item for item in ours if any(id_ in wanted or id_.rpartition("-")[0] in wanted for id_ in item.function.clauses)]  # type: ignore[attr-defined]
        config.hook.pytest_deselected(items=[item for item in items if item not in keep])
        items[:] = keep
    if run.shard is not None:
        keep = [item for item in items if run.shard.owns(getattr(getattr(item, "function", None), "clauses", ()), run.clauses)]
        if not keep:
            raise pytest.UsageError(f"--shard {run.shard}: there are fewer clauses than shards, and this one has none; use fewer")
        config.hook.pytest_deselected(items=[item for item in items if item not in keep])
        items[:] = keep


def pytest_collection_finish(session: pytest.Session) -> None:
    """Remember how many tests are to be asked."""
    run = session.config.stash.get(_RUN, None)
    if run is not None:
        run.collected = len(session.items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """With a budget, every test asks its first problems before any goes on. Workers of pytest-xdist don't know which are theirs."""
    run = session.config.stash.get(_RUN, None)
    if run is None or session.config.getoption("collectonly") or hasattr(session.config, "workerinput") or session.testsfailed:
        return
    ours = [item for item in session.items if hasattr(getattr(item, "function", None), "clauses")]
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
        from attnspec.conformance.report import table as report

        run.record.open(report.header_data(run))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What was resolved, and the choices it follows."""
    run = config.stash.get(_RUN, None)
    if run is None:
        return []
    from attnspec.conformance.report import table as report

    return report.header(run) + [f"  {advice}" for advice in (config.stash[_ADVICE],) if advice]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failure is headed by its clause; an error of ours is said to be ours."""
    result = yield
    clauses = getattr(getattr(item, "function", None), "clauses", None)
    run = item.config.stash.get(_RUN, None)
    expected = call.excinfo is not None and call.excinfo.errisinstance(pytest.xfail.Exception)
    if clauses and run is not None and result.failed and not expected:
        assert call.excinfo is not None
        if call.excinfo.errisinstance(pytest.fail.Exception):
            result.longrepr = str(call.excinfo.value)
            broken = dict.fromkeys(line.split(" · ")[0] for line in result.longrepr.splitlines() if _HEADING.match(line))
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
            run.record.count(cell, Verdict.HARNESS_ERROR, 1, words(call.excinfo.value))
            result.longrepr = (
                "attnspec itself failed here; this says nothing about the implementation. Please report it with\n"
                f"{run.command} --clauses={clauses[0]}\n\n"
                + "\n".join(
                    f"{Path(str(entry.path)).name}:{entry.lineno + 1} in {entry.name}" for entry in call.excinfo.traceback[-4:]
                )
                + f"\n{visible(words(call.excinfo.value))}"
            )
    if clauses and result.skipped and isinstance(result.longrepr, tuple):
        from attnspec.conformance.verdicts.text import visible

        result.longrepr = (*result.longrepr[:2], visible(result.longrepr[2]))
    return result


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


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Notes, then the table clause × dtype, and what held."""
    run = config.stash.get(_RUN, None)
    if run is None:
        return
    from attnspec.conformance.report import table as report

    sections = {"notes": lambda: run.record.notes, "faults": lambda: report.faults(run)}
    for title, say in {**sections, "attention conformance": lambda: report.table(run)}.items():
        lines: list[str] = []
        _attempt(config, f"the section {title}", lambda say=say, lines=lines: lines.extend(say()))  # type: ignore[misc]
        if lines:
            terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
    terminalreporter.write_line(clock.phases(run, config.stash.get(_ASKED, time.monotonic())))
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
    from attnspec.conformance.run.ending import NOTHING, exit_code, nothing_judged
    from attnspec.conformance.testing.pinned import settle
    from attnspec.conformance.verdicts import page
    from attnspec.conformance.verdicts.lines import collect

    config.stash[_SURROUNDINGS].put_back()
    if hasattr(config, "workeroutput"):  # pytest-xdist: the controller shows and writes what its workers saw
        return
    run.note_at_the_end()
    if config.getoption("collectonly"):
        return
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        if not _attempt(config, "what is known of the known issues", lambda: settle(run)):
            exitstatus = pytest.ExitCode.TESTS_FAILED
        _attempt(config, "the draft of known issues", run.write_draft)
    stopped = session.shouldfail or session.shouldstop or _STOPPED.get(int(exitstatus), "")
    if exitstatus == pytest.ExitCode.INTERRUPTED and not (session.shouldfail or session.shouldstop):
        stopped = _who_stopped(run, config.stash[_SIGNALS].caught)
    if run.ended < run.collected or int(exitstatus) in _STOPPED:
        run.record.interrupt(f"{run.ended} of {run.collected} tests were asked" + (f": {stopped}" if stopped else ""))
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
    config.stash[_RUN].fallbacks.leave()
    threads = config.stash[_SURROUNDINGS].left_running()
    if threads and _EXIT in config.stash:
        end_despite(threads, config.stash[_EXIT])


def _who_stopped(run: Any, signal: str) -> str:
    """Why a run was interrupted: a signal came, or the implementation raised what a signal raises."""
    at = f" at {run.asking}" if run.asking else ""
    if signal:
        return f"interrupted{at} by {'Ctrl-C' if signal == 'SIGINT' else signal}"
    return f"KeyboardInterrupt was raised{at}, and no signal had come: the implementation raised it, or a plugin did"


_STOPPED = {
    int(pytest.ExitCode.INTERRUPTED): "interrupted",
    int(pytest.ExitCode.INTERNAL_ERROR): "an internal error of pytest or of a plugin",
    int(pytest.ExitCode.USAGE_ERROR): "a wrong use of the command line",
}
