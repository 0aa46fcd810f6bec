"""WINDOW: what other projects call a window, as they state it and as torch and JAX compute it, is what the reference shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from numpy import ndarray as Array

from attnspec.adapters import Adapter, resolve
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build
from attnspec.reference import solve
from attnspec.reference.stages.given import Given
from attnspec.reference.stages.visible import visible_keys
from attnspec.spec import Dialect, Problem

Shown = Array  # which key each query sees, (i j) bool
MOST = 6  # queries and keys
SIDES = (-1, 0, 1, 2, 3, 4, 5, 6, 7)  # −1: no limit
BOTTOM_RIGHT, TOP_LEFT = Dialect("bottom_right"), Dialect("top_left")


def places(i: int, j: int) -> tuple[Array, Array]:
    """Query indices (i 1) and key indices (j)."""
    return np.arange(i)[:, None], np.arange(j)


# WHAT THEY STATE, in our words. Each takes lengths, the two numbers, -1 for no limit, and causal.


def flash_attention(
    i: int, j: int, left: int, right: int, causal: bool, none_from: tuple[int, int], unlimited: tuple[int, int]
) -> Shown:
    """A number from `none_from` on is none; beside a side that has a limit, none is `unlimited`; all at the bottom right."""
    left, right = (-1 if n >= least else n for n, least in zip((left, right), none_from, strict=True))
    right = 0 if causal else right
    if left < 0 and right < 0:
        return np.ones((i, j), bool)
    left, right = (many if n < 0 else n for n, many in zip((left, right), unlimited, strict=True))
    row, col = places(i, j)
    return (col < row + 1 + j - i + right) & (col >= row + j - i - left)


def flash_attention_2(i: int, j: int, left: int, right: int, causal: bool) -> Shown:
    """Dao-AILab/flash-attention, csrc/flash_attn/flash_api.cpp (`mha_fwd`, `set_params_fprop`) and src/mask.h."""
    return flash_attention(i, j, left, right, causal, (j, j), (j, j))


def flash_attention_3(i: int, j: int, left: int, right: int, causal: bool) -> Shown:
    """Dao-AILab/flash-attention, hopper/flash_api.cpp (`mha_fwd`, `set_params_fprop`) and mask.h."""
    return flash_attention(i, j, left, right, causal, (j - 1, i - 1), (j - 1, i - 1))


def xformers(i: int, j: int, left: int, right: int, causal: bool) -> Shown:
    """`LocalAttentionFromBottomRightMask(window_left, window_right).materialize`, xformers/ops/fmha/attn_bias.py."""
    shift = j - i
    return np.tril(np.triu(np.ones((i, j), bool), shift - left), shift + right)


def jax(i: int, j: int, left: int, right: int, causal: bool) -> Shown:
    """`_get_window_mask` and `_get_causal_mask`, jax/_src/nn/functions.py; `local_window_size` n is (n, n)."""
    row, col = places(i, j)
    window = (row <= col + left) & (row >= col - right)
    return window & (row >= col) if causal else window


def transformers(i: int, j: int, left: int, right: int, causal: bool) -> Shown:
    """`sliding_window_overlay` of w = left, transformers/masking_utils.py; the last query stands on the last key."""
    row, col = places(i, j)
    row = row + j - i
    return (col > row - left) & (col <= row)


def transformers_both_ways(i: int, j: int, left: int, right: int, causal: bool) -> Shown:
    """`sliding_window_bidirectional_overlay` of w = left, for encoders, in the same file: 2w + 1 keys."""
    row, col = places(i, j)
    shown: Shown = np.abs(row + j - i - col) <= left
    return shown


def gpt_oss(i: int, j: int, left: int, right: int, causal: bool) -> Shown:
    """gpt_oss/torch/model.py: what `torch.tril(…, diagonal=-sliding_window)` holds is hidden, and the triangle above."""
    return np.triu(np.ones((i, j), bool), 1 - left) & np.tril(np.ones((i, j), bool))


def flashinfer(i: int, j: int, left: int, right: int, causal: bool) -> Shown:
    """flashinfer/include/flashinfer/attention/variants.cuh: `kv_idx + qo_len + window_left >= kv_len + qo_idx`; −1 is kv_len."""
    row, col = places(i, j)
    left = j if left < 0 else left
    shown = col + i + left >= j + row
    return shown & (col + i <= j + row) if causal else shown


def cudnn(i: int, j: int, left: int, right: int, causal: bool) -> Shown:
    """`sliding_window_length` W and `diagonal_band_right_bound` of cuDNN's frontend: keys of (p − W, p + R], bottom right."""
    row, col = places(i, j)
    row = row + j - i
    return (col > row - left) & (col <= row + right)


