"""What a test made by itself is made smaller as a case is, and named by what is left of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from judging import ended, judge
from mutants.base import Call, with_sdpa_signature

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import OPTIONS, Case
from attnspec.conformance.problems.shrink import as_case, shrink
from attnspec.conformance.problems.tensors import build
from attnspec.spec import Problem
from attnspec.spec.words import FEATURES

EVERYTHING = frozenset(set(FEATURES) - {"dropout", "module"})


class Anything(Adapter):
    offers = EVERYTHING


def left_of(problem: Problem, fails: Callable[[Problem], bool], adapter: Adapter | None = None) -> Problem:
    asked = []

    def counted(trial: Problem) -> bool:
        asked.append(trial)
        return fails(trial)

    small = shrink(problem, adapter or Anything(), counted)
    assert fails(small)
    assert len(asked) <= 120
    return small


RICH = Case(
    heads="6/2", b=3, i=9, j=70, d=16, e=24, mask="bhij", bias="hij", causal=True, scale=0.3, layout="bihd", do="turned", seed=4
)


@pytest.mark.parametrize(
    ("fails", "sizes"),
    [
        (lambda p: p.mask is not None, (1, 1, 1, 1, 1, 1, 1)),
        (lambda p: p.j > 40, (1, 1, 1, 1, 41, 1, 1)),
        (lambda p: p.i > 3 and p.h > p.g, (1, 2, 1, 4, 1, 1, 1)),
        (lambda p: p.e > p.d, (1, 1, 1, 1, 1, 1, 2)),
        (lambda p: p.b > 1 and p.j % 16 == 0, (2, 1, 1, 1, 16, 1, 1)),
    ],
)
def test_what_is_not_needed_goes(fails: Callable[[Problem], bool], sizes: tuple[int, ...]) -> None:
    problem = build(RICH)
    if sizes[4] == 16:
        problem = build(replace(RICH, j=64))
    small = left_of(problem, fails)
    assert (small.b, small.h, small.g, small.i, small.j, small.d, small.e) == sizes
    assert (small.causal, small.scale, small.bias) == (False, None, None)
    assert small.q.is_contiguous()


def test_numbers_are_those_that_were_there() -> None:
    """A needle stays where it fails: slices of the tensors are taken, nothing is drawn again."""
    problem = build(Case(i=3, j=40, mask="bhij", bias="bhij"))
    needle = problem.k.clone()
    needle[..., 33, :] = 100.0
    small = left_of(problem.replace(k=needle), lambda p: bool((p.k == 100.0).any()) and p.mask is not None and p.bias is not None)
    assert small.j == 1
    assert small.mask is not None
    assert small.bias is not None
    assert float(small.mask) == float(problem.mask[0, 0, small_row(small, problem), 33])  # type: ignore[index]
    assert small.do is not None
    assert float(small.do[0, 0, 0, 0]) in problem.do.flatten().tolist()  # type: ignore[union-attr]


def small_row(small: Problem, problem: Problem) -> int:
    return int((problem.q[0, 0, :, 0] == small.q[0, 0, 0, 0]).nonzero()[0])


def test_only_what_is_offered_is_asked() -> None:
    class Few(Anything):
        offers = EVERYTHING - {"mha", "value_width", "backward"}
        widths = (16, 64)

    seen = []
    problem = build(replace(RICH, e=0, d=64), gradients=())
    shrink(problem, Few(), lambda trial: seen.append(trial) or True)
    assert seen
    assert all(as_case(trial).sharing in Few.offers and trial.d == trial.e and trial.d in Few.widths for trial in seen)
    assert not any(trial.wrt for trial in seen)


def test_one_tensor_stays_one_tensor() -> None:
    plain = build(Case(b=2, i=9, d=16))
    seen = []
    shrink(plain.replace(k=plain.q, v=plain.q), Anything(), lambda trial: seen.append(trial) or True)
    assert seen
    assert all(trial.q is trial.k is trial.v for trial in seen)


@pytest.mark.parametrize(
    "token",
    [
        "heads=4/2,b=2,i=3,j=5,mask=padding",
        "heads=3/3,b=2,i=3,mask=hij,causal=True,scale=0.3",
        "heads=2/shared,b=2,i=3,j=5,bias=bhij,biases=inf",
        "heads=3/3,b=2,i=3,j=5,mask=rank3,e=9",
        "i=3,j=5,values=large",
        "i=3,j=5,layout=turned,wrt=q",
        "heads=2/2,i=3,j=5,layout=expanded,do=one_row",
        "dtype=float16,heads=2/2,b=2,i=3,j=5,mask=bj,wrt=none",
        "heads=2/2,i=3,j=5,bias=bhij,biases=lowest,do=turned",
        "heads=2/2,i=3,j=5,layout=bihd",
        "i=3,j=5,window=2:,softcap=3.1",
        "heads=2/2,i=3,j=5,softcap=0.7,causal=True",
        "heads=2/2,i=3,j=5,window=2:1,softcap=50.0",
        "i=3,j=5,window=:40",
    ],
)
def test_what_is_left_is_said_in_the_words_of_a_case(token: str) -> None:
    case = Case.parse(token)
    read = as_case(build(case))
    assert read.traits() == case.traits()
    assert all(getattr(read, name) == getattr(case, name) for name in OPTIONS if name not in ("mask", "bias"))


@pytest.mark.parametrize(("bias", "mask"), [("h", "hj"), ("bhi", "ij"), ("one", "bhij")])
def test_an_axis_of_one_is_a_masks_own_where_it_was_when_it_was_longer(bias: str, mask: str) -> None:
    """A bias over heads, made smaller to one item and one query, was called one over items, heads and queries."""
    larger = build(Case(heads="2/2", b=3, i=4, j=5, bias=bias, mask=mask))
    small = build(Case(heads="2/2", b=1, i=1, j=2, bias=bias, mask=mask))
    left = as_case(small, larger)
    assert (left.bias, left.mask) == (bias, mask)


# IN A RUN


def hidden_from_64_on(call: Call) -> torch.Tensor:
    """A mask is not read behind the first 64 keys."""
    mask = call.bool_mask
    return call.run() if mask is None else call.but(attn_mask=mask | (torch.arange(mask.shape[-1]) >= 64)).run()


mask_read_to_64 = with_sdpa_signature(hidden_from_64_on)


def test_a_mask_fault_is_no_fault_of_lengths(tmp_path, monkeypatch) -> None:
    """SHAPE-2's own problems hide half of the keys: where that is what fails, MASK-2 says so, on as few keys as it takes."""
    monkeypatch.chdir(tmp_path)
    outcome = judge("test_shrink.mask_read_to_64", "-x", "--clauses=SHAPE-2", "--impl-dtypes=float32")
    (failure,) = outcome.failures
    assert failure.clause == "MASK-2"
    assert "q (1, 1, 1, 1), k (1, 1, 66, 1), v (1, 1, 66, 1), mask (1, 66)" in failure.text
    assert "first seen: 255 keys, of which the first 127 are hidden" in failure.text
    assert "--clauses=SHAPE-2 --case=heads=2/2" in failure.text  # the test that asks it
    assert ended(failure.data["repro"]).returncode == 1


def test_a_fault_of_lengths_stays_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = judge("test_shrink.first_600_keys", "-x", "--clauses=SHAPE-2", "--impl-dtypes=float32")
    (failure,) = outcome.failures
    assert failure.clause == "SHAPE-2"
    assert "k (1, 1, 601, 1)" in failure.text


first_600_keys = with_sdpa_signature(
    lambda call: (
        call.run()
        if call.shape[-1] <= 600
        else call.but(
            key=call.key[:, :, :600],
            value=call.value[:, :, :600],
            attn_mask=call.attn_mask[..., :600] if call.attn_mask is not None and call.attn_mask.shape[-1] > 1 else call.attn_mask,
        ).run()
    )
)
