"""Problems with long rows, and their answers judged row by row.

A row of a million keys has an exact answer that takes seconds: :class:`attnspec.reference.SampledRows`. What a blocked kernel
does wrong there is seen at needles, keys at the edges of blocks that hold much of a row's weight, and in dk and dv of every
key, which are zero for a key that was skipped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from math import log

import torch

from attnspec.adapters import Answer
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import compare, ending, form
from attnspec.conformance.judging.lean import LONG, long_rows
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.outcomes import Broken, TooLarge, answer_of
from attnspec.reference import SampledRows, to_float64
from attnspec.spec import Problem

ROWS = 16
WIDTH = 64
LENGTHS = (2**12 + 1, 2**15, 2**16 + 1, 2**20)  # keys
EDGES = (0, 15, 16, 63, 64, 127, 128, 511, 512, 4095, 4096, 65535, 65536)


def needles(keys: int, rows: int) -> list[int]:
    """One key for each row, spread over the edges of blocks, the middle and the end."""
    edges = [n for n in (keys - 1, *EDGES, keys // 2, keys - 2) if 0 <= n < keys]
    return [edges[n % len(edges)] for n in range(rows)]


def long_problem(
    subject: Subject, dtype: str, keys: int, queries: int, rows: Sequence[int], *, width: int = WIDTH, heads: int = 1
) -> Problem:
    """Some queries against many keys, one batch item.

    Every other one of the sampled rows has a needle, whose weight is about a half; the others spread their weight over all
    keys. The cotangent is zero outside of the sampled rows.
    """
    width = fit(Case(d=width), subject.adapter).d
    generator = torch.Generator(subject.device).manual_seed(keys + queries)

    def normal(length: int) -> torch.Tensor:
        return torch.randn(1, heads, length, width, generator=generator, device=subject.device, dtype=getattr(torch, dtype))

    q, k, v, do = normal(queries), normal(keys), normal(keys), normal(queries)
    for row, key in list(zip(rows, needles(keys, len(rows)), strict=True))[::2]:
        own = k[:, :, key].float()
        q[:, :, row] = (own * (1.25 * log(keys + 1) * width**0.5 / (own**2).sum(-1, keepdim=True))).to(q.dtype)
    asked = torch.zeros(queries, 1, dtype=torch.bool, device=subject.device)
    asked[list(rows)] = True
    if not subject.offers("backward"):
        return Problem(q, k, v)
    return Problem(q, k, v, do=do.where(asked, 0.0), wrt=("q", "k", "v"))


def must_be_right_in_rows(subject: Subject, problem: Problem, rows: Sequence[int], what: str) -> None:
    """The sampled rows, and all keys that they reach, must be within their bounds. Raises Broken and TooLarge."""
    answer = answer_of(subject, problem)
    finding = ending(answer) or judge_rows(subject, problem, answer, rows)
    if finding is not None and finding.kind == "memory":
        raise TooLarge(f"{what}: {finding.message}")
    if finding is not None:
        raise Broken(replace(finding, message=f"{what}: {finding.message}" if finding.message else what), problem)


def judge_rows(subject: Subject, problem: Problem, answer: Answer, rows: Sequence[int]) -> Finding | None:
    """The first output that is outside its bounds, in the sampled rows and all keys that they reach; None if none is."""
    dtype = str(problem.dtype).removeprefix("torch.")
    got = {"o": answer.o, **(answer.gradients if problem.differentiated else {})}
    if problem.lse:
        got["lse"] = answer.lse
    for name, x in got.items():
        wrong = form(x, name, problem.shape_of(name), problem, "call" if name == "o" else name)
        if wrong is not None:
            return wrong
    sampled, required = SampledRows(problem, subject.dialect, rows), subject.required_class(dtype)
    for part in sampled.parts(required):
        if part.output not in got:
            continue
        finding, _ = compare(to_float64(got[part.output][part.at]), part.values, part.bound, part.exempt, part.output)
        if finding is not None:
            return replace(finding, index=part.place(finding.index))
        if part.output == "o" and required.startswith("C") and problem.j > LONG:
            b = next(iter(sampled.parts("B")))
            subject.lean(dtype, long_rows(to_float64(answer.o[b.at]), b.values, b.bound, b.exempt, problem.j))
    if "dq" not in got:
        return None
    others = got["dq"].detach().clone()
    others[:, :, list(rows)] = 0
    if not bool((others != 0).any()):
        return None
    at = tuple(int(n[0]) for n in torch.nonzero(others, as_tuple=True))
    return Finding("zero", "dq", "", at, float(others[at]), 0.0, 0.0, float("inf"), int((others != 0).sum()), others.numel())


def free_memory(device: str) -> int:
    """Bytes that are free on a device; four GiB where nobody says."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    if device == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30
