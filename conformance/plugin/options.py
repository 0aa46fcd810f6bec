"""The options of a run, and the run that they make: one table for the command line and for check()."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from attnspec.adapters.remote.process import COMMAND, Process, worker
from attnspec.conformance.diagnosis.purse import EXPLAIN_BUDGET
from attnspec.conformance.verdicts.verdict import RANDOM
from attnspec.spec.problem import gradient_features
from attnspec.spec.words import CLASSES, MASKS, REPEATING


def _seed(given: str) -> int | str:
    """What --attnspec-seed takes."""
    if given == RANDOM:
        return given
    try:
        return int(given)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{given[:40]!r} is no seed; write a whole number, or {RANDOM}") from None


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("--impl", {"help": "what to test: a dotted path, file.py:name, or a shipped name such as sdpa-math"}),
    ("--impl-kwargs", {"default": "", "help": "constructor arguments: heads=8,dim=64 or a JSON object"}),
    ("--layout", {"help": "the order of its axes, where plain calls do not show it: 'b i h d', or 'b h i d -> b i (h d)'"}),
    ("--returns", {"help": "what it returns, each by its name: o,lse or weights,o"}),
    ("--mask", {"choices": tuple(MASKS), "help": "what its mask says: True shows, True hides, or it adds 0 and −∞"}),
    ("--impl-device", {"action": "append", "help": "cpu, cuda, … (default: cpu and whatever accelerator torch reports)"}),
    ("--impl-dtypes", {"help": "float32,bfloat16,… that are promised (default: those that a plain call accepts)"}),
    (
        "--isolate",
        {"action": "store_true", "help": "a process of its own for the implementation, which is the default, with a debugger too"},
    ),
    (
        "--in-process",
        {"action": "store_true", "help": "no process for the implementation: for a debugger, a profiler, coverage"},
    ),
    (
        "--case-timeout",
        {"type": float, "default": 60.0, "help": "seconds for a call; 600 for the first, which may compile"},
    ),
    ("--memory-limit", {"help": "memory that the process of the implementation may use, 8GiB"}),
    ("--without", {"default": "", "help": "features to treat as not offered, such as backward,gqa"}),
    ("--tier", {"choices": ("smoke", "standard", "thorough", "soak"), "default": "standard", "help": "how much to test"}),
    ("--budget", {"type": float, "help": "seconds after which nothing new starts; the summary counts what was not reached"}),
    ("--allow-incomplete", {"action": "store_true", "help": "what was not reached does not decide the exit code"}),
    ("--few-shapes", {"action": "store_true", "help": "use a few shapes only, for a kernel that compiles for each"}),
    ("--explain-budget", {"type": float, "default": EXPLAIN_BUDGET, "help": "seconds for explaining failures, in all"}),
    ("--dialect", {"action": "append", "default": [], "help": "causal_alignment=top_left, empty_row=uniform, … or canonical"}),
    ("--accuracy", {"choices": CLASSES[1:], "help": "the accuracy class claimed for every dtype"}),
    ("--clauses", {"default": "", "help": "test these chapters or clauses only: CAUSAL,GRAD-4"}),
    ("--spec", {"help": "0.1: leave out the clauses and the tests that came after this version of the spec"}),
    ("--case", {"help": "test this case only, as a failure prints it"}),
    (
        "--attnspec-seed",
        {
            "type": _seed,
            "default": 0,
            "help": "seed of the search; change it nightly. random: it is drawn, and told when the run has ended, so that who is "
            "tested can't prepare for it. --hypothesis-seed wins",
        },
    ),
    ("--no-search", {"action": "store_true", "help": "test the pinned problems only: the same ones whatever the seed; for gates"}),
    ("--shard", {"help": "1/4: the first of four machines; each runs the tests of some clauses"}),
    ("--known-issues", {"help": "TOML file of failures that are known; '' for none (default: that of pyproject.toml)"}),
    ("--inherited", {"choices": ("fail", "note"), "default": "fail", "help": "note: failures that torch causes do not decide"}),
    ("--write-known-issues", {"help": "draft such a file from the failures of this run"}),
    ("--enforce-should", {"action": "store_true", "help": "a broken SHOULD decides the exit code too"}),
    ("--show", {"choices": ("hex",), "help": "hex: the numbers of a failure to the bit, and how many ulp they are apart"}),
    ("--verdicts", {"help": "write verdicts to this file, JSON lines, as they come"}),
    ("--verdict-report", {"help": "write a page for people to this file, out.html, and out.md beside it for a pull request"}),
]


def run_of(config: pytest.Config, process: Any) -> Any:
    """The run that a command line asks for. process: that of the implementation, if it has one of ours. Raises ResolveError."""
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
    originals = before_loading()
    if process is not None or option("--impl").startswith(COMMAND):
        adapters = isolated_as(option, kwargs, record, process)
    else:
        adapters = loaded(lambda: resolve(option("--impl"), kwargs), record, originals)
    try:
        run = make_run(_with_pyproject(config, adapters), adapters, record)
    except BaseException:
        for adapter in adapters:
            adapter.close()
        raise
    run.originals = originals
    run.enough = min(run.enough, config.getoption("maxfail") or run.enough)
    run.invocation = command
    seed = config.getoption("--hypothesis-seed", None)
    if seed is not None:
        run.seed, run.seed_from = int(seed) if seed.isdecimal() else crc32(seed.encode()), "--hypothesis-seed"
        run.hides_seed = False
    elif run.hides_seed and hasattr(config, "workerinput"):
        run.seed = config.workerinput["attnspec_seed"]
    # Hypothesis replays nothing either under a given seed or in CI: what is asked there is the same each time.
    run.replays = run.searches and seed is None and os.environ.get("CI", "").lower() in ("", "0", "false")
    return run


def apart(config: pytest.Config) -> Any:
    """The process that the implementation has for itself, started here, before torch is imported; None where it has none of ours.

    Raises pytest.UsageError for options that exclude each other.
    """
    option = config.getoption
    if option("--isolate") and option("--in-process"):
        raise pytest.UsageError("--isolate and --in-process exclude each other; choose one")
    if option("--impl").startswith(COMMAND):
        if option("--in-process"):
            raise pytest.UsageError(f"--impl={option('--impl')} is a process of its own; leave out --in-process")
        return None
    if os.name == "nt":  # where one can wait for a process or for its time, not for both
        if option("--isolate"):
            raise pytest.UsageError("--isolate needs Linux or macOS; leave it out here, and the kernel runs in this process")
        return None
    debugged = option("usepdb", False) or option("trace", False)  # a debugger has to be where the kernel is
    return None if option("--in-process") or (debugged and not option("--isolate")) else Process(worker())


def isolated_as(option: Callable[[str], Any], kwargs: Any, record: Any, process: Any = None) -> list[Any]:
    """The adapters of an implementation in a process of its own; what importing it changed there is noted."""
    from attnspec.adapters.remote.isolated import Limits, isolated

    limits = Limits(case=option("--case-timeout"), memory=_bytes(option("--memory-limit")))
    adapters = isolated(option("--impl"), kwargs, limits, process)
    for how in adapters[0].peer.disturbed.values():
        record.note(f"importing it changed {how}, before anything was called")
    return list(adapters)


UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _bytes(given: str | None) -> int | None:
    """8GiB, 500MiB or a number of bytes."""
    from attnspec.adapters import ResolveError

    if given is None:
        return None
    number, unit = given.rstrip("KMGiB"), given[len(given.rstrip("KMGiB")) :]
    if unit not in UNITS or not number.isdecimal() or not int(number):
        raise ResolveError(f"--memory-limit {given!r} can't be read; write 8GiB, 500MiB, or a number of bytes")
    return int(number) * UNITS[unit]


def before_loading() -> Any:
    """The functions that verdicts go through, all of which are imported here: the implementation comes after them."""
    from importlib import import_module

    from attnspec.conformance.run.originals import Originals

    for name in ("report.table", "testing.engine", "verdicts.page"):
        import_module(f"attnspec.conformance.{name}")
    return Originals()


def loaded(load: Callable[[], list[Any]], record: Any, originals: Any) -> list[Any]:
    """The adapters that `load` gives; what importing the implementation changes of the global state is noted.

    How many threads there are, how products are rounded and which of torch's kernels are on is for a package to choose, and
    it is judged as its users have it; the rest is set back, and so are functions that the judge calls.
    """
    from attnspec.adapters.watch.state import SETUP, no_second_run, watched
    from attnspec.conformance.run.originals import named

    with no_second_run(), watched(leave=SETUP) as changes:
        adapters = load()
    for how in changes.values():
        record.note(f"importing it changed {how}, before anything was called")
    replaced = originals.put_back()
    if replaced:
        record.note(f"importing it replaced {named(replaced)}, which verdicts go through; the suite has put them back")
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
    from attnspec.adapters import ResolveError
    from attnspec.conformance.known.draft import Draft, new_file
    from attnspec.conformance.known.file import read
    from attnspec.conformance.known.inherited import Inherited
    from attnspec.conformance.known.issues import KnownIssues
    from attnspec.conformance.problems.case import Case
    from attnspec.conformance.run.run import Run
    from attnspec.conformance.run.tier import TIERS
    from attnspec.conformance.testing.clause import left_out
    from attnspec.conformance.verdicts.merge import Shard

    without, dialect, dtypes = _without(option("--without")), _dialect(option("--dialect")), _dtypes(option("--impl-dtypes"))
    case = Case.parse(option("--case")) if option("--case") else None
    if option("--verdicts") and not Path(option("--verdicts")).absolute().parent.is_dir():
        raise ResolveError(f"--verdicts {option('--verdicts')}: folder {Path(option('--verdicts')).parent} does not exist")
    clauses, spec = tuple(x for x in option("--clauses").split(",") if x), option("--spec")
    _check_clauses(clauses, spec)
    names = {adapter.name for adapter in adapters}
    known = read(Path(option("--known-issues")), names) if option("--known-issues") else KnownIssues()
    inherited = Inherited(accepted=option("--inherited") == "note")
    shard = Shard.parse(option("--shard")) if option("--shard") else None
    draft = Draft(new_file(option("--write-known-issues")) if option("--write-known-issues") else None)
    for adapter in adapters:
        promised = REPEATING if adapter.deterministic else ()
        adapter.offers = frozenset(adapter.offers).union(promised) - without
        adapter.deterministic = adapter.deterministic and without.isdisjoint(REPEATING)
    subjects = _subjects(option, adapters, dialect, dtypes or ((case.dtype,) if case else None), record)
    for subject in subjects:
        subject.same_side = partial(_on_each_side, (known.same_side(subject), inherited.same_side(subject)))
    few_shapes = _few_shapes(option, subjects, record)
    hides_seed = option("--attnspec-seed") == RANDOM
    return Run(
        command=_command(option),
        subjects=subjects,
        tier=TIERS[option("--tier")],
        seed=secrets.randbelow(2**32) if hides_seed else option("--attnspec-seed"),
        hides_seed=hides_seed,
        budget=option("--budget"),
        explain_budget=option("--explain-budget"),
        case=case,
        clauses=clauses,
        spec=spec,
        left_out=tuple(left_out(spec)) if spec else (),
        enforce_should=option("--enforce-should"),
        allow_incomplete=option("--allow-incomplete"),
        pinned_only=option("--no-search"),
        few_shapes=few_shapes,
        shard=shard,
        record=record,
        show=option("--show"),
        known=known,
        inherited=inherited,
        draft=draft,
    )


def _without(given: str) -> set[str]:
    from attnspec.adapters import ResolveError
    from attnspec.spec.words import FEATURES

    without = {x for x in given.split(",") if x}
    if without - FEATURES.keys():
        raise ResolveError(f"--without: unknown {', '.join(sorted(without - FEATURES.keys()))}; choose from {', '.join(FEATURES)}")
    return without | gradient_features(FEATURES if "backward" in without else without)


def _dialect(given: list[str]) -> dict[str, str]:
    from attnspec.adapters import ResolveError
    from attnspec.spec import CHOICES

    dialect: dict[str, str] = {}
    for choice in given:
        if choice == "canonical":
            dialect |= {name: open_.values[0] for name, open_ in CHOICES.items()}
            continue
        key, _, value = choice.partition("=")
        if key not in CHOICES or value not in CHOICES[key].values:
            raise ResolveError(
                f"--dialect {choice!r} is unknown; choose from canonical; "
                + "; ".join(f"{open_.name}={'|'.join(open_.values)}" for open_ in CHOICES.values())
            )
        dialect[key] = value
    return dialect


def _dtypes(given: str | None) -> tuple[str, ...] | None:
    from attnspec.adapters import ResolveError
    from attnspec.reference.bounds.accuracy import UNIT

    dtypes = tuple(x for x in (given or "").split(",") if x) or None
    if dtypes and set(dtypes) - UNIT.keys():
        raise ResolveError(f"--impl-dtypes {given}: choose from {', '.join(UNIT)}")
    return dtypes


def _subjects(
    option: Callable[[str], Any], adapters: list[Any], dialect: dict[str, str], dtypes: tuple[str, ...] | None, record: Any
) -> list[Any]:
    """Each variant on each device, after its first questions, with what the tier asks of it."""
    from attnspec.adapters import ResolveError
    from attnspec.conformance.run.tier import TIERS
    from attnspec.conformance.subject.meeting import meet

    subjects, tier = [], TIERS[option("--tier")]
    for adapter in adapters:
        for device in _devices(adapter, option("--impl-device")):
            there = adapter.on(device)
            _read_as(option, there)
            subjects.append(meet(there, device, dialect, option("--accuracy"), dtypes))
    for subject in subjects:
        if not subject.dtypes:
            raise ResolveError(_refuses_everything(subject))
        seen = subject.backend
        if getattr(subject.adapter, "flash", False) and seen is not None and seen.unfused:
            record.note(
                f"{subject.adapter.name} {subject.label} on {subject.device} ran no fused kernel: a plain {subject.dtypes[0]} call "
                f"is {', '.join(seen.parts)}; the kernel that answers does not decide the verdict"
            )
        subject.siblings = tuple(s for s in subjects if s is not subject and s.device == subject.device)
        subject.slow, subject.generic, subject.compiled = tier.slow, tier.generic, tier.compiled
    return subjects


def _read_as(option: Callable[[str], Any], adapter: Any) -> None:
    """Set how the calls of an implementation are read, where the command line says so. Raises ResolveError."""
    from attnspec.adapters import ResolveError
    from attnspec.adapters.conventions.layout import LAYOUTS, OUTPUTS

    given: dict[str, Any] = {}
    if option("--layout"):
        layout, _, output = (" ".join(x.split()) for x in option("--layout").partition("->"))
        if layout not in LAYOUTS or (output and output not in OUTPUTS):
            raise ResolveError(
                f"--layout={option('--layout')!r} is no order of axes that can be read: write one of {', '.join(LAYOUTS)}, "
                f"and where the output has another, -> and one of {', '.join(OUTPUTS)}"
            )
        given |= {"layout": layout, "output": "" if output == layout else output}
    if option("--returns"):
        given["returns"] = tuple(x.strip() for x in option("--returns").split(","))
        if given["returns"].count("o") != 1:
            raise ResolveError(f"--returns={option('--returns')}: the output is called o there: o,lse or weights,o")
    if option("--mask"):
        given["mask"], adapter.masks = option("--mask"), (option("--mask"),)
    if given and adapter.kernel is None:
        raise ResolveError(
            f"{adapter.name} is an adapter, which says itself how it is called; leave out --layout, --returns and --mask"
        )
    if given:
        adapter.given, adapter.read_by = given, ""


def _few_shapes(option: Callable[[str], Any], subjects: list[Any], record: Any) -> frozenset[int]:
    """The ids of the subjects that keep to a few shapes: all, or those that are slow on new ones."""
    from attnspec.conformance.run.shapes import slow_on_new

    small = set()
    for subject in subjects:
        measured = "" if option("--few-shapes") else slow_on_new(subject)
        if measured:
            record.note(f"{subject.label} on {subject.device} is slow on new shapes ({measured}); the suite turns on --few-shapes")
        if measured or option("--few-shapes"):
            small.add(id(subject))
    return frozenset(small)


def _command(option: Callable[[str], Any]) -> str:
    """What asks one case of this implementation again, without the case."""
    words = ["pytest"]
    named = (
        "--impl",
        "--impl-kwargs",
        "--layout",
        "--returns",
        "--mask",
        "--impl-device",
        "--memory-limit",
        "--without",
        "--dialect",
        "--accuracy",
        "--spec",
    )
    for name in named:
        value = option(name)
        for item in value if isinstance(value, list) else [value] if value else []:
            words.append(shlex.quote(f"{name}={item}"))
    return " ".join([*words, *(name for name in ("--isolate", "--in-process") if option(name))])


def _on_each_side(sides: tuple[Callable[[Any, Any], bool], ...], met: Any, other: Any) -> bool:
    """Whether a failure met on one case may be explained by another, by what is known and by what is inherited."""
    return all(same(met, other) for same in sides)


def _check_clauses(clauses: tuple[str, ...], spec: str | None) -> None:
    from attnspec.adapters import ResolveError
    from attnspec.spec import SPEC_VERSIONS, index, newer

    if spec is not None and spec not in SPEC_VERSIONS:
        raise ResolveError(f"--spec {spec}: unknown version of the spec; choose from {', '.join(SPEC_VERSIONS)}")
    known = {clause.chapter for clause in index().values()}
    for name in clauses:
        if name not in index() and name not in known:
            raise ResolveError(f"--clauses {name}: unknown chapter or clause; chapters are {', '.join(sorted(known))}")
        if name in index() and newer(index()[name].since, spec):
            raise ResolveError(f"--clauses {name}: it came with spec {index()[name].since}, and --spec asks for {spec}")


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
            raise ResolveError(f"--impl-device {device} is not on this machine, which has {' and '.join(present)}")
    return devices


def _refuses_everything(subject: Any) -> str:
    from attnspec.conformance.subject.meeting import widths

    reasons = "; ".join(sorted(set(subject.refused_dtypes.values())))
    came = f"What came of it: {reasons}\n" if subject.adapter.endings else f"It raised {reasons}. "
    called, then = "", "Check its attend(q, k, v, ...)."
    if "0 active drivers" in reasons:
        then = "Triton finds no GPU here: set TRITON_INTERPRET=1 before Python starts, and it runs the kernel on the CPU."
        return f"{subject.adapter.name} answers no plain call on {subject.device}. {came}{then}"
    if subject.adapter.kernel is not None:
        called = _called_with(subject)
        then = "Other orders of axes were tried, too. Write --layout or --impl-dtypes, or an adapter that calls it as it needs."
    return (
        f"{f'{subject.adapter.name} {subject.adapter.variant}'.strip()} answers no plain call on {subject.device}: "
        f"q, k, v of shape (1, 2, 4, d) and no option, with d = {', '.join(map(str, widths(subject)))}, in "
        f"{', '.join(subject.refused_dtypes)}. {called}{came}{then}"
    )


def _called_with(subject: Any) -> str:
    """The call that a convention makes of a plain problem, in words."""
    from attnspec.adapters import Unsupported
    from attnspec.conformance.problems.case import Case

    plain = subject.problem(Case(dtype=next(iter(subject.refused_dtypes)), heads="2/2", d=subject.width, i=4, wrt="none"))
    try:
        arguments = subject.adapter.script(plain).arguments
    except Unsupported:
        return ""
    own = {id(x): name for name, x in plain.inputs().items()}
    said = ", ".join(f"{name}={own.get(id(x)) or repr(x)}" for name, x in arguments.items())
    return f"It was called with {said}, and these are {' and '.join(subject.adapter.reading.words) or '(b h i d)'}. "
