"""xformers' memory_efficient_attention: (b i h d) tensors, and one attn_bias for causal, windows, masks and biases."""

from __future__ import annotations

from dataclasses import replace

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS


def with_attn_bias(  # type: ignore[no-untyped-def]
    function,
    q,
    k,
    v,
    *,
    mask=None,
    bias=None,
    causal=False,
    scale=None,
    dropout=0.0,
    training=False,
    window=None,
    lse=False,
):
    """Causal has a bias of its own, and so has a window. A mask is a tensor of 0 and -inf, with a bias or causal merged into it.

    There is a causal bias with a tensor, but it is aligned top-left: it is used where there are as many keys as queries. The rows
    of a tensor lie in those of one with a multiple of eight columns, as a hint of its errors says. Fewer key heads make tensors of
    five dimensions (b i g h d).
    """
    import torch
    from xformers.ops.fmha import attn_bias as biases

    (b, h, i), (g, j) = q.shape[:3], k.shape[1:3]
    left, right = (None, None) if window is None else window
    right = 0 if causal else right
    tensor, attn_bias = bias, None
    if mask is not None:
        shown = mask[:, None, None, :] if mask.ndim == 2 else mask
        tensor = torch.zeros((), dtype=q.dtype, device=q.device) if bias is None else bias
        tensor = torch.where(shown, tensor, float("-inf"))
    alone = causal and left is None and i == j
    if tensor is not None:
        if (left, right) != (None, None) and not alone:
            place = torch.arange(j, device=q.device) - torch.arange(j - i, j, device=q.device)[:, None]
            hidden = place < -(i + j if left is None else left)
            tensor = tensor.masked_fill(hidden if right is None else hidden | (place > right), float("-inf"))
        whole = tensor.expand(b, h, i, j) if g == h else tensor.expand(b, h, i, j).unflatten(1, (g, h // g))
        attn_bias = torch.nn.functional.pad(whole.contiguous(), (0, -j % 8))[..., :j]
        attn_bias = biases.LowerTriangularMaskWithTensorBias(attn_bias) if alone else attn_bias
    elif causal and left is not None:
        attn_bias = biases.LowerTriangularFromBottomRightMask().make_local_attention(left + 1)
    elif causal:
        attn_bias = biases.LowerTriangularMask() if alone else biases.LowerTriangularFromBottomRightMask()
    elif window is not None:
        left, right = (i + j if side is None else side for side in window)  # beyond all keys: no limit
        attn_bias = biases.LocalAttentionFromBottomRightMask(window_left=left, window_right=right)
    tensors = [x.transpose(1, 2) for x in (q, k, v)]
    if g != h:
        query, *others = (x.unflatten(2, (g, x.shape[2] // g)) for x in tensors)
        tensors = [query, *(x.expand(-1, -1, -1, h // g, -1) for x in others)]
    options = {"attn_bias": attn_bias, "scale": scale, **({"p": dropout} if training else {})}
    returned = function(*tensors, **options)
    o = returned[0] if isinstance(returned, tuple) else returned
    o = (o.flatten(2, 3) if g != h else o).transpose(1, 2)
    return (o, returned[1].flatten(1, 2) if g != h else returned[1]) if lse else o


def with_blocks(  # type: ignore[no-untyped-def]
    function,
    q,
    k,
    v,
    cu_q,
    cu_k,
    max_q,
    max_k,
    *,
    causal=False,
    scale=None,
    dropout=0.0,
    training=False,
    window=None,
    lse=False,
):
    """One batch item, and an attn_bias in which each sequence is a block. Rows behind the last one are a block of their own.

    There is a causal bias that is aligned top-left: it is used where each block has as many keys as queries. The other is refused
    where a block has fewer keys, and a window has one beside causal alone.
    """
    from xformers.ops.fmha import attn_bias as biases

    from attnspec.adapters import Unsupported

    starts = [[*cu.tolist(), *([len(x)] if len(x) > cu[-1] else [])] for cu, x in ((cu_q, q), (cu_k, k))]
    if len(starts[0]) != len(starts[1]):
        raise Unsupported("rows behind the last sequence are a block of their own: of queries and of keys")
    lengths = [[b - a for a, b in zip(x, x[1:], strict=False)] for x in starts]
    attn_bias = biases.BlockDiagonalMask.from_seqlens(*lengths, device=q.device)
    if window is not None and not (causal and window[0] is not None):
        raise Unsupported("a block has a window beside causal alone, which limits the past")
    if causal and any(i > j for i, j in zip(*lengths, strict=True)):
        raise Unsupported("a causal block has at least as many keys as queries")
    if causal and window is not None:
        attn_bias = attn_bias.make_local_attention_from_bottomright(window[0] + 1)
    elif causal:
        attn_bias = attn_bias.make_causal() if lengths[0] == lengths[1] else attn_bias.make_causal_from_bottomright()
    h, g = q.shape[1], k.shape[1]
    tensors = [x[None] for x in (q, k, v)]
    if g != h:
        query, *others = (x.unflatten(2, (g, x.shape[2] // g)) for x in tensors)
        tensors = [query, *(x.expand(-1, -1, -1, h // g, -1) for x in others)]
    options = {"attn_bias": attn_bias, "scale": scale, **({"p": dropout} if training else {})}
    returned = function(*tensors, **options)
    o, of_rows = returned if isinstance(returned, tuple) else (returned, None)
    o = (o.flatten(2, 3) if g != h else o)[0]
    return (o, (of_rows.flatten(1, 2) if g != h else of_rows)[0]) if lse else o


def with_a_cache(  # type: ignore[no-untyped-def]
    function, q, k_cache, v_cache, lengths, *, left=None, slots=None, causal=False, scale=None, lse=False
):
    """All slots one behind the other: each is a block of keys with padding, or, where it begins elsewhere, one with gaps."""
    from xformers.ops.fmha import attn_bias as biases

    (b, i, h), (c, g) = q.shape[:3], k_cache.shape[1:3]
    queries, filled = [i] * b, lengths.tolist()
    if left is None and slots is None:
        kind = biases.BlockDiagonalCausalWithOffsetPaddedKeysMask if causal else biases.BlockDiagonalPaddedKeysMask
        attn_bias = kind.from_seqlens(q_seqlen=queries, kv_padding=c, kv_seqlen=filled, device=q.device)
    else:
        before = [0] * b if left is None else left.tolist()
        places = list(range(b)) if slots is None else slots.tolist()
        starts = [slot * c + n for slot, n in zip(places, before, strict=True)]
        there = [n - m for n, m in zip(filled, before, strict=True)]
        kind = biases.BlockDiagonalCausalWithOffsetGappyKeysMask if causal else biases.BlockDiagonalGappyKeysMask
        attn_bias = kind.from_seqlens(queries, [*starts, len(k_cache) * c], there, device=q.device)
    tensors = [x.flatten(0, 1)[None] for x in (q, k_cache, v_cache)]
    if g != h:
        query, *others = (x.unflatten(2, (g, x.shape[2] // g)) for x in tensors)
        tensors = [query, *(x.expand(-1, -1, -1, h // g, -1) for x in others)]
    returned = function(*tensors, attn_bias=attn_bias, scale=scale)
    o, of_rows = returned if isinstance(returned, tuple) else (returned, None)
    o = (o.flatten(2, 3) if g != h else o)[0].unflatten(0, (b, i))
    return (o, (of_rows.flatten(1, 2) if g != h else of_rows)[0].unflatten(1, (b, i)).transpose(0, 1)) if lse else o


def with_pages(  # type: ignore[no-untyped-def]
    function, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, causal=False, scale=None, lse=False
):
    """All pages one behind the other, and an attn_bias that has the table."""
    from xformers.ops.fmha import attn_bias as biases

    h, (size, g) = q.shape[1], k_pages.shape[1:3]
    kind = biases.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask if causal else biases.PagedBlockDiagonalPaddedKeysMask
    attn_bias = kind.from_seqlens(
        q_seqlen=cu_q.diff().tolist(), kv_seqlen=lengths.tolist(), block_tables=table, page_size=size, device=q.device
    )
    tensors = [q[None], *(x.flatten(0, 1)[None] for x in (k_pages, v_pages))]
    if g != h:
        query, *others = (x.unflatten(2, (g, x.shape[2] // g)) for x in tensors)
        tensors = [query, *(x.expand(-1, -1, -1, h // g, -1) for x in others)]
    returned = function(*tensors, attn_bias=attn_bias, scale=scale)
    o, of_rows = returned if isinstance(returned, tuple) else (returned, None)
    o = (o.flatten(2, 3) if g != h else o)[0]
    return (o, (of_rows.flatten(1, 2) if g != h else of_rows)[0]) if lse else o


# Grouped heads are experimental and have no gradients, as it says: they are called so, and not promised.
EFFICIENT = Convention(
    name="xformers",
    of="xformers 0.0.35, xformers.ops.memory_efficient_attention",
    paths=("xformers.ops.memory_efficient_attention", "xformers.ops.fmha.memory_efficient_attention"),
    reading=AS_IT_IS,
    offers=frozenset({"value_width"}),
    without=frozenset({"lse", "lse_grad", "packed_long", "paged_any_size", "paged_any_entry"}),
    dialect={"causal_alignment": "bottom_right", "window_count": "inclusive", "head_grouping": "blocked"},
    dtypes=("float32", "bfloat16", "float16"),
    devices=("cuda",),
    attend=with_attn_bias,
    forms={"packed": with_blocks, "cached": with_a_cache, "paged": with_pages},
    untested="its kernels run on GPUs only",
)
# No gradients and no dropout.
PARTIAL = replace(
    EFFICIENT,
    name="xformers, partial",
    of="xformers 0.0.35, xformers.ops.memory_efficient_attention_partial",
    paths=("xformers.ops.memory_efficient_attention_partial", "xformers.ops.fmha.memory_efficient_attention_partial"),
    offers=frozenset({"value_width", "gqa", "mqa"}),
    without=frozenset({"backward", "bias_grad", "lse_grad", "dropout", "packed_long", "paged_any_size", "paged_any_entry"}),
    dialect={**EFFICIENT.dialect, "lse_base": "e"},
)
CONVENTIONS = (
    EFFICIENT,
    PARTIAL,
    replace(PARTIAL.elsewhere(), paths=("*memory_efficient_attention_partial",)),
    EFFICIENT.elsewhere("query", "attn_bias", "p", "op"),
)
