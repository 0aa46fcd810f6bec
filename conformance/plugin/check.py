"""The suite as a function: `check(attend).raise_for_failures()`, in a notebook or in another project's test.

It calls the tests one by one in this process, and starts no pytest. So you can call it inside a running pytest session and hand
it objects that have no name on a command line, and it writes files only if you ask for them.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from attnspec.adapters import Adapter, ResolveError, resolve
from attnspec.adapters.remote.process import COMMAND
from attnspec.adapters.watch.state import STATE, current_accelerator
from attnspec.conformance.diagnosis.purse import EXPLAIN_BUDGET
from attnspec.conformance.plugin.options import OPTIONS, before_loading, isolated_as, loaded, make_run
from attnspec.conformance.report import header as head
from attnspec.conformance.report.table import held, table
from attnspec.conformance.run.ending import exit_code, incomplete, judged, nothing_judged
from attnspec.conformance.run.rerun import Call
from attnspec.conformance.run.run import Run
from attnspec.conformance.testing.clause import dtypes_of, tests_of
from attnspec.conformance.testing.pinned import ask_pinned
from attnspec.conformance.verdicts.record import Failure, Record
from attnspec.conformance.verdicts.verdict import RANDOM, Verdict
from attnspec.spec import index


@dataclass(frozen=True)
class Result:
    """What the suite found. `str()` of it is what the command line shows.

    verdicts: an entry for each clause, dtype, variant and device, with the number of problems by verdict.
    failures: the broken clauses that decide, each once, with clause, dtype, variant, device, text and case.
    held: an entry for each variant, device and dtype, with the strictest accuracy class that all right answers held; "not A" if
    they did not hold A.
    errors: faults of the suite itself, which say nothing about the implementation, and faults in the file of known issues.
    notes, header, summary: the other lines that the command line shows.
    """

    name: str
    verdicts: tuple[dict[str, Any], ...] = field(repr=False)
    failures: tuple[Failure, ...] = field(repr=False)
    notes: tuple[str, ...] = field(repr=False)
    errors: tuple[str, ...]
    held: tuple[dict[str, str], ...] = field(repr=False)
    header: tuple[str, ...] = field(repr=False)
    summary: tuple[str, ...] = field(repr=False)
    judged: int  # problems that passed or failed, known issues among them
    exit: int  # the exit code of the same run on the command line
    incomplete: tuple[str, ...]  # what the run did not reach, and why
    silent: str  # why the run says nothing, if it judged nothing

    @property
    def ok(self) -> bool:
        """True if the exit code is 0: answers were judged, and every clause that decides was reached and is not broken."""
        return self.exit == 0

    @property
    def broken(self) -> tuple[str, ...]:
        """The ids of the clauses that failures name, in the order of the spec."""
        names = {failure.clause for failure in self.failures}
        return tuple(id_ for id_ in index() if id_ in names)

    def __str__(self) -> str:
        parts = [*self.header]
        if self.failures or self.errors:
            parts += ["", _rule("FAILURES")]
            for text in (*(failure.shown for failure in self.failures), *self.errors):
                parts += [text, ""]
        if self.notes:
            parts += [_rule("notes"), *self.notes]
        parts += [_rule("attention conformance"), *self.summary]
        if self.silent:
            parts += [self.silent]
        return "\n".join(parts)

    def raise_for_failures(self) -> Result:
        """Return this result if it is ok. Raises AssertionError, with the failures and the headline, if it is not."""
        if self.ok:
            return self
        headline = [line for line in self.summary if line.startswith(("INCOMPLETE", "MUST clauses", "broken", "SHOULD"))]
        texts = [failure.shown for failure in self.failures] + list(self.errors) + [self.silent] * bool(self.silent)
        raise AssertionError("\n\n".join([f"{self.name} does not conform", *texts, "\n".join(headline)]))


def check(
    impl: Any,
    tier: str = "smoke",
    *,
    clauses: str | Iterable[str] = "",
    spec: str | None = None,
    case: str | None = None,
    dialect: str | Mapping[str, str] = "",
    accuracy: str | None = None,
    dtypes: str | Iterable[str | torch.dtype] = "",
    device: str | torch.device | Iterable[str | torch.device] = (),
    kwargs: Mapping[str, Any] | None = None,
    layout: str | None = None,
    returns: str | None = None,
    mask: str | None = None,
    without: str | Iterable[str] = "",
    seed: int | str = 0,
    budget: float | None = None,
    explain_budget: float = EXPLAIN_BUDGET,
    enforce_should: bool = False,
    allow_incomplete: bool = False,
    few_shapes: bool = False,
    show: str | None = None,
    verdicts: str | Path | None = None,
    known_issues: str | Path | None = None,
    inherited: str = "fail",
    search: bool = True,
    repros: bool = False,
    isolate: bool = False,
) -> Result:
    """Run the suite on an implementation, and return what it found.

    impl: a function, a class or a module in one of the known calling conventions, an adapter or its class, or a name as --impl
    takes it. kwargs: constructor arguments of a class. The other options are those of the command line (`pytest --help`), as Python
    values: dialect is a mapping or "canonical"; dtypes and device may be torch's own; budget and explain_budget are in seconds.
    search=False is --no-search. repros=True writes the scripts of failures, as the command line does. isolate=True: a name
    has a process of its own, as on the command line.

    Raises ResolveError or ValueError if there is nothing to ask: impl can't be found or called, or an option has no such value.

    Afterwards working directory, sys.path, random states and torch's defaults are what they were before. The suite works on a copy
    of a module or an adapter, so the mode, the device and the declarations of yours do not change.
    """
    options = _options(locals())
    with _as_it_was(impl), torch.inference_mode(False), torch.enable_grad():
        record = Record(Path(verdicts) if verdicts is not None else None)
        originals = before_loading()
        apart = isolate or (isinstance(impl, str) and impl.startswith(COMMAND))
        if apart:
            adapters = isolated_as(options.__getitem__, kwargs or {}, record)
        else:
            adapters = [copy.copy(adapter) for adapter in loaded(lambda: resolve(_own(impl), kwargs), record, originals)]
        run = make_run(options.__getitem__, adapters, record)
        if not isinstance(impl, str):
            given = {"accuracy": accuracy, "dialect": dialect, "device": device, "without": without, "kwargs": kwargs, "spec": spec}
            run.rerun = Call(adapters[0].name.rpartition(".")[2], given)
        run.repros, run.originals = repros, originals
        arguments = {name: value for name, value in options.items() if value and name not in ("--impl", "--verdicts")}
        run.invocation = (
            f"check({adapters[0].name}, " + ", ".join(f"{name[2:]}={value!r}" for name, value in arguments.items()) + ")"
        )
        try:
            return _run_tests(run)
        finally:
            for adapter in adapters:
                adapter.close()


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of check() as the command line would give them. Raises ValueError for a word that it has not."""
    impl, device, dialect = given["impl"], given["device"], given["dialect"]
    options = {
        "--impl": impl if isinstance(impl, str) else None,
        "--impl-kwargs": ",".join(f"{key}={value!r}" for key, value in (given["kwargs"] or {}).items()),
        "--layout": given["layout"],
        "--returns": given["returns"],
        "--mask": given["mask"],
        "--impl-device": [str(x) for x in ([device] if isinstance(device, str | torch.device) else device)] or None,
        "--impl-dtypes": ",".join(str(x).removeprefix("torch.") for x in _listed(given["dtypes"])) or None,
        "--without": ",".join(_listed(given["without"])),
        "--tier": given["tier"],
        "--budget": given["budget"],
        "--explain-budget": given["explain_budget"],
        "--dialect": [dialect] if isinstance(dialect, str) and dialect else [f"{k}={v}" for k, v in dict(dialect or {}).items()],
        "--accuracy": given["accuracy"],
        "--clauses": ",".join(_listed(given["clauses"])),
        "--spec": given["spec"],
        "--case": given["case"],
        "--attnspec-seed": given["seed"],
        "--enforce-should": given["enforce_should"],
        "--allow-incomplete": given["allow_incomplete"],
        "--few-shapes": given["few_shapes"],
        "--show": given["show"],
        "--verdicts": str(given["verdicts"]) if given["verdicts"] is not None else None,
        "--known-issues": str(given["known_issues"]) if given["known_issues"] is not None else None,
        "--inherited": given["inherited"],
        "--write-known-issues": None,
        "--no-search": not given["search"],
        "--shard": None,
        "--isolate": given["isolate"],
        "--in-process": False,
        "--case-timeout": dict(OPTIONS)["--case-timeout"]["default"],
        "--memory-limit": None,
    }
    for name, settings in OPTIONS:
        choices = settings.get("choices")
        if choices and options[name] not in (None, *choices):
            raise ValueError(f"{name.removeprefix('--')} {options[name]!r}: choose from {', '.join(choices)}")
    if given["isolate"] and not isinstance(impl, str):
        raise ValueError("isolate=True needs a name, such as kernel.py:attend, by which another process finds what is tested")
    if not isinstance(given["seed"], int) and given["seed"] != RANDOM:
        raise ValueError(f"seed {given['seed']!r}: a whole number, or {RANDOM!r}")
    return options


