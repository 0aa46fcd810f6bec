"""The command `attnspec`: verdict files, which need no torch, and vectors, which do. It imports nothing heavy before it must."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attnspec.conformance.verdicts import cli
from attnspec.conformance.verdicts.lines import VerdictError


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; see :func:`attnspec.conformance.verdicts.cli.main` for its exit codes."""
    return cli.main(words, beside=_beside)


def _beside(commands: Any) -> None:
    _vectors(commands)
    _campaign(commands)


def _campaign(commands: Any) -> None:
    """The options of `attnspec campaign`."""
    campaign = commands.add_parser(
        "campaign",
        help="judge many implementations, each in an environment of its own",
        description="Exit code 0: each has its result, whatever that says. 2: one could not be asked, or the file can't be read.",
    )
    campaign.add_argument("file", type=Path, help="a TOML file: title, options, constraints, [[implementation]]")
    campaign.add_argument("--into", type=Path, help="the folder of the results (default: the file's name, beside it)")
    campaign.add_argument(
        "-o", "--page", type=Path, help="write the table to this .html, its .md beside it, and pages in its folder"
    )
    campaign.add_argument("--scheduler", default="", help="tcp://HOST:PORT of a Dask scheduler (default: workers on this machine)")
    campaign.add_argument("--workers", type=int, default=1, help="on this machine (default 1)")
    campaign.add_argument("--again", action="store_true", help="ask those that have a result, too")
    campaign.add_argument("--only", default="", help="these alone, by name: a,b")
    campaign.set_defaults(do=_campaigned, foreign=False)


def _campaigned(options: argparse.Namespace) -> int:
    from dataclasses import replace
    from importlib.util import find_spec

    from attnspec.conformance.campaign import fleet, overview
    from attnspec.conformance.campaign.file import read
    from attnspec.conformance.verdicts.page import check_target

    if find_spec("distributed") is None:
        raise VerdictError("a campaign needs distributed, not installed here: pip install attnspec[fleet]")
    if options.page is not None:
        check_target(options.page)
    campaign, into = read(options.file), options.into or options.file.with_suffix("")
    only = {x for x in options.only.split(",") if x}
    if strange := only - {one.name for one in campaign.entries}:
        raise VerdictError(f"--only: {', '.join(sorted(strange))} is not in {options.file}")
    asked = replace(campaign, entries=tuple(one for one in campaign.entries if not only or one.name in only))
    fleet.go(asked, into, scheduler=options.scheduler, workers=options.workers, again=options.again)
    results = [fleet.stored(into, one.name) for one in campaign.entries]
    if options.page is not None:
        overview.write(campaign, results, into, options.page)
    return 2 if any(fleet.stored(into, one.name).get("trouble") for one in asked.entries) else 0


def _vectors(commands: Any) -> None:
    """The options of `attnspec vectors`."""
    vectors = commands.add_parser("vectors", help="problems as files, for kernels without Python, and their answers")
    does = vectors.add_subparsers(required=True, metavar="COMMAND")
    write = does.add_parser(
        "write",
        help="write problems, exact answers and bounds into a new folder",
        description="Write the problems of the arrays that a run compares with the reference. The README.md in the folder says "
        "what the files hold. The same command writes the same bytes.",
    )
    write.add_argument("folder", type=Path)
    write.add_argument("--tier", choices=("smoke", "standard", "thorough"), default="smoke", help="how many (default smoke)")
    write.add_argument(
        "--offers", default="", help="features that the kernel offers: mha,causal,… (default: all that files can say)"
    )
    write.add_argument("--without", default="", help="features to treat as not offered, such as backward,gqa")
    write.add_argument(
        "--dialect", action="append", default=[], help="causal_alignment=top_left, empty_row=uniform, … or canonical"
    )
    write.add_argument("--dtypes", help="float32,bfloat16,… (default: all four)")
    write.add_argument("--class", dest="accuracy", help="the accuracy class of the bounds (default: the one that is required)")
    write.add_argument("--clauses", default="", help="problems of these chapters or clauses only: CAUSAL,GRAD-4")
    write.add_argument("--few-shapes", action="store_true", help="use a few shapes only, for a kernel that compiles for each")
    write.add_argument("--largest", type=int, metavar="BYTES", help="leave out problems with more bytes of numbers")
    write.add_argument("--onnx", action="store_true", help="write test cases of the ONNX backend suite in place of our files")
    write.add_argument("--zip", type=Path, metavar="FILE", help="pack the folder into this archive, too")
    write.set_defaults(do=_write, foreign=False)
    check = does.add_parser(
        "check",
        help="judge the answers in a folder; exit code 0 where all are right",
        description="Exit code 0: every answer is right. 1: one is wrong, or is not there. 2: a folder can't be read. 5: "
        "none was judged.",
    )
    check.add_argument("folder", type=Path, help="what `attnspec vectors write` wrote")
    check.add_argument("answers", type=Path, help="NNNN.safetensors for each problem, or NNNN.error.txt")
    check.add_argument("--verdicts", type=Path, help="write verdicts to this file, as a run does")
    check.add_argument("--name", default="", help="what gave the answers (default: the name of their folder)")
    check.add_argument("--allow-incomplete", action="store_true", help="problems without an answer do not decide the exit code")
    check.set_defaults(do=_check, foreign=False)


