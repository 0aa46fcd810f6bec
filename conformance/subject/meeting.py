"""Meeting an implementation: its dtypes, widths, strides and open choices, settled by a few plain calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import ndarray as Array

from attnspec.adapters import Adapter, Answer
from attnspec.conformance.judging.coarser import COARSER
from attnspec.conformance.judging.judge import compare, form
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.contact import ENDINGS, look, look_at_masks
from attnspec.conformance.subject.refusals import find
from attnspec.conformance.subject.subject import ASSUMED, OBSERVED, Subject
from attnspec.reference import Exact, solve, to_float64
from attnspec.reference.stages.lse import SENTINEL
from attnspec.spec import CHOICES, Problem
from attnspec.spec.words import DTYPES

UNSEEN = f"{ASSUMED}: could not be observed"
LOG = 12  # lines that it wrote before, which are shown
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 40, 59, 64, 72, 80, 96, 128, 160, 192, 256, 512)


def meet(adapter: Adapter, device: str, options: Mapping[str, str], claim: str | None, dtypes: tuple[str, ...] | None) -> Subject:
    """A subject with its dtypes, widths and open choices settled by a few plain calls."""
    subject = Subject(adapter, device, claim=claim, width=min(adapter.widths) if adapter.widths else 16)
    for name, how in adapter.disturbed.items():
        subject.disturbed["", name] = f"the first call changed {how}", _plain(subject)
    look(subject)
    _settle_dtypes(subject, dtypes or (None if adapter.dtypes is None else tuple(adapter.dtypes)))
    if adapter.widths is None:
        _settle_widths(subject)
    if subject.dtypes:
        look_at_masks(subject)
    _settle_strides(subject)
    _settle_lse_grad(subject)
    for name, choice in CHOICES.items():
        if choice.of and not subject.offers(choice.of):
            continue
        promised = adapter.dialect.get(name)
        if name in options:
            subject.dialect, source = subject.dialect.with_choice(name, options[name]), "--dialect"
            adapter.dialect = {**adapter.dialect, name: options[name]}
        elif promised:
            subject.dialect, source = subject.dialect.with_choice(name, promised), "promised by its convention"
        else:
            source = _observe(subject, name, 1)
        subject.sources[name] = source
    if subject.dtypes:
        find(subject)
        for name, source in subject.sources.items():
            if source.startswith(UNSEEN):  # a restriction that is known by now may be why
                subject.sources[name] = _observe(subject, name)
        plain = _plain(subject, subject.dtypes[0])
        subject.backend = adapter.trace(plain)
        subject.note(plain, subject.backend.disturbed)
    return subject


def _plain(subject: Subject, dtype: str = "float32") -> Problem:
    """What every implementation should answer."""
    return subject.problem(Case(dtype=dtype, heads=_heads(subject), d=subject.width, i=4, wrt="none"))


def _met(subject: Subject, dtype: str, d: int) -> Answer:
    """The answer to a plain call of this width."""
    return subject.run(subject.problem(Case(dtype=dtype, heads=_heads(subject), d=d, i=4, wrt="none")))


def _settle_dtypes(subject: Subject, asked: tuple[str, ...] | None) -> None:
    """Asked-for dtypes are promised; otherwise those in which a plain call is accepted, of whatever width.

    The width that was accepted is the width of plain calls from then on. A call that ends the process refuses nothing: where
    others are answered, the tests ask in that dtype, too.
    """
    refused: dict[str, str] = {}
    ends: set[str] = set()
    for dtype in asked or DTYPES:
        tried = _unanswered(subject, dtype)
        if tried:
            refused[dtype] = f"{tried[0].refusal}" + "".join(f"\n  {line}" for line in tried[0].log[-LOG:])
        if tried and (all(answer.ended for answer in tried) or sum(bool(answer.ended) for answer in tried) == ENDINGS):
            ends.add(dtype)
    some = len(refused) < len(asked or DTYPES)
    subject.refused_dtypes = {} if asked else {d: why for d, why in refused.items() if not (some and d in ends)}
    subject.dtypes = asked or tuple(d for d in DTYPES if d not in subject.refused_dtypes)


def _unanswered(subject: Subject, dtype: str) -> list[Answer]:
    """Plain calls of each width that were not answered; none where one was, whose width is that of plain calls from then on."""
    tried: list[Answer] = []
    for d in dict.fromkeys((subject.width, *widths(subject))):
        answer = _met(subject, dtype, d)
        if not answer.refusal:
            subject.width = d
            return []
        tried.append(answer)
        if sum(bool(one.ended) for one in tried) == ENDINGS:
            break
    return tried


def widths(subject: Subject) -> tuple[int, ...]:
    """The widths that it declares, or those that are tried."""
    return tuple(subject.adapter.widths) if subject.adapter.widths is not None else WIDTHS


def _settle_widths(subject: Subject) -> None:
    if not subject.dtypes:
        return
    for d in WIDTHS:
        answer = _met(subject, subject.dtypes[0], d)
        if answer.refusal and not answer.ended:
            subject.refused_widths[d] = answer.refusal
    if subject.refused_widths and len(subject.refused_widths) < len(WIDTHS):
        subject.adapter.widths = tuple(d for d in WIDTHS if d not in subject.refused_widths)


def _settle_strides(subject: Subject) -> None:
    """No signature promises that any strides are taken; what a plain call refuses is not offered."""
    if not subject.dtypes or not subject.offers("strided"):
        return
    case = fit(
        Case(dtype=subject.dtypes[0], heads=_heads(subject), d=subject.width, i=4, layout="strided", wrt="none"), subject.adapter
    )
    answer = subject.run(subject.problem(case))
    if answer.refusal and not answer.ended:
        subject.adapter.offers = frozenset(subject.adapter.offers) - {"strided"}
        subject.refused_strides = answer.refusal


def _settle_lse_grad(subject: Subject) -> None:
    """No signature promises a gradient through the lse; who is called by a convention offers it where a plain call has one."""
    if not subject.dtypes or subject.adapter.kernel is None or not subject.offers("lse_grad", "backward"):
        return
    case = Case(dtype=subject.dtypes[0], heads=_heads(subject), d=subject.width, i=4, lse="both", wrt="q")
    answer = subject.run(subject.problem(fit(case, subject.adapter)))
    lacks = answer.refusal or ("" if answer.gradients.get("dq") is not None else "the lse has no grad_fn")
    if lacks and not answer.ended:
        subject.adapter.offers = frozenset(subject.adapter.offers) - {"lse_grad"}
        subject.refused_lse_grad = lacks


def _heads(subject: Subject) -> str:
    return "2/2" if subject.offers("mha") else "2/shared" if subject.offers("shared_kv") else "2/1"


# CHOICES


def _observe(subject: Subject, choice: str, most: int | None = None) -> str:
    """Settle an open choice by one small problem, and say where it came from."""
    asked = questions(subject, choice, subject.dtypes[0] if subject.dtypes else "float32")[:most]
    if not asked:
        return f"{ASSUMED}: can't be observed without {CHOICES[choice].needs}"
    question, answer = answered(subject, asked)
    if answer.refusal:
        return f"{UNSEEN} ({answer.refusal})"
    value = followed(subject, choice, question.problem, answer)
    if value is None:
        return f"{ASSUMED}: the answer matched none of the choices, see {CHOICES[choice].consistent}"
    subject.dialect = subject.dialect.with_choice(choice, value)
    return f"{OBSERVED} on a small problem"


class Question(NamedTuple):
    """A problem on which the values of a choice give different answers, and the same problem where all give one."""

    problem: Problem
    plain: Problem


def questions(subject: Subject, choice: str, dtype: str) -> list[Question]:
    """What shows which value of a choice is followed, in each way that is offered; none where what it needs is not."""
    case = Case(dtype=dtype, heads=_heads(subject), d=8 if subject.adapter.widths is None else subject.width, wrt="none")
    if choice == "head_grouping":
        if not subject.offers("gqa"):
            return []
        asked = subject.problem(fit(replace(case, heads="4/2", i=3, j=4), subject.adapter))
        return [Question(asked, asked.replace(k=asked.k[:, :1].repeat(1, 2, 1, 1), v=asked.v[:, :1].repeat(1, 2, 1, 1)))]
    if choice == "softcap_order":
        if not subject.offers("softcap"):
            return []
        shown: list[dict[str, Any]] = [{"bias": "ij", "biases": "steep"}] if subject.offers("bias") else []
        shown += [{"alibi_slopes": "steep"}] if subject.offers("alibi") else []
        capped = [
            subject.problem(fit(replace(case, i=3, j=4, values="peaked", softcap=3.1, **one), subject.adapter)) for one in shown
        ]
        return [Question(asked, asked.replace(bias=None, alibi_slopes=None)) for asked in capped]
    if choice in ("lse_base", "lse_dtype"):
        halves = [name for name in ("bfloat16", "float16") if name in subject.dtypes]
        own = halves[0] if halves and choice == "lse_dtype" else dtype  # only there the two dtypes differ
        asked = subject.problem(replace(case, dtype=own, i=3, j=4, lse="returned"))
        return [Question(asked, asked.replace(lse=False))] if subject.offers("lse") else []
    if choice == "lse_includes_sink":
        if not subject.offers("lse", "sinks"):
            return []
        asked = subject.problem(replace(case, i=3, j=4, sinks="normal", lse="returned"))
        return [Question(asked, asked.replace(lse=False))]
    if CHOICES[choice].of == "rotary":
        return _turned(subject, choice, case)
    causal = subject.offers("causal")
    if choice == "window_count":
        window = "2:1" if subject.offers("window_right") else "2:"
        asked = subject.problem(replace(case, i=6, j=6, values="peaked", window=window, causal=causal and window == "2:"))
        return [Question(asked, asked.replace(window=None))]
    if choice == "causal_alignment" and not causal and subject.offers("window"):
        asked = subject.problem(replace(case, i=3, j=7, values="peaked", window="1:1" if subject.offers("window_right") else "1:"))
        return [Question(asked, asked.replace(window=None))]
    if choice == "causal_alignment" and not causal and subject.offers("alibi"):
        asked = subject.problem(replace(case, i=3, j=7, values="peaked", alibi_slopes="steep"))
        return [Question(asked, asked.replace(alibi_slopes=None))]
    if choice == "alibi_form":
        asked = subject.problem(replace(case, i=6, j=6, values="peaked", alibi_slopes="steep"))
        return [Question(asked, asked.replace(alibi_slopes=None))]
    if choice == "causal_alignment":
        asked = subject.problem(replace(case, i=2, j=5, causal=True, values="peaked"))
        return [Question(asked, asked.replace(causal=False))] if causal else []
    found, plain = [], subject.problem(fit(replace(case, b=2, i=3, j=4), subject.adapter))
    if subject.offers("key_padding"):
        mask = torch.ones(2, plain.j, dtype=torch.bool, device=subject.device)
        every, mask[1] = plain.replace(mask=mask.clone()), False
        found.append(Question(plain.replace(mask=mask), every))
    if causal and subject.dialect.causal_alignment == "bottom_right":
        asked = subject.problem(replace(case, i=5, j=2, causal=True))
        found.append(Question(asked, asked.replace(causal=False)))
    if subject.offers("bias"):
        hidden = torch.full((3, plain.j), float("-inf"), dtype=plain.dtype, device=subject.device)
        found.append(Question(plain.replace(bias=hidden), plain.replace(bias=torch.zeros_like(hidden))))
    if choice == "lse_empty":
        return [Question(asked.problem.replace(lse=True), asked.plain) for asked in found] if subject.offers("lse") else []
    return found


def _turned(subject: Subject, choice: str, case: Case) -> list[Question]:
    """New keys and queries that a call turns by itself, in each form that is offered; it does not name the pairs of channels.

    One query stands at the first new key, whatever the choice.
    """
    found, i = [], 1 if choice == "rotary_pairs" else 3
    width = 16 if not subject.offers("rotary_any_width") else min(case.d, 8) // 2 * 2
    d = case.d if subject.adapter.widths is not None else max(case.d, width)
    for kind in ("cached", "paged"):
        if subject.offers(f"{kind}_rotary", f"{kind}_append") and 0 < width <= d:
            asked = fit(
                replace(case, b=1, i=i, j=i + 4, d=d, values="peaked", carrier=f"{kind}+append", lengths="full"), subject.adapter
            )
            plain = subject.problem(asked)
            pairs = subject.dialect.rotary_pairs == "interleaved"
            turns = replace(plain.carrier, rotary=width, interleaved=pairs)  # type: ignore[type-var]
            found.append(Question(plain.replace(carrier=turns), plain))
    return found


def answered(subject: Subject, asked: list[Question]) -> tuple[Question, Answer]:
    """The first question that gets an answer, and that; the first one and its refusal where none does."""
    for question in asked:
        answer = subject.run(question.problem)
        if not answer.refusal:
            return question, answer
    return asked[0], subject.run(asked[0].problem)


def followed(subject: Subject, choice: str, problem: Problem, answer: Answer) -> str | None:
    """The value of a choice that an answer follows, in the class that is required or in coarser arithmetic; None: none.

    How coarse an answer may be is for ACCURACY to say. Of several values in the finest arithmetic that allows any, the one that
    is exempt from least, then the nearest.
    """
    dtype, output = str(problem.dtype).removeprefix("torch."), shown_by(choice)
    if form(answer.o, "output", problem.shape_of("o"), problem, "call") is not None:
        return None
    if output == "lse" and form(answer.lse, "lse", problem.shape_of("lse"), problem, "lse") is not None:
        return None
    if choice == "lse_dtype":
        return "operand" if answer.lse.dtype == problem.dtype and dtype in ("float16", "bfloat16") else "wide"
    got = to_float64(answer.output(output))
    if choice == "lse_empty":
        return _of_empty_rows(got[solve(problem, subject.dialect).empty])
    exacts: dict[str, Exact] = {}
    for value in CHOICES[choice].values:
        exact = solve(problem, subject.dialect.with_choice(choice, value))
        if not any(_same(exact, other, output) for other in exacts.values()):  # the first stands for those that give what it gives
            exacts[value] = exact
    for class_, inside in ((subject.required_class(dtype), dtype), *COARSER[dtype]):
        fits = {}
        for value, exact in exacts.items():
            t = exact.tolerance(class_, inside)
            finding, ratio = compare(got, exact.values[output], t.bound[output], t.exempt[output], output)
            if finding is None:
                fits[value] = (int(t.exempt[output].sum()), ratio)
        if fits:
            return min(fits, key=lambda value: fits[value])
    return None


def shown_by(choice: str) -> str:
    """The output that shows which value of a choice is followed."""
    return "lse" if CHOICES[choice].of == "lse" else "o"


def _of_empty_rows(lse: Array) -> str | None:
    """The value of lse_empty that these numbers follow, those of rows without a key; None: none."""
    if not lse.size:
        return None
    if np.isneginf(lse).all():
        return "minus_inf"
    if np.isposinf(lse).all():
        return "plus_inf"
    return "sentinel" if bool((np.isfinite(lse) & (lse < SENTINEL)).all()) else None


def _same(exact: Exact, other: Exact, output: str) -> bool:
    """Whether an output is the same in both but for what float64 rounds in each."""
    one, two = exact.values[output], other.values[output]
    bound = exact.tolerance("A", "float64").bound[output] + other.tolerance("A", "float64").bound[output]
    return bool(((np.abs(one - two) <= bound) | (np.isnan(one) & np.isnan(two))).all())
