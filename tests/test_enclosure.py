"""The balls hold what is known by hand, and show that both forms of the reference are inside their bounds, and no other."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product
from math import inf, log, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from random_problems import CAPS, DIALECTS, SINKS, SLOPES, WINDOWS, draw, with_lse

from attnspec.reference import arithmetic, dense, solve
from attnspec.reference.bounds import output as bounds
from attnspec.reference.stages import alibi, bias, dropout, heads, lse, maps, scores, sink, softcap, softmax, visible
from attnspec.reference.witnesses import enclosure
from attnspec.reference.witnesses.enclosure import Enclosure, enclose
from attnspec.spec import Dialect, Problem

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import certificate

flint = pytest.importorskip("flint", reason="python-flint is not installed: pip install attnspec[exact]")
E = Fraction("2.71828182845904523536028747135266249775724709369995957496696763")
LOG_OF_1_AND_E = Fraction("1.3132616875182228340489954949678556419152800856703483")
LOWEST = float(np.finfo(np.float64).min)


def f64(*numbers: object) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def holds(x: Enclosure, name: str, expected: np.ndarray, digits: float = 2.0**-100) -> bool:
    """Whether each ball is at an exact number, to 100 bits of the largest."""
    high, low = (part.ravel().tolist() for part in x.nearest(name))
    numbers = [Fraction(number) for number in expected.ravel()]
    largest = max([abs(number) for number in numbers], default=Fraction(1)) or 1
    pairs = zip(high, low, numbers, strict=True)
    return all(abs(Fraction(a) + Fraction(b) - number) <= digits * largest for a, b, number in pairs)


# BY HAND


def test_two_keys_by_hand() -> None:
    """Scores 1 and 0 give the probabilities e/(1 + e) and 1/(1 + e); all follows from e."""
    problem = Problem(f64([[[1.0]]]), f64([[[1.0], [0.0]]]), f64([[[4.0], [8.0]]]), bias=f64([0.0, 0.0]), do=f64([[[1.0]]]))
    x = enclose(problem, Dialect())
    p = E / (1 + E)
    ds = p * (1 - p) * (4 - 8)
    expected = {
        "o": [4 * p + 8 * (1 - p)],
        "lse": [LOG_OF_1_AND_E],
        "dq": [ds],
        "dk": [ds, -ds],
        "dv": [p, 1 - p],
        "dbias": [ds, -ds],
    }
    assert x.bits == 128
    assert x.balls.keys() == expected.keys()
    for name, numbers in expected.items():
        assert holds(x, name, np.array(numbers, object)), name
        assert (x.radius(name) < 2.0**-110).all()
        high, low = x.nearest(name)
        assert (np.abs(low) <= np.abs(high) * 2.0**-53).all()
        assert np.allclose(x.error(name, high), np.abs(low), rtol=1e-9, atol=2.0**-110)
        assert (x.error(name, high) >= np.abs(low)).all()
        assert (x.error(name, high + 1) > 0.9).all()


def counted(problem: Problem, dialect: Dialect, keep: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs in fractions, for a problem in which each row weighs all its keys alike: it only needs to be counted."""
    b, h, i, j = problem.b, problem.h, problem.i, problem.j
    number = np.vectorize(Fraction, otypes=[object])
    q, k, v, do = (number(x.numpy()) for x in (problem.q, problem.k, problem.v, problem.do))
    k, v = (x[:, None] if problem.shared else x for x in (k, v))
    zero = Fraction(0)
    out = {"o": (b, h, i, problem.e), "dq": q.shape, "dk": k.shape, "dv": v.shape}
    total = {name: np.full(shape, zero, object) for name, shape in out.items()}
    bias = None if problem.bias is None else problem.bias.expand(b, h, i, j)
    dbias = np.full(() if problem.bias is None else problem.bias.shape, zero, object)
    mask = problem.mask if problem.mask is None or problem.mask.ndim > 2 else problem.mask[:, None, None]
    scale = Fraction(problem.d**-0.5 if problem.scale is None else problem.scale)
    rate = Fraction(problem.dropout if problem.training else 0)
    for n, head, row in np.ndindex(b, h, i):
        g = head // (h // k.shape[1]) if dialect.head_grouping == "blocked" else head % k.shape[1]
        last = row + (j - i if dialect.causal_alignment == "bottom_right" else 0) if problem.causal else j
        keys = [c for c in range(j) if c <= last and (mask is None or bool(mask.expand(b, h, i, j)[n, head, row, c]))]
        keys = [c for c in keys if bias is None or float(bias[n, head, row, c]) != -inf]
        empty = not keys
        if empty and dialect.empty_row == "uniform":
            keys = list(range(j))
        r = {c: (zero if rate == 1 else int(keep[n, head, row, c]) / (1 - rate)) if rate else 1 for c in keys}
        dp = {c: r[c] * (do[n, head, row] * v[n, g, c]).sum() for c in keys}
        for c in keys:
            p = Fraction(1, len(keys))
            total["o"][n, head, row] += p * r[c] * v[n, g, c]
            total["dv"][n, g, c] += p * r[c] * do[n, head, row]
            ds = zero if empty else p * (dp[c] - sum(dp.values(), zero) / len(keys))
            total["dq"][n, head, row] += scale * ds * k[n, g, c]
            total["dk"][n, g, c] += scale * ds * q[n, head, row]
            if bias is not None:
                place = (n, head, row, c)[4 - dbias.ndim :]
                dbias[tuple(0 if size == 1 else at for at, size in zip(place, dbias.shape, strict=True))] += ds
    total["dk"], total["dv"] = (total[name].reshape(x.shape) for name, x in (("dk", problem.k), ("dv", problem.v)))
    return total if bias is None else total | {"dbias": dbias}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: f"{d.causal_alignment}-{d.empty_row}-{d.head_grouping}")
