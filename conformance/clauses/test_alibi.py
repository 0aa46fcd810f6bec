"""ALIBI: slopes that lower each score by how far its key is, and tables of distances that are a bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.alibi import published
from attnspec.conformance.problems.factors.options import beside
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.choosing import must_follow_a_choice
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, may_answer, must_agree, must_be_right, refused
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.relations import some_queries
from attnspec.reference import to_float64
from attnspec.reference.stages.alibi import distances
from attnspec.reference.stages.given import Given
from attnspec.spec import Problem
from attnspec.spec.words import INPUT_OF, OUTPUTS

LENGTHS = ((1, 2), (1, 9), (2, 6), (5, 7), (6, 6), (7, 4), (9, 3))  # fewer queries than keys, as many, and more


def sloped(case: Case) -> bool:
    """There are slopes."""
    return case.alibi_slopes != "none"


def alone(case: Case) -> bool:
    """There are slopes, and nothing else that is added or hides a key but causal."""
    return sloped(case) and not beside(case) and case.window == "none" and case.softcap is None


def plain(case: Case, subject: Subject, **changes: object) -> Problem:
    """A problem of this dtype with slopes, as far as it is offered."""
    asked = Case(dtype=case.dtype, heads=case.heads, b=2, i=5, j=7, d=case.d, values="peaked", alibi_slopes="h")
    return subject.problem(fit(replace(asked, **changes), subject.adapter))  # type: ignore[arg-type]


def with_causal(subject: Subject) -> tuple[bool, ...]:
    """Without causal, and with it where it is offered."""
    return (False, True) if subject.offers("causal") else (False,)


def slopes_in(problem: Problem) -> Tensor:
    """Those of a problem that has some."""
    assert problem.alibi_slopes is not None
    return problem.alibi_slopes


def slopes_of(problem: Problem, numbers: object) -> Tensor:
    """Slopes in the dtype and at the place of those of a problem."""
    own = slopes_in(problem)
    return torch.as_tensor(numbers, dtype=own.dtype, device=own.device)


def added(subject: Subject, problem: Problem) -> Tensor:
    """What the slopes add (b h i j), float64."""
    far = torch.from_numpy(distances(Given(problem, subject.dialect)).copy())
    return (slopes_in(problem).cpu().double()[..., None, None] * far).expand(problem.b, problem.h, problem.i, problem.j)


def heads_offered(subject: Subject) -> Iterator[str]:
    """Head counts of each sharing that is offered; few of them powers of two."""
    for feature, heads in (
        ("mha", "1/1"),
        ("mha", "3/3"),
        ("mha", "6/6"),
        ("mqa", "4/1"),
        ("gqa", "4/2"),
        ("gqa", "6/2"),
        ("shared_kv", "3/shared"),
    ):
        if subject.offers(feature):
            yield heads


@clause("ALIBI-1")
@agrees("o", offering=("alibi", "causal"), where=alone, causal=True, j=0)
def test_slopes_lower_scores_by_the_distance(subject: Subject, case: Case) -> None:
    """As many causal queries as keys."""


@clause("ALIBI-1", "ALIBI-6")
@once("alibi")
def test_slopes_hold_at_every_length(subject: Subject, case: Case) -> None:
    """One query as a decode step has it, and many; keys within one block and over several, with gradients and without."""
    for i in (1, 2, 19, 65):
        for j in (2, 16, 17, 65, 129, 257):
            for causal in with_causal(subject):
                for wrt in ("none", "all"):
                    problem = plain(case, subject, i=i, j=j, causal=causal, wrt=wrt)
                    must_be_right(subject, problem, f"slopes with {i}{' causal' if causal else ''} queries and {j} keys")


@clause("ALIBI-2", "ALIBI-3", "ALIBI-4", "ALIBI-5")
@agrees(*OUTPUTS, offering=("alibi",), where=lambda case: alone(case) and not case.causal)
def test_keys_behind_the_query(subject: Subject, case: Case) -> None:
    """Without causal, where the form that was promised or seen shows."""


@clause("ALIBI-5")
@agrees("o", offering=("alibi",), where=sloped)
def test_the_same_form_beside_other_options(subject: Subject, case: Case) -> None:
    """With masks, causal, windows, other lengths and dtypes."""


@clause("ALIBI-5")
@once("alibi")
def test_one_of_the_forms_is_followed(subject: Subject, case: Case) -> None:
    """The problem on which the form is observed: six queries, six keys, no causal."""
    must_follow_a_choice(subject, "alibi_form", case.dtype)


@clause("ALIBI-6")
@agrees(*OUTPUTS, offering=("alibi",), where=lambda case: alone(case) and case.i != case.keys)
def test_distances_begin_where_causal_does(subject: Subject, case: Case) -> None:
    """Fewer and more queries than keys, with causal and without."""


@clause("ALIBI-6", "ALIBI-14")
@once("alibi")
def test_weights_of_equal_keys(subject: Subject, case: Case) -> None:
    """Queries of zeros and one-hot values: each output is the weight of a key, e to the slope times its distance."""
    for i, j in LENGTHS:
        for causal in with_causal(subject):
            for form in ("h", "steep", "mixed"):
                problem = plain(case, subject, i=i, j=j, causal=causal, alibi_slopes=form, d=max(case.d, 8), wrt="none")
                v = torch.zeros_like(problem.v)
                v[..., torch.arange(problem.j), torch.arange(problem.j) % problem.e] = 1
                asked = problem.replace(q=torch.zeros_like(problem.q), v=v)
                what = f"{problem.i}{' causal' if causal else ''} queries of zeros, {problem.j} keys and slopes"
                must_be_right(subject, asked, what)


@clause("ALIBI-7")
@agrees("o", offering=("alibi",), where=lambda case: sloped(case) and case.h > 1)
def test_each_head_has_its_slope(subject: Subject, case: Case) -> None:
    """Slopes of heads and of heads in batch items, beside everything else."""


@clause("ALIBI-7")
@once("alibi")
def test_slopes_of_one_head_and_of_no_other(subject: Subject, case: Case) -> None:
    """In every sharing of keys: a slope for one head after the other, and slopes that all differ."""
    for heads in heads_offered(subject):
        for causal in with_causal(subject):
            problem = plain(case, subject, heads=heads, b=3, causal=causal, wrt="none")
            for head in range(problem.h):
                one = torch.zeros(problem.h)
                one[head] = 0.7
                what = f"heads {heads}, of which {head} alone has a slope"
                must_be_right(subject, problem.replace(alibi_slopes=slopes_of(problem, one)), what)
            for i, j in ((1, 9), (5, 7)):
                must_be_right(subject, plain(case, subject, heads=heads, b=3, i=i, j=j, causal=causal), f"slopes of heads {heads}")


@clause("ALIBI-7")
@once("alibi", "alibi_batch")
def test_slopes_of_each_batch_item(subject: Subject, case: Case) -> None:
    """As many batch items as heads, fewer and more; one of them with slopes alone."""
    for heads in heads_offered(subject):
        for b in (1, 2, 3, 5):
            problem = plain(case, subject, heads=heads, b=b, alibi_slopes="bh")
            must_be_right(subject, problem, f"slopes of {b} batch items and heads {heads}")
            last = slopes_in(problem).clone()
            last[:-1] = 0
            must_be_right(subject, problem.replace(alibi_slopes=last), f"slopes of the last of {b} batch items")


@clause("ALIBI-7")
@once("alibi")
def test_the_published_slopes(subject: Subject, case: Case) -> None:
    """Those of ALiBi's paper, and half of them, which nobody makes by himself."""
    for heads in heads_offered(subject):
        problem = plain(case, subject, heads=heads, i=6, j=40, wrt="none")
        for share in (1.0, 0.5):
            slopes = slopes_of(problem, published(problem.h) * share)
            must_be_right(subject, problem.replace(alibi_slopes=slopes), f"{share:g} of the published slopes of heads {heads}")


