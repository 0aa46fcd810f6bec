"""The two forms of the reference, the derivatives by finite differences and examples by hand agree."""

from __future__ import annotations

from itertools import chain, product
from math import inf, log

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from numpy.testing import assert_allclose, assert_array_equal
from random_problems import (
    BIASES,
    CAPS,
    DIALECTS,
    FIRST_TOKENS,
    FORMS_OF_ALIBI,
    HEADS,
    MASKS,
    RATES,
    SCALES,
    SLOPES,
    STARTS,
    WINDOWS,
    Drawn,
    draw,
    share,
)

from attnspec.reference import solve
from attnspec.reference.witnesses.autograd import attend
from attnspec.spec import CHOICES, DIFFERENTIABLE, Dialect, Problem
from attnspec.spec.words import INPUT_OF

EACH = 44  # problems per dialect, of which there are 72
UNIT = 2.0**-53


def f64(*numbers: object) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# TWO FORMS


@pytest.fixture(scope="module")
def drawn() -> list[list[Drawn]]:
    """The problems of each dialect."""
    return [
        [draw(rng, caps=CAPS, windows=WINDOWS, slopes=SLOPES, starts=STARTS) for _ in range(EACH)]
        for rng in (default_rng([1, n]) for n in range(len(DIALECTS)))
    ]


@pytest.mark.parametrize(
    "dialect",
    DIALECTS,
    ids=lambda d: f"{d.causal_alignment}-{d.empty_row}-{d.head_grouping}-{d.softcap_order}-{d.window_count}-{d.alibi_form}",
)
def test_two_independent_forms_agree(dialect: Dialect, drawn: list[list[Drawn]], record_property) -> None:
    """NumPy by hand and torch by autograd: the same shapes, lse, zeros and NaN, numbers within the bound of class A."""
    worst: dict[str, float] = {}
    for x in drawn[DIALECTS.index(dialect)]:
        exact, other = solve(x.problem, dialect, x.keep.numpy()), attend(x.problem, dialect, x.keep)
        tolerance = exact.tolerance("A")
        assert exact.values.keys() == other.keys() - {"lse"}
        for name, value in exact.values.items():
            second = other[name].numpy()
            assert value.shape == second.shape == getattr(x.problem, INPUT_OF.get(name, "do")).shape
            defined = ~exact.undefined[name]
            assert not second[exact.zero[name] & defined].any(), f"{name} is not zero: {x.choices}"
            assert not np.isnan(value[defined]).any() or name == "o"
            worst[name] = max(worst.get(name, 0.0), share(second, value, tolerance.bound[name], ~defined))
            assert worst[name] <= 1, f"{name} is at {worst[name]:.3g} of the bound: {x.choices}"
        assert_same_lse(exact.forward, exact.lse, other["lse"].numpy(), x.problem)
    record_property("worst share of the bound", worst)
    assert len(worst) == 6


def assert_same_lse(f, lse: np.ndarray, other: np.ndarray, problem: Problem) -> None:
    """lse moves by no more than its scores do: the rounding errors of a score, and those of the sum."""
    assert_array_equal(np.isinf(lse), np.isinf(other))
    assert_array_equal(np.isinf(lse), f.empty)
    scale = problem.d**-0.5 if problem.scale is None and problem.d else problem.scale or 0.0
    sizes = [x.abs().amax().item() if x.numel() else 0.0 for x in (problem.q, problem.k)]
    largest = abs(scale) * problem.d * np.prod(sizes) + np.where(f.visible, np.abs(f.s), 0).max(initial=1.0)
    finite = ~f.empty
    assert_allclose(lse[finite], other[finite], rtol=0, atol=4 * (problem.d + problem.j + 4) * UNIT * largest)


def test_the_problems_show_everything(drawn: list[list[Drawn]]) -> None:
    """Each form, option and size stands in at least eight problems."""
    counts: dict[tuple[str, object], int] = {}
    for x in chain.from_iterable(drawn):
        for choice in x.choices:
            counts[choice] = counts.get(choice, 0) + 1
    assert sum(len(some) for some in drawn) >= 3000
    expected = [("mask", form) for form in MASKS] + [("bias", form) for form in BIASES]
    expected += (
        [("scale", x) for x in SCALES]
        + [("rate", x) for x in set(RATES)]
        + [("softcap", x) for x in CAPS]
        + [("window", x) for x in set(WINDOWS)]
        + [("first_tokens", x) for x in set(FIRST_TOKENS)]
        + [("slopes", x) for x in set(SLOPES)]
        + [("start", x) for x in set(STARTS)]
        + [("empty", x) for x in "bhijde"]
    )
    expected += [("heads", (h, g, shared)) for h, g in HEADS for shared in ([False, True] if g == 1 else [False])]
    expected += [("causal", x) for x in product((False, True), ("i<j", "i=j", "i>j"))]
    expected += [(name, x) for name in ("holes", "wider") for x in (False, True)]
    assert {choice: counts.get(choice, 0) for choice in expected if counts.get(choice, 0) < 8} == {}


