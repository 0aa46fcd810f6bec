"""A case and a problem in words, for a reader."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.spec import Problem


def describe(case: Case) -> str:
    """A case in words, for a reader."""

    def count(n: int, thing: str) -> str:
        return f"{n} {thing}" if n == 1 else f"{n} {'queries' if thing == 'query' else thing + 's'}"

    kv = {
        "mha": "",
        "mqa": ", 1 key/value head",
        "gqa": f", {case.g} key/value heads",
        "shared_kv": ", one shared 3-D key/value head",
    }[case.sharing]
    words = [
        f"{case.dtype}: {count(case.b, 'batch item')}, {count(case.h, 'head')}{kv}, {count(case.i, 'query')}, "
        f"{count(case.keys, 'key')}, width {case.d}" + (f", values {case.width} wide" if case.e else "")
    ]
    if case.causal:
        words.append("causal")
    if case.mask != "none":
        form = {"padding": "key padding (b j)", "rank3": "mask (h i j)"}.get(case.mask) or f"mask over {case.mask}"
        words.append(form + {"random": "", "all": ", all True"}.get(case.holes, f", {case.holes.replace('_', ' ')}"))
    if case.bias != "none":
        words.append(f"bias over {case.bias}" + ("" if case.biases == "normal" else f", {case.biases}"))
    if case.scale is not None:
        words.append(f"scale {case.scale}")
    for name in ("layout", "values"):
        if getattr(case, name) != LEVELS[name][0]:
            words.append(f"{name}: {getattr(case, name).replace('_', ' ')}")
    if case.wrt == "none":
        words.append("no input requires grad")
    elif case.wrt != "all":
        words.append(f"only {' and '.join(case.wrt) if case.wrt != 'bias' else 'bias'} require grad")
    if case.do != "dense":
        words.append(f"cotangent: {case.do.replace('_', ' ')}")
    if case.numbers:
        words.append("numbers: " + ", ".join(_in_words(*part.split(":")) for part in case.numbers.split("+")))
    return "; ".join(words)


def _in_words(name: str, what: str) -> str:
    return f"{name} one at {what[2:]}, else zero" if what.startswith("at") else f"{name} {what.replace('hot', 'one-hot')}"


def describe_problem(problem: Problem) -> str:
    """A problem in words, where a test made it without a case."""
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in problem.inputs().items())
    options = [f"scale {problem.scale}"] if problem.scale is not None else []
    options += [f"dropout {problem.dropout}"] if problem.dropout else []
    modes = [name for name in ("causal", "training") if getattr(problem, name)]
    return "; ".join([f"{str(problem.dtype)[6:]}: {shapes}", *modes, *options])


def summary(asked: Case) -> dict[str, Any]:
    """A case as plain data, for the verdict file."""
    return asdict(asked)