def test_equal_scores_give_fractions(dialect: Dialect) -> None:
    """Every form and option, with all keys the same: the exact answer is counted, in rational arithmetic."""
    rng = default_rng([41, DIALECTS.index(dialect)])
    compared = 0
    for _ in range(40):
        drawn = draw(rng, least=1)
        problem = drawn.problem.replace(k=drawn.problem.k[..., :1, :].expand(drawn.problem.k.shape))
        if problem.bias is not None:
            problem = problem.replace(bias=problem.bias.masked_fill(problem.bias > -inf, -0.75))
        x, expected = enclose(problem, dialect, drawn.keep.numpy()), counted(problem, dialect, drawn.keep.numpy())
        assert x.balls.keys() - {"lse"} == expected.keys()
        nan_rows = np.isnan(x.nearest("o")[0]).any(-1)
        assert not nan_rows.any() or dialect.empty_row == "nan"
        if nan_rows.any():
            continue
        for name, numbers in expected.items():
            assert x.balls[name].shape == numbers.shape
            assert holds(x, name, numbers), f"{name}: {drawn.choices}"
        compared += 1
    assert compared > 10


def test_empty_rows_and_their_lse() -> None:
    """Zero, the mean, or NaN; lse is −∞ under each rule, and the gradient of the scores is zero."""
    x = torch.tensor([1.0, 2.0, 4.0]).double().view(1, 1, 3, 1)
    mask = torch.tensor([[[[True, True, False], [False] * 3, [True] * 3]]])
    for rule, mean in (("zero", Fraction(0)), ("uniform", Fraction(7, 3)), ("nan", None)):
        balls = enclose(Problem(x, x, x, mask, do=x), Dialect(empty_row=rule))
        row = balls.nearest("o")[0][0, 0, :, 0]
        assert balls.nearest("lse")[0][0, 0].tolist()[1] == -inf
        assert balls.error("lse", solve(Problem(x, x, x, mask), Dialect()).lse)[0, 0].max() < 1e-14
        assert balls.error("lse", np.zeros((1, 1, 3)))[0, 0, 1] == inf
        assert balls.nearest("dq")[0][0, 0, 1, 0] == balls.radius("dq")[0, 0, 1, 0] == 0
        if mean is None:
            assert np.isnan(row).tolist() == [False, True, False]
            assert np.isnan(balls.radius("o")[0, 0, 1]).all()
            assert np.isnan(balls.error("o", np.ones((1, 1, 3, 1)))[0, 0, 1]).all()
        else:
            assert abs(Fraction(float(row[1])) - mean) < 2.0**-51
    assert enclose(Problem(x, x, x), Dialect()).error("o", np.full((1, 1, 3, 1), nan)).min() == inf


