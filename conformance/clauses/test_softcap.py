"""SOFTCAP: scores that are bent into −c … c."""

from dataclasses import replace
from math import inf

import torch

from attnspec.adapters.within import Within
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.options import beside
from attnspec.conformance.problems.factors.softcap import SOFTCAP
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import misfit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.choosing import must_follow_a_choice
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import (
    Broken,
    NotApplicable,
    is_right,
    must_agree,
    must_answer,
    must_be_right,
    must_keep_bits,
    refused,
)
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.relations import hidden_keys, with_hidden
from attnspec.spec import Problem
from attnspec.spec.words import INPUT_OF, OUTPUTS

CAPS = SOFTCAP.levels[1:]


def capped(case: Case) -> bool:
    """Whether a case has a cap."""
    return case.softcap is not None


def plain(case: Case, subject: Subject, **changes: object) -> Problem:
    """A problem of this dtype with a cap, as far as it is offered."""
    asked = Case(dtype=case.dtype, heads=case.heads, b=2, i=5, j=7, d=case.d, values="peaked", softcap=3.1)
    return subject.problem(fit(replace(asked, **changes), subject.adapter))  # type: ignore[arg-type]


@clause("SOFTCAP-1")
@agrees("o", offering=("softcap",), where=lambda case: capped(case) and not beside(case) and not case.causal)
def test_a_cap_bends_the_scaled_product(subject: Subject, case: Case) -> None:
    """c · tanh(scale · q·k / c), with caps below and above the scores."""


@clause("SOFTCAP-1")
@once("softcap")
def test_the_cap_holds_at_every_length(subject: Subject, case: Case) -> None:
    """One query as a decode step has it, and many; keys within one block and over several, with gradients and without."""
    for i in (1, 2, 19, 65):
        for j in (2, 16, 17, 65, 129, 257):
            for wrt in ("none", "all"):
                problem = plain(case, subject, i=i, j=j, wrt=wrt, softcap=0.7)
                must_be_right(subject, problem, f"a soft cap with {i} queries and {j} keys")


@clause("SOFTCAP-1")
@once("softcap")
def test_the_cap_holds_for_every_sharing_of_heads(subject: Subject, case: Case) -> None:
    """Each head and each batch item, whichever key/value head serves it."""
    for feature, heads in (
        ("mha", "1/1"),
        ("mha", "3/3"),
        ("mqa", "4/1"),
        ("gqa", "4/2"),
        ("gqa", "6/2"),
        ("shared_kv", "3/shared"),
    ):
        if subject.offers(feature):
            for i, j in ((1, 9), (5, 7)):
                must_be_right(subject, plain(case, subject, heads=heads, b=3, i=i, j=j), f"a soft cap with heads {heads}")


@clause("SOFTCAP-2")
@agrees("o", offering=("softcap",), where=lambda case: capped(case) and case.values in ("large", "negative"))
def test_large_products_reach_the_cap(subject: Subject, case: Case) -> None:
    """Scores of hundreds and thousands."""


@clause("SOFTCAP-2")
@once("softcap")
def test_one_large_product_among_zeros(subject: Subject, case: Case) -> None:
    """One key whose product is ±1000 caps, among keys of zeros: its weight is e^±c times theirs."""
    for cap in CAPS:
        for sign in (1.0, -1.0):
            problem = plain(case, subject, softcap=cap, i=3, j=5)
            q, k = torch.zeros_like(problem.q), torch.zeros_like(problem.k)
            k[..., 1, 0], q[..., 0] = 100.0, sign * 10 * cap * problem.d**0.5
            must_be_right(subject, problem.replace(q=q, k=k), f"a product of {sign * 1000 * cap:g} under a soft cap of {cap}")


@clause("SOFTCAP-3", "SOFTCAP-4", "SOFTCAP-5")
@agrees(
    *OUTPUTS,
    offering=("softcap", "bias"),
    where=lambda case: capped(case) and case.bias != "none" and case.biases != "inf" and case.mask == "none" and not case.causal,
)
def test_one_order_of_cap_and_bias(subject: Subject, case: Case) -> None:
    """The order that was promised or seen, with every form of bias."""