def number(n: int) -> int | None:
    return None if n < 0 else n


@dataclass(frozen=True)
class Rule:
    """How a rule is said: in which dialect, with which numbers (which of SIDES for each side), and what window they are."""

    dialect: Dialect
    left: tuple[int, ...] = SIDES[1:]
    right: tuple[int, ...] = SIDES[1:]
    causal: tuple[bool, ...] = (False, True)
    means: Callable[[int, int], tuple[int | None, int | None]] = lambda left, right: (number(left), number(right))


ONE = (-1,)  # it has no number for this side
RULES: dict[Callable[..., Shown], Rule] = {
    flash_attention_3: Rule(BOTTOM_RIGHT, SIDES, SIDES),
    xformers: Rule(BOTTOM_RIGHT, causal=(False,)),
    jax: Rule(TOP_LEFT),
    transformers: Rule(Dialect("bottom_right", window_count="total"), right=ONE, causal=(True,)),
    transformers_both_ways: Rule(BOTTOM_RIGHT, right=ONE, causal=(False,), means=lambda w, _: (w, w)),
    gpt_oss: Rule(Dialect("top_left", window_count="total"), SIDES[2:], ONE, (True,)),  # 0 is no window there
    flashinfer: Rule(BOTTOM_RIGHT, SIDES, ONE),
    cudnn: Rule(Dialect("bottom_right", window_count="exclusive"), causal=(False,)),
}


@cache
def ours(i: int, j: int, window: tuple[int | None, int | None], causal: bool, dialect: Dialect) -> Shown:
    """The keys that the reference shows, (i j)."""
    x = torch.zeros(1, 1, max(i, j), 1)
    problem = Problem(x[:, :, :i], x[:, :, :j], x[:, :, :j], window=window, causal=causal)
    shown: Shown = visible_keys((1, 1, i, j), Given(problem, dialect))[0, 0]
    return shown


def asked(rule: Rule) -> Iterator[tuple[int, int, int, int, bool]]:
    """Lengths, numbers, causal."""
    return product(range(1, MOST + 1), range(1, MOST + 1), rule.left, rule.right, rule.causal)


@pytest.mark.parametrize("stated", RULES, ids=lambda stated: stated.__name__)
def test_a_rule_shows_what_the_reference_shows(stated: Callable[..., Shown]) -> None:
    """All lengths up to six, fewer and more queries than keys, and all numbers up to seven."""
    rule = RULES[stated]
    for i, j, left, right, causal in asked(rule):
        window = rule.means(left, right)
        assert (stated(i, j, left, right, causal) == ours(i, j, window, causal, rule.dialect)).all(), (i, j, left, right, causal)


@pytest.mark.parametrize("stated", RULES, ids=lambda stated: stated.__name__)
def test_no_other_choice_gives_it(stated: Callable[..., Shown]) -> None:
    """The comparison can fail: another count or the other corner differs somewhere."""
    rule = RULES[stated]
    for choice, values in {
        "window_count": ("inclusive", "total", "exclusive"),
        "causal_alignment": ("bottom_right", "top_left"),
    }.items():
        for value in values:
            if value == getattr(rule.dialect, choice):
                continue
            # The right end of one number is that of causal, whatever it counts.
            if choice == "window_count" and rule.right == ONE and {value, rule.dialect.window_count} == {"total", "exclusive"}:
                continue
            other = rule.dialect.with_choice(choice, value)
            assert any(
                (stated(i, j, left, right, causal) != ours(i, j, rule.means(left, right), causal, other)).any()
                for i, j, left, right, causal in asked(rule)
            ), value