def test_lse_of_equal_scores() -> None:
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    x = enclose(Problem(zero, zero.expand(1, 1, 5, 1), zero.expand(1, 1, 5, 1)), Dialect())
    assert x.nearest("lse")[0].item() == log(5)
    assert enclose(Problem(zero, zero, zero), Dialect()).radius("lse") == 0


def test_what_is_hidden_and_not_finite_is_not_noticed() -> None:
    """NaN behind a mask is nothing; a visible bias of +∞ or NaN has no answer in its own row."""
    rng = default_rng(42)
    q, k, v, do = (torch.from_numpy(rng.standard_normal((1, 1, 3, 2))) for _ in range(4))
    mask = torch.tensor([[True, True, False]])
    problem = Problem(q, k, v, mask, do=do)
    spoilt = problem.replace(**{name: x.index_fill(2, torch.tensor([2]), nan) for name, x in (("k", k), ("v", v))})
    one, two = enclose(problem, Dialect()), enclose(spoilt, Dialect())
    for name in one.balls:
        np.testing.assert_array_equal(one.nearest(name), two.nearest(name))
    for value in (inf, nan):
        bias = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
        bias[..., 1, 1] = value
        found = np.isnan(enclose(problem.replace(bias=bias, do=None), Dialect()).nearest("o")[0])
        assert found[0, 0].any(-1).tolist() == [False, True, False]


def test_what_is_asked_for_must_be_there() -> None:
    x = torch.ones(1, 1, 1, 1)
    with pytest.raises(ValueError, match="keep"):
        enclose(Problem(x, x, x, dropout=0.5, training=True), Dialect())
    assert enclose(Problem(x, x, x, dropout=0.5), Dialect()).nearest("o")[0] == 1
    assert enclose(Problem(x, x, x, dropout=1.0, training=True), Dialect()).nearest("o")[0] == 0
    with pytest.raises(ValueError, match="shape"):
        enclose(Problem(x, x, x), Dialect()).error("o", np.ones(1))


# PRECISION