@clause("ALIBI-8")
@agrees(
    *OUTPUTS,
    offering=("alibi",),
    where=lambda case: (
        sloped(case)
        and (case.scale is not None or case.softcap is not None or (case.bias != "none" and case.biases != "inf"))
        and case.mask == "none"
    ),
)
def test_slopes_beside_scale_cap_and_bias(subject: Subject, case: Case) -> None:
    """Other scales, none of them on what is added; caps before it or behind it; a bias besides."""


@clause("ALIBI-8")
@once("alibi", "scale")
def test_slopes_meet_no_scale(subject: Subject, case: Case) -> None:
    """Scales of zero, of a thousandth, of ten, and below zero."""
    for scale in (0.0, 0.001, 10.0, -0.5):
        for causal in with_causal(subject):
            must_be_right(
                subject, plain(case, subject, scale=scale, causal=causal, values="normal"), f"slopes beside scale {scale}"
            )


@clause("ALIBI-9")
@agrees(
    *OUTPUTS,
    offering=("alibi",),
    where=lambda case: (
        sloped(case)
        and (case.mask != "none" or case.causal or case.window != "none" or (case.bias != "none" and case.biases == "inf"))
    ),
)
def test_slopes_show_nothing_that_is_hidden(subject: Subject, case: Case) -> None:
    """Beside masks of every form, causal, windows and biases of −∞."""