# EMPTY ROWS


@pytest.mark.parametrize("rule", CHOICES["empty_row"].values)
def test_a_row_without_a_key_follows_the_rule(rule: str) -> None:
    """Zero, the mean of all values, or NaN; the gradients that a NaN row reaches are marked undefined, no others."""
    rng = default_rng(2)
    q, k, v, do = (torch.from_numpy(rng.standard_normal((2, 1, 3, 2))) for _ in range(4))
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[1, 0, 1] = False
    exact = solve(Problem(q, k, v, mask, do=do), Dialect(empty_row=rule))
    expected = {"zero": np.zeros(2), "uniform": v[1, 0].mean(0).numpy(), "nan": np.full(2, np.nan)}[rule]
    assert_allclose(exact.o[1, 0, 1], expected, rtol=4 * UNIT, equal_nan=True)
    assert not np.isnan(np.delete(exact.o.reshape(6, 2), 4, axis=0)).any()
    assert exact.zero["o"].sum() == (2 if rule == "zero" else 0)
    dq, dk, dv = (exact.undefined[name].any(-1)[:, 0] for name in ("dq", "dk", "dv"))
    assert dq.tolist() == [[False] * 3, [False, rule == "nan", False]]
    assert dk.tolist() == dv.tolist() == [[False] * 3, [rule == "nan"] * 3]


# FINITE DIFFERENCES


@pytest.mark.parametrize("seed", range(6))
def test_gradients_are_finite_differences(seed: int) -> None:
    """Σ do∘o moves as the gradients of both forms say, by central differences of each form's own output.

    The step h leaves h² of the third derivative, about 1e-8 for these numbers, and u/h of rounding, about 1e-11.
    """
    h, rng = 2.0**-14, default_rng([3, seed])
    dialect = Dialect(
        empty_row="uniform",
        head_grouping="strided",
        softcap_order=("before_bias", "after_bias")[seed % 2],
        alibi_form=FORMS_OF_ALIBI[seed % 3],
    )
    form = [(1, 4, 1, 3), (2, 1, 2, 1), (4, 2, 3), (2, 3), (2, 1, 2, 3), (1, 1)][seed]
    q, k, v, bias, do = (
        torch.from_numpy(rng.standard_normal(shape)) for shape in ((2, 4, 2, 2), (2, 2, 3, 2), (2, 2, 3, 1), form, (2, 4, 2, 1))
    )
    slopes = torch.from_numpy(default_rng(seed).standard_normal((4,) if seed < 3 else (2, 4)))
    mask = torch.from_numpy(rng.random((2, 3)) < 0.8)
    keep = torch.from_numpy(rng.random((2, 4, 2, 3)) < 0.7)
    scale, softcap = -0.8 if seed % 3 else None, (None, None, 0.7, 0.7, 2.0, 2.0)[seed]
    sinks = torch.from_numpy(rng.standard_normal(4)) if seed % 2 else None
    options = {"causal": seed % 2 == 0, "scale": scale, "softcap": softcap, "alibi_slopes": slopes, "sinks": sinks}
    problem = Problem(q, k, v, mask, bias, dropout=0.3, training=True, do=do, **options)
    forms = {
        "dense": lambda p: solve(p, dialect, keep.numpy()).values,
        "autograd": lambda p: {name: x.numpy() for name, x in attend(p, dialect, keep).items()},
    }
    for solver in forms.values():
        gradients = solver(problem)

        def objective(p: Problem, solver=solver) -> float:
            return float((solver(p.replace(do=None))["o"] * do.numpy()).sum())

        for name in DIFFERENTIABLE:
            x = getattr(problem, name)
            if x is None:
                continue
            moved = np.empty(x.shape)
            for place in np.ndindex(*x.shape):
                step = torch.zeros_like(x)
                step[place] = h
                moved[place] = (objective(problem.replace(**{name: x + step})) - objective(problem.replace(**{name: x - step}))) / (
                    2 * h
                )
            assert_allclose(gradients[f"d{name}"], moved, rtol=1e-7, atol=1e-7)


