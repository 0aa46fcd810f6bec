"""xformers' attention with biases that are blocks, for the CPU: what stands under its names, and reads block by block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gpu_signatures
import torch
from ragged_signatures import Keys, each, packed_keys, paged_keys
from torch import Tensor


@dataclass
class Blocks:
    """Lengths of queries, where the keys of each block begin, how many they are, and which of them a query sees."""

    q_seqlen: list[int]
    starts: list[int]
    kv_seqlen: list[int]
    total: int
    causal: str = ""
    window: int = -1

    def keys(self, k: Tensor, v: Tensor) -> Keys:
        assert len(k) == self.total
        return packed_keys(k, v, self.starts, self.kv_seqlen)


def after_each(lengths: list[int]) -> list[int]:
    """Where blocks of these lengths begin, and where the last one ends."""
    assert not isinstance(lengths, Tensor)
    return [sum(lengths[:n]) for n in range(len(lengths) + 1)]


class BlockDiagonalMask(Blocks):
    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):  # type: ignore[no-untyped-def]
        kv_seqlen = q_seqlen if kv_seqlen is None else kv_seqlen
        *starts, total = after_each(kv_seqlen)
        return cls(q_seqlen, starts, kv_seqlen, total)

    def make_causal(self) -> BlockDiagonalMask:
        return replace(self, causal="top_left")

    def make_causal_from_bottomright(self) -> BlockDiagonalMask:
        if any(j < i for i, j in zip(self.q_seqlen, self.kv_seqlen, strict=True)):
            raise ValueError("Expected `num_keys >= num_queries`")
        return replace(self, causal="bottom_right")

    def make_local_attention_from_bottomright(self, window_size: int) -> BlockDiagonalMask:
        return replace(self, causal="bottom_right", window=window_size - 1)


class BlockDiagonalPaddedKeysMask(Blocks):
    CAUSAL = ""

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_padding, kv_seqlen, causal_diagonal=None, *, device=None):  # type: ignore[no-untyped-def]
        assert all(j <= kv_padding for j in kv_seqlen)
        *starts, total = after_each([kv_padding] * len(kv_seqlen))
        return cls(q_seqlen, starts, kv_seqlen, total, cls.CAUSAL)


class BlockDiagonalCausalWithOffsetPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    CAUSAL = "bottom_right"


class BlockDiagonalGappyKeysMask(Blocks):
    CAUSAL = ""

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqstarts, kv_seqlen, *, device=None):  # type: ignore[no-untyped-def]
        *starts, total = kv_seqstarts
        return cls(q_seqlen, starts, kv_seqlen, total, cls.CAUSAL)


class BlockDiagonalCausalWithOffsetGappyKeysMask(BlockDiagonalGappyKeysMask):
    CAUSAL = "bottom_right"


class PagedBlockDiagonalPaddedKeysMask(Blocks):
    CAUSAL = ""

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen, block_tables, page_size, *, device=None):  # type: ignore[no-untyped-def]
        made = cls(q_seqlen, [], kv_seqlen, 0, cls.CAUSAL)
        made.table, made.size = block_tables, page_size
        return made

    def keys(self, k: Tensor, v: Tensor) -> Keys:
        return paged_keys(k.unflatten(0, (-1, self.size)), v.unflatten(0, (-1, self.size)), self.table, self.kv_seqlen)


class PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(PagedBlockDiagonalPaddedKeysMask):
    CAUSAL = "bottom_right"


KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        BlockDiagonalMask,
        BlockDiagonalPaddedKeysMask,
        BlockDiagonalCausalWithOffsetPaddedKeysMask,
        BlockDiagonalGappyKeysMask,
        BlockDiagonalCausalWithOffsetGappyKeysMask,
        PagedBlockDiagonalPaddedKeysMask,
        PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
    )
}


def _efficient(query, key, value, attn_bias, p, scale):  # type: ignore[no-untyped-def]
    if not isinstance(attn_bias, Blocks):
        return gpu_signatures._efficient(query, key, value, attn_bias, p, scale)
    q, k, v = (x[0].flatten(1, 2) if x.ndim == 5 else x[0] for x in (query, key, value))
    assert len(query) == 1
    assert sum(attn_bias.q_seqlen) == len(q)
    keys = attn_bias.keys(k, v)
    if attn_bias.causal == "top_left":  # as many keys as queries, or the keys that the last query sees
        keys = Keys(k, v, [(x[:i], y[:i]) for i, (x, y) in zip(attn_bias.q_seqlen, keys, strict=True)])
    begins = after_each(attn_bias.q_seqlen)[:-1]
    o, lse = each(q, begins, attn_bias.q_seqlen, keys, bool(attn_bias.causal), (attn_bias.window, -1), scale=scale, dropout=p)
    o = o.unflatten(1, query.shape[2:4]) if query.ndim == 5 else o
    return o[None], (lse.unflatten(0, query.shape[2:4]) if query.ndim == 5 else lse)[None]


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None):
    return _efficient(query, key, value, attn_bias, p, scale)[0]


def memory_efficient_attention_partial(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None):
    o, lse = _efficient(query, key, value, attn_bias, p, scale)
    return o.detach(), torch.as_tensor(lse).detach()