@clause("ALIBI-9")
@once("alibi")
def test_no_slope_outweighs_a_mask(subject: Subject, case: Case) -> None:
    """Slopes of ±100 and ±1000, so that what is added to a hidden key is far above all that is added to a visible one."""
    shown: list[dict[str, object]] = [{"causal": True}] if subject.offers("causal") else []
    shown += [{"mask": "padding", "holes": "suffix"}] if subject.offers("key_padding") else []
    shown += [{"mask": "bhij", "causal": subject.offers("causal")}] if subject.offers("mask") else []
    shown += [{"window": "2:", "causal": subject.offers("causal")}] if subject.offers("window") else []
    for changes in shown:
        for slope in (100.0, -100.0, 1000.0, -1000.0):
            problem = plain(case, subject, i=9, j=9, **changes)
            slopes = slopes_of(problem, [slope] * problem.h)
            must_be_right(subject, problem.replace(alibi_slopes=slopes), f"slopes of {slope:g}")


@clause("ALIBI-10")
@agrees(*(name for name in INPUT_OF if name != "dalibi_slopes"), offering=("alibi", "backward"), where=sloped)
def test_gradients_beside_slopes(subject: Subject, case: Case) -> None:
    """dq, dk, dv and dbias."""


@clause("ALIBI-11")
@agrees("dalibi_slopes", offering=("alibi", "alibi_grad"), where=lambda case: sloped(case) and case.wrt == "all")
def test_the_gradient_of_slopes(subject: Subject, case: Case) -> None:
    """Over all queries, keys and batch items that share a slope."""


@clause("ALIBI-11")
@once("alibi", "alibi_grad")
def test_the_gradient_of_slopes_alone(subject: Subject, case: Case) -> None:
    """Where nothing else asks for one; in one block and in several; and for every sharing of heads."""
    forms = ("h", "bh") if subject.offers("alibi_batch") else ("h",)
    for n, heads in enumerate(heads_offered(subject)):
        for i, j in ((5, 7), (19, 65)) if n else (*LENGTHS, (19, 65), (3, 129)):
            for form in forms:
                for causal in with_causal(subject):
                    problem = plain(
                        case,
                        subject,
                        heads=heads,
                        b=3,
                        i=i,
                        j=j,
                        alibi_slopes=form,
                        causal=causal,
                        wrt="alibi_slopes",
                        values="normal",
                    )
                    must_be_right(subject, problem, f"slopes ({form}) alone require grad, {i} queries, {j} keys")


@clause("ALIBI-12")
@once("alibi", "backward")
def test_slopes_that_require_grad_get_one(subject: Subject, case: Case) -> None:
    """A gradient, or an exception; neither nothing nor zeros."""
    problem = plain(case, subject)
    if problem.do is None:
        raise NotApplicable
    asked = problem.replace(wrt=tuple(dict.fromkeys((*problem.wrt, "alibi_slopes"))))
    answer = subject.run(asked)
    if refused(answer, asked) is not None:
        return
    exact, found = subject.solve(asked), answer.gradients.get("dalibi_slopes")
    if found is None:
        raise Broken(Finding("missing", "dalibi_slopes", "slopes that require grad get none, and no error"), asked, exact)
    if exact.values["dalibi_slopes"].any() and not to_float64(found).any():
        raise Broken(Finding("relation", "dalibi_slopes", "slopes that require grad get zeros, and no error"), asked, exact)