def _run_tests(run: Run) -> Result:
    """Every test of every subject in every dtype, and what came of it."""
    header = head.header(run)
    run.record.open(head.header_data(run))
    errors = _ask(run)
    run.note_at_the_end()
    ask_pinned(run)
    errors += run.known.errors
    run.settle()
    result = _result(run, header, errors)
    run.close(result.exit)
    return result


def _ask(run: Run) -> list[str]:
    """Ask it all; what failed in the suite itself."""
    errors, tests = [], tests_of(run.clauses, run.spec)
    run.begin(test.asking(run, one, dtype) for test in tests for one in run.subjects for dtype in dtypes_of(test, run, one))
    for test in tests:
        for subject in run.subjects:
            for dtype in dtypes_of(test, run, subject):
                try:
                    test(run, subject, dtype)
                except (pytest.fail.Exception, pytest.skip.Exception):
                    continue  # the record knows
                except Exception as error:
                    what = f"{type(error).__name__}: {error}"
                    cell = (test.clauses[0], dtype, subject.label, subject.device)
                    if isinstance(error, MemoryError):
                        errors.append(run.no_memory(cell, f"{test.__name__}[{dtype}]", what))
                        continue
                    run.record.count(cell, Verdict.HARNESS_ERROR, 1, what)
                    errors.append(
                        f"attnspec itself failed in {test.__name__}, {dtype}; this says nothing about the implementation: {what}"
                    )
    run.look_at_originals()
    return errors


