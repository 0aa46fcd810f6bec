"""What is said of an implementation is so: a call that ended, the class that was held, the choices that were seen."""

from __future__ import annotations

import torch

from attnspec.adapters import Adapter
from attnspec.conformance import check
from attnspec.conformance.judge import Verdict

QUICK = {"tier": "smoke", "device": "cpu", "repros": False}


def attention(q, k, v, mask=None, causal=False, aligned=0):
    """Attention as the text has it; `aligned` moves the triangle."""
    s = (q.float() @ k.float().mT) * q.shape[-1] ** -0.5 if q.dtype != torch.float64 else q @ k.mT * q.shape[-1] ** -0.5
    visible = torch.ones(s.shape, dtype=torch.bool)
    if mask is not None:
        visible = visible & (mask[:, None, None] if mask.ndim == 2 else mask)
    if causal:
        visible = visible & torch.ones(s.shape[-2:], dtype=torch.bool).tril(s.shape[-1] - s.shape[-2] + aligned)
    weights = torch.nan_to_num(torch.softmax(s.masked_fill(~visible, float("-inf")), -1))
    return (weights @ v.to(s.dtype)).to(q.dtype)


def counts(result, clause: str) -> dict[str, int]:
    """Problems of a clause by verdict."""
    found: dict[str, int] = {}
    for cell in result.verdicts:
        for verdict, n in cell["counts"].items() if cell["clause"] == clause else ():
            found[verdict] = found.get(verdict, 0) + n
    return found


# WHAT ENDS A CALL


class NoBackward(torch.autograd.Function):
    """The identity, whose backward raises."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no gradient for values of 100")


class RaisesInBackward(Adapter):
    """Right, but that its backward raises wherever a value is 100."""

    offers = frozenset({"mha", "strided", "backward", "key_padding"})

    def attend(self, q, k, v, *, mask=None, bias=None, causal=False, scale=None, dropout=0.0, training=False):
        o = attention(q, k, v, mask)
        return NoBackward.apply(o) if bool((v == 100).any()) else o


def test_a_backward_that_raises_is_seen_by_whoever_asks_for_any_output():
    result = check(RaisesInBackward(), clauses="MASK-6", dtypes="float32", **QUICK)
    assert not result.ok
    assert "backward raised RuntimeError: no gradient for values of 100" in result.failures[0].text
    assert not counts(result, "MASK-6").get(Verdict.PASS)


def runs_out_of_memory(q, k, v):
    """As torch's allocator says it, from 33 keys on."""
    if k.shape[-2] > 32:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
    return attention(q, k, v)


def test_out_of_memory_is_counted_apart_in_every_test():
    result = check(runs_out_of_memory, clauses="SHAPE-1,SHAPE-2,SOFTMAX-3,PURITY-2,GRAD-1", dtypes="float32", **QUICK)
    assert not result.failures, str(result)
    for clause in ("SHAPE-1", "SHAPE-2", "GRAD-1"):
        assert counts(result, clause).get(Verdict.RESOURCE), clause


# THE CLASS THAT WAS HELD


def eager_half(q, k, v):
    """Eager arithmetic of class C: q·k is stored in the dtype before it is scaled, and may overflow there."""
    return torch.softmax((q @ k.mT) * q.shape[-1] ** -0.5, -1) @ v


def test_a_class_that_exempts_an_overflow_is_the_class_that_was_held():
    from attnspec.adapters import resolve
    from attnspec.conformance.case import Case
    from attnspec.conformance.meeting import meet
    from attnspec.spec import Problem

    (adapter,) = resolve(eager_half, {})
    subject = meet(adapter.on("cpu"), "cpu", {}, None, ("float16",))
    q = torch.full((1, 1, 2, 64), 60.0, dtype=torch.float16)  # q·k is 64 · 3600
    problem = Problem(q, q, torch.ones_like(q))
    answer, exact = subject.run(problem), subject.solve(problem)
    assert torch.isnan(answer.o).all()
    assert not subject.judge(answer, exact).findings  # exempt in class C, which is required
    assert subject.held == {}  # nothing was compared
    wide = subject.problem(Case(dtype="float16", i=3, j=4, wrt="none"))
    assert not subject.judge(subject.run(wide), subject.solve(wide)).findings
    assert subject.held["float16"] != "C"
    both = Problem(torch.cat([q, wide.q.repeat(1, 1, 1, 8)], -2), torch.cat([q, q / 60], -2), torch.cat([q, q], -2) / 60)
    mixed = subject.run(both)
    assert 0 < torch.isnan(mixed.o).sum() < mixed.o.numel()
    assert not subject.judge(mixed, subject.solve(both)).findings
    assert subject.held["float16"] == "C"


def test_no_class_is_held_where_every_answer_was_wrong():
    result = check(lambda q, k, v: v.mean(-2, keepdim=True).expand(q.shape) + 1, clauses="SOFTMAX-1", dtypes="float32", **QUICK)
    assert not result.ok
    assert not result.held
    assert any(line.split() == ["class", "held", "–"] for line in result.summary)