@clause("ALIBI-13")
@on_cases(offering=("alibi",), where=sloped)
def test_slopes_of_zero_are_none(subject: Subject, case: Case) -> None:
    """All of them, and all but one."""
    problem = subject.problem(case)
    none = problem.replace(alibi_slopes=None, wrt=tuple(name for name in problem.wrt if name != "alibi_slopes"))
    if none.do is not None and not none.wrt:
        none = none.replace(do=None)
    before, exact = may_answer(subject, none), subject.solve(none)
    zeros = problem.replace(alibi_slopes=torch.zeros_like(slopes_in(problem)))
    after = must_be_right(subject, zeros, "with slopes of zero")
    must_agree(subject, after.o, before.o, exact, "o", "slopes of zero, and none", zeros)
    if problem.h > 1:
        one = slopes_in(problem).clone()
        one[..., 1:] = 0
        some = problem.replace(alibi_slopes=one)
        after = must_be_right(subject, some, "with a slope for the first head alone")
        rest = (slice(None), slice(1, None))
        must_agree(subject, after.o, before.o, exact, "o", "heads whose slope is zero, and none", some, rest)


@clause("ALIBI-15")
@on_cases(offering=("alibi", "alibi_batch"), where=lambda case: sloped(case) and case.alibi_slopes != "bh")
def test_equal_slopes_of_a_batch_are_slopes_of_heads(subject: Subject, case: Case) -> None:
    """Repeated in memory, and expanded with a stride of zero."""
    problem = subject.problem(case)
    before, exact = may_answer(subject, problem), subject.solve(problem)
    expanded = slopes_in(problem).expand(problem.b, problem.h)
    for slopes, how in ((expanded.contiguous(), "repeated"), (expanded, "expanded")):
        other = problem.replace(alibi_slopes=slopes)
        after = must_be_right(subject, other, f"with slopes {how} for each batch item")
        must_agree(subject, after.o, before.o, exact, "o", f"slopes {how} for each batch item, and of heads", other)


@clause("ALIBI-16")
@once("alibi", "mha")
def test_slopes_go_with_their_heads(subject: Subject, case: Case) -> None:
    """All heads in the opposite order."""
    for heads in ("2/2", "3/3", "6/6"):
        for causal in with_causal(subject):
            problem = plain(case, subject, heads=heads, causal=causal, wrt="none")
            q, k, v, slopes = problem.q, problem.k, problem.v, slopes_in(problem)
            other = problem.replace(q=q.flip(1), k=k.flip(1), v=v.flip(1), alibi_slopes=slopes.flip(-1))
            before, after = may_answer(subject, problem), must_be_right(subject, other, "with the heads in the opposite order")
            must_agree(subject, after.o.flip(1), before.o, subject.solve(problem), "o", "the heads in the opposite order", other)


@clause("ALIBI-17")
@once("alibi")
def test_some_heads_alone_are_some_heads_of_all(subject: Subject, case: Case) -> None:
    """The last heads with their keys and values, as the last rank of tensor parallelism has them."""
    for feature, heads, groups in (("mha", "2/2", 1), ("mha", "6/6", 3), ("gqa", "4/2", 1), ("gqa", "8/4", 2)):
        of_groups = feature == "gqa" and (subject.dialect.head_grouping != "blocked" or not subject.offers("mqa"))
        if not subject.offers(feature) or of_groups:
            continue
        problem = plain(case, subject, heads=heads, wrt="none")
        last, k, v = problem.h * groups // problem.g, problem.k[:, -groups:], problem.v[:, -groups:]
        other = problem.replace(q=problem.q[:, -last:], k=k, v=v, alibi_slopes=slopes_in(problem)[..., -last:])
        before, exact = may_answer(subject, problem), subject.solve(other)
        after = must_be_right(subject, other, "the last heads by themselves", ("o",), exact)
        must_agree(subject, before.o[:, -last:], after.o, exact, "o", "the last heads among all, and by themselves", other)


