"""DROPOUT: judged by algebra. One-hot values read the keep mask out of the output; the rest follows from it."""

import numpy as np
import torch

from attnspec.adapters.within import Within
from attnspec.conformance.diagnosis.dropped import SIGMAS
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, is_right, must_answer, must_be_right
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.reference import to_float64
from attnspec.spec import Problem
from attnspec.spec.words import INPUT_OF

GRADIENTS = tuple(INPUT_OF)


def readable(subject: Subject, case: Case, rate: float, j: int = 16, i: int = 11, **options: object) -> Problem:
    """A problem whose values are one-hot, so that o_ij is the probability that multiplied v_j."""
    widths = subject.adapter.widths
    if widths is not None:
        j = min(widths, key=lambda width: abs(width - j))
    heads = () if case.g is None else (4,)
    rng = torch.Generator().manual_seed(j)
    like = {"dtype": getattr(torch, case.dtype), "device": subject.device}
    i = j if options.get("causal") else i  # whatever the alignment
    q = torch.randn(3, 4, i, j, generator=rng).to(**like)
    k = torch.randn(3, *heads, j, j, generator=rng).to(**like)
    v = torch.eye(j).expand(3, *heads, j, j).contiguous().to(**like)
    do = torch.randn(3, 4, i, j, generator=rng).to(**like) if subject.offers("backward") else None
    return Problem(q, k, v, dropout=rate, training=True, do=do, wrt=("q", "k", "v") if do is not None else (), **options)  # type: ignore[arg-type]


def answer_and_mask(subject: Subject, problem: Problem) -> tuple[object, np.ndarray]:
    """The answer, and the keep mask that its output shows."""
    answer = must_answer(subject, problem, Within(seed=1))
    return answer, to_float64(answer.o) != 0


def must_follow_its_mask(subject: Subject, problem: Problem, outputs: tuple[str, ...], what: str) -> None:
    """The outputs must be what the keep mask, read out of the same answer, makes them."""
    if not is_right(subject, calm := problem.replace(dropout=0.0)):
        raise NotApplicable  # wrong without dropout: another clause says so
    answer, keep = answer_and_mask(subject, problem)
    seen = subject.solve(calm).forward.visible
    exact = subject.solve(problem, keep | ~seen)
    findings = subject.judge(answer, exact).of(outputs)  # type: ignore[arg-type]
    if findings:
        from dataclasses import replace

        raise Broken(replace(findings[0], message=f"{what} (keep mask read out of the output)"), problem, exact)
    if keep[seen].all():
        raise Broken(
            Finding("relation", "o", f"no probability of {keep.size} was dropped at rate {problem.dropout}"), problem, exact
        )


@clause("DROPOUT-1")
@once("dropout")
def test_kept_probabilities_are_scaled_up(subject: Subject, case: Case) -> None:
    """Each output element is zero or P/(1−r)."""
    for rate in (0.1, 0.5, 0.9):
        must_follow_its_mask(subject, readable(subject, case, rate), ("o",), f"rate {rate}")


@clause("DROPOUT-1")
@once("dropout", "causal")
def test_dropout_and_causal(subject: Subject, case: Case) -> None:
    """What causal hides is not counted as dropped, and no weight goes there."""
    must_follow_its_mask(subject, readable(subject, case, 0.3, causal=True), ("o",), "rate 0.3, causal")


@clause("DROPOUT-1")
@once("dropout", "key_padding")
def test_dropout_and_a_mask(subject: Subject, case: Case) -> None:
    """What a mask hides is not counted as dropped, and what it leaves is dropped and scaled up as ever."""
    problem = readable(subject, case, 0.3)
    mask = (
        torch.arange(problem.j, device=subject.device) % 5 != torch.arange(problem.b, device=subject.device)[:, None]
    ).contiguous()
    must_follow_its_mask(subject, problem.replace(mask=mask), ("o", *GRADIENTS), "rate 0.3, with a mask")


@clause("DROPOUT-1")
@once("dropout", "bias")
def test_dropout_and_a_bias(subject: Subject, case: Case) -> None:
    """A bias belongs to the scores, and dropout to what follows."""
    problem = readable(subject, case, 0.3)
    bias = torch.linspace(-1, 1, problem.i * problem.j).to(problem.q).view(problem.i, problem.j)
    must_follow_its_mask(
        subject,
        problem.replace(bias=bias.expand(problem.b, problem.h, -1, -1).contiguous()),
        ("o", *GRADIENTS),
        "rate 0.3, with a bias",
    )