def _write(options: argparse.Namespace) -> int:
    from attnspec.adapters import ResolveError

    try:
        return _written(options)
    except ResolveError as error:
        raise VerdictError(str(error).replace("--impl-dtypes", "--dtypes")) from None


def _written(options: argparse.Namespace) -> int:
    from attnspec.conformance import __version__
    from attnspec.conformance.plugin.options import _check_clauses
    from attnspec.conformance.run.run import Run
    from attnspec.conformance.run.tier import TIERS
    from attnspec.conformance.testing.asked import comparisons, made
    from attnspec.conformance.vectors.write import Task, fingerprint, make_folder, pack, size, write_set
    from attnspec.spec import SPEC_VERSION
    from attnspec.spec.words import FEATURES

    clauses = tuple(x for x in options.clauses.split(",") if x)
    _check_clauses(clauses, None)
    subject = _subject(options)
    make_folder(options.folder)  # before the problems, which take a while
    few = frozenset([id(subject)]) if options.few_shapes else frozenset()
    run = Run("attnspec vectors write", [subject], TIERS[options.tier], clauses=clauses, few_shapes=few)
    of_array = ((case, subject.problem(case), "", tuple(asks)) for case, asks in comparisons(run, subject).items())
    of_tests = ((case, problem, test, (asks,)) for case, problem, test, asks in made(run, subject))
    asked = [*of_array, *of_tests]
    kept = [one for one in asked if options.largest is None or size(one[1]) <= options.largest]
    large = len(asked) - len(kept)

    def tasks() -> Iterator[Task]:
        for case, problem, test, asks in kept:
            exact = subject.solve(problem, certain=case.dtype == "float64")
            yield Task(case, problem, exact, subject.required_class(case.dtype), asks, test)

    about = {
        "suite": __version__,
        "spec": SPEC_VERSION,
        "tier": options.tier,
        "offers": [name for name in FEATURES if subject.offers(name)],
        "dtypes": list(subject.dtypes),
        "dialect": vars(subject.dialect),
        "classes": {dtype: subject.required_class(dtype) for dtype in subject.dtypes},
        "few_shapes": options.few_shapes,
        "largest": options.largest,
        "left_out": {f"have more than {options.largest} bytes of numbers and were left out (--largest)": large},
    }
    if options.onnx:
        from attnspec.conformance.vectors.onnx import write_cases

        rest = ((case, problem) for case, problem, *_ in kept)
        cases = write_cases(options.folder, rest, subject.dialect, subject.solve, subject.required_class, about)
        print("\n".join(cases.lines))
        return 0
    written = write_set(options.folder, tasks(), about)
    if options.zip is not None:
        pack(options.folder, options.zip)
    print(f"{len(written.vectors)} problems, {written.bytes} bytes, in {options.folder}; {large} left out for their size")
    print(f"sha256 of the inputs {fingerprint(options.folder, '.inputs.safetensors')}, of all {fingerprint(options.folder)}")
    return 0


def _subject(options: argparse.Namespace) -> Any:
    """What stands for the kernel for which a set is written: what it offers, its choices and its class."""
    from attnspec.adapters import Adapter, ResolveError
    from attnspec.conformance.plugin.options import _dialect, _dtypes, _without
    from attnspec.conformance.subject.subject import Subject
    from attnspec.spec import Dialect
    from attnspec.spec.words import CLASSES, DTYPES, FEATURES, PROMISES, RAGGED

    # Of files: all tensors are dense, one sequence a batch item; nobody can say what was dropped, and no two calls are compared.
    unsaid = {"strided", "module", "dropout", *RAGGED, *PROMISES}
    offers = {x for x in options.offers.split(",") if x} or FEATURES.keys() - unsaid
    if offers - FEATURES.keys():
        raise ResolveError(f"--offers: unknown {', '.join(sorted(offers - FEATURES.keys()))}; choose from {', '.join(FEATURES)}")
    if options.accuracy is not None and options.accuracy not in CLASSES:
        raise ResolveError(f"--class {options.accuracy}: choose from {', '.join(CLASSES)}")
    adapter = Adapter()
    adapter.name, adapter.offers = "vectors", frozenset(offers - unsaid - _without(options.without))
    dtypes = _dtypes(options.dtypes) or DTYPES
    dialect = Dialect(**_dialect(options.dialect))
    return Subject(adapter, dialect=dialect, claim=options.accuracy, dtypes=tuple(x for x in DTYPES if x in dtypes))


def _check(options: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from attnspec.conformance.diagnosis.blame import blame
    from attnspec.conformance.report.environment import versions
    from attnspec.conformance.vectors.check import check

    if options.verdicts is not None and not options.verdicts.absolute().parent.is_dir():
        raise VerdictError(f"--verdicts {options.verdicts}: folder {options.verdicts.parent} does not exist")
    done = check(
        options.folder,
        options.answers,
        lambda case, finding, dialect, has_empty: blame(case, finding, dialect, frozenset(), has_empty),
        name=options.name,
        verdicts=options.verdicts,
        header={
            "command": " ".join(["attnspec", *sys.argv[1:]]),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        },
        allow_incomplete=options.allow_incomplete,
    )
    print("\n".join(done.lines))
    return done.exit