@clause("ALIBI-18")
@once("alibi", "bias")
def test_the_same_numbers_as_a_bias(subject: Subject, case: Case) -> None:
    """Slopes that are powers of two, so that each dtype holds what they add: as slopes and as a bias, one answer."""
    for i, j in (*LENGTHS, (33, 65)):
        for causal in with_causal(subject):
            problem = plain(case, subject, i=i, j=j, causal=causal)
            powers = [2.0 ** (-1 - n) for n in range(problem.h)]
            slopes = problem.replace(alibi_slopes=slopes_of(problem, powers))
            bias = added(subject, slopes).to(problem.dtype).to(problem.q.device)
            wrt = tuple(name for name in problem.wrt if name != "alibi_slopes")
            as_bias = problem.replace(alibi_slopes=None, bias=bias, wrt=wrt)
            before, after = may_answer(subject, as_bias), must_be_right(subject, slopes, "with slopes")
            exact, what = subject.solve(as_bias), f"slopes and the same numbers as a bias, {i} queries, {j} keys"
            must_agree(subject, after.o, before.o, exact, "o", what, slopes)
            for name in wrt:
                got, expected = after.gradients.get(f"d{name}"), before.gradients.get(f"d{name}")
                if got is not None and expected is not None:
                    must_agree(subject, got, expected, exact, f"d{name}", what, slopes)


@clause("ALIBI-19")
@on_cases(offering=("alibi",), where=lambda case: sloped(case) and case.i > 1, layout="contiguous", q_start="none", wrt="none")
def test_a_decode_step_is_the_last_row(subject: Subject, case: Case) -> None:
    """The last query alone, against all keys."""
    if subject.dialect.causal_alignment != "bottom_right":
        raise NotApplicable
    problem = subject.problem(case)
    changes = {
        name: x[..., -1:, :]
        for name, x in (("mask", problem.mask), ("bias", problem.bias))
        if x is not None and not (name == "mask" and x.ndim == 2) and x.ndim > 1 and x.shape[-2] == problem.i
    }
    other = problem.replace(q=problem.q[:, :, -1:], **changes)
    before, after = may_answer(subject, problem), must_be_right(subject, other, "the last query alone, against all keys", ("o",))
    exact = subject.solve(other)
    must_agree(subject, after.o, before.o[:, :, -1:], exact, "o", "the last query alone, and as the last of many", other)


@clause("ALIBI-20")
@once("alibi")
def test_reversed_in_time_distances_stay(subject: Subject, case: Case) -> None:
    """Queries and keys in the opposite order."""
    if subject.dialect.alibi_form != "distance":
        raise NotApplicable
    for n in (2, 7, 17, 65):
        problem = plain(case, subject, i=n, j=n)
        do = None if problem.do is None else problem.do.flip(-2)
        other = problem.replace(q=problem.q.flip(-2), k=problem.k.flip(-2), v=problem.v.flip(-2), do=do)
        before, after = may_answer(subject, problem), must_be_right(subject, other, "reversed in time")
        must_agree(subject, after.o.flip(-2), before.o, subject.solve(problem), "o", "reversed in time", other)


@clause("ALIBI-21")
@once("alibi", "key_padding")
def test_hidden_keys_before_all_others(subject: Subject, case: Case) -> None:
    """1, 3 and 40 of them, whose positions the others move by."""
    if subject.dialect.causal_alignment != "bottom_right":
        raise NotApplicable
    for causal in with_causal(subject):
        problem = plain(case, subject, causal=causal, wrt="none")
        before, exact = may_answer(subject, problem), subject.solve(problem)
        for more in (1, 3, 40):
            k, v = (
                torch.cat([torch.full_like(x[..., :1, :], 3.0).expand(*x.shape[:-2], more, x.shape[-1]), x], -2)
                for x in (problem.k, problem.v)
            )
            mask = torch.ones(problem.b, problem.j + more, dtype=torch.bool, device=problem.q.device)
            mask[:, :more] = False
            other = problem.replace(k=k, v=v, mask=mask)
            after = must_be_right(subject, other, f"with {more} hidden keys before all others")
            must_agree(subject, after.o, before.o, exact, "o", f"{more} hidden keys before all others, and none", other)


@clause("ALIBI-22")
@once("alibi")
def test_each_call_has_its_own_slopes(subject: Subject, case: Case) -> None:
    """Other slopes over one shape, then other lengths with one tensor of slopes, longer and shorter ones in turn."""
    for causal in with_causal(subject):
        earlier: tuple[Problem, ...] = ()
        problem = plain(case, subject, i=13, j=21 + causal, causal=causal)
        for number, form in enumerate(("h", "steep", "mixed", "none", "h")):
            others = plain(case, subject, i=13, j=21 + causal, causal=causal, alibi_slopes=form, wrt="none")
            asked = problem.replace(alibi_slopes=others.alibi_slopes, do=None, wrt=())
            must_be_right(subject, asked, f"slopes after {number} calls with others", earlier=earlier)
            earlier += (asked,)
        slopes, earlier = problem.alibi_slopes, ()
        for i, j in ((6, 23), (6, 11), (9, 37), (1, 23), (6, 23)):
            asked = plain(case, subject, i=i, j=j, causal=causal).replace(alibi_slopes=slopes)
            what = f"{i} queries and {j} keys after {len(earlier)} calls with other lengths"
            must_be_right(subject, asked, what, earlier=earlier)
            earlier += (asked,)


