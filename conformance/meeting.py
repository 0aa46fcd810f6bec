"""Meeting an implementation: its dtypes, widths, strides and open choices, settled by a few plain calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from attnspec.adapters import Adapter
from attnspec.conformance.case import Case, fit
from attnspec.conformance.judge import judge
from attnspec.conformance.subject import DTYPES, Subject
from attnspec.conformance.tensors import build
from attnspec.reference import solve
from attnspec.spec import CHOICES, Problem

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 40, 59, 64, 72, 80, 96, 128)


def meet(adapter: Adapter, device: str, options: Mapping[str, str], claim: str | None, dtypes: tuple[str, ...] | None) -> Subject:
    """A subject with its dtypes, widths and open choices settled by a few plain calls."""
    subject = Subject(adapter, device, claim=claim)
    subject.disturbed.update({name: (f"the first call changed {how}", _plain(subject)) for name, how in adapter.disturbed.items()})
    _settle_dtypes(subject, dtypes)
    if adapter.widths is None:
        _settle_widths(subject)
    _settle_strides(subject)
    for name in CHOICES:
        promised = adapter.dialect.get(name)
        if name in options:
            subject.dialect, source = subject.dialect.with_choice(name, options[name]), "--dialect"
            adapter.dialect = {**adapter.dialect, name: options[name]}
        elif promised:
            subject.dialect, source = subject.dialect.with_choice(name, promised), "promised by its convention"
        else:
            source = _observe(subject, name)
        subject.sources[name] = source
    if subject.dtypes:
        plain = _plain(subject, subject.dtypes[0])
        with subject.watching(plain):
            subject.backend = adapter.trace(plain)
    return subject


def _plain(subject: Subject, dtype: str = "float32") -> Problem:
    """What every implementation should answer."""
    case = Case(dtype=dtype, heads=_heads(subject), d=16 if subject.adapter.widths is None else min(subject.adapter.widths), i=4)
    return build(replace(case, wrt="none"), subject.device, ())


def _settle_dtypes(subject: Subject, asked: tuple[str, ...] | None) -> None:
    """Asked-for dtypes are promised; otherwise those that a plain call accepts."""
    if asked:
        subject.dtypes = asked
        return
    for dtype in DTYPES:
        answer = subject.run(build(Case(dtype=dtype, heads=_heads(subject), d=16, i=4, wrt="none"), subject.device, ()))
        if answer.refusal:
            subject.refused_dtypes[dtype] = answer.refusal
    subject.dtypes = tuple(d for d in DTYPES if d not in subject.refused_dtypes)


def _settle_widths(subject: Subject) -> None:
    if not subject.dtypes:
        return
    for d in WIDTHS:
        answer = subject.run(build(Case(dtype=subject.dtypes[0], heads=_heads(subject), d=d, i=4, wrt="none"), subject.device, ()))
        if answer.refusal:
            subject.refused_widths[d] = answer.refusal
    if subject.refused_widths and len(subject.refused_widths) < len(WIDTHS):
        subject.adapter.widths = tuple(d for d in WIDTHS if d not in subject.refused_widths)


def _settle_strides(subject: Subject) -> None:
    """No signature promises that any strides are taken; what a plain call refuses is not offered."""
    if not subject.dtypes or not subject.offers("strided"):
        return
    case = fit(Case(dtype=subject.dtypes[0], heads=_heads(subject), d=16, i=4, layout="strided", wrt="none"), subject.adapter)
    refusal = subject.run(build(case, subject.device, ())).refusal
    if refusal:
        subject.adapter.offers = frozenset(subject.adapter.offers) - {"strided"}
        subject.refused_strides = refusal


def _heads(subject: Subject) -> str:
    return "2/2" if subject.offers("mha") else "2/shared" if subject.offers("shared_kv") else "2/1"


def _observe(subject: Subject, choice: str) -> str:
    """Settle an open choice by one small problem, and say where it came from."""
    case = {
        "causal_alignment": Case(i=2, j=5, causal=True, heads=_heads(subject), values="peaked", wrt="none"),
        "empty_row": Case(b=2, i=3, j=4, heads=_heads(subject), mask="padding", holes="all", wrt="none"),
        "head_grouping": Case(heads="4/2", i=3, j=4, wrt="none"),
    }[choice]
    needs = {"causal_alignment": "causal", "empty_row": "key_padding", "head_grouping": "gqa"}[choice]
    if choice == "empty_row" and not subject.offers("key_padding"):
        if subject.offers("causal") and subject.dialect.causal_alignment == "bottom_right":
            needs, case = "causal", Case(i=5, j=2, causal=True, heads=_heads(subject), wrt="none")
        elif subject.offers("bias"):
            needs = "bias"
    if not subject.offers(needs):
        return f"canonical, for {needs} is not offered"
    case = replace(
        case,
        dtype=subject.dtypes[0] if subject.dtypes else "float32",
        d=8 if subject.adapter.widths is None else min(subject.adapter.widths),
    )
    problem = build(case, subject.device, ())
    if choice == "empty_row" and needs == "key_padding":
        mask = torch.ones(2, 4, dtype=torch.bool, device=subject.device)
        mask[1] = False
        problem = problem.replace(mask=mask)
    elif choice == "empty_row" and needs == "bias":
        problem = problem.replace(bias=torch.full((3, 4), float("-inf"), dtype=problem.dtype, device=subject.device))
    answer = subject.run(problem)
    for value in CHOICES[choice]:
        dialect = subject.dialect.with_choice(choice, value)
        if not judge(answer, solve(problem, dialect), subject.required_class(case.dtype)).findings:
            subject.dialect = dialect
            return "observed on a small problem"
    return "canonical, for none of the choices was observed" + (f" ({answer.refusal})" if answer.refusal else "")
