"""What is said of an implementation is so: a call that ended, the class that was held, the choices that were seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attnspec.adapters import Adapter, resolve
from attnspec.conformance import check
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.verdicts.verdict import Verdict

README = Path(__file__).parent.parent / "README.md"

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
    from attnspec.conformance.problems.case import Case
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


# WHAT IT TAKES


def of_width_64(q, k, v):
    """Takes width 64 and no other."""
    if q.shape[-1] != 64:
        raise NotImplementedError(f"head width {q.shape[-1]}; this kernel is built for 64")
    return attention(q, k, v)


def met(impl, **options):
    (adapter,) = resolve(impl, {})
    return meet(adapter.on("cpu"), "cpu", {}, options.get("claim"), options.get("dtypes"))


def test_a_kernel_of_one_width_is_asked_in_that_width():
    subject = met(of_width_64)
    assert subject.dtypes == ("float32", "float64", "bfloat16", "float16")
    assert tuple(subject.adapter.widths) == (64,)
    assert met(of_width_64, dtypes=("float16",)).width == 64
    result = check(of_width_64, clauses="SHAPE-1,SOFTMAX-1", dtypes="float32", **QUICK)
    assert result.ok, str(result)


def test_a_dtype_that_no_width_helps_is_refused_with_the_first_reason():
    def attend(q, k, v):
        if q.dtype == torch.float64:
            raise TypeError(f"no float64, width {q.shape[-1]}")
        return of_width_64(q, k, v)

    subject = met(attend)
    assert subject.dtypes == ("float32", "bfloat16", "float16")
    assert subject.refused_dtypes == {"float64": "TypeError: no float64, width 64"}


def test_the_adapter_of_the_readme_runs_word_for_word(tmp_path, monkeypatch):
    """With a stand-in for `mypackage.my_kernel` that takes the widths that the adapter declares, and no other."""
    text = README.read_text(encoding="utf-8").partition("**An adapter**, for anything else:\n\n")[2]
    lines = text.partition("\n    pytest ")[0].splitlines()
    (tmp_path / "my_adapter.py").write_text("\n".join(line.removeprefix("    ") for line in lines), encoding="utf-8")
    (tmp_path / "mypackage.py").write_text(
        "import torch\n"
        "def my_kernel(q, k, v, causal):\n"
        "    assert q.shape[-1] in (64, 128), q.shape\n"
        "    k, v = (x.repeat_interleave(q.shape[1] // max(1, x.shape[1]), 1) for x in (k, v))\n"
        "    s, at = (q @ k.mT) * q.shape[-1] ** -0.5, k.shape[-2] - q.shape[-2]\n"
        "    hidden = torch.ones(s.shape[-2:], dtype=torch.bool).triu(at + 1 if causal else s.shape[-1])\n"
        "    return torch.nan_to_num(torch.softmax(s.masked_fill(hidden, -torch.inf), -1)) @ v\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {**QUICK, "clauses": "SHAPE-1,SHAPE-2,SHAPE-4,SOFTMAX-2,CAUSAL-1,CAUSAL-2,CAUSAL-4,SHARED-2,GRAD-1"}
    result = check(f"{tmp_path / 'my_adapter.py'}:Attention", dtypes="float32", **options)
    assert result.judged > 100
    assert result.ok, str(result)
    assert len(met(f"{tmp_path / 'my_adapter.py'}:Attention").dtypes) == 4


# CHOICES


def sees_the_future(q, k, v, causal=False):
    """Causal with two keys too many."""
    return attention(q, k, v, causal=causal, aligned=2)


def test_an_answer_that_follows_no_choice_is_a_red_of_the_consistency_clause():
    result = check(sees_the_future, clauses="CAUSAL-4", dtypes="float32,bfloat16", **QUICK)
    shown = [failure for failure in result.failures if failure.clause == "CAUSAL-4"]
    assert {failure.dtype for failure in shown} >= {"float32"}
    text = next(failure.text for failure in shown if "matches no value" in failure.text)
    assert "the answer matches no value of causal_alignment: output [0, " in text
    assert "where bottom_right gives " in text
    assert "; top_left gives " in text


def half_a_row(q, k, v, mask=None):
    """Right, but that a row without a key gives a half."""
    o = attention(q, k, v, mask)
    visible = None if mask is None else mask[:, None, None] if mask.ndim == 2 else mask
    return o if visible is None else torch.where(visible.any(-1, keepdim=True), o, 0.5).to(q.dtype)


def paired_heads(q, k, v, enable_gqa=False):
    """Grouped heads in an order of its own: 0 1 1 0 for four and two."""
    n, g = q.shape[1], k.shape[1]
    heads = [min(x, n - 1 - x) % g for x in range(n)] if g < n else list(range(n))
    return attention(q, k[:, heads], v[:, heads])


@pytest.mark.parametrize(("kernel", "clause"), [(half_a_row, "EMPTY-2"), (paired_heads, "SHARED-2")])
def test_the_other_choices_too(kernel, clause):
    result = check(kernel, clauses=clause, dtypes="float32", **QUICK)
    assert any(failure.clause == clause and "the answer matches no value of " in failure.text for failure in result.failures), str(
        result
    )


def in_float32(q, k, v, causal=False):
    """Right, but for its arithmetic: float32 inside, whatever comes in."""
    return attention(q.float(), k.float(), v.float(), causal=causal).to(q.dtype)


def top_left_in_float32(q, k, v, causal=False):
    return attention(q.float(), k.float(), v.float(), causal=causal, aligned=q.shape[-2] - k.shape[-2]).to(q.dtype)


@pytest.mark.parametrize(("kernel", "alignment"), [(in_float32, "bottom_right"), (top_left_in_float32, "top_left")])
def test_a_choice_is_observed_in_whatever_arithmetic(kernel, alignment):
    subject = met(kernel, dtypes=("float64",))
    assert subject.dialect.causal_alignment == alignment
    assert subject.sources["causal_alignment"].startswith("observed")
    result = check(kernel, clauses="CAUSAL-4,ACCURACY-4", dtypes="float64", **QUICK)
    assert result.broken == ("ACCURACY-4",), str(result)


def test_what_is_wrong_without_the_option_is_no_matter_of_choice():
    result = check(
        lambda q, k, v, causal=False: attention(q * 2, k, v, causal=causal), clauses="CAUSAL-4", dtypes="float32", **QUICK
    )
    assert not any("follows no" in failure.text for failure in result.failures)


# MODES


def test_under_autocast_class_c_is_what_the_text_says():
    from attnspec.conformance.clauses.test_mode import test_autocast_is_only_a_dtype as ask
    from attnspec.conformance.problems.case import Case
    from attnspec.conformance.problems.tensors import build
    from attnspec.conformance.testing.outcomes import Broken
    from attnspec.reference import solve
    from attnspec.spec import Dialect

    case = Case(heads="2/2", i=3, j=17, d=16, wrt="none")
    exact = solve(build(Case(dtype="bfloat16", heads="2/2", i=3, j=17, d=16, wrt="none"), "cpu", ()), Dialect())
    narrow, wide = (float((exact.tolerance(class_).bound["o"] / abs(exact.values["o"])).min()) for class_ in ("C", "D"))
    assert narrow * 1.1 < wide
    off = (narrow * wide) ** 0.5  # outside of C somewhere, within D everywhere

    def attend(q, k, v):
        o = attention(q.double(), k.double(), v.double())
        return (o * (1 + off if torch.is_autocast_enabled("cpu") else 1)).to(q.dtype)

    with pytest.raises(Broken, match="under autocast to bfloat16, against class C"):
        _inside(ask)(met(attend, dtypes=("float32",)), case)
    _inside(ask)(met(attention, dtypes=("float32",)), case)


def test_paths_that_can_be_compared_are_though_another_refuses():
    from attnspec.conformance.clauses.test_mode import test_all_paths_agree as ask
    from attnspec.conformance.problems.case import Case
    from attnspec.conformance.testing.outcomes import Broken, NotApplicable

    def refuses(q, k, v):
        raise NotImplementedError("not today")

    def off(q, k, v):
        return attention(q, k, v) + 1

    first, second, third = (met(f, dtypes=("float32",)) for f in (attention, refuses, off))
    agree = _inside(ask)
    first.siblings = (second, third)
    with pytest.raises(Broken):
        agree(first, Case(i=3, j=4, wrt="none"))
    first.siblings = (second,)
    with pytest.raises(NotApplicable):
        agree(first, Case(i=3, j=4, wrt="none"))


def _inside(test):
    """The function of (subject, case) inside of a conformance test."""
    return next(cell.cell_contents for cell in test.__closure__ if getattr(cell.cell_contents, "plan", None) is not None)