@clause("SINK-3")
@once("dropout", "sinks")
def test_dropout_and_sinks(subject: Subject, case: Case) -> None:
    """A sink stays in the row sum, whatever is dropped."""
    problem = readable(subject, case, 0.3)
    sinks = torch.linspace(-1, 2, problem.h).to(problem.q.device, torch.promote_types(problem.dtype, torch.float32))
    must_follow_its_mask(subject, problem.replace(sinks=sinks), ("o", *GRADIENTS), "rate 0.3, with sinks")


@clause("DROPOUT-2")
@once("dropout", "backward")
def test_backward_uses_the_mask_of_forward(subject: Subject, case: Case) -> None:
    """All gradients follow from the keep mask that the output shows, within one block of keys and over several."""
    for rate, j in ((0.2, 16), (0.6, 40), (0.4, 128)):
        must_follow_its_mask(subject, readable(subject, case, rate, j), GRADIENTS, f"rate {rate}, {j} keys")
    if subject.offers("causal"):
        must_follow_its_mask(subject, readable(subject, case, 0.3, causal=True), GRADIENTS, "rate 0.3, causal")


@clause("DROPOUT-3")
@agrees("o")
def test_without_a_rate_nothing_is_dropped(subject: Subject, case: Case) -> None:
    """Everything that is offered, without dropout."""


@clause("DROPOUT-3")
@on_cases(offering=("dropout",))
def test_evaluation_drops_nothing(subject: Subject, case: Case) -> None:
    """A rate of one half in evaluation mode, and a rate of zero in training, after a call that dropped."""
    problem = subject.problem(case)
    dropping, evaluation = (problem.replace(dropout=0.5, training=training) for training in (True, False))
    subject.run(dropping)
    must_be_right(subject, evaluation, "rate 0.5 in evaluation", earlier=(dropping,))
    must_be_right(subject, problem.replace(dropout=0.0, training=True), "rate 0 in training", earlier=(dropping, evaluation))


@clause("DROPOUT-4")
@once("dropout")
def test_a_rate_of_one_gives_zeros(subject: Subject, case: Case) -> None:
    """Output and gradients."""
    must_be_right(subject, readable(subject, case, 1.0), "rate 1")


@clause("DROPOUT-5")
@once("dropout")
def test_each_probability_is_dropped_on_its_own(subject: Subject, case: Case) -> None:
    """The rate, in all and in each batch item, head, row and column; independence of neighbours, blocks and calls."""
    rate = 0.3
    problem = readable(subject, case, rate, 128, 33).replace(do=None, wrt=())
    _, keep = answer_and_mask(subject, problem)
    must_answer(subject, problem, Within(seed=1))
    again = to_float64(must_answer(subject, problem).o) != 0
    count(problem, keep, 1 - rate, "kept")
    for axis, what in enumerate(("batch item", "head", "query", "key")):
        for n, share in enumerate(np.moveaxis(keep, axis, 0)):
            count(problem, share, 1 - rate, f"kept for {what} {n}")
    alike = (1 - rate) ** 2 + rate**2  # chance that two independent draws agree
    apart = [("batch items", 0, 1), ("heads", 1, 1), ("queries", 2, 1), ("keys", 3, 1)]
    apart += [(f"queries {n} apart", 2, n) for n in (2, 4, 8, 16)]
    apart += [(f"keys {n} apart", 3, n) for n in (2, 4, 8, 16, 32, 64) if n < keep.shape[3]]
    for what, axis, n in apart:
        pairs = np.moveaxis(keep, axis, 0)
        count(problem, pairs[n:] == pairs[:-n], alike, f"equal in {'neighbouring ' if n == 1 else ''}{what}", 3)
    count(problem, keep == again, alike, "equal in two calls")


def count(problem: Problem, hits: np.ndarray, chance: float, what: str, shared: int = 1) -> None:
    """Raise Broken where the share of hits is further from its chance than SIGMAS allow.

    shared: by how much what the hits have in common may raise the variance above the binomial one: neighbours share draws,
    each in at most two of the pairs, so three times is an upper bound.
    """
    n, got = hits.size, int(hits.sum())
    spread = SIGMAS * (shared * n * chance * (1 - chance)) ** 0.5
    if abs(got - n * chance) > spread:
        raise Broken(
            Finding("relation", "o", f"{got} of {n} probabilities are {what}, expected {n * chance:.0f} ± {spread:.0f}"), problem
        )
