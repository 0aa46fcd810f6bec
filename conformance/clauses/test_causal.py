"""CAUSAL: a query does not see the keys that come after it."""

from dataclasses import replace

import numpy as np
import torch

from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.options import beside
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.choosing import must_follow_a_choice
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import NotApplicable, may_answer, must_agree, must_answer, must_be_right, must_keep_bits
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.spec import twin
from attnspec.spec.words import OUTPUTS


@clause("CAUSAL-1")
@agrees(*OUTPUTS, offering=("causal",), causal=True, q_start="none", j=0, mask="none", bias="none")
def test_a_query_sees_itself_and_what_came_before(subject: Subject, case: Case) -> None:
    """As many queries as keys: everyone means the same."""


@clause("CAUSAL-2", "CAUSAL-3", "CAUSAL-4")
@agrees(
    *OUTPUTS, offering=("causal",), where=lambda case: case.i != case.keys, causal=True, q_start="none", mask="none", bias="none"
)
def test_one_alignment_for_all_lengths(subject: Subject, case: Case) -> None:
    """Fewer and more queries than keys, and decode steps: the alignment that was promised or seen."""


@clause("CAUSAL-4")
@agrees(*OUTPUTS, offering=("causal",), where=lambda case: case.i != case.keys and beside(case), causal=True, q_start="none")
def test_the_same_alignment_beside_other_options(subject: Subject, case: Case) -> None:
    """Lengths that differ, with masks and biases."""


@clause("CAUSAL-4")
@on_cases(
    offering=("causal", "key_padding"),
    where=lambda case: case.i != case.keys,
    right=(),
    causal=True,
    q_start="none",
    mask="none",
    bias="none",
    scale=None,
    wrt="none",
)
def test_a_mask_that_hides_nothing_does_not_move_the_triangle(subject: Subject, case: Case) -> None:
    """Causal alone, and causal with a mask that is True everywhere: one answer, whichever alignment it has."""
    problem = subject.problem(case)
    other = problem.replace(mask=problem.q.new_ones((problem.b, problem.j), dtype=torch.bool))
    alone, beside = may_answer(subject, problem), may_answer(subject, other)  # CAUSAL-1 and CAUSAL-6 speak of refusals
    exact = subject.solve(problem)
    if exact.empty.any():
        raise NotApplicable
    must_agree(subject, beside.o, alone.o, exact, "o", "causal with a mask that is True everywhere, and causal alone", other)


@clause("CAUSAL-5")
@on_cases(offering=("causal",), where=lambda case: case.keys > 1 and case.layout != "expanded", causal=True)
def test_the_future_has_no_influence(subject: Subject, case: Case) -> None:
    """Replace the later keys and values: the rows that do not see them keep their bits."""
    problem = subject.problem(case)
    exact = subject.solve(problem)
    if exact.reaches_hidden:
        raise NotApplicable
    for first in sorted({1, problem.j // 2, problem.j - 1}):
        rows = ~exact.forward.visible[..., first:].any(-1)
        if not rows.any():
            continue
        k, v = twin(problem.k), twin(problem.v)
        k[..., first:, :] = 3 - k[..., first:, :]
        v[..., first:, :] = 5 - v[..., first:, :]
        other = problem.replace(k=k, v=v)
        before, after = must_answer(subject, problem), must_answer(subject, other)
        select = torch.from_numpy(np.ascontiguousarray(rows))
        what = f"rows that do not see key {first} and later, when these change"
        must_keep_bits(subject, problem, before.o.cpu(), after.o.cpu(), "o", what, other, select)
        dq, later = before.gradients.get("dq"), after.gradients.get("dq")
        if dq is not None and later is not None:
            must_keep_bits(subject, problem, dq.cpu(), later.cpu(), "dq", what, other, select)


EDGES = (17, 33, 65, 129, 257)


@clause("CAUSAL-5")
@once("causal")
def test_the_diagonal_at_block_edges(subject: Subject, case: Case) -> None:
    """As many queries as keys: no block that the diagonal crosses is special."""
    _on_edges(subject, case, [(n, n) for n in EDGES])


@clause("CAUSAL-2", "CAUSAL-3", "CAUSAL-4")
@once("causal")
def test_the_alignment_at_block_edges(subject: Subject, case: Case) -> None:
    """Two queries more than keys, and two keys more than queries."""
    _on_edges(subject, case, [lengths for n in EDGES for lengths in ((n - 2, n), (n, n - 2))])


def _on_edges(subject: Subject, case: Case, lengths: list[tuple[int, int]]) -> None:
    if subject.run(subject.problem(fit(replace(case, i=2, j=2, causal=True, wrt="none"), subject.adapter))).refusal:
        raise NotApplicable  # CAUSAL-1 says so
    for i, j in lengths:
        asked = Case(dtype=case.dtype, heads=case.heads, i=i, j=j, d=case.d, causal=True, values="peaked", wrt="none")
        problem = subject.problem(fit(asked, subject.adapter))
        must_be_right(subject, problem, f"{problem.i} causal queries, {problem.j} keys")


@clause("CAUSAL-6")
@agrees(*OUTPUTS, offering=("causal",), where=beside, causal=True)
def test_mask_and_causal_both_hold(subject: Subject, case: Case) -> None:
    """In the way in which the convention says both, with every form of mask and bias."""


@clause("CAUSAL-2", "CAUSAL-3")
@on_cases(
    offering=("causal",),
    where=lambda case: case.i > 1 and not beside(case) and case.layout == "contiguous",
    causal=True,
    q_start="none",
    wrt="none",
    carrier="none",
)
def test_a_decode_step_follows_the_same_alignment(subject: Subject, case: Case) -> None:
    """The last query alone, against all keys."""
    problem = subject.problem(case)
    must_be_right(subject, problem.replace(q=problem.q[:, :, -1:]), "the last query alone, against all keys", ("o",))


@clause("CAUSAL-4")
@once("causal")
def test_one_of_the_alignments_is_followed(subject: Subject, case: Case) -> None:
    """The problem on which the alignment is observed: two queries, five keys."""
    must_follow_a_choice(subject, "causal_alignment", case.dtype)
