"""How long until the first failure is on the screen: whole processes, beside `import torch` in the same run.

    python benchmarks/first_red.py [--mutants 32] [--only NAME …] [--limit 6] [--markdown OUT]

The script starts `pytest --impl=… --tier=smoke -x` for each implementation, and ends it as soon as the screen has shown the text
of a failure. Implementations are the coarse kernels of tests/coarse.py, which are all wrong nearly everywhere, and a fixed sample
of the mutants: those whose names have the smallest hashes. Before and after each run the same Python imports torch and nothing
else. A figure is the time to the first failure as a multiple of the mean of these two. The clock decides; the script prints
processor time beside it, because others may use the machine. The exit code is 1 if a figure is over the limit.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from coarse import COARSE  # noqa: E402  tests/ is no package
from mutants.base import load  # noqa: E402

from attnspec.spec import index  # noqa: E402

HEADING = re.compile(r"(?:[A-Z]+-\d+ · )|(?:.*attnspec itself failed)")
# As a user has it: what Python compiled is kept, whatever this shell says.
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT / "tests")}
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)


class Took(NamedTuple):
    """Seconds until the heading of a failure was read, on the clock and of processors, and the line; "" where none came."""

    wall: float
    cpu: float
    line: str


def imported() -> Took:
    """What `import torch` costs."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", "import torch"], env=ENVIRONMENT)
    _, _, usage = os.wait4(process.pid, 0)
    return Took(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, "")


def first_red(impl: str, folder: str, *options: str) -> Took:
    """One run, ended when it has shown its first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"--impl={impl}", "--tier=smoke", *options]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    seen = next((line.strip() for line in process.stdout if HEADING.match(line)), "")
    wall = time.perf_counter() - started
    if seen:
        os.killpg(process.pid, signal.SIGKILL)
    _, _, usage = os.wait4(process.pid, 0)
    process.stdout.close()
    return Took(wall, usage.ru_utime + usage.ru_stime, seen)


def sample(n: int) -> list[str]:
    """The mutants whose names have the smallest hashes: the same ones for everybody, and of all families."""
    return sorted(load(), key=lambda name: hashlib.sha256(name.encode()).digest())[:n]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=32)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--limit", type=float, default=6.0)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    chosen = [(name, f"{ROOT}/tests/coarse.py:{name}") for name in COARSE]
    chosen += [(name, f"{ROOT}/tests/mutants/implementations.py:{name}") for name in sample(options.mutants)]
    rows, multiples = [], []
    print(f"{'implementation':44}{'× import torch':>16}{'× its cpu':>12}{'seconds':>10}   first failure", flush=True)
    imported()  # so that files are read from memory, as in all that follows
    before = imported()
    for name, impl in chosen:
        if options.only and name not in options.only:
            continue
        should = [] if name in COARSE or index()[load()[name].clause].binding else ["--enforce-should"]
        with tempfile.TemporaryDirectory() as folder:
            took = first_red(impl, folder, *should)
        after = imported()
        wall = took.wall / statistics.mean((before.wall, after.wall))
        cpu = took.cpu / statistics.mean((before.cpu, after.cpu))
        before = after
        shown = took.line or "none: it passed"
        if took.line:
            multiples.append(wall)
        rows.append(f"| {name} | {wall:.1f} | {cpu:.1f} | {shown} |")
        print(f"{name:44}{wall:>16.1f}{cpu:>12.1f}{took.wall:>10.1f}   {shown}", flush=True)
    over = [x for x in multiples if x > options.limit]
    last = (
        f"{len(multiples)} of {len(rows)} showed a failure; median {statistics.median(multiples):.1f} ×, most "
        f"{max(multiples):.1f} ×, {len(over)} over {options.limit:g} ×; import torch took {before.wall:.1f} s at the end"
    )
    print(last)
    if options.markdown:
        head = "| implementation | × `import torch` | × its processor time | first failure |\n|---|---|---|---|\n"
        options.markdown.write_text(head + "\n".join(rows) + f"\n\n{last}\n", encoding="utf-8")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
