"""No false alarm, measured: how near correct implementations come to their bounds, on random problems.

    python benchmarks/corridor.py --problems 100000 --workers 2 --seed 0 --into FOLDER [--markdown docs/corridor.md]
    python benchmarks/corridor.py --into FOLDER --tabulate [--markdown docs/corridor.md]
    python benchmarks/corridor.py --seed 0 --replay 4711

The script puts each problem to EACH implementations, others every time, as far as they offer what it needs, and judges each in the
class that its arithmetic belongs to. It appends results to FOLDER/chunks.jsonl. The same command goes on where it stopped, and
--tabulate shows what there is. Problem n of a seed is always the same. The exit code is 1 if an implementation left its bound.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import corridor_tally
import numpy as np
import torch
from corridor_report import plot, table
from corridor_tally import Tally, distributions, shares
from numpy.random import Generator, default_rng

from attnspec.adapters import Adapter, Answer, resolve
from attnspec.adapters.conventions.function import FunctionAdapter
from attnspec.conformance.judging.judge import form, independent, judge, together
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS, NOT_DENSE
from attnspec.conformance.problems.factors.alibi import ALIBI
from attnspec.conformance.problems.factors.first_tokens import FIRST_TOKENS
from attnspec.conformance.problems.factors.lse import LSE
from attnspec.conformance.problems.factors.sink import SINKS
from attnspec.conformance.problems.factors.start import START
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import Exact, solve, to_float64
from attnspec.spec import Dialect, Problem
from attnspec.spec.words import CLASSES, INPUT_OF, OUTPUTS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import capped  # noqa: E402  tests/ is no package
import complete  # noqa: E402
import sloped  # noqa: E402
from chains import FILLED  # noqa: E402
from lsed import HONEST as LSED  # noqa: E402
from positioned import HONEST as POSITIONED  # noqa: E402
from sunk import HONEST as SUNK  # noqa: E402
from variants import HONEST, OPEN, TF32  # noqa: E402
from windowed import HONEST as WINDOWED  # noqa: E402

TORCH = Dialect(causal_alignment="top_left")
UNIFORM = replace(TORCH, empty_row="uniform")
AFTER_BIAS = replace(TORCH, softcap_order="after_bias")
DTYPES = LEVELS["dtype"]
HALF = ("float16", "bfloat16")
# What is drawn, as shares of all problems.
LONG_KEYS, LONG_QUERIES, OPEN_SIZES, DROPOUT, STRETCHED, PARTLY = 0.015, 0.01, 0.15, 0.08, 0.1, 0.1
CAPS = (0.01, 0.7, 3.1, 15.0, 50.0, 3000.0)
EACH = 14  # implementations that one problem is put to
EDGES = (127, 128, 129, 255, 257, 513)
# Powers of two for q (and their inverse for k), v or do: as far as the dtype reaches, subnormal results included.
STRETCH = {
    "float16": ((8, -8, 13, -13), (-8, -14, -18, 8), (-8, -14, 6)),
    "bfloat16": ((40, -40), (-100, -122, -130, 60, 110), (-60, -100, -122, 60)),
    "float32": ((40, -40), (-100, -122, -130, 60, 110), (-60, -100, -122, 60)),
    "float64": ((300, -300), (-900, -1015, -1030, 500, 900), (-500, -900, -1015, 500)),
}


# IMPLEMENTATIONS


@dataclass(frozen=True)
class Implementation:
    """A name, how it is called, and the class that its arithmetic belongs to, in half types and in others."""

    name: str
    adapter: Adapter
    half: str
    other: str = "A"
    dtypes: tuple[str, ...] = DTYPES
    draws: bool = True  # its dropout pattern is drawn as honest.prepare does
    added: bool = False  # named by --also: asked every time
    dialect: Dialect = TORCH

    def class_for(self, dtype: str) -> str:
        return self.half if dtype in HALF else self.other

    def refuses(self, question: Question) -> str:
        """Why it is not asked; '' where it is."""
        case = question.case
        if case.dtype not in self.dtypes:
            return "another dtype"
        if self.name == "sdpa-flash" and case.layout in NOT_DENSE:
            return "it refuses inputs whose last dimension is not dense"
        if question.dropout and not self.draws:
            return "its dropout pattern is not known"
        if replace(fit(case, self.adapter), wrt=case.wrt) != case:
            return "not offered"
        if self.name in ("two pass", "by the lse") and case.bias != "none" and case.biases == "lowest":
            return "its weights come from an lse, in which nothing is left of a sum beside such a bias"
        # docs/torch.md: torch's flash kernel gives NaN there, and `sdpa` where it chooses that kernel.
        scale_broken = case.causal and case.mask == case.bias == "none" and case.scale is not None and case.scale <= 0
        if self.name in ("sdpa", "sdpa-flash") and scale_broken:
            return "SCALE-3, a known fault"
        return ""


def with_softcap() -> list[Implementation]:
    """Those of capped.py, in both orders of cap and bias."""
    orders = ((capped.HONEST, "", TORCH), (capped.AFTER, ", after the bias", AFTER_BIAS))
    return [
        Implementation(name + order, resolve(kernel)[0].on("cpu"), half, dialect=dialect)
        for styles, order, dialect in orders
        for name, (kernel, half) in styles.items()
    ]


def of_core() -> list[Implementation]:
    """Those of torch, and of honest.py, chains.py and variants.py."""
    stored = "B*" if "B*" in CLASSES else "C"  # torch's flash kernel adds up gradients in the storage dtype
    found = [
        Implementation("sdpa-math", resolve("sdpa-math")[0].on("cpu"), "A", draws=False),
        Implementation("sdpa-flash", resolve("sdpa-flash")[0].on("cpu"), stored, draws=False),
        Implementation("sdpa", resolve("sdpa")[0].on("cpu"), stored, draws=False),
    ]

    def adapt(kernel: Any, name: str) -> Adapter:
        return FunctionAdapter(kernel, name, ())

    found += [Implementation(name, adapt(kernel, name), half) for name, (kernel, half) in HONEST.items()]
    found += [Implementation(name, adapt(kernel, name), half, dialect=UNIFORM) for name, (kernel, half) in FILLED.items()]
    found += [Implementation(name, adapt(kernel, name), class_, class_, ("float32",)) for name, (kernel, class_) in TF32.items()]
    return found


def styled(styles: Mapping[str, tuple[Any, str]], dialect: Dialect = TORCH, suffix: str = "") -> list[Implementation]:
    """Kernels by name, each with the class of its arithmetic in half types, that follow a dialect."""
    return [
        Implementation(name + suffix, FunctionAdapter(kernel, name + suffix, ()), half, dialect=dialect)
        for name, (kernel, half) in styles.items()
    ]


def with_lse() -> list[Implementation]:
    """Those of lsed.py, in both bases, both numbers for empty rows and both dtypes."""
    return [one for name, (kernel, said, half) in LSED.items() for one in styled({name: (kernel, half)}, replace(TORCH, **said))]


def with_slopes() -> list[Implementation]:
    """Those of sloped.py, in all three forms."""
    forms = {"distance": sloped.HONEST, "signed": sloped.SIGNED, "column": sloped.COLUMN}
    return [one for form, styles in forms.items() for one in styled(styles, replace(TORCH, alibi_form=form), f", {form}")]


# Whose problems all have that option.
EXTENSIONS: dict[str, Callable[[], list[Implementation]]] = {
    "softcap": with_softcap,
    "window": partial(styled, WINDOWED),
    "lse": with_lse,
    "alibi": with_slopes,
    "sink": partial(styled, SUNK),
    "position": partial(styled, POSITIONED),
    "together": partial(styled, {name: (kernel, "A") for name, kernel in complete.HONEST.items()}),
}


def implementations(also: Iterable[str] = (), with_open: bool = False, extension: str = "") -> list[Implementation]:
    """All that is measured: those of the core, or of an extension in their place. `also` names more, as TARGET=CLASS."""
    found = EXTENSIONS[extension]() if extension else of_core()
    if with_open:
        found += [Implementation(name, FunctionAdapter(kernel, name, ()), half) for name, (kernel, half, _) in OPEN.items()]
    for target in also:
        path, _, half = target.rpartition("=")
        found.append(Implementation(path.rpartition(":")[2], resolve(path)[0], half, added=True))
    return sorted(found, key=lambda x: x.half)


# PROBLEMS


@dataclass(frozen=True)
class Question:
    """Problem number n of a seed."""

    number: int
    case: Case
    dropout: float = 0.0
    stretch: tuple[int, int, int] = (0, 0, 0)  # q·2^n and k·2^−n, v·2^n, do·2^n

    def __str__(self) -> str:
        parts = [self.case.token()]
        if self.dropout:
            parts.append(f"dropout {self.dropout}")
        parts += [f"{name}·2^{n}" for name, n in zip(("q/k", "v", "do"), self.stretch, strict=True) if n]
        return "; ".join(parts)

    def problem(self) -> tuple[Problem, np.ndarray | None]:
        """The tensors, and the keep mask that a kernel draws after `seed`."""
        problem = build(self.case)
        scores, v, do = self.stretch
        changes = {"q": (problem.q, scores), "k": (problem.k, -scores), "v": (problem.v, v), "do": (problem.do, do)}
        stretched = {
            name: torch.ldexp(x.double(), torch.tensor(n)).to(x.dtype) for name, (x, n) in changes.items() if n and x is not None
        }
        # Numbers that the dtype can't hold are not stretched.
        problem = problem.replace(**{name: x for name, x in stretched.items() if x.isfinite().all()})
        if not self.dropout:
            return problem, None
        problem = problem.replace(dropout=self.dropout, training=True)
        self.seed()
        return problem, (torch.rand(problem.b, problem.h, problem.i, problem.j) >= self.dropout).numpy()

    def seed(self) -> None:
        torch.manual_seed(self.number)


def draw(seed: int, number: int, adapter: Adapter) -> Question:
    """Any level of every factor; sizes that take milliseconds, a few that do not."""
    rng = default_rng([seed, number])
    dtype, values = DTYPES[number % 4], LEVELS["values"][number // 4 % len(LEVELS["values"])]

    def choose(options: Iterable[Any]) -> Any:
        options = tuple(options)
        return options[int(rng.integers(len(options)))]

    level = {name: choose(options) for name, options in LEVELS.items()} | {"dtype": dtype, "values": values}
    if "window" in adapter.offers:
        sides = ["" if rng.random() < 0.25 else str(int(rng.choice((0, 1, 2, 5, 15, 16, 17, 40)))) for _ in range(2)]
        level |= {"window": ":".join(sides) if any(sides) else "none", "first_tokens": choose(FIRST_TOKENS.levels)}
    if "q_start" in adapter.offers:
        level["q_start"] = choose(START.levels[1:])
    level |= sizes(rng, choose)
    if rng.random() > PARTLY:
        level["wrt"] = "all"
    if "softcap" in adapter.offers:
        level["softcap"] = choose(CAPS)
    for factor in (LSE, ALIBI, SINKS):
        if factor.needs in adapter.offers:
            level[factor.name] = choose(factor.levels[1:])
    question = Question(number, fit(Case(**level, seed=int(rng.integers(1 << 16))), adapter))
    if rng.random() < DROPOUT:
        question = replace(question, dropout=choose((0.1, 0.5, 0.9, 1.0)))
    if rng.random() < STRETCHED:
        which = int(rng.integers(3))
        powers = [0, 0, 0]
        powers[which] = choose(STRETCH[dtype][which])
        question = replace(question, stretch=tuple(powers))
    return question


def sizes(rng: Generator, choose: Any) -> dict[str, Any]:
    """Heads and lengths."""
    kind = rng.random()
    if kind < LONG_KEYS:
        return {
            "heads": choose(("1/1", "2/2", "2/1")),
            "b": 1,
            "i": choose((1, 2, 5, 17)),
            "j": choose(EDGES),
            "d": choose((3, 8, 16)),
        }
    if kind < LONG_KEYS + LONG_QUERIES:
        return {
            "heads": choose(("1/1", "2/2", "2/1")),
            "b": 1,
            "i": choose(EDGES),
            "j": choose((1, 2, 8, 17)),
            "d": choose((3, 8, 16)),
        }
    heads = choose(("1/1", "2/2", "3/3", "4/1", "4/2", "2/1", "6/2")) if rng.random() < 0.5 else choose(("1/1", "2/2", "2/1"))
    b = choose(range(1, max(1, 4 // int(heads[0])) + 1))
    if kind < LONG_KEYS + LONG_QUERIES + OPEN_SIZES:
        i, j, d, e = (int(rng.integers(1, most)) for most in (34, 51, 73, 73))
        return {"heads": heads, "b": b, "i": i, "j": j, "d": d, "e": choose((0, e))}
    return {
        "heads": heads,
        "b": b,
        "i": int(rng.integers(1, 34)),
        "j": choose((0, 1, 2, 16, 17, 33, 50)),
        "d": choose((1, 3, 8, 16, 40)),
    }


# JUDGING


def ask(question: Question, among: list[Implementation], tally: Tally) -> None:
    """Put one problem to all, solved once for each dialect, and enter what is found."""
    problem, keep = question.problem()
    dtype = question.case.dtype
    without_bias = problem.replace(wrt=tuple(x for x in problem.wrt if x != "bias"))
    answers: list[tuple[Implementation, Answer]] = []
    # Others for each problem, so that all are asked on problems of every kind.
    some = set(default_rng([97, question.number]).choice(len(among), min(EACH, len(among)), replace=False))
    for implementation in (x for n, x in enumerate(among) if n in some or x.added):
        reason = implementation.refuses(question)
        if reason:
            tally.left_out[implementation.name, reason] += 1
            continue
        if question.dropout:
            question.seed()
        tally.asked[implementation.name, dtype] += 1
        asked = problem if "bias_grad" in implementation.adapter.offers else without_bias
        answers.append((implementation, implementation.adapter.run(asked)))
    tally.problems += 1
    for dialect in dict.fromkeys(x.dialect for x, _ in answers):
        enter(question, [(x, answer) for x, answer in answers if x.dialect == dialect], solve(problem, dialect, keep), tally)


def enter(question: Question, answers: list[tuple[Implementation, Answer]], exact: Exact, tally: Tally) -> None:
    """What is found in the answers of those who follow one dialect."""
    dtype = question.case.dtype
    for class_ in sorted({x.class_for(dtype) for x, _ in answers}):
        exempt = [exact.tolerance(class_).exempt[output] for output in exact.values]
        tally.exempt[class_, dtype] += sum(int(x.sum()) for x in exempt)
        tally.elements[class_, dtype] += sum(x.size for x in exempt)
    outside = measure(question.number, answers, exact, tally)
    for implementation, answer in answers:
        if implementation.name in outside:
            class_ = implementation.class_for(dtype)
            findings = judge(answer, exact, class_).findings
            if not findings:
                raise RuntimeError(f"{implementation.name} is outside, and the judge does not see it: {question}")
            tally.violations += [
                {
                    "number": question.number,
                    "problem": str(question),
                    "implementation": implementation.name,
                    "class": class_,
                    "output": x.output,
                    "kind": x.kind,
                    "ratio": x.ratio,
                    "index": x.index,
                    "got": x.got,
                    "expected": x.expected,
                    "message": x.message,
                }
                for x in findings
            ]


def measure(number: int, answers: list[tuple[Implementation, Answer]], exact: Exact, tally: Tally) -> set[str]:
    """Enter the error/bound of every element; the names of those with one above 1, or without an answer of the right form."""
    problem = exact.problem
    dtype = str(problem.dtype).removeprefix("torch.")
    shape = (problem.b, problem.h, problem.i, problem.e)
    without = {
        x.name
        for x, answer in answers
        if answer.refusal is not None or answer.changed or form(answer.o, "output", shape, problem, "o") is not None
    }
    outside = set(without)
    for output in OUTPUTS:
        forms = {"o": shape, "lse": shape[:3]}
        like = forms[output] if output in forms else tuple(getattr(getattr(problem, INPUT_OF[output]), "shape", ()))
        given = []
        for implementation, answer in answers:
            tensor = answer.output(output)
            nothing = tensor is None and (output not in answer.gradients or independent(problem, output))
            if implementation.name in without or nothing:
                continue
            if form(tensor, output, like, problem, output) is not None:
                outside.add(implementation.name)
            else:
                given.append((implementation, tensor))
        if not given:
            continue
        limits = {}
        for class_ in {x.class_for(dtype) for x, _ in given}:
            tolerance = exact.tolerance(class_)
            limits[class_] = together(exact, tolerance.bound, tolerance.exempt, output)
        got = np.stack([to_float64(tensor) for _, tensor in given])
        expected, bound, exempt = (np.stack([limits[x.class_for(dtype)][n] for x, _ in given]) for n in range(3))
        ratio = np.where(exempt, -1.0, shares(got, expected, bound)).reshape(len(given), -1)
        if not ratio.size:
            continue
        for (implementation, _), share, largest in zip(given, distributions(ratio, number), ratio.max(1), strict=True):
            if largest > 1:
                outside.add(implementation.name)
            tally.shares[implementation.name, implementation.class_for(dtype), dtype, output].merge(share)
    return outside


# CHUNKS

_among: list[Implementation] = []


def start(also: tuple[str, ...], with_open: bool, extension: str) -> None:
    """What a worker does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it, after its chunk
    torch.set_num_threads(1)
    _among[:] = implementations(also, with_open, extension)


