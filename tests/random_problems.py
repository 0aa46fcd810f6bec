"""Small random problems of every form, for testing the reference: what a case of the suite can't say is here too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import inf

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from attnspec.spec import CHOICES, Dialect, Problem

LETTERS = "bhij"
# A form is the rank of a mask or bias and the letters over which it varies; it has size one along the others.
FORMS = [(4, "".join(x for x, used in zip(LETTERS, which, strict=True) if used)) for which in product((0, 1), repeat=4)]
RANK_3 = [(3, form) for rank, form in FORMS if "b" not in form]
RANK_2 = [(2, form) for rank, form in RANK_3 if "h" not in form]
PADDING = (0, "bj")
MASKS = [None, None, None, *FORMS, *RANK_3, PADDING, PADDING, PADDING]
BIASES = [None, None, None, *FORMS, *RANK_3, *RANK_2]
HEADS = ((1, 1), (2, 2), (2, 1), (4, 2), (6, 2), (6, 3))  # query heads, key/value heads
SCALES = (None, 0.5, -0.7, 0.0, 6.0)
RATES = (0.0, 0.0, 0.3, 0.8, 1.0)
CAPS = (None, 0.2, 1.5, 40.0)
SLOPES = (None, None, "h", "bh")
WINDOWS = (None, None, (0, 0), (1, 0), (2, 1), (None, 1), (1, None), (0, None), (9, 9))
FIRST_TOKENS = (0, 0, 1, 2, 9)
SINKS = (0.0, 1.3, -0.7, 5.0, -inf)
STARTS = (None, None, 0, 2, -2, 7, -9, "end", "each", "each")  # "each" is one for each batch item
FORMS_OF_ALIBI = CHOICES["alibi_form"].values


def dialects() -> Iterator[Dialect]:
    """Each combination of choices but those of an lse and of turned keys; forms of ALiBi take turns, and meet each other value."""
    others = {
        name: choice.values for name, choice in CHOICES.items() if name != "alibi_form" and choice.of not in ("lse", "rotary")
    }
    for n, values in enumerate(product(*others.values())):
        form = FORMS_OF_ALIBI[(n + n // len(FORMS_OF_ALIBI)) % len(FORMS_OF_ALIBI)]
        yield Dialect(**dict(zip(others, values, strict=True)), alibi_form=form)


DIALECTS = list(dialects())


@dataclass(frozen=True)
class Drawn:
    """A problem, the keep mask of its dropout, and what was chosen, for seeing that all was."""

    problem: Problem
    keep: Tensor
    choices: tuple[tuple[str, object], ...]


def draw(
    rng: Generator,
    dtype: torch.dtype = torch.float64,
    longest: int = 5,
    widest: int = 4,
    least: int = 0,
    caps=(None,),
    windows=(None,),
    slopes=(None,),
    sinks=(),
    starts=(None,),
) -> Drawn:
    """Any problem: sizes from `least` on, every form, every option; of caps, windows, forms of slopes and starts one of these.

    In one of two problems each head has one of these sinks.
    """

    def choose(options):
        return options[int(rng.integers(len(options)))]

    def size(largest: int) -> int:  # a size of zero is rare, or most problems would be empty
        return int(rng.integers(1, largest + 1)) if least or rng.random() > 0.04 else 0

    def numbers(*shape: int, spread: float = 1.0) -> Tensor:
        return torch.from_numpy(spread * rng.standard_normal(shape)).to(dtype)

    b, i, j, d, e = size(2), size(longest), size(longest + 1), size(widest), size(widest)
    h, g = choose(HEADS) if least or rng.random() > 0.02 else (0, 0)
    shared = g == 1 and bool(rng.random() < 0.5)
    sizes = dict(zip(LETTERS, (b, h, i, j), strict=True))

    def shape(form: tuple[int, str]) -> tuple[int, ...]:
        rank, over = form
        return (b, j) if form == PADDING else tuple(sizes[x] if x in over else 1 for x in LETTERS[4 - rank :])

    mask_form, bias_form = choose(MASKS), choose(BIASES)
    mask = None if mask_form is None else torch.from_numpy(rng.random(shape(mask_form)) < choose((0.3, 0.7, 0.9)))
    bias = None if bias_form is None else numbers(*shape(bias_form), spread=choose((1.0, 8.0)))
    holes = bias is not None and bool(rng.random() < 0.4)
    if holes:
        bias = bias.masked_fill(bias < -0.4, -inf)
    k, v = numbers(b, g, j, d), numbers(b, g, j, e)
    do = numbers(b, h, i, e)
    do = do * torch.from_numpy(rng.random((b, h, i, 1)) < 0.9)  # some rows are silent
    rate, scale, causal = choose(RATES), choose(SCALES), bool(rng.random() < 0.5)
    softcap = choose(caps) if len(caps) > 1 else caps[0]
    window = choose(windows) if len(windows) > 1 else windows[0]
    first_tokens = choose(FIRST_TOKENS) if window is not None else 0
    q = numbers(b, h, i, d)
    of_slopes = choose(slopes) if len(slopes) > 1 else slopes[0]
    own = None if of_slopes is None else torch.from_numpy(rng.standard_normal([sizes[x] for x in of_slopes]))
    start = choose(starts) if len(starts) > 1 else starts[0]
    at = tuple(int(x) for x in rng.integers(-3, j + 2, b)) if start == "each" else j - i if start == "end" else start
    problem = Problem(
        q,
        k[:, 0] if shared else k,
        v[:, 0] if shared else v,
        mask,
        bias,
        causal=causal,
        scale=scale,
        softcap=softcap,
        window=window,
        first_tokens=first_tokens,
        alibi_slopes=own,
        q_start=at,
        dropout=rate,
        training=rate > 0,
        do=do,
        wrt=("q", "k", "v", *(("bias",) if bias is not None else ()), *(("alibi_slopes",) if own is not None else ())),
    )
    lengths = "i<j" if i < j else "i>j" if i > j else "i=j"
    empty = next((x for x, n in zip("bhijde", (b, h, i, j, d, e), strict=True) if n == 0), "")
    chosen = {
        "mask": mask_form,
        "bias": bias_form,
        "holes": holes,
        "heads": (h, g, shared),
        "scale": scale,
        "rate": rate,
        "softcap": softcap,
        "window": window,
        "first_tokens": first_tokens,
        "slopes": of_slopes,
        "start": start,
        "causal": (causal, lengths),
        "wider": e > d,
        "empty": empty,
    }
    keep = torch.from_numpy(rng.random((b, h, i, j)) >= rate)
    if sinks and rng.random() < 0.5:  # drawn last, so that all else is what it is without
        problem = problem.replace(sinks=torch.from_numpy(rng.choice(sinks, h)).to(dtype), wrt=(*problem.wrt, "sinks"))
    chosen["sinks"] = problem.sinks is not None
    return Drawn(problem, keep, tuple(chosen.items()))


def with_lse(problem: Problem, rng: Generator) -> Problem:
    """The same problem with its lse, which has a cotangent, and in one of four the only one."""
    dlse = torch.from_numpy(rng.standard_normal((problem.b, problem.h, problem.i)))
    wide = torch.promote_types(problem.dtype, torch.float32)
    return problem.replace(lse=True, dlse=dlse.to(wide), do=None if rng.random() < 0.25 else problem.do)


def share(got: np.ndarray, expected: np.ndarray, bound: np.ndarray, skip: np.ndarray) -> float:
    """The worst error as a share of its bound; NaN equals NaN, and infinity stands for a broken zero or a lost NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(got - expected)
        ratio = np.where(error == 0, 0.0, error / bound)
    ratio = np.where(np.isnan(got) & np.isnan(expected), 0.0, np.where(np.isnan(ratio), inf, ratio))
    return float(np.where(skip, 0.0, ratio).max(initial=0.0))
