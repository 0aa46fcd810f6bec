"""What bounds and long rows cost: python benchmarks/reference_cost.py [--longest 20] [--markdown FILE]

The first table gives the seconds of `solve` (forward and backward), of the bounds of one class, and of an enclosure, summed over
the problems of the array of pairs; the ratio is what counts. The second gives the seconds and the peak memory of whole processes
with one thread: 16 rows against 2^12 … 2^LONGEST keys, width 64, bfloat16, o and gradients with bounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
CLASSES = ("A", "B", "C", "D")


def bounds_cost() -> list[str]:
    """A row a class: seconds for all problems, and as a ratio of the reference's."""
    from attnspec.adapters import resolve
    from attnspec.conformance.problems.array import array
    from attnspec.conformance.problems.tensors import build
    from attnspec.reference import solve
    from attnspec.spec import Dialect

    problems = [build(case) for case in array("pairs", resolve("sdpa-math")[0], ("float32", "float64", "bfloat16", "float16"))]
    problems = [problem for problem in problems if problem.do is not None]
    seconds = {name: [0.0, 0.0, 0.0] for name in ("reference", *CLASSES, "enclosure")}
    for repeat in range(3):
        for problem in problems:
            start = time.perf_counter()
            solve(problem, Dialect())
            seconds["reference"][repeat] += time.perf_counter() - start
            for class_ in CLASSES:
                exact = solve(problem, Dialect())
                start = time.perf_counter()
                exact.tolerance(class_)
                seconds[class_][repeat] += time.perf_counter() - start
            if repeat == 0:
                start = time.perf_counter()
                solve(problem, Dialect(), oracle="arb")
                seconds["enclosure"] = [time.perf_counter() - start + seconds["enclosure"][0]] * 3
    best = {name: min(some) for name, some in seconds.items()}
    lines = [
        f"{len(problems)} problems of the array of pairs, forward and backward",
        "",
        "| | seconds | of the reference |",
        "|---|---|---|",
    ]
    for name, x in best.items():
        title = {"reference": "reference", "enclosure": "ball arithmetic"}.get(name, f"bounds, class {name}")
        lines.append(f"| {title} | {x:.3f} | {x / best['reference']:.1f} |")
    return lines


def rows(exponent: int, class_: str) -> None:
    """The row-sampled check of one length, as a process of its own."""
    import torch

    from attnspec.adapters import resolve
    from attnspec.conformance.subject.subject import Subject
    from attnspec.conformance.testing.long_rows import ROWS, long_problem
    from attnspec.reference import SampledRows
    from attnspec.spec import CANONICAL

    torch.set_num_threads(1)
    problem = long_problem(Subject(resolve("sdpa-math")[0]), "bfloat16", 2**exponent, ROWS, range(ROWS))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    elements = sum(part.values.size for part in SampledRows(problem, CANONICAL, range(ROWS)).parts(class_))
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"| 2^{exponent} | {class_} | {elements} | {seconds:.1f} | {before / 1e6:.2f} | {peak / 1e6:.2f} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=20)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--rows", nargs=2, metavar=("EXPONENT", "CLASS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows:
        return rows(int(options.rows[0]), options.rows[1])
    lines = ["# What bounds and long rows cost", "", "    python benchmarks/reference_cost.py", "", *bounds_cost(), ""]
    lines += ["16 rows, width 64, bfloat16, o, dq, dk and dv with bounds, one thread", ""]
    lines += ["| keys | class | elements | seconds | GB before | GB at most |", "|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for exponent in range(12, options.longest + 1, 2):
        command = [sys.executable, __file__, "--rows", str(exponent), "B"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE, check=True)
        lines.append(done.stdout.strip())
        print(lines[-1], flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
