"""GRAD: the derivatives of the output that was returned, contracted with the cotangent."""

from collections.abc import Callable

import torch

from attnspec.adapters.within import SECOND, Within, direction
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import no_answer
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.lse import GRADED
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, NotOffered, is_right, must_be_right
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.reference.witnesses.autograd import attend
from attnspec.spec.words import INPUT_OF

GRADIENTS = tuple(INPUT_OF)


def asks(name: str) -> Callable[[Case], bool]:
    """The case asks for this gradient."""
    return lambda case: case.wrt == "all" or (name in case.wrt and case.wrt not in ("none", "bias"))


@clause("GRAD-1")
@agrees("dq", offering=("backward",), where=asks("q"))
def test_the_gradient_of_the_queries(subject: Subject, case: Case) -> None:
    """With every option."""


@clause("GRAD-2")
@agrees("dk", offering=("backward",), where=asks("k"))
def test_the_gradient_of_the_keys(subject: Subject, case: Case) -> None:
    """With every option."""


@clause("GRAD-3")
@agrees("dv", offering=("backward",), where=asks("v"))
def test_the_gradient_of_the_values(subject: Subject, case: Case) -> None:
    """With every option."""


@clause("GRAD-4")
@agrees("dbias", offering=("bias_grad",), where=lambda case: case.bias != "none" and case.wrt in ("all", "bias"))
def test_the_gradient_of_the_bias_is_reduced_to_its_shape(subject: Subject, case: Case) -> None:
    """Every form that broadcasts."""


@clause("GRAD-5")
@agrees(*GRADIENTS, offering=("backward",), where=lambda case: case.wrt not in ("all", "none"))
def test_any_subset_of_inputs_may_ask(subject: Subject, case: Case) -> None:
    """One or two inputs alone."""


@clause("GRAD-5")
@once("backward")
def test_every_subset_of_inputs(subject: Subject, case: Case) -> None:
    """All of them on one problem, with a bias where its gradient is offered."""
    problem = subject.problem(
        Case(dtype=case.dtype, heads=case.heads, i=5, j=9, d=case.d, b=2, bias="ij" if subject.offers("bias_grad") else "none")
    )
    if not is_right(subject, problem):
        raise NotApplicable  # wrong with all of them: another clause says so
    names = list(problem.wrt)
    for n in range(1, 2 ** len(names)):
        wrt = tuple(name for m, name in enumerate(names) if n >> m & 1)
        must_be_right(subject, problem.replace(wrt=wrt), f"only {' and '.join(wrt)} require grad", GRADIENTS)


@clause("GRAD-6")
@agrees(*GRADIENTS, offering=("backward",), where=lambda case: case.do in ("turned", "expanded"))
def test_any_cotangent_in_any_layout(subject: Subject, case: Case) -> None:
    """Transposed and expanded cotangents, other numbers in each channel."""


@clause("GRAD-7")
@on_cases(offering=("backward",), where=lambda case: not case.e and case.layout == "contiguous", right=GRADIENTS, wrt="all")
def test_the_same_tensor_given_twice_gets_both_gradients(subject: Subject, case: Case) -> None:
    """k is v, and q is k is v where the shapes allow it.

    Large keys are made for small queries. Among themselves they score beyond 10⁸, where half an ulp is a factor of a million in
    whatever backward recomputes from a stored lse.
    """
    problem = subject.problem(case)
    must_be_right(subject, problem.replace(v=problem.k), "keys and values are one tensor")
    if problem.q.shape == problem.k.shape and case.values != "large":
        must_be_right(subject, problem.replace(k=problem.q, v=problem.q), "queries, keys and values are one tensor")


@clause("GRAD-7")
@on_cases(
    offering=("backward", "mha"),
    where=lambda case: not case.e and case.values != "large",
    right=GRADIENTS,
    heads="2/2",
    j=0,
    layout="contiguous",
    wrt="all",
)
def test_self_attention_of_one_tensor(subject: Subject, case: Case) -> None:
    """As many queries as keys: q is k, and q is k is v."""
    problem = subject.problem(case)
    must_be_right(subject, problem.replace(k=problem.q), "queries and keys are one tensor")
    must_be_right(subject, problem.replace(k=problem.q, v=problem.q), "queries, keys and values are one tensor")


@clause("GRAD-8")
@agrees(*GRADIENTS, offering=("backward",), where=lambda case: case.do == "one_row" and case.lse not in GRADED)
def test_a_cotangent_that_is_zero_but_for_one_row(subject: Subject, case: Case) -> None:
    """dq is exactly zero in all other rows."""


@clause("GRAD-8")
@on_cases(offering=("backward",), where=lambda case: case.wrt != "none" and case.lse not in GRADED, right=GRADIENTS)
def test_a_cotangent_of_zeros_gives_zeros(subject: Subject, case: Case) -> None:
    """All gradients are exactly zero."""
    problem = subject.problem(case)
    assert problem.do is not None
    must_be_right(subject, problem.replace(do=torch.zeros_like(problem.do)), "with a cotangent of zeros", GRADIENTS)


@clause("GRAD-9")
@on_cases(
    offering=("backward",),
    where=lambda case: case.dtype == "float64" and case.lse not in GRADED,
    wrt="all",
    values="normal",
    i=3,
    j=4,
    right=GRADIENTS,
)
def test_a_second_derivative_is_right_or_refused(subject: Subject, case: Case) -> None:
    """The derivative of ⟨dq, r⟩ with respect to q."""
    problem = subject.problem(case)
    assert problem.do is not None
    answer, r = subject.run(problem, Within(SECOND)), direction(problem.q)
    refused = answer.raised or ("TypeError" if no_answer(answer, problem) is not None else "")
    if refused:
        raise NotOffered(f"a second derivative raises {refused}")
    got = answer.gradients["dq"]
    assert got is not None
    step = 2.0**-14
    exact = [attend(problem.replace(q=problem.q.cpu() + sign * step * r), subject.dialect)["dq"] for sign in (1, -1)]
    expected = (exact[0] - exact[1]) / (2 * step)
    size = float(expected.abs().max())
    off = (got.cpu() - expected).abs().masked_fill(torch.from_numpy(subject.solve(problem).undefined["dq"]), 0.0)
    # A derivative that is silently cut is wrong in its leading digits; the central difference has half of float64's.
    if size > 0 and float(off.max()) > 2.0**-12 * size:
        at = tuple(int(n) for n in torch.unravel_index(off.argmax(), expected.shape))
        raise Broken(
            Finding(
                "relation", "dq", f"the second derivative at {list(at)} is {float(got[at]):.6g}, expected {float(expected[at]):.6g}"
            ),
            problem,
        )
    if size == 0:
        raise NotApplicable