@clause("SOFTCAP-5")
@agrees("o", offering=("softcap", "bias"), where=lambda case: capped(case) and case.bias != "none")
def test_the_same_order_beside_other_options(subject: Subject, case: Case) -> None:
    """With masks, causal, other lengths and dtypes."""


@clause("SOFTCAP-5")
@once("softcap", "bias")
def test_one_of_the_orders_is_followed(subject: Subject, case: Case) -> None:
    """The problem on which the order is observed."""
    must_follow_a_choice(subject, "softcap_order", case.dtype)


def hides(case: Case) -> bool:
    """Whether a case hides something under a cap."""
    return capped(case) and (case.mask != "none" or case.causal or (case.bias != "none" and case.biases == "inf"))


@clause("SOFTCAP-6")
@agrees(*OUTPUTS, offering=("softcap",), where=hides)
def test_what_is_hidden_is_hidden_under_a_cap(subject: Subject, case: Case) -> None:
    """By a mask, by causal, by −∞ in a bias."""


@clause("SOFTCAP-6")
@on_cases(
    offering=("softcap", "key_padding"),
    where=lambda case: case.keys > 1 and case.layout != "expanded",
    mask="padding",
    holes="random",
    softcap=3.1,
)
def test_hidden_values_have_no_influence_under_a_cap(subject: Subject, case: Case) -> None:
    """Other numbers in hidden keys and values change no bit, where e^(−c) would."""
    problem = subject.problem(case)
    exact = subject.solve(problem)
    hidden = hidden_keys(exact)
    before = must_answer(subject, problem)
    for number in (-7.0, 1000.0):
        other = with_hidden(problem, hidden, number)
        after = must_answer(subject, other)
        must_keep_bits(subject, problem, before.o.cpu(), after.o.cpu(), "o", f"with {number:g} in hidden keys and values", other)


