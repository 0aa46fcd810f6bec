"""Faults injected into kernels and their surroundings: how a run ends, beside how it should end.

    python benchmarks/faults.py [--only WORD …] [--family 4 …] [--with OPTIONS] [--markdown OUT] [--keep FOLDER]

Each fault is a small kernel, or something that happens to the run, in a folder of its own; the real command is run on it. Its
grade follows from what is expected of it (fault_endings.py): OK, weak (right, and something is missing or misleading), or bad
(results lost, a wrong blame, a wrong exit code). `--with ''` (default) is the run as it is, where the kernel has a process of its
own, `--with=--in-process` that in one process; give it several times for several columns. Exit 1 where a fault is bad.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from fault_endings import Fault, Seen, grade
from fault_kernels import KERNELS
from fault_surroundings import SURROUNDINGS
from fault_texts import TEXTS

from attnspec.conformance.plugin.options import OPTIONS

ROOT = Path(__file__).resolve().parent.parent
FAULTS: list[Fault] = sorted([*KERNELS, *SURROUNDINGS, *TEXTS], key=lambda fault: int(re.match(r"\d+", fault.family)[0]))  # type: ignore[index]
RESTARTS = 6  # times the time that a run has in which each crash starts a process, and each hang takes its time limit
MOST = 8_000_000  # characters of a screen that are kept


def command(fault: Fault, options: Sequence[str] = ()) -> list[str]:
    """What is run for a fault, as a user would."""
    words = [
        sys.executable,
        "-m",
        "pytest",
        f"--impl={fault.impl}",
        "--tier=smoke",
        "--impl-dtypes=float32",
        f"--clauses={fault.clauses}",
    ]
    words += ["--verdicts=v.jsonl", "--verdict-report=r.html", "-p", "no:cacheprovider", *fault.options, *options]
    return ["bash", "-c", f'{fault.wrap} exec "$@"', "bash", *words] if fault.wrap else words


def run(fault: Fault, folder: Path, options: Sequence[str] = ()) -> Seen:
    """Run a fault in a folder, to its end or until its time is up, and read what it left."""
    (folder / "kernel.py").write_text(fault.kernel, encoding="utf-8")
    if fault.first is not None:
        fault.first(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "true", "COLUMNS": "132", **fault.env}
    environment = {name: value for name, value in environment.items() if value is not None}
    commands = [[sys.executable, *words] for words in fault.commands] or [command(fault, options)]
    screen, started, seen = folder / "screen.txt", time.monotonic(), Seen(folder, 0, "", 0.0)
    ended: list[int] = []
    limit = fault.limit * (1 if "--in-process" in options else RESTARTS)
    with screen.open("wb") as out:
        for words in commands:
            process = subprocess.Popen(
                words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
            try:
                if fault.during is not None:
                    fault.during(process, folder, seen)
                process.wait(max(1.0, limit - (time.monotonic() - started)))
            except subprocess.TimeoutExpired:
                seen.rc = None
            finally:  # children that were left behind, too
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if seen.rc is None:
                break
            ended.append(process.returncode)
    if seen.rc is not None:  # of several commands the first that ended as it should not
        seen.rc = next((rc for rc in ended if rc not in fault.ending.rc), ended[-1])
    seen.seconds = time.monotonic() - started
    with screen.open("rb") as text:
        seen.screen = text.read(MOST).decode("utf-8", "replace")
    seen.look()
    return seen


def available(options: Sequence[str]) -> bool:
    """Whether this attnspec has these options."""
    known = {name for name, _ in OPTIONS}
    return all(word.partition("=")[0] in known for word in options if word.startswith("--"))


def row(fault: Fault, seen: Seen, isolated: bool) -> dict[str, str]:
    """One line of the table."""
    given, wrong = grade(fault, seen, isolated)
    counts = ", ".join(f"{n} {name}" for name, n in sorted(seen.counts.items()) if name not in ("NOT_RUN", "UNSUPPORTED"))
    return {
        "rc": "hangs" if seen.rc is None else str(seen.rc),
        "verdicts": counts or "–",
        "file": seen.file,
        "page": seen.page,
        "grade": given,
        "wrong": "; ".join(wrong),
        "seconds": f"{seen.seconds:.0f}",
    }


def markdown(rows: list[tuple[Fault, list[dict[str, str] | None]]], columns: Sequence[str]) -> str:
    """The table, a line for each fault, and the sums."""
    head = ["fault", "before"]
    for column in columns:
        head += [f"rc{f' ({column})' if column else ''}", "verdicts", "file", "page", "grade", "what is not as it should be"]
    lines, family = [], ""
    for fault, cells in rows:
        if fault.family != family:
            family = fault.family
            lines += ["", f"## {family}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        words = [fault.name, fault.before or "(new)"]
        for cell in cells:
            if cell is None:
                words += [
                    "",
                    "",
                    "",
                    "",
                    "",
                    fault.elsewhere or (f"needs {fault.needs}" if fault.needs else "not run: an option does not exist here"),
                ]
            else:
                words += [cell[name] for name in ("rc", "verdicts", "file", "page", "grade", "wrong")]
        lines.append("| " + " | ".join(word.replace("|", "\\|").replace("\n", " ") for word in words) + " |")
    again = [(fault, cells) for fault, cells in rows if fault.before and any(cells)]
    sums = [f"{len(rows)} faults; before, of {len(again)} that were run then and now: {_sum(fault.before for fault, _ in again)}"]
    for n, column in enumerate(columns):
        sums.append(f"now{f' with {column}' if column else ''}: {_sum(cells[n]['grade'] for _, cells in rows if cells[n])}")  # type: ignore[index]
    return "# Faults that were injected, and how runs end\n\n" + "; ".join(sums) + "\n" + "\n".join(lines) + "\n"


def _sum(grades: object) -> str:
    counts = Counter(grades)  # type: ignore[call-overload]
    return ", ".join(f"{counts[name]} {name}" for name in ("OK", "weak", "bad") if counts[name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="faults whose name has one of these words")
    parser.add_argument("--family", nargs="*", default=[], help="numbers of families")
    parser.add_argument("--with", dest="columns", action="append", default=[], metavar="OPTIONS", help="further options of the run")
    parser.add_argument("--grade", nargs="*", default=[], help="show these grades only")
    parser.add_argument("--markdown", type=Path, metavar="OUT")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the folders of the runs there")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    options = parser.parse_args()
    columns = options.columns or [""]
    faults = [
        fault
        for fault in FAULTS
        if (not options.only or any(word in fault.name for word in options.only))
        and (not options.family or fault.family.split()[0] in options.family)
    ]
    home = options.keep.absolute() if options.keep else Path(tempfile.mkdtemp(prefix="attnspec-faults-"))
    jobs = [(n, m) for n in range(len(faults)) for m in range(len(columns))]

    def do(job: tuple[int, int]) -> dict[str, str] | None:
        fault, words = faults[job[0]], shlex.split(columns[job[1]])
        if fault.elsewhere or not available(words) or (fault.needs and find_spec(fault.needs) is None):
            return None
        folder = Path(tempfile.mkdtemp(dir=home, prefix=f"{job[0]:03}-{job[1]}-"))
        cell = row(fault, run(fault, folder, words), isolated="--in-process" not in words)
        if not options.grade or cell["grade"] in options.grade:
            print(
                f"{cell['grade']:4} {cell['rc']:>5} {cell['seconds']:>3} s  {fault.family.split()[0]:>3} {fault.name}",
                end="",
                flush=True,
            )
            print(f"  [{columns[job[1]]}]" if columns[job[1]] else "", f"  {folder.name}  {cell['wrong']}", flush=True)
        return cell

    home.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGHUP):  # started with nohup or in the background it is ignored, and so in every child
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    with ThreadPoolExecutor(options.jobs) as pool:
        cells = list(pool.map(do, jobs))
    rows = [(fault, cells[n * len(columns) : (n + 1) * len(columns)]) for n, fault in enumerate(faults)]
    text = markdown(rows, columns)
    print(text.splitlines()[2])
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    return int(any(cell is not None and cell["grade"] == "bad" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
