"""SINK: one more logit in the row sum of each query head."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import torch
from torch import Tensor

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.options import beside
from attnspec.conformance.problems.factors.sink import SINKS
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import (
    NotApplicable,
    NotOffered,
    may_answer,
    must_agree,
    must_answer,
    must_be_right,
    refused,
)
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.spec import Problem
from attnspec.spec.words import OUTPUTS

Z = (-20.0, 0.0, 1.7, 5.0, 20.0)  # never zero alone: e^0 is lost beside large sums, and is what a 1 that is added gives, too
EDGES = (16, 17, 33, 65, 129, 257)
HEADS = (("mha", "3/3"), ("mqa", "4/1"), ("gqa", "4/2"), ("gqa", "6/2"), ("shared_kv", "3/shared"))


def sunk(case: Case) -> bool:
    """Whether a case has sinks."""
    return case.sinks != "none"


def plain(case: Case, subject: Subject, z: list[float] | float | None = None, **changes: object) -> Problem:
    """A problem of this dtype with sinks, as far as it is offered; with these numbers, one for all heads or one for each."""
    asked = Case(dtype=case.dtype, heads=case.heads, b=2, i=5, j=7, d=case.d, values="peaked", sinks="normal")
    problem = subject.problem(fit(replace(asked, **changes), subject.adapter))  # type: ignore[arg-type]
    return problem if z is None else with_sinks(problem, z)


def with_sinks(problem: Problem, sinks: list[float] | float) -> Problem:
    """The problem with other numbers in its sinks."""
    assert problem.sinks is not None
    return problem.replace(sinks=torch.zeros_like(problem.sinks) + torch.as_tensor(sinks).to(problem.sinks))


@clause("SINK-1")
@agrees("o", offering=("sinks",), where=lambda case: sunk(case) and not beside(case) and not case.causal)
def test_a_sink_joins_the_row_sum(subject: Subject, case: Case) -> None:
    """Among the scores, far from them, zero and −∞."""


@clause("SINK-1")
@once("sinks")
def test_the_sink_holds_at_every_length(subject: Subject, case: Case) -> None:
    """One query as a decode step has it, and many; one key, keys within one block and over several; with gradients and without."""
    for i in (1, 2, 19, 65):
        for j in (1, 2, 16, 17, 65, 129, 257):
            for wrt in ("none", "all"):
                must_be_right(subject, plain(case, subject, i=i, j=j, wrt=wrt), f"a sink with {i} queries and {j} keys")


@clause("SINK-1")
@once("sinks", each_dtype=True)
def test_sinks_in_the_dtype_of_the_queries(subject: Subject, case: Case) -> None:
    """As a model has them in a half type, beside those in float32 that all other problems have: refused, or right."""
    problem = plain(case, subject)
    assert problem.sinks is not None
    own = problem.replace(sinks=problem.sinks.to(problem.dtype))
    if own.sinks is not None and own.sinks.dtype == problem.sinks.dtype:
        raise NotApplicable
    if refusal := refused(subject.run(own), own):
        raise NotOffered(f"sinks in {case.dtype}: {refusal}")
    must_be_right(subject, own, f"with sinks in {case.dtype}")


@clause("SINK-1", "SINK-10")
@once("sinks")
def test_what_is_left_of_a_one(subject: Subject, case: Case) -> None:
    """Values of one: the output is one less what the sink took, at each z."""
    for z in Z:
        problem = plain(case, subject, z)
        ones = problem.replace(v=torch.ones_like(problem.v))
        must_be_right(subject, ones, f"values of one and sinks of {z:g}")


@clause("SINK-2")
@agrees(*OUTPUTS, offering=("sinks",), where=lambda case: case.sinks == "mixed" and case.h > 1)
def test_each_query_head_has_its_own_sink(subject: Subject, case: Case) -> None:
    """Sinks of which no two of a group are alike."""


@clause("SINK-2")
@once("sinks")
def test_the_sink_of_a_head_in_every_sharing(subject: Subject, case: Case) -> None:
    """Each query head in turn has a sink that matters, the others one that does not."""
    for feature, heads in HEADS:
        if subject.offers(feature):
            for i in (1, 5):
                problem = plain(case, subject, heads=heads, b=3, i=i, j=9)
                for head in range(problem.h):
                    sinks = [4.0 if n == head else -20.0 for n in range(problem.h)]
                    must_be_right(subject, with_sinks(problem, sinks), f"a sink in head {head} of {heads}")


@clause("SINK-2")
@once("sinks")
def test_permuted_heads(subject: Subject, case: Case) -> None:
    """Heads in another order, with their sinks."""
    for feature, heads in (("mha", "3/3"), ("mqa", "4/1"), ("shared_kv", "3/shared")):
        if not subject.offers(feature):
            continue
        problem = plain(case, subject, heads=heads, sinks="mixed", wrt="none").replace(do=None)
        assert problem.sinks is not None
        order = torch.arange(problem.h - 1, -1, -1, device=problem.q.device)
        changes = {"k": problem.k[:, order], "v": problem.v[:, order]} if feature == "mha" else {}
        other = problem.replace(q=problem.q[:, order], sinks=problem.sinks[order], **changes)
        before, after = may_answer(subject, problem), must_be_right(subject, other, "heads in the opposite order", ("o",))
        must_agree(subject, after.o[:, order], before.o, subject.solve(problem), "o", "heads in the opposite order", other)


@clause("SINK-2")
@once("sinks")
def test_sinks_in_other_memory(subject: Subject, case: Case) -> None:
    """Every other element of a longer tensor, and a slice of the sinks of all layers."""
    problem = plain(case, subject, heads="4/4" if subject.offers("mha") else case.heads)
    assert problem.sinks is not None
    table = torch.stack([torch.full_like(problem.sinks, 9.0), problem.sinks, torch.full_like(problem.sinks, -9.0)])
    must_be_right(subject, problem.replace(sinks=table[1]), "sinks that are one row of a table")
    if subject.offers("strided"):
        must_be_right(subject, problem.replace(sinks=table.T.contiguous()[:, 1]), "sinks that are one column of a table")


@clause("SINK-3")
@agrees(
    *OUTPUTS,
    offering=("sinks",),
    where=lambda case: sunk(case) and (case.scale is not None or case.softcap is not None or case.bias != "none"),
)
def test_a_sink_is_a_score_as_it_stands(subject: Subject, case: Case) -> None:
    """Beside a scale, a soft cap and a bias."""


@clause("SINK-3")
@once("sinks")
def test_a_sink_beside_each_option(subject: Subject, case: Case) -> None:
    """Scales, caps, biases and masks that would change it, one at a time."""
    options: tuple[tuple[str, dict[str, object]], ...] = (
        ("scale", {"scale": 0.3}),
        ("scale", {"scale": -0.5}),
        ("scale", {"scale": 0.0}),
        ("softcap", {"softcap": 0.7}),
        ("softcap", {"softcap": 3.1}),
        ("bias", {"bias": "hij", "biases": "steep"}),
        ("bias", {"bias": "bhi"}),
        ("key_padding", {"mask": "padding"}),
        ("mask", {"mask": "ij"}),
        ("causal", {"causal": True, "j": 0}),
        ("window", {"window": "2:"}),
    )
    for feature, changes in options:
        if subject.offers(feature):
            for z in (0.0, 1.7, 5.0):
                problem = plain(case, subject, z, **changes)
                must_be_right(subject, problem, f"a sink of {z:g} beside {', '.join(f'{n} {x}' for n, x in changes.items())}")


@clause("SINK-3")
@once("sinks", "dropout")
def test_dropout_leaves_the_sink(subject: Subject, case: Case) -> None:
    """At a rate of one nothing is left, and at zero all of it."""
    problem = plain(case, subject, 1.7)
    must_be_right(subject, problem.replace(dropout=1.0, training=True), "a sink under dropout at a rate of one")
    must_be_right(subject, problem.replace(dropout=0.0, training=True), "a sink under dropout at a rate of zero")


@clause("SINK-4")
@agrees(*OUTPUTS, offering=("sinks",), where=lambda case: sunk(case) and case.keys > 16)
def test_a_sink_counts_once_among_many_keys(subject: Subject, case: Case) -> None:
    """Several blocks of keys."""


@clause("SINK-4")
@once("sinks")
def test_a_sink_counts_once_where_blocks_are_hidden(subject: Subject, case: Case) -> None:
    """The first half hidden, the last half, all but one: with one query, as a split over keys has it, and with more."""
    for j in EDGES:
        for i in (1, 3):
            problem = plain(case, subject, 2.0, i=i, j=j)
            keys = problem.j  # as many as queries, where no others are taken
            key = torch.arange(keys, device=subject.device)
            for what, shown in (
                ("the first half of the keys", key >= keys // 2),
                ("all keys but the last", key == keys - 1),
                ("the last half of the keys", key < keys // 2),
                ("all keys but one", key == keys // 2),
            ):
                if subject.offers("key_padding"):
                    must_be_right(
                        subject, problem.replace(mask=shown.expand(problem.b, keys)), f"with {what} hidden, beside a sink"
                    )
                elif subject.offers("bias"):
                    bias = torch.zeros_like(problem.q[0, 0, :1, :1]).expand(1, keys).masked_fill(~shown, -inf)
                    must_be_right(subject, problem.replace(bias=bias), f"with {what} hidden, beside a sink")


@clause("SINK-4")
@on_cases(
    offering=("sinks",), where=lambda case: sunk(case) and case.i > 1 and case.mask == "none" and case.bias == "none", wrt="none"
)
def test_one_query_alone_is_one_among_many(subject: Subject, case: Case) -> None:
    """The last query by itself gives what it gives among the others."""
    if (case.causal or case.window != "none") and subject.dialect.causal_alignment != "bottom_right":
        raise NotApplicable
    problem = subject.problem(case)
    alone = problem.replace(q=problem.q[:, :, -1:].contiguous())
    before, after = may_answer(subject, problem), must_be_right(subject, alone, "the last query by itself, with sinks", ("o",))
    must_agree(subject, after.o, before.o[:, :, -1:], subject.solve(alone), "o", "the last query by itself, with sinks", alone)


@clause("SINK-5")
@agrees(
    *OUTPUTS,
    offering=("sinks",),
    where=lambda case: sunk(case) and (case.holes == "empty_row" or case.causal or case.window != "none"),
)
def test_a_row_without_a_key_is_zero(subject: Subject, case: Case) -> None:
    """Rows that a mask, causal or a window empties."""


@clause("SINK-5")
@once("sinks", "key_padding")
def test_a_batch_item_without_a_key(subject: Subject, case: Case) -> None:
    """All of its rows are zero at every z, and its gradients are."""
    for z in (*Z, 100.0):
        for j in (1, 7, 40):
            problem = plain(case, subject, z, b=3, j=j)
            mask = torch.ones(3, j, dtype=torch.bool, device=subject.device)
            mask[1] = False
            must_be_right(subject, problem.replace(mask=mask), f"a batch item without a key beside sinks of {z:g}")
    every = torch.zeros(2, 7, dtype=torch.bool, device=subject.device)
    must_be_right(subject, plain(case, subject).replace(mask=every), "sinks, and no key at all that is seen")


@clause("SINK-5")
@once("sinks")
def test_sinks_without_keys(subject: Subject, case: Case) -> None:
    """No keys: zeros, in the shape of the output."""
    problem = plain(case, subject)
    must_be_right(subject, problem.replace(k=problem.k[..., :0, :], v=problem.v[..., :0, :]), "sinks, and no keys")


@clause("SINK-6")
@agrees(
    *OUTPUTS,
    offering=("sinks",),
    where=lambda case: case.sinks in ("above", "below") or (sunk(case) and case.values in ("large", "negative")),
)
def test_a_sink_far_from_the_scores(subject: Subject, case: Case) -> None:
    """Above all of them, below, and scores of hundreds on either side."""


@clause("SINK-6")
@once("sinks", each_dtype=True)
def test_a_sink_at_any_distance(subject: Subject, case: Case) -> None:
    """z from −300 to 300 beside scores of ordinary size, and values so large that something is left."""
    high = torch.finfo(getattr(torch, case.dtype)).max
    for z in (-300.0, -100.0, -30.0, 30.0, 60.0, 100.0, 300.0):
        problem = plain(case, subject, z, i=3, j=9)
        large = problem.v * min(1e30, float(high) / 1e3)
        for v in (problem.v, large):
            must_be_right(subject, problem.replace(v=v), f"sinks of {z:g}")


@clause("SINK-6")
@once("sinks")
def test_scores_far_from_a_sink(subject: Subject, case: Case) -> None:
    """All scores near −80, −30, 30 and 80, with sinks of zero and near them."""
    for level in (-80.0, -30.0, 30.0, 80.0):
        problem = plain(case, subject, i=3, j=9)
        q, k = torch.zeros_like(problem.q), problem.k.clone()
        q[..., 0], k[..., 0] = problem.d**0.5, level + k[..., 0] / 8
        for z in (0.0, level, level - 3, level + 3):
            must_be_right(subject, with_sinks(problem.replace(q=q, k=k), z), f"scores near {level:g}, and sinks of {z:g}")


@clause("SINK-7")
@agrees(*OUTPUTS, offering=("sinks",), where=lambda case: case.sinks == "inf")
def test_minus_infinity_is_no_sink(subject: Subject, case: Case) -> None:
    """In every head."""


@clause("SINK-7")
@once("sinks")
def test_some_heads_without_a_sink(subject: Subject, case: Case) -> None:
    """−∞ in one head at a time, with rows that have no key, and the same as without sinks."""
    empty: tuple[dict[str, object], ...] = (
        {},
        *(({"mask": "ij", "holes": "empty_row"},) if subject.offers("mask") else ()),
        *(({"causal": True, "i": 7, "j": 3},) if subject.offers("causal") else ()),
    )
    for changes in empty:
        problem = plain(case, subject, None, heads="2/2" if subject.offers("mha") else case.heads, **changes)
        for head in range(problem.h):
            sinks = [-inf if n == head else 0.5 for n in range(problem.h)]
            must_be_right(subject, with_sinks(problem, sinks), f"no sink in head {head}")
        every = with_sinks(problem, -inf).replace(do=None, wrt=())
        none = every.replace(sinks=None)
        before, after = may_answer(subject, none), must_be_right(subject, every, "sinks of −∞", ("o",))
        must_agree(subject, after.o, before.o, subject.solve(every), "o", "sinks of −∞, and no sinks", none)


@clause("SINK-8")
@agrees("o", offering=("sinks",), where=lambda case: case.sinks == "zero")
def test_zero_is_a_sink(subject: Subject, case: Case) -> None:
    """e⁰ joins the row sum."""


@clause("SINK-8")
@on_cases(
    offering=("sinks",),
    where=lambda case: case.bias == "none" and case.mask == "none" and case.window == "none" and not case.causal,
    sinks="zero",
    wrt="none",
)
def test_a_sink_of_zero_is_a_key_of_zeros(subject: Subject, case: Case) -> None:
    """One more key and value of zeros, and no sinks: one answer."""
    problem = subject.problem(case)

    def more(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x[..., :1, :])], -2)

    other = problem.replace(sinks=None, k=more(problem.k), v=more(problem.v))
    before, after = must_answer(subject, problem), may_answer(subject, other)
    must_agree(subject, before.o, after.o, subject.solve(problem), "o", "a sink of zero, and a key of zeros", other)


@clause("SINK-9")
@once("sinks", "bias")
def test_a_constant_added_to_a_row(subject: Subject, case: Case) -> None:
    """t added to the bias of every key changes the output; subtracted from the sink as well, it does not."""
    for form in ("ij", "bhij", "bhi"):
        problem = plain(case, subject, 1.0, bias=form)
        assert problem.bias is not None
        for t in (-4.0, 2.0, 6.0):
            moved = problem.replace(bias=problem.bias + t)
            must_be_right(subject, moved, f"a bias over {form} with {t:g} added to each row, beside sinks")
            must_be_right(subject, with_sinks(moved, 1.0 + t), f"a bias over {form} and sinks with {t:g} added to all")


@clause("SINK-10")
@on_cases(offering=("sinks",), where=sunk, wrt="none")
def test_the_same_after_the_fact(subject: Subject, case: Case) -> None:
    """The exact output without sinks, times the sigmoid of its lse less z."""
    problem = subject.problem(case)
    assert problem.sinks is not None
    without = problem.replace(sinks=None)
    plain_exact = subject.solve(without)
    if plain_exact.empty.any():  # what such a row gives without a sink is for EMPTY-1 to say
        raise NotApplicable
    z = problem.sinks.detach().double().cpu().numpy()[:, None]
    with np.errstate(over="ignore"):
        expected = plain_exact.o / (1 + np.exp(z - plain_exact.lse))[..., None]
    exact = subject.solve(problem)
    other = replace(exact, values=exact.values | {"o": expected}, rest={}, _cache={})
    must_be_right(subject, problem, "a sink after the fact", ("o",), other)


@clause("SINK-11")
@agrees("dq", "dk", "dv", "dbias", offering=("sinks", "backward"), where=sunk)
def test_gradients_beside_a_sink(subject: Subject, case: Case) -> None:
    """Of queries, keys, values and bias."""


@clause("SINK-11", "SINK-12")
@once("sinks", "backward")
def test_gradients_at_each_sink(subject: Subject, case: Case) -> None:
    """Each z, many rows and few, with only some inputs that require grad."""
    for z in Z:
        for i, j in ((1, 9), (5, 7), (19, 40), (33, 17)):
            some = ("q", "k", "v", *(("sinks",) if subject.offers("sinks_grad") else ()))
            for wrt in ("all", *(some if (i, j) == (19, 40) else ())):
                must_be_right(subject, plain(case, subject, z, i=i, j=j, wrt=wrt), f"gradients of {wrt} beside sinks of {z:g}")


@clause("SINK-12")
@agrees("dsinks", offering=("sinks", "sinks_grad"), where=lambda case: sunk(case) and case.wrt in ("all", "sinks"))
def test_the_gradient_of_a_sink(subject: Subject, case: Case) -> None:
    """Over all rows of all batch items."""


@clause("SINK-12")
@once("sinks", "sinks_grad")
def test_each_row_adds_to_the_gradient_of_a_sink(subject: Subject, case: Case) -> None:
    """A cotangent in one row of one batch item at a time; rows beside it that see no key."""
    problem = plain(case, subject, 1.5, b=3, i=4, j=9, wrt="sinks")
    assert problem.do is not None
    for n in range(problem.b):
        for row in (0, problem.i - 1):
            do = torch.zeros_like(problem.do)
            do[n, :, row] = problem.do[n, :, row]
            must_be_right(subject, problem.replace(do=do), f"a cotangent in row {row} of batch item {n} alone")
    if subject.offers("key_padding"):
        mask = torch.ones(3, 9, dtype=torch.bool, device=subject.device)
        mask[0] = False
        must_be_right(subject, problem.replace(mask=mask), "the gradient of sinks with a batch item that has no key")
        must_be_right(subject, problem.replace(mask=torch.zeros_like(mask)), "the gradient of sinks with no key at all")


LEVELS = SINKS.levels[1:]


@clause("SINK-11", "SINK-12")
@once("sinks", "backward")
def test_sinks_change_from_call_to_call(subject: Subject, case: Case) -> None:
    """One shape, other sinks in each call, none among them: a kernel keeps nothing of them."""
    earlier: tuple[Problem, ...] = ()
    for level in (*LEVELS, "none", *LEVELS[:2]):
        changes: dict[str, object] = {"i": 13, "j": 21, "sinks": level}
        asked = plain(case, subject, None, **changes)
        must_be_right(subject, asked, f"sinks ({level}) after {len(earlier)} calls with others", OUTPUTS, earlier=earlier)
        earlier += (asked,)
