"""Latents: what is asked is right, honest kernels are, and each fault is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import rotated
import torch
from mutants.base import MUTANTS, load

from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build
from attnspec.reference import solve
from attnspec.spec import CANONICAL, Problem
from attnspec.spec.ragged import Kept
from attnspec.spec.words import DTYPES

load()
FAULTS = [one for one in MUTANTS.values() if one.family == "mla"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_kernels_are_right(dtype: str) -> None:
    for problem in rotated.latents()[::2]:
        asked = problem.replace(**{name: getattr(problem, name).to(getattr(torch, dtype)) for name in "qkv"})
        answer = rotated.Honest().run(asked)
        assert not answer.changed
        assert not judge(answer, solve(asked, CANONICAL), "A" if dtype in ("float32", "float64") else "C").findings


@pytest.mark.parametrize("one", [one for one in FAULTS if one.clause != "MLA-9" and "Beyond" not in one.name], ids=lambda one: one.name)
def test_every_fault_shows(one) -> None:
    assert one.witness is not None
    assert one.witness(one.make())


def test_there_are_enough_faults() -> None:
    assert len(FAULTS) >= 16
    assert not rotated.wrong(rotated.Honest, rotated.latents(), CANONICAL)


def test_the_answer_is_that_of_the_parts() -> None:
    """Scores are the sum of two products, and values are latents, as written out here."""
    problem = rotated.latents()[0]
    exact, e = solve(problem, CANONICAL), problem.e
    assert problem.carrier is not None
    for n, j in enumerate(problem.carrier.k_lengths):
        q, k = problem.q[n].double(), problem.k[n, 0, :j].double()
        x = (q[..., :e] @ k[:, :e].T + q[..., e:] @ k[:, e:].T) * problem.d**-0.5
        torch.testing.assert_close(x.softmax(-1) @ k[:, :e], torch.from_numpy(exact.o[n]))
        torch.testing.assert_close(torch.logsumexp(x, -1), torch.from_numpy(exact.lse[n]))


def test_a_latent_is_one_head_whose_values_are_its_own() -> None:
    problem = rotated.latents()[0]
    assert isinstance(problem.carrier, Kept)
    assert problem.carrier.needs() == {"cached", "cached_latent"}
    assert Problem.from_bytes(problem.to_bytes()).carrier == problem.carrier
    other = solve(problem.replace(v=problem.v + 1), CANONICAL)  # of which the call gets nothing
    assert (other.o == solve(problem, CANONICAL).o).all()
    two = build(Case(heads="4/2", i=3, j=9, d=8, e=4, carrier="cached", wrt="none"))
    assert two.carrier is not None
    with pytest.raises(ValueError, match="latents are keys of one head"):
        two.replace(carrier=replace(two.carrier, latent=True))  # type: ignore[call-arg]


def test_keys_and_values_with_the_same_numbers_give_the_same_answer() -> None:
    for problem in rotated.latents()[::4]:
        apart = problem.replace(v=problem.v.clone(), carrier=replace(problem.carrier, latent=False))  # type: ignore[type-var]
        assert torch.equal(rotated.Honest().run(problem).o, rotated.Honest().run(apart).o)


@pytest.mark.parametrize("name", ["LatentValuesAreTheLastChannels", "LatentTurnedPartNotWritten", "PagedValuesOfTheWidthOfKeys"])
def test_the_suite_stops_them(name: str) -> None:
    from attnspec.conformance import check

    one = MUTANTS[name]
    result = check(one.make()(), clauses=one.clause, dtypes="float32", search=False, isolate=False)
    assert one.clause in result.broken
