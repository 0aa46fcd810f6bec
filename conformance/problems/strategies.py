"""Draws problems with Hypothesis for other people's tests: the public face of :mod:`search`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from hypothesis import strategies as st

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.search import cases
from attnspec.conformance.problems.tensors import build
from attnspec.spec import Problem, differentiable
from attnspec.spec.words import DTYPES, FEATURES, RAGGED

# Dropout draws a mask that nobody knows; a module is not part of a problem; a carrier is one for who asks for it.
NEVER_DRAWN = ("dropout", "module", *RAGGED)


def problems(
    *,
    offers: Iterable[str] | None = None,
    dtype: str | torch.dtype = "float32",
    causal: bool | None = None,
    max_len: int | None = None,
    widths: Iterable[int] | None = None,
    device: str | torch.device = "cpu",
) -> st.SearchStrategy[Problem]:
    """A strategy of attention problems: lengths, heads, masks, biases, layouts and numbers as the search of the suite draws them.

    offers: the features that your kernel has, of attnspec.adapters.FEATURES; no problem needs another (default: all of dense
    calls but dropout).
    With "backward" a problem has a cotangent `do` (b h i e), and `wrt` names the inputs whose gradients are asked for.
    dtype: of q, k, v and do. causal: True or False for all problems (default: both).
    max_len: the most queries, and the most keys (default: those of the suite).
    widths: the widths d of queries and keys that your kernel takes (default: any). device: of all tensors.

    A failing problem shrinks to the simplest that still fails. Raises ValueError for an unknown dtype or feature, for causal=True
    without the feature causal, and for a max_len below 1.
    """
    name = str(dtype).removeprefix("torch.")
    wanted = frozenset(FEATURES.keys() - set(NEVER_DRAWN) if offers is None else offers)
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}: choose from {', '.join(DTYPES)}")
    if wanted - FEATURES.keys():
        raise ValueError(f"offers names unknown {', '.join(sorted(wanted - FEATURES.keys()))}; choose from {', '.join(FEATURES)}")
    if causal and "causal" not in wanted:
        raise ValueError("causal=True, but offers does not name causal; add it")
    if max_len is not None and max_len < 1:
        raise ValueError(f"max_len is {max_len}; it is at least 1")
    kernel = Adapter()
    kernel.offers, kernel.widths = wanted, None if widths is None else tuple(widths)

    def bent(case: Case) -> Case:
        if max_len is not None:
            case = replace(case, i=1 + (case.i - 1) % max_len, j=0 if not case.j else 1 + (case.j - 1) % max_len)
        return case if causal is None else fit(replace(case, causal=causal), kernel)

    return st.builds(_Problem(str(device), wanted), cases(kernel, name).map(bent))


class _Problem:
    """Makes a problem of a case. Hypothesis prints this call with its case, which is shorter than tensors."""

    def __init__(self, device: str, offers: frozenset[str]) -> None:
        self.device, self.names = device, differentiable(offers)

    def __call__(self, case: Case) -> Problem:
        return build(case, self.device, self.names)

    def __repr__(self) -> str:
        return "problem"
