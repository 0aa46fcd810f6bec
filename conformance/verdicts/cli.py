"""The command `attnspec`: what is done with verdict files once they are written."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnspec.conformance import __version__
from attnspec.conformance.verdicts import diff, matrix, page
from attnspec.conformance.verdicts.lines import VerdictError, read
from attnspec.conformance.verdicts.text import visible
from attnspec.spec import SPEC_VERSION


def main(words: Sequence[str] | None = None, *, beside: Callable[[Any], None] | None = None) -> int:
    """Run the command. 0: done, nothing got worse; 1: something did; 2: it could not be done, and why is said.

    beside: adds commands that need more than verdict files; with foreign=False they read none, and their errors are our own.
    """
    options = _parser(beside).parse_args(words)
    try:
        return options.do(options)
    except VerdictError as error:
        _say(f"attnspec: {error}", sys.stderr)
        return 2
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:  # a file from elsewhere
        if options.foreign is False:
            raise
        what = f"{type(error).__name__}: {str(error)[:120]}"
        _say(f"attnspec: a file holds something that verdicts.schema.json does not allow ({what}); write it again", sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _report(options: argparse.Namespace) -> int:
    page.check_target(options.output)
    verdicts = read(options.file)
    _warn([verdicts])
    print("\n".join(map(str, page.write(verdicts, options.output))))
    return 0


def _verify(options: argparse.Namespace) -> int:
    verdicts = read(options.file)
    _warn([verdicts])
    print(verdicts.tally.headline)
    return 2 if verdicts.incomplete or verdicts.footer is None else int(verdicts.footer["exit"] != 0)


def _diff(options: argparse.Namespace) -> int:
    comparison = diff.compare(read(options.old), read(options.new), options.error_growth)
    if options.markdown:
        _needs_jinja()
        print(page.render("diff.md", comparison=comparison))
        return comparison.exit
    _say(comparison.headline)
    for title, says, lines in comparison.sections():
        print()
        _say(f"{title}: {says}")
        for line in lines:
            _say(f"  {line}")
    return comparison.exit


def _matrix(options: argparse.Namespace) -> int:
    if options.output is not None:
        page.check_target(options.output, needs=("jinja2",))
    runs = [read(file) for file in options.files]
    _warn(runs)
    if options.markdown:
        _needs_jinja()
    if options.output is not None:
        matrix.write(runs, options.output)
        print(options.output)
    if options.output is None or options.markdown:
        if options.markdown:
            print(matrix.markdown(runs))
        else:
            for line in matrix.text(runs):
                _say(line)
    return 0


def _merge(options: argparse.Namespace) -> int:
    from attnspec.conformance.verdicts.merge import merge  # needs the spec

    merge(options.files, options.output)
    print(options.output)
    return 0


def _warn(runs: Sequence[Any]) -> None:
    for run in runs:
        for reason in run.incomplete:
            _say(f"attnspec: {run.source} is incomplete: {reason}", sys.stderr)


def _say(line: str, stream: Any = None) -> None:
    """One line: what is foreign in it, out of a file, is written out and not obeyed."""
    print(visible(line), file=stream)


def _needs_jinja() -> None:
    page.check_target(Path("any.html"), needs=("jinja2",))


def _parser(beside: Callable[[Any], None] | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("attnspec", description="Read what pytest --impl=… --verdicts=FILE wrote.")
    parser.set_defaults(foreign=True)
    parser.add_argument("--version", action="version", version=f"attnspec {__version__} (spec {SPEC_VERSION})")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    report = commands.add_parser("report", help="make the page again, from a stored file")
    report.add_argument("file", help="what --verdicts wrote")
    report.add_argument("-o", "--output", type=Path, required=True, help="page.html; page.md is written beside it")
    report.set_defaults(do=_report)

    end = commands.add_parser(
        "verify",
        help="whether a run ended, and conforms; exit code 0 where it does",
        description="Exit code 0: the run ended and conforms. 1: it ended, and does not. 2: it did not end (a kernel may end its "
        "process with any exit code), or the file can't be read.",
    )
    end.add_argument("file", help="what --verdicts wrote")
    end.set_defaults(do=_verify)

    compare = commands.add_parser(
        "diff",
        help="what changed between two runs; exit code 1 where something got worse",
        description="Exit code 1: new failures, clauses no longer tested, features no longer offered, an accuracy class lost, "
        "an error or known issues grown. 2: a file is incomplete or can't be read.",
    )
    compare.add_argument("old")
    compare.add_argument("new")
    compare.add_argument(
        "--error-growth",
        type=float,
        default=diff.GROWTH,
        metavar="FACTOR",
        help=f"an error has grown where it is more than FACTOR times what it was (default {diff.GROWTH}) and above "
        f"{diff.QUIET} of its bound; inf: never",
    )
    compare.add_argument("--markdown", action="store_true", help="for a comment on a pull request")
    compare.set_defaults(do=_diff)

    shards = commands.add_parser("merge", help="the verdict files of all shards as that of one run")
    shards.add_argument("files", nargs="+", help="what --shard=1/N --verdicts=FILE wrote, of each shard")
    shards.add_argument("-o", "--output", type=Path, required=True)
    shards.set_defaults(do=_merge)

    across = commands.add_parser("matrix", help="clauses × implementations")
    across.add_argument("files", nargs="+")
    across.add_argument("-o", "--output", type=Path, help="matrix.html; without it the table goes to the terminal")
    across.add_argument("--markdown", action="store_true", help="the table as Markdown, to the terminal")
    across.set_defaults(do=_matrix)
    if beside is not None:
        beside(commands)
    return parser
