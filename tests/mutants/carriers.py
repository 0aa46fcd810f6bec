"""A function of one call of many sequences as an adapter that takes its form, and how mutants of it are entered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnspec.adapters import Adapter
from mutants.base import mutant
from mutants.sequences import Cached, Packed, Padded, Paged


class Carrying(Adapter):
    """An adapter of a function of one call in a form."""

    dialect = {"causal_alignment": "bottom_right"}


def said(options: dict[str, Any]) -> dict[str, Any]:
    """The options among the local variables of a method."""
    return {x: options[x] for x in ("causal", "scale", "window", "softcap", "alibi_slopes", "sinks", "lse")}


def of_packed(attend: Callable[[Any], Any], checked: bool = True) -> type[Adapter]:
    """An adapter of a function of a packed call."""

    class Made(Carrying):
        def attend_packed(
            self,
            q,
            k,
            v,
            cu_q,
            cu_k,
            max_q,
            max_k,
            *,
            used_q=None,
            used_k=None,
            causal=False,
            scale=None,
            window=None,
            softcap=None,
            alibi_slopes=None,
            sinks=None,
            lse=False,
        ):
            return attend(Packed(q, k, v, cu_q, cu_k, max_q, max_k, used_q, used_k, options=said(locals())))

    return offering(Made)


def of_padded(attend: Callable[[Any], Any], checked: bool = True) -> type[Adapter]:
    """An adapter of a function of a padded call."""

    class Made(Carrying):
        def attend_padded(
            self,
            q,
            k,
            v,
            k_lengths,
            q_lengths=None,
            *,
            causal=False,
            scale=None,
            window=None,
            softcap=None,
            alibi_slopes=None,
            sinks=None,
            lse=False,
        ):
            return attend(Padded(q, k, v, k_lengths, q_lengths, options=said(locals())))

    return offering(Made, "padded_queries")


def of_cached(attend: Callable[[Any], Any], checked: bool = True) -> type[Adapter]:
    """An adapter of a function of a call with a cache."""

    class Made(Carrying):
        def attend_cached(
            self,
            q,
            k_cache,
            v_cache,
            lengths,
            *,
            k_new=None,
            v_new=None,
            left=None,
            slots=None,
            causal=False,
            scale=None,
            window=None,
            softcap=None,
            alibi_slopes=None,
            sinks=None,
            lse=False,
        ):
            return attend(Cached(q, k_cache, v_cache, lengths, k_new, v_new, left, slots, options=said(locals())))

    return offering(Made)


def of_paged(attend: Callable[[Any], Any], checked: bool = True) -> type[Adapter]:
    """An adapter of a function of a call with pages."""

    class Made(Carrying):
        def attend_paged(
            self,
            q,
            cu_q,
            max_q,
            k_pages,
            v_pages,
            table,
            lengths,
            *,
            k_new=None,
            v_new=None,
            cu_new=None,
            causal=False,
            scale=None,
            window=None,
            softcap=None,
            alibi_slopes=None,
            sinks=None,
            lse=False,
        ):
            pool = (k_pages, v_pages, table, lengths, k_new, v_new, cu_new)
            return attend(Paged(q, cu_q, max_q, *pool, options=said(locals())))

    return offering(Made)


def offering(kind: type[Adapter], *more: str) -> type[Adapter]:
    """What the parameters of its method show, and groups and values of another width."""
    kind.offers = sorted({*kind.offers, "gqa", "mqa", "value_width", *more})
    return kind


SIGNED = {"VARLEN": of_packed, "CACHE": of_cached, "PAGED": of_paged}
FAMILY = {"VARLEN": "varlen", "CACHE": "cache", "PAGED": "paged"}


def ragged(clause: str, source: str = "", signed: Any = None, **how: Any) -> Callable[[Any], Any]:
    """Enter a mutant, in the form of the chapter of its clause."""
    chapter = clause.partition("-")[0]
    return mutant(FAMILY[chapter], clause, source, signed=signed or SIGNED[chapter], **how)