def test_where_the_rule_of_flash_attention_2_differs() -> None:
    """It takes a number from the number of keys on for none, and none beside a limit for that number.

    Where there are more queries than keys by more than one, that is not far enough on the right: without a limit on the left all
    rows see everything, with one the rows before the last keys see less than they should.
    """
    differ = set()
    for i, j, left, right, causal in asked(Rule(BOTTOM_RIGHT, SIDES, SIDES)):
        if (flash_attention_2(i, j, left, right, causal) != ours(i, j, (number(left), number(right)), causal, BOTTOM_RIGHT)).any():
            assert not causal
            assert i > j + 1
            differ.add((i, j, left, right))
    expected = {
        (i, j, left, right)
        for i, j, left, right in product(range(1, MOST + 1), range(1, MOST + 1), SIDES, SIDES)
        if (j <= right < i - 1 if not 0 <= left < j else j < i - 1 and not 0 <= right <= j)
    }
    assert differ == expected
    assert len(differ) >= 100


# WHAT TORCH AND JAX COMPUTE


def flex() -> Adapter:
    """torch's flex_attention as its family calls it: with a mask_mod, as its documentation writes a window; eager, top left."""
    return resolve("torch.nn.attention.flex_attention.flex_attention")[0]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_torchs_flex_attention_is_right() -> None:
    """Judged as any implementation: all that it gives in float32, rows without a key included."""
    adapter, empty = flex(), 0
    windows = ((None, None), (2, 0), (1, 3), (0, 0), (40, 9), (3, None), (None, 1), (None, 0))
    for n, (i, j, (left, right), causal) in enumerate(product((1, 5, 130), (5, 33), windows, (False, True))):
        sides = ":".join("" if side is None else str(side) for side in (left, right))
        heads = ("2/2", "4/2")[n // 2 % 2]
        problem = build(Case(dtype="float32", heads=heads, i=i, j=j, d=16, window=sides, causal=causal, wrt="none", seed=n))
        exact = solve(problem, TOP_LEFT)
        empty += int(exact.empty.any())
        verdict = judge(adapter.run(problem), exact, "A")
        assert not verdict.findings, (i, j, sides, causal, verdict.findings[0])
    assert empty >= 5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_flex_attention_with_another_window_is_not() -> None:
    problem = build(Case(dtype="float32", i=9, j=12, d=16, window="2:1", values="peaked", wrt="none"))
    answer = flex().run(problem)
    for other in ((3, 1), (1, 1), (2, 2), (2, 0)):
        assert judge(answer, solve(problem.replace(window=other), TOP_LEFT), "A").findings


def test_jax_agrees() -> None:
    """Its local_window_size, as two numbers and as one; the window is aligned top-left there."""
    installed = pytest.importorskip("jax", reason="the package jax is not installed; its rule is compared above")
    for left, right, causal in product((0, 1, 3), (0, 2), (False, True)):
        problem = build(Case(dtype="float32", heads="2/2", i=7, j=9, d=8, window=f"{left}:{right}", causal=causal, wrt="none"))
        q, k, v = (installed.numpy.asarray(x.numpy().swapaxes(1, 2)) for x in (problem.q, problem.k, problem.v))
        exact = solve(problem, TOP_LEFT)
        sizes = [(left, right), left] if left == right or causal else [(left, right)]
        for size in sizes:
            o = np.asarray(installed.nn.dot_product_attention(q, k, v, is_causal=causal, local_window_size=size)).swapaxes(1, 2)
            off = np.abs(o - exact.o)[~exact.empty]
            assert (off <= exact.tolerance("A").bound["o"][~exact.empty]).all(), (size, causal)