@clause("ALIBI-23")
@once("alibi", "bias")
def test_a_table_of_distances_is_a_bias(subject: Subject, case: Case) -> None:
    """A table (h r) of what slopes add, gathered by the distance: the output of the slopes, and the gradient scattered back.

    Then a table of buckets as T5 has them, which many distances share, as (1 h i j) and written out for each batch item.
    """
    for i, j in ((5, 7), (7, 7), (9, 4), (17, 33)):
        problem = plain(case, subject, i=i, j=j)
        slopes = problem.replace(alibi_slopes=slopes_of(problem, [2.0 ** (-1 - n) for n in range(problem.h)]), do=None, wrt=())
        offset = problem.j - problem.i if subject.dialect.causal_alignment == "bottom_right" else 0
        ahead = torch.arange(problem.j) - torch.arange(problem.i)[:, None] - offset
        if subject.dialect.alibi_form != "column":
            steps = torch.arange(int(ahead.min()), int(ahead.max()) + 1)
            far = -steps.abs() if subject.dialect.alibi_form == "distance" else steps
            table = slopes_in(slopes).cpu().double()[:, None] * far
            gathered = table[:, ahead - ahead.min()].to(problem.dtype).to(problem.q.device)[None]
            as_bias = problem.replace(alibi_slopes=None, bias=gathered, do=None, wrt=())
            before, after = may_answer(subject, slopes), must_be_right(subject, as_bias, "with a table of distances as a bias")
            must_agree(subject, after.o, before.o, subject.solve(as_bias), "o", "a table of distances, and slopes", slopes)
        bucket = torch.clamp((1 + ahead.abs()).double().log2().floor().long() * 2 + (ahead > 0), max=7)  # r(i, j)
        table = torch.linspace(-1, 1, problem.h * 8, dtype=torch.float64).reshape(problem.h, 8)
        bias = table[:, bucket].to(problem.dtype).to(problem.q.device)[None]
        wrt = tuple(name for name in problem.wrt if name != "alibi_slopes")
        wrt = (*wrt, "bias") if wrt and subject.offers("bias_grad") else wrt
        one = problem.replace(alibi_slopes=None, bias=bias, wrt=wrt)
        first = must_be_right(subject, one, "with a table of buckets as a bias (1 h i j)")
        each = one.replace(bias=bias.expand(problem.b, -1, -1, -1).contiguous())
        second = must_be_right(subject, each, "with a table of buckets as a bias (b h i j)")
        must_agree(subject, first.o, second.o, subject.solve(one), "o", "a table as a bias (1 h i j), and (b h i j)", each)


@clause("ALIBI-24")
@agrees(*OUTPUTS, offering=("alibi", "q_start"), where=lambda case: sloped(case) and case.q_start != "none")
def test_distances_begin_at_the_start(subject: Subject, case: Case) -> None:
    """One start and several, beside everything else."""


@clause("ALIBI-24")
@once("alibi", "q_start")
def test_chunks_have_the_distances_of_the_whole(subject: Subject, case: Case) -> None:
    """Chunks of the queries, each with its start, and single queries as a decode step has them, with causal and without."""
    starts = ("3", "0/4/") if subject.offers("q_start_batch") else ("3",)
    for start in starts:
        for causal in with_causal(subject):
            problem = plain(case, subject, i=9, j=14, causal=causal, q_start=start, wrt="none")
            before = may_answer(subject, problem)
            for m, n in ((0, 1), (1, 4), (4, 9), (8, 9)):
                chunk = some_queries(problem, m, n)
                what = f"queries {m} to {n - 1} with slopes by themselves, from position {chunk.q_start} on"
                exact = subject.solve(chunk)
                after = must_be_right(subject, chunk, what, ("o",), exact)
                must_agree(subject, after.o, before.o[:, :, m:n], exact, "o", f"{what}, and in one call", problem)