def _result(run: Run, header: list[str], errors: list[str]) -> Result:
    """What a run that has ended says."""
    record = run.record
    return Result(
        name=run.subjects[0].adapter.name,
        verdicts=tuple(
            {
                **dict(zip(("clause", "dtype", "variant", "device"), cell, strict=True)),
                "counts": {str(verdict): n for verdict, n in counts.items() if n},
                "reason": record.reasons.get(cell, ""),
            }
            for cell, counts in record.counts.items()
        ),
        failures=tuple(f for f in record.failures if run.decides(f.clause)),
        notes=tuple(record.notes),
        errors=tuple(errors),
        held=tuple(
            {"variant": s.label, "device": s.device, "dtype": dtype, "class": held(run, s, dtype)}
            for s in run.subjects
            for dtype in s.dtypes
            if held(run, s, dtype) != "–"
        ),
        header=tuple(header),
        summary=tuple(table(run)),
        judged=judged(record),
        exit=exit_code(run),
        incomplete=tuple(incomplete(run)),
        silent=nothing_judged(run),
    )


# WHAT IS SHOWN


def _rule(title: str) -> str:
    return f" {title} ".center(80, "=")


# LEAVING NO TRACE


def _listed(value: str | Iterable[Any]) -> list[Any]:
    return [x.strip() for x in value.split(",") if x.strip()] if isinstance(value, str) else sorted(value, key=str)


def _own(impl: Any) -> Any:
    """A copy of what the suite would set a mode, a device or an offer on; everything else itself."""
    if isinstance(impl, Adapter):
        return copy.copy(impl)
    if isinstance(impl, torch.nn.Module):
        try:
            return copy.deepcopy(impl)
        except Exception as error:
            raise ResolveError(f"{type(impl).__name__} can't be copied ({error}); pass its class instead, or an adapter") from None
    return impl


@contextlib.contextmanager
def _as_it_was(impl: Any) -> Iterator[None]:
    """Global state goes back to what it was, whatever an implementation does to it; what it prints is not shown."""
    path, device = list(sys.path), torch.get_default_device()
    stem = Path(impl.rpartition(":")[0]).stem if isinstance(impl, str) and ".py:" in impl else ""
    namesake = sys.modules.get(stem)
    global_state = [(state.write, state.read()) for state in STATE.values()]
    accelerator = current_accelerator()
    elsewhere = torch.get_device_module(accelerator).get_rng_state() if accelerator is not None else None
    torch.set_default_dtype(torch.float32)
    if device.type != "cpu":
        torch.set_default_device("cpu")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for write, value in global_state:
            write(value)
        if accelerator is not None:
            torch.get_device_module(accelerator).set_rng_state(elsewhere)
        sys.path[:] = path
        if stem and namesake is not None:
            sys.modules[stem] = namesake
        elif stem:
            sys.modules.pop(stem, None)
