"""What a stage owes is enough: a score map that no problem has yet, a soft cap, in a table of maps beside the bias.

Nothing else of the reference knows of it. Values and gradients are compared with torch's autograd, and kernels in float32 and
bfloat16 with the bounds.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy import ndarray as Array
from torch import Tensor

from attnspec.reference import solve
from attnspec.reference.bounds.accuracy import Arithmetic
from attnspec.reference.stages import maps
from attnspec.reference.stages.bias import Bias
from attnspec.reference.stages.given import Given
from attnspec.spec import CANONICAL, Problem

CAP = 1.5
ORDERS = {"before the bias": True, "after the bias": False}


class Cap:
    """cap · tanh(z / cap), of every problem that has a scale."""

    option = "scale"
    gradient = False

    def value(self, z: Array, given: Given) -> Array:
        return CAP * np.tanh(z / CAP)

    def slope(self, z: Array, given: Given) -> Array | None:
        return 1 / np.cosh(z / CAP) ** 2

    def common(self, given: Given) -> tuple[float, float]:
        return 0.0, 0.0

    def steepest(self, given: Given) -> float:
        return 1.0

    def curvature(self, given: Given) -> float:
        return 0.77 / CAP

    def slope_rounding(self, a: Arithmetic) -> float:
        return 8 * a.u_acc + 6 * a.u_s

    def detour(self, given: Given) -> float:
        return CAP

    def rounding(self, a: Arithmetic) -> tuple[float, ...]:
        return 4 * a.u_acc, 3 * a.u_s

    def constant(self, given: Given, a: Arithmetic) -> None:
        return None


class Slopeless(Cap):
    def slope(self, z: Array, given: Given) -> None:
        return None


class Straight(Cap):
    """A map that says that it does not curve, and rounds nothing."""

    def curvature(self, given: Given) -> float:
        return 0.0

    def slope_rounding(self, a: Arithmetic) -> float:
        return 0.0

    def rounding(self, a: Arithmetic) -> tuple[float, ...]:
        return ()


def problems(dtype: torch.dtype, n: int = 24) -> list[Problem]:
    made = []
    for seed in range(n):
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int, rng: torch.Generator = rng) -> Tensor:
            return torch.randn(*shape, generator=rng).to(dtype)

        i, j, d = (int(x) for x in torch.randint(1, 12, (3,), generator=rng))
        bias = normal(1, 2, i, j) if seed % 3 else None
        wrt = ("q", "k", "v") if bias is None else ("q", "k", "v", "bias")
        mask = torch.rand(2, j, generator=rng) < 0.8
        q, k, v, do = normal(2, 2, i, d), normal(2, 1, j, d), normal(2, 1, j, d), normal(2, 2, i, d)
        made.append(Problem(q, k, v, mask=mask, bias=bias, causal=seed % 2 == 1, scale=0.7, do=do, wrt=wrt))
    return made


def answer(problem: Problem, before: bool, wide: bool) -> dict[str, Array]:
    """A plain kernel in the problem's dtype, or in float64."""
    x = {name: t if name == "mask" else t.double() if wide else t for name, t in problem.inputs().items()}
    leaves = {name: x[name].detach().clone().requires_grad_() for name in problem.wrt}
    x |= leaves
    z = problem.scale * (x["q"] @ x["k"].transpose(-1, -2))
    bias = x.get("bias", 0.0)
    s = CAP * torch.tanh(z / CAP) + bias if before else CAP * torch.tanh((z + bias) / CAP)
    seen = x["mask"][:, None, None, :].expand(s.shape)
    if problem.causal:
        seen = seen & torch.ones(s.shape[-2:], dtype=torch.bool).tril(problem.j - problem.i)
    p = torch.softmax(s.masked_fill(~seen, -torch.inf), -1)
    p = torch.where(seen.any(-1, keepdim=True), p, 0.0)
    o = p @ x["v"]
    grads = torch.autograd.grad(o, list(leaves.values()), problem.do.to(o.dtype))
    found = {"o": o, **{f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}}
    return {name: t.detach().double().numpy() for name, t in found.items()}


def worst(dtype: torch.dtype, before: bool, class_: str, *, wide: bool) -> float:
    """The largest error as a share of the bound; what is exempt or not a number left aside."""
    shares = [0.0]
    for problem in problems(dtype):
        exact, got = solve(problem, CANONICAL), answer(problem, before, wide)
        tolerance = exact.tolerance(class_)
        for name, values in got.items():
            judged = ~tolerance.exempt[name] & (tolerance.bound[name] > 0) & np.isfinite(values)
            shares.append(float((np.abs(values - exact.values[name])[judged] / tolerance.bound[name][judged]).max(initial=0.0)))
    return max(shares)


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch):
    """Put maps into the table in the place of those that are there."""
    return lambda *table: monkeypatch.setattr(maps, "SCORE_MAPS", table)


def table(cap: Cap, before: bool) -> tuple[Cap | Bias, ...]:
    return (cap, Bias()) if before else (Bias(), cap)


@pytest.mark.parametrize("before", ORDERS.values(), ids=ORDERS)
def test_a_map_gets_its_values_and_gradients(mapped, before: bool) -> None:
    """In float64, beside which the bound of float32 leaves no room for a wrong formula."""
    mapped(*table(Cap(), before))
    assert worst(torch.float64, before, "A", wide=True) < 1


@pytest.mark.parametrize("before", ORDERS.values(), ids=ORDERS)
def test_honest_kernels_stay_within_its_bounds(mapped, before: bool) -> None:
    mapped(*table(Cap(), before))
    assert worst(torch.float32, before, "A", wide=False) < 1
    assert worst(torch.bfloat16, before, "C", wide=False) < 1


@pytest.mark.parametrize("before", ORDERS.values(), ids=ORDERS)
def test_a_slope_that_is_left_out_is_seen(mapped, before: bool) -> None:
    mapped(*table(Slopeless(), before))
    assert worst(torch.float64, before, "A", wide=True) > 1e6


def test_the_other_order_is_seen(mapped) -> None:
    mapped(*table(Cap(), True))
    assert worst(torch.float64, False, "A", wide=True) > 1e6


def test_what_a_map_adds_to_the_bounds_counts(mapped) -> None:
    """A map that neither curves nor rounds has narrower bounds, of the output and of the gradients of queries."""
    (problem,) = problems(torch.bfloat16, 1)
    mapped(*table(Cap(), True))
    whole = solve(problem, CANONICAL).tolerance("C").bound
    mapped(*table(Straight(), True))
    less = solve(problem, CANONICAL).tolerance("C").bound
    for name in ("o", "dq", "dk"):
        assert (less[name] <= whole[name]).all()
        assert (less[name] < whole[name]).any()