def work(seed: int, first: int, last: int) -> dict[str, Any]:
    """Problems first … last − 1."""
    tally, began = Tally(), time.perf_counter()
    tiled = (x.adapter for x in _among if x.name == "tiled")
    fullest = next(tiled, max((x.adapter for x in _among), key=lambda adapter: len(adapter.offers)))
    for number in range(first, last):
        ask(draw(seed, number, fullest), _among, tally)
    tally.seconds = time.perf_counter() - began
    return {"first": first, **tally.to_json()}


def fingerprint() -> str:
    """Changes where the bounds, the problems or the kernels do."""
    files = [*ROOT.glob("reference/**/*.py"), *ROOT.glob("adapters/**/*.py"), Path(__file__), Path(corridor_tally.__file__)]
    files += [ROOT / "conformance" / f"{name}.py" for name in ("problems/case", "problems/tensors", "judging/judge")]
    files += [ROOT / "tests" / f"{name}.py" for name in ("honest", "variants", "chains", "capped", "windowed", "positioned")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:16]


class Store:
    """FOLDER/chunks.jsonl: a header, then a line for each chunk. A line that was cut off does not count."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "chunks.jsonl"
        self.header: dict[str, Any] | None = None
        self.chunks: list[dict[str, Any]] = []
        if self.path.exists():
            whole, _, _ = self.path.read_text(encoding="utf-8").rpartition("\n")
            lines = [json.loads(line) for line in whole.splitlines()]
            self.header, self.chunks = (lines[0], lines[1:]) if lines else (None, [])

    def begin(self, header: dict[str, Any]) -> None:
        """Start, or go on where the header is the same. Exits where it is not."""
        if self.header is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(header) + "\n", encoding="utf-8")
            self.header = header
            return
        other = [name for name in header if header[name] != self.header.get(name)]
        if other:
            sys.exit(f"{self.path} was made with another {' and '.join(other)}. Name another folder, or remove it.")
        lines = [json.dumps(line) + "\n" for line in (self.header, *self.chunks)]
        self.path.write_text("".join(lines), encoding="utf-8")  # without a line that was cut off

    def append(self, chunk: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(chunk) + "\n")
        self.chunks.append(chunk)

    def missing(self, problems: int, size: int) -> Iterator[tuple[int, int]]:
        """Ranges of problems that are still to do."""
        done = {n for chunk in self.chunks for n in range(chunk["first"], chunk["first"] + chunk["problems"])}
        for first in range(0, problems, size):
            left = [n for n in range(first, min(first + size, problems)) if n not in done]
            if left:
                yield left[0], left[-1] + 1

    def tally(self) -> Tally:
        total = Tally()
        for chunk in self.chunks:
            total.merge(Tally.of_json(chunk))
        total.violations.sort(key=lambda x: x["number"])
        return total


def run(store: Store, options: argparse.Namespace) -> None:
    """Do what is missing; an interrupt waits for the chunks at work and keeps them."""
    # For the workers: one thread each, and torch's caches of half-precision products by shape kept small: every shape is another.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ |= dict.fromkeys(("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"), "32")
    todo = list(store.missing(options.problems, options.chunk))
    began, total, done = time.perf_counter(), sum(last - first for first, last in todo), 0
    setup = (tuple(options.also), options.open, options.extension)
    with ProcessPoolExecutor(options.workers, get_context("spawn"), start, setup) as pool:
        futures = [pool.submit(work, options.seed, first, last) for first, last in todo]
        try:
            for future in as_completed(futures):
                store.append(future.result())
                done += store.chunks[-1]["problems"]
                rate = done / (time.perf_counter() - began)
                wrong = sum(len(chunk["violations"]) for chunk in store.chunks)
                print(f"{done}/{total} problems, {rate:.1f} a second, {wrong} violations", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print("stopping after the chunks at work", file=sys.stderr, flush=True)
            kept = [future for future in futures if not future.cancel() and not future.done()]
            for future in kept:
                store.append(future.result())


# REPORT


def publish(store: Store, options: argparse.Namespace, command: str) -> int:
    """Print the summary, write what was asked for; the exit code."""
    tally = store.tally()
    if store.header is None or not tally.problems:
        sys.exit(f"nothing in {store.path}")
    svg = ""
    if options.markdown is not None:
        try:
            plot(tally, options.markdown.with_suffix(".svg"))
            svg = options.markdown.with_suffix(".svg").name
        except ImportError:
            print("matplotlib is not installed: no plot", file=sys.stderr)
    lines = table(tally, store.header, command, svg)
    if options.markdown is not None:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
        lines = lines[: lines.index("## float32")] + lines[lines.index("## Outside their bounds") :]
    print("\n".join(lines))
    return 1 if tally.violations else 0


def replay(options: argparse.Namespace) -> int:
    """One problem alone: the largest share of each output for each implementation."""
    start(tuple(options.also), options.open, options.extension)
    tally = Tally()
    question = draw(options.seed, options.replay, next(x.adapter for x in _among if x.name == "tiled"))
    ask(question, _among, tally)
    print(f"problem {options.replay} of seed {options.seed}: {question}")
    print("\n".join(f"{name} ({c}), {output}: {share.largest:.4g}" for (name, c, _, output), share in tally.shares.items()))
    print("\n".join(json.dumps(x) for x in tally.violations))
    return 1 if tally.violations else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=250, help="problems between two lines of the file")
    parser.add_argument("--into", type=Path, metavar="FOLDER", default=Path("corridor"))
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report here, and a plot beside it")
    parser.add_argument("--tabulate", action="store_true", help="only show what FOLDER holds")
    parser.add_argument("--replay", type=int, metavar="N", help="ask problem N alone, and say what each implementation gave")
    parser.add_argument("--also", action="append", default=[], metavar="TARGET=CLASS", help="one more: file.py:name=B")
    parser.add_argument("--open", action="store_true", help="those of variants.OPEN, too")
    parser.add_argument("--extension", choices=EXTENSIONS, default="", help="problems with this option, and kernels that offer it")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(options)
    store = Store(options.into)
    asked = ["--problems", str(options.problems), "--workers", str(options.workers), "--seed", str(options.seed)]
    asked += [*(f"--also={x}" for x in options.also), *["--open"] * options.open]
    asked += [f"--extension={options.extension}"] if options.extension else []
    command = shlex.join(["python", "benchmarks/corridor.py", *asked])
    if options.tabulate:
        command = (store.header or {}).get("command", command)
    else:
        names = [x.name for x in implementations(options.also, options.open, options.extension)]
        header = {"seed": options.seed, "code": fingerprint(), "torch": torch.__version__, "implementations": names}
        store.begin(header)
        run(store, options)
    return publish(store, options, command)


if __name__ == "__main__":
    sys.exit(main())
