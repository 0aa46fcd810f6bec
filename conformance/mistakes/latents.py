"""Mistakes of latents: which channels are the values, and which the scores (MLA)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter, Mistake, kernel_at, of_each
from attnspec.reference import Exact
from attnspec.spec import Dialect, Problem

LATENTS = Chapter()


def enter(name: str, says: str, wrong: Callable[[Kernel], Wrong], *, special: bool = False, of: str = "") -> None:
    """Enter a mistake that is made in each sequence of latents: d channels, the first e of which are the values."""

    def alone(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
        x = kernel_at(problem, dialect)
        return wrong(x) if x.i * x.j * x.problem.e else None

    def made(problem: Problem, dialect: Dialect, exact: Exact) -> Wrong:
        return of_each(alone, problem, dialect, exact) if getattr(problem.carrier, "latent", False) else None

    LATENTS.add(Mistake(name, says, made, special=special, of=of))


def with_values(change: Callable[[Kernel], Array]) -> Callable[[Kernel], Wrong]:
    """With other values (1 1 j e); None where they are the same."""
    return lambda x: None if np.array_equal(v := change(x), x.v) else x.on(v=v)


def turned_part(x: Kernel) -> Array:
    """Which channels are no values."""
    return np.arange(x.problem.d) >= x.problem.e


def with_parts(change: Callable[[Kernel, Array, Array], tuple[Array, Array]]) -> Callable[[Kernel], Wrong]:
    """With another turned part of queries (1 h i d − e) and keys (1 1 j d − e); None where it is the same."""

    def wrong(x: Kernel) -> Wrong:
        e = x.problem.e
        q, k = change(x, x.q[..., e:], x.k[..., e:])
        if np.array_equal(q, x.q[..., e:]) and np.array_equal(k, x.k[..., e:]):
            return None
        return x.on(q=np.concatenate([x.q[..., :e], q], -1), k=np.concatenate([x.k[..., :e], k], -1))

    return wrong


def loaded_with_their_width(x: Kernel) -> Array:
    """Rows of e channels, one behind the other, where rows of d are."""
    return x.k.reshape(-1)[: x.j * x.problem.e].reshape(x.v.shape)


def lse_of_latents(x: Kernel) -> Wrong:
    """The lse of scores without the turned part."""
    if not turned_part(x).any() or not x.problem.lse:
        return None
    return {"lse": x.on(q=np.where(turned_part(x), 0.0, x.q))["lse"]}


enter(
    "latent_values_at_the_end",
    "the values are the last channels of the latents",
    with_values(lambda x: x.k[..., x.problem.d - x.problem.e :]),
)
enter(
    "latent_values_of_their_width",
    "the values are loaded as if rows had as many channels as values",
    with_values(loaded_with_their_width),
)
for n in (8, 16, 32, 64):
    enter(
        f"latent_values_behind_{n}_zero",
        f"channels of the values from {n} on are zero",
        with_values(lambda x, n=n: np.where(np.arange(x.problem.e) < n, x.v, 0.0)),
        special=True,
        of="latent_values_behind_8_zero",
    )
enter("latent_turned_part_ignored", "the turned part of the scores is left out", with_parts(lambda x, q, k: (0.0 * q, k)))
enter(
    "latent_turned_part_alone",
    "the scores are those of the turned part alone",
    lambda x: x.on(q=np.where(turned_part(x), x.q, 0.0)) if turned_part(x).any() else None,
)
enter(
    "latent_turned_part_of_first_head",
    "all heads have the turned part of the first head's query",
    with_parts(lambda x, q, k: (np.broadcast_to(q[:, :1], q.shape), k)),
)
enter(
    "latent_turned_part_of_first_query",
    "all queries have the turned part of the first",
    with_parts(lambda x, q, k: (np.broadcast_to(q[:, :, :1], q.shape), k)),
)
for n in (4, 8, 16, 32):
    enter(
        f"latent_turned_part_of_{n}",
        f"of the turned part the first {n} channels alone are in the scores",
        with_parts(lambda x, q, k, n=n: (q * (np.arange(q.shape[-1]) < n), k)),
        special=True,
        of="latent_turned_part_of_4",
    )
for n in (16, 32, 64):
    enter(
        f"latent_turned_part_of_key_{n}_before",
        f"from key {n} on the turned part is that of the key {n} before",
        with_parts(lambda x, q, k, n=n: (q, np.concatenate([k[:, :, :n], k[:, :, :-n]], 2)[:, :, : x.j])),
        special=True,
        of="latent_turned_part_of_key_16_before",
    )
enter(
    "latent_scale_of_both_widths",
    "the default scale uses the width of latents and of values together",
    lambda x: x.with_scale((x.problem.d + x.problem.e) ** -0.5, given=False),
)
enter(
    "latent_scale_of_turned_part",
    "the default scale uses the width of the turned part",
    lambda x: x.with_scale((x.problem.d - x.problem.e) ** -0.5, given=False) if turned_part(x).any() else None,
    special=True,
)
enter(
    "latent_scale_of_192",
    "the default scale is that of heads of 192 channels, which a model has before latents are made of them",
    lambda x: x.with_scale(192**-0.5, given=False),
    special=True,
)
enter("latent_lse_of_values", "the lse is that of scores without the turned part", lse_of_latents)