# BY HAND


def solve_both(problem: Problem, dialect: Dialect | None = None) -> list[dict[str, np.ndarray]]:
    dialect = dialect or Dialect()
    exact = solve(problem, dialect)
    return [exact.values | {"lse": exact.lse}, {name: x.numpy() for name, x in attend(problem, dialect).items()}]


def test_two_keys_by_hand() -> None:
    """Scores ln 3 and 0 give probabilities 3/4 and 1/4, so that everything can be written down."""
    q, k, v = f64([[[log(3)]]]), f64([[[1.0], [0.0]]]), f64([[[4.0], [8.0]]])
    problem = Problem(q, k, v, bias=f64([0.0, 0.0]), scale=1.0, do=f64([[[1.0]]]))
    expected = {
        "o": 5.0,
        "lse": log(4),
        "dq": -0.75,
        "dk": [-0.75 * log(3), 0.75 * log(3)],
        "dv": [0.75, 0.25],
        "dbias": [-0.75, 0.75],
    }
    for got in solve_both(problem):
        assert {name: x.ravel().tolist() for name, x in got.items()} == {
            name: pytest.approx(np.ravel(x).tolist(), rel=8 * UNIT) for name, x in expected.items()
        }


def test_one_hot_values_read_out_the_probabilities() -> None:
    """Scores 0, ln 2, ln 5 and a hidden key, as value columns: 1/8, 2/8, 5/8 and 0."""
    bias = f64(0.0, log(2), log(5), -inf).view(1, 4)
    k, v = torch.ones(1, 1, 4, 1, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[None, None]
    problem = Problem(f64([[[0.0]]]), k, v, bias=bias)
    for got in solve_both(problem):
        assert_allclose(got["o"].ravel(), [1 / 8, 2 / 8, 5 / 8, 0], rtol=8 * UNIT)
        assert got["o"].ravel()[3] == 0


def test_the_two_alignments_by_hand() -> None:
    """Equal scores and one-hot values show which keys each of two queries sees among three, and of three among two."""

    def seen(i: int, j: int, alignment: str) -> list[list[int]]:
        q, k = torch.zeros(1, 1, i, 1, dtype=torch.float64), torch.zeros(1, 1, j, 1, dtype=torch.float64)
        problem = Problem(q, k, torch.eye(j, dtype=torch.float64)[None, None], causal=True)
        first, second = solve_both(problem, Dialect(causal_alignment=alignment))
        assert_array_equal(first["o"] > 0, second["o"] > 0)
        return [list(np.flatnonzero(row)) for row in first["o"][0, 0]]

    assert seen(2, 3, "bottom_right") == [[0, 1], [0, 1, 2]]
    assert seen(2, 3, "top_left") == [[0], [0, 1]]
    assert seen(3, 2, "bottom_right") == [[], [0], [0, 1]]
    assert seen(3, 2, "top_left") == [[0], [0, 1], [0, 1]]


def test_dropout_needs_its_keep_mask() -> None:
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="keep"):
        solve(Problem(x, x, x, dropout=0.5, training=True), Dialect())
    assert solve(Problem(x, x, x + 1, dropout=0.5), Dialect()).o == 1  # evaluation drops nothing
    assert solve(Problem(x, x, x + 1, dropout=1.0, training=True), Dialect()).o == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rule", CHOICES["empty_row"].values)
@pytest.mark.parametrize("number", [inf, -inf, float("nan"), 3e38])
def test_nothing_that_a_problem_holds_makes_it_warn(number: float, rule: str) -> None:
    """A user saw "invalid value encountered in subtract" for a bias of +∞, which a diagnosis asks."""
    for name in ("q", "k", "v", "bias", "do"):
        tensors = {x: torch.ones(1, 1, 2, 3) for x in ("q", "k", "v", "do")} | {"bias": torch.zeros(2, 2)}
        tensors["k"], tensors["v"] = tensors["k"][:, :, :2], tensors["v"][:, :, :2]
        tensors[name].view(-1)[:2] = number
        exact = solve(Problem(**tensors, wrt=("q", "k", "v", "bias")), Dialect(empty_row=rule))
        for class_ in ("A", "C"):
            exact.tolerance(class_)