@clause("SOFTCAP-6")
@once("softcap", "bias")
def test_minus_infinity_hides_under_a_cap(subject: Subject, case: Case) -> None:
    """−∞ in a bias of each form, and for the whole first block of keys, under caps that would let it through."""
    for cap in CAPS:
        for form, j in (("bhij", 7), ("ij", 9), ("bj", 40), ("bj", 130)):
            problem = plain(case, subject, softcap=cap, bias=form, j=j)
            assert problem.bias is not None
            first = torch.arange(problem.j, device=subject.device) < (problem.j // 64 * 64 or problem.j // 32 * 32 or 2)
            must_be_right(
                subject, problem.replace(bias=problem.bias.masked_fill(first, -inf)), f"−∞ in a bias under a soft cap of {cap}"
            )


@clause("SOFTCAP-6")
@once("softcap", "causal")
def test_causal_alone_hides_under_a_cap(subject: Subject, case: Case) -> None:
    """Without a mask and a bias, with which many take another path; more and fewer queries than keys."""
    for i, j in ((5, 7), (7, 5), (1, 9), (20, 33), (65, 130)):
        for cap in CAPS:
            must_be_right(
                subject, plain(case, subject, causal=True, i=i, j=j, softcap=cap), f"causal alone under a soft cap of {cap}"
            )


@clause("SOFTCAP-7")
@agrees(*INPUT_OF, offering=("softcap", "backward"), where=capped)
def test_gradients_go_through_the_slope(subject: Subject, case: Case) -> None:
    """dq and dk with the slope, dv without it, dbias as the order says."""


@clause("SOFTCAP-7")
@once("softcap", "backward")
def test_a_saturated_key_has_no_slope(subject: Subject, case: Case) -> None:
    """Scores of 30 caps: their queries and keys get next to nothing, their values what they weigh."""
    for cap in CAPS:
        for heads in dict.fromkeys((case.heads, *(("4/2",) if subject.offers("gqa") else ()))):
            problem = plain(case, subject, softcap=cap, heads=heads, i=4, j=6)
            q, k = problem.q.clone(), problem.k.clone()
            k[..., ::2, :], k[..., ::2, 0], q[..., 0] = 0.0, 30.0, cap * problem.d**0.5
            must_be_right(subject, problem.replace(q=q, k=k), f"scores of 30 caps of {cap}")


@clause("SOFTCAP-7", "SOFTCAP-3", "SOFTCAP-4")
@once("softcap", "bias", "bias_grad")
def test_the_gradient_of_a_bias_beside_a_cap(subject: Subject, case: Case) -> None:
    """Every common form, so that what is summed is the right dS."""
    for form in ("bhij", "ij", "hij", "bj", "j"):
        for j in (6, 40):
            must_be_right(subject, plain(case, subject, bias=form, softcap=0.7, j=j), f"a bias over {form} beside a soft cap")


@clause("SOFTCAP-8")
@once("softcap")
def test_a_cap_far_above_all_scores_is_none(subject: Subject, case: Case) -> None:
    """1024 times the largest score, whose bending no half type sees."""
    different: tuple[dict[str, object], ...] = ({}, {"causal": True}, {"mask": "padding"}, {"bias": "bhij"}, {"i": 1, "j": 33})
    for changes in different:
        none = plain(case, subject, softcap=None, **changes)
        far = none.replace(softcap=1024.0 * float(max(1, abs(subject.solve(none).forward.z).max())))
        must_be_right(subject, far, "a soft cap far above all scores")


@clause("SOFTCAP-9")
@once("softcap")
def test_each_call_has_its_own_cap(subject: Subject, case: Case) -> None:
    """One shape and one kind of options after the other, with caps that change from call to call."""
    different: tuple[dict[str, object], ...] = ({}, {"causal": True}, {"bias": "ij"}, {"wrt": "none", "i": 1})
    for number, changes in enumerate(different):
        earlier: tuple[Problem, ...] = ()
        # Lengths that nothing else asks for, so that the first cap of this shape is the one that comes first here.
        problem = plain(case, subject, **{"i": 11 + number, "j": 23 + number, **changes})
        for cap in (3.1, 0.7, 50.0, None, 0.7):
            asked = problem.replace(softcap=cap)
            must_be_right(subject, asked, f"a soft cap of {cap} after {len(earlier)} calls with others", earlier=earlier)
            earlier += (asked,)


@clause("SOFTCAP-10")
@on_cases(offering=("softcap",), where=lambda case: capped(case) and case.layout == "contiguous" and not case.numbers)
def test_the_cap_is_odd(subject: Subject, case: Case) -> None:
    """Negated queries and negated keys: one answer."""
    problem = subject.problem(case)
    one, other = problem.replace(q=-problem.q), problem.replace(k=-problem.k)
    first, second = must_answer(subject, one), must_answer(subject, other)
    must_agree(subject, first.o, second.o, subject.solve(one), "o", "with negated queries, and with negated keys", other)


@clause("SOFTCAP-10")
@agrees("o", offering=("softcap", "scale"), where=lambda case: capped(case) and (case.scale or 0) < 0)
def test_a_negative_scale_under_a_cap(subject: Subject, case: Case) -> None:
    """The largest score is that of the smallest product, bent."""


@clause("SOFTCAP-11")
@once("softcap")
def test_a_number_that_is_no_cap_is_refused_or_means_none(subject: Subject, case: Case) -> None:
    """Zero and −3."""
    none = plain(case, subject, softcap=None, wrt="none")
    exact = subject.solve(none)
    if not is_right(subject, none):
        raise NotApplicable
    for cap in (0.0, -3.1):
        asked = misfit(none, softcap=cap)
        answer = subject.run(asked, Within(checked=False))
        if refused(answer, asked) is not None:
            continue
        if judge(answer, exact, subject.required_class(case.dtype)).of(("o",)):
            raise Broken(Finding("relation", "call", f"a soft cap of {cap:g} was neither refused nor taken for none"), asked)