def test_precision_is_doubled_until_it_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias of float64's lowest number moves nothing but lse, and needs a thousand bits; flint's own precision stays."""
    rng, before = default_rng(43), flint.ctx.prec
    q, k, v, do = (torch.from_numpy(rng.standard_normal((1, 1, 3, 4))) for _ in range(4))
    plain, low = Problem(q, k, v, do=do), Problem(q, k, v, bias=torch.full((1, 3), LOWEST, dtype=torch.float64), do=do)
    one, two = enclose(plain, Dialect()), enclose(low, Dialect())
    assert (one.bits, two.bits) == (128, 2048)
    for name in ("o", "dq", "dk", "dv"):
        assert (two.error(name, one.nearest(name)[0]) < 2.0**-50).all()
        assert (two.radius(name) <= np.abs(two.nearest(name)[0]) * 2.0**-60).all()
    assert (two.nearest("lse")[0] == LOWEST).all()
    small = low.replace(bias=torch.tensor([-1e30, 0.0, 0.0], dtype=torch.float64))  # exp(−1e30) is a number, and a small one
    mask = enclose(small, Dialect())
    assert 0 < mask.radius("dv")[0, 0, 0].max() < 1e-300
    exact = solve(low, Dialect())
    coarse = {name: np.full(x.shape, 1e9) for name, x in exact.values.items()} | {"lse": np.full(exact.lse.shape, inf)}
    assert enclose(low, Dialect(), good_enough=coarse).bits == 1024
    monkeypatch.setattr(enclosure, "PRECISIONS", (128, 256))
    with pytest.raises(ArithmeticError, match=r"256 bits do not suffice: the sum of the exponentials of a row is .*inf"):
        enclose(low, Dialect())
    with pytest.raises(
        ArithmeticError, match=r"256 bits do not suffice: the radius of o\[0, 0, 0, 0\] is .*, and 4.94e-324 is asked for"
    ):
        enclose(plain, Dialect(), good_enough={"o": np.full((1, 1, 3, 4), 2.0**-1074)})
    with pytest.raises(ArithmeticError, match=r"dv\[0, 0, 0, 0\] must be zero, and it is \["):
        enclose(plain, Dialect(), good_enough={"dv": np.zeros((1, 1, 3, 4))})
    assert flint.ctx.prec == before


# CERTIFICATE


def test_both_forms_are_inside_their_bounds(record_property) -> None:
    """NumPy by hand and torch by autograd, on random problems and cases of the suite."""
    report = certificate.Report()
    for asked in certificate.problems(seed=1, first=0, count=160):
        report.ask(asked)
    assert not report.broken, "\n".join(report.broken)
    record_property("worst share of the bound", report.worst)
    assert {(name, form) for _, name, form in report.worst} == set(product(certificate.OUTPUTS, certificate.FORMS))
    assert report.elements["zeros"] > 10_000
    assert report.elements["judged"] > 100_000
    assert max(report.worst.values()) > 0.05


def test_the_bound_counts_once() -> None:
    """What the certificate divides by is the bound of one computation in float64."""
    for number in range(20):
        exact = certificate.numpy_form(certificate.random_problem(3, 2 * len(certificate.DIALECTS) * number))[
            0
        ]  # the canonical dialect
        tile = exact._tile
        once = bounds.forward_bound(lambda _, tile=tile: (tile,), exact.problem.j, arithmetic("A", "float64")).o
        np.testing.assert_array_equal(certificate.one_bound(exact)[0]["o"], np.where(exact.zero["o"], 0.0, once))


# A REFERENCE WITH A PLANTED ERROR

# What is planted: the function of reference/dense.py or of a stage, a piece of its text, and what stands there instead.
PLANTED = {
    # SHARED
    "blocked heads are strided": ("head_of_query", "heads // (h // g) if", "heads % g if"),
    "strided heads are blocked": ("head_of_query", "else heads % g", "else heads // (h // g)"),
    "one head too far": ("head_of_query", "heads // (h // g)", "(heads + 1) % h // (h // g)"),
    "heads repeated in blocks": (
        "per_query_head",
        "x[:, head_of_query(h, x.shape[1], grouping)]",
        "np.repeat(x, h // x.shape[1], 1)",
    ),
    "the last head of a group only": ("sum_over_group", ".sum(2)", "[:, :, -1]"),
    "the first of the strided heads only": ("sum_over_group", ".sum(1)", "[:, 0]"),
    "the mean over a group": ("sum_over_group", ".sum(2)", ".mean(2)"),
    # SCORES
    "scale 1/d": ("default_scale", "d**-0.5", "d**-1.0"),
    "scale in float32": ("default_scale", "d**-0.5", "float(np.float32(d**-0.5))"),
    "scale twice": ("scores", "scale * (q @", "scale * scale * (q @"),
    "sign of the scale lost": ("scores", "scale * (q @", "abs(scale) * (q @"),
    "a scale of zero is the default": ("scores", "scale * (q @", "(scale or q.shape[-1] ** -0.5) * (q @"),
    "the last channel left out": ("scores", "(q @ k.swapaxes(-1, -2))", "(q[..., :-1] @ k[..., :-1].swapaxes(-1, -2))"),
    "products in float32": ("scores", "(q @ k", "(q.astype(np.float32) @ k.astype(np.float32)"),
    # BIAS
    "bias subtracted": ("Bias.value", "z + np.where", "z - np.where"),
    "bias before the scale": ("Bias.value", "0.0, bias)", "0.0, given.scale * bias)"),
    "bias doubled": ("Bias.value", "z + np.where(bias == -np.inf, 0.0, bias)", "z + 2 * np.where(bias == -np.inf, 0.0, bias)"),
    "bias ignored": ("Bias.value", "z + np.where", "z + 0 * np.where"),
    "bias in float32": ("Bias.value", "-np.inf, 0.0, bias)", "-np.inf, 0.0, bias).astype(np.float32)"),
    # SOFT CAP
    "the cap clamps": ("Softcap.value", "np.tanh(z / c)", "np.clip(z / c, -1, 1)"),
    "the cap is not multiplied back": ("Softcap.value", "c * np.tanh", "np.tanh"),
    "the slope of another cap": ("Softcap.slope", "z / cap_of(given)", "z / (1 + cap_of(given))"),
    "a cap in float32": ("cap_of", "float(given.problem.softcap)", "float(np.float32(given.problem.softcap))"),
    # ALIBI
    "slopes subtracted": ("Alibi.value", "z + self", "z - self"),
    "slopes in float32": ("Alibi.value", "self._added(given)", "self._added(given).astype(np.float32)"),
    "the first slopes for all": ("per_head", "slopes[..., None, None]", "slopes[:1, ..., None, None]"),
    "distances from i": ("distances", "own_positions(given)", "np.arange(given.problem.i)[:, None]"),
    "signed where the distance is meant": ("distances", "-np.abs(ahead)", "ahead"),
    "columns that count double": ("distances", "given.positions.astype(float)", "given.positions.astype(float) * 2"),
    "minus infinity is zero": ("finite_bias", "bias != -np.inf", "bias == bias"),
    # MASK
    "mask inverted": (
        "masked",
        'mask = given.operand("mask")',
        'mask = None if given.problem.mask is None else ~given.operand("mask")',
    ),
    "the mask wins over causal": (
        "causal_mask",
        "if given.problem.causal else",
        "if given.problem.causal and given.problem.mask is None else",
    ),
    "padding of the first batch item": ("right_aligned", "mask[:, None, None, :] if", "mask[:1, None, None, :] if"),
    "causal excludes itself": ("causal_mask", "given.positions <= ", "given.positions < "),
    "causal sees one key more": ("own_positions", ")[..., None]", ")[..., None] + 1"),
    "the other alignment": ("last_visible", 'alignment == "bottom_right"', 'alignment != "bottom_right"'),
    "the start is counted backwards": ("query_positions", "np.arange(problem.i) + (", "np.arange(problem.i) - ("),
    "the start is added to the alignment": (
        "query_positions",
        "np.arange(problem.i) + (",
        "last_visible(problem.i, problem.j, alignment) + (",
    ),
    "a start below zero is zero": ("query_positions", "else problem.q_start)", "else max(problem.q_start, 0))"),
    "the start of the first batch item": ("query_positions", "[:, None, None] if", "[:1, None, None] if"),
    "a window of one key more": ("windowed", "own - left", "own - left - 1"),
    "a window that ends late": ("windowed", "own + right", "own + right + 1"),
    "one first token more": ("windowed", "< given.problem.first_tokens", "<= given.problem.first_tokens"),
    "a window that counts otherwise": ("reach", 'count != "inclusive"', 'count == "inclusive"'),
    "a right end that counts otherwise": ("reach", 'count == "total"', 'count != "total"'),
    # SOFTMAX
    "the hidden takes part in the sum": ("softmax", "e.sum(-1)", "e.sum(-1) + (~visible).sum(-1) * 1e-12"),
    "an epsilon in the sum": ("softmax", "e.sum(-1)", "e.sum(-1) + 1e-13"),
    "exp to 14 digits": ("exponentials", "return np.exp(", "return (1 + 2e-14 * (np.arange(s.shape[-1]) % 2)) * np.exp("),
    "probabilities in float32": (
        "softmax",
        "Rows(e / total[..., None],",
        "Rows((e / total[..., None]).astype('f4').astype(float),",
    ),
    "a maximum far above the row": ("softmax", "where=visible)", "where=visible) + 720"),
    "not normalised": ("softmax", "Rows(e / total[..., None],", "Rows(e,"),
    "lse without the maximum": ("softmax", "m + np.log(total)", "np.log(total)"),
    "lse to base 2": ("softmax", "m + np.log(total)", "m + np.log2(total)"),
    "lse in float32": ("softmax", "m + np.log(total))", "(m + np.log(total)).astype(np.float32))"),
    # SINK
    "no sink in the sum": ("softmax", "e.sum(-1) + e_sink", "e.sum(-1)"),
    "the sink twice in the sum": ("softmax", "e.sum(-1) + e_sink", "e.sum(-1) + 2 * e_sink"),
    "an empty row is not the sink's": ("softmax", "empty & (sink == -np.inf)", "empty"),
    "the probability of the sink not normalised": ("softmax", "pi=e_sink / total", "pi=e_sink"),
    "the sink in float32": ("exponential", "sink - m)", "(sink - m).astype(np.float32))"),
    "sinks of the heads reversed": ("logits", "sinks[:, None]", "sinks[::-1, None]"),
    "the gradient of a sink of the wrong sign": ("gradient", "-pi * centre", "pi * centre"),
    "the gradient of a sink of the last batch item": ("of_rows", "each[..., None]", "each[-1:, ..., None]"),
    # THE LSE THAT IS RETURNED
    "another base": ("unit", '== "2"', '!= "2"'),
    "another lse of an empty row": ("returned", "np.inf if", "-np.inf if"),
    "the lse multiplied by its unit": ("returned", "lse / unit(dialect)", "lse * unit(dialect)"),
    "the cotangent of the lse left out": ("backward", "delta - lam", "delta"),
    "a cotangent of another base": ("cotangent", "dlse / unit(dialect)", "dlse"),
    "a cotangent of empty rows alone": ("cotangent", "np.where(empty,", "np.where(~empty,"),
    # EMPTY ROWS
    "an empty row is not zero": ("fill_empty_rows", 'if rule == "zero" or not empty.any()', "if not empty.any()"),
    "uniform over one key more": ("fill_empty_rows", "max(keys, 1)", "(keys + 1)"),
    # DROPOUT
    "kept is not scaled up": ("keep_factor", "keep / (1 - rate)", "keep * 1.0"),
    "scaled by the rate": ("keep_factor", "keep / (1 - rate)", "keep / rate"),
    "dropped and kept swapped": ("keep_factor", "keep / (1 - rate)", "~keep / (1 - rate)"),
    "dropout factor in float32": ("keep_factor", "keep / (1 - rate)", "keep / float(np.float32(1 - rate))"),
    "a rate of one drops nothing": ("keep_factor", "np.zeros(keep.shape) if rate == 1", "np.ones(keep.shape) if rate == 1"),
    # OUTPUT
    "normalised again after dropout": (
        "forward",
        "w = p * given.factor",
        "w = p * given.factor / np.maximum((p * given.factor).sum(-1, keepdims=True), 0.1)",
    ),
    "values without dropout": ("forward", "w @ v)", "p @ v)"),
    "values of the key after": ("forward", "w @ v)", "w @ np.roll(v, 1, -2))"),
    "output in float32": ("forward", "w @ v)", "(w @ v).astype(np.float32).astype(float))"),
    # GRADIENTS
    "dv without dropout": ("backward", "f.w.swapaxes(-1, -2) @ do", "f.p.swapaxes(-1, -2) @ do"),
    "dv of unnormalised probabilities": (
        "backward",
        "f.w.swapaxes(-1, -2) @ do",
        "(f.w * np.exp(np.where(f.empty, 0, f.lse))[..., None]).swapaxes(-1, -2) @ do",
    ),
    "dv of probabilities in float32": ("backward", "f.w.swapaxes(-1, -2) @ do", "f.w.astype('f4').swapaxes(-1, -2) @ do"),
    "dP without dropout": ("probability_gradient", "factor * (do @", "(do @"),
    "dP in float32": (
        "probability_gradient",
        "(do @ v.swapaxes(-1, -2))",
        "(do.astype('f4') @ v.astype('f4').swapaxes(-1, -2)).astype(float)",
    ),
    "D dropped": ("backward", "dp - centre[..., None]", "dp"),
    "D without dropout": ("backward", "(f.p * dp).sum(-1)", "(f.p * (do @ v.swapaxes(-1, -2))).sum(-1)"),
    "D of the row before": ("backward", "(f.p * dp).sum(-1)", "np.roll((f.p * dp).sum(-1), 1, -1)"),
    "D in float32": ("backward", "(f.p * dp).sum(-1)", "(f.p * dp).sum(-1).astype(np.float32)"),
    "an empty row has a score gradient": (
        "backward",
        "np.where(f.empty[..., None], 0.0, f.p * (dp - centre[..., None]))",
        "f.p * (dp - centre[..., None]) + f.empty[..., None]",
    ),
    "dS of the wrong sign": ("backward", "dp - centre[..., None]", "centre[..., None] - dp"),
    "dS in float32": ("product_gradients", "dq = scale * (dz @ k)", "dq = scale * ((dz := dz.astype('f4').astype(float)) @ k)"),
    "dq without scale": ("product_gradients", "dq = scale * (dz @ k)", "dq = dz @ k"),
    "dk without scale": ("product_gradients", "dk = scale * (dz", "dk = (dz"),
    "dk of the rows reversed": ("product_gradients", "(dz.swapaxes(-1, -2) @ q)", "(dz[..., ::-1, :].swapaxes(-1, -2) @ q)"),
    "dbias doubled": ("operand_gradients", "reduce_to(weighed(", "2 * reduce_to(weighed("),
    "what is added has a weight": ("weighed", "of_sum if weight is None", "2 * of_sum if weight is None"),
    "the mean over a broadcast bias": ("reduce_to", "dx.sum(repeated, keepdims=True)", "dx.mean(repeated, keepdims=True)"),
    "the last write to a broadcast bias": (
        "reduce_to",
        "dx.sum(repeated, keepdims=True)",
        "dx[tuple(slice(-1, None) if n in repeated else slice(None) for n in range(dx.ndim))]",
    ),
}
PROBLEMS, EXTENDED, STARTED = 84, 72, 36


@pytest.fixture(scope="module")
def small() -> list[tuple[certificate.Asked, Enclosure]]:
    """Random problems in all dialects, each in balls."""
    rng, extended, started, some = default_rng(44), default_rng(45), default_rng(46), []
    for number in range(PROBLEMS + EXTENDED + STARTED):
        if number < PROBLEMS:
            drawn = draw(rng, least=1)
        elif number < PROBLEMS + EXTENDED:
            drawn = draw(extended, least=1, caps=CAPS, windows=WINDOWS, slopes=SLOPES, sinks=SINKS)
        else:
            drawn = draw(started, least=1, windows=WINDOWS, slopes=SLOPES, starts=(2, -2, *3 * ("each",)))
        problem, dialect = drawn.problem, DIALECTS[number % len(DIALECTS)]
        if number >= PROBLEMS and number % 2:
            problem, dialect = with_lse(problem, default_rng([46, number])), certificate.with_choices(dialect, number // 2)
        asked = certificate.Asked(number, str(drawn.choices), "", "", problem, dialect, drawn.keep.numpy())
        some.append((asked, certificate.enclosed(asked, certificate.numpy_form(asked)[0])))
    return some


def outside(small: list[tuple[certificate.Asked, Enclosure]]) -> Iterator[str]:
    """The problems on which the NumPy form is outside of its own bound."""
    for asked, balls in small:
        found = certificate.shares(balls, *certificate.numpy_form(asked))
        if max(found.values()) > 1:
            yield str(asked)


STAGES = (dense, alibi, bias, dropout, heads, lse, maps, scores, sink, softcap, softmax, visible)


def home(function: str) -> tuple[Any, str]:
    """The module or the class that a function is an attribute of, and its name there."""
    owner, _, name = function.rpartition(".")
    module = next(stage for stage in STAGES if hasattr(stage, owner or name) and _own(getattr(stage, owner or name), stage))
    return (getattr(module, owner) if owner else module), name


def _own(x: Any, module: Any) -> bool:
    return getattr(x, "__module__", "") == module.__name__


def plant(function: str, text: str, instead: str) -> Callable:
    """A function with a piece of its text replaced."""
    where, name = home(function)
    planted = getattr(where, name)
    source = textwrap.dedent(inspect.getsource(planted))
    source = source[source.index("def ") :]
    assert source.count(text) == 1, f"{function} has no longer one {text!r}"
    scope = {"np": np, **vars(inspect.getmodule(planted))}
    exec(source.replace(text, instead), scope)
    return scope[name]


def test_the_reference_as_it_is_is_inside(small: list) -> None:
    assert list(outside(small)) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_noticed(name: str, small: list, monkeypatch: pytest.MonkeyPatch) -> None:
    function, text, instead = PLANTED[name]
    planted = plant(function, text, instead)
    monkeypatch.setattr(*home(function), planted)
    if planted.__name__ in [stage.__name__ for stage in visible.VISIBILITY]:
        every = (planted if stage.__name__ == planted.__name__ else stage for stage in visible.VISIBILITY)
        monkeypatch.setattr(visible, "VISIBILITY", tuple(every))
    with np.errstate(all="ignore"):
        assert any(outside(small))


def test_something_is_planted_in_every_stage() -> None:
    there = {name for stage in STAGES for name, x in inspect.getmembers(stage, inspect.isfunction) if _own(x, stage)}
    planted = {function for function, _, _ in PLANTED.values()}
    merging = {"weights", "of_part", "merge", "merge_gradients", "merge_error"}
    assert there - planted - merging == {"active", "through", "back_through", "visible_keys", "quotient", "dtype_of", "farthest"}, (
        "folds over tables, of each row of which something is planted, what only a bound asks, and merging (tests/test_lse.py)"
    )
    assert planted - there == {"Bias.value", "Softcap.value", "Softcap.slope", "Alibi.value"}
