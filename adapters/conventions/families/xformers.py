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


# Grouped heads are experimental and have no gradients, as it says: they are called so, and not promised.
EFFICIENT = Convention(
    name="xformers",
    of="xformers 0.0.35, xformers.ops.memory_efficient_attention",
    paths=("xformers.ops.memory_efficient_attention", "xformers.ops.fmha.memory_efficient_attention"),
    reading=AS_IT_IS,
    offers=frozenset({"value_width"}),
    without=frozenset({"lse", "lse_grad"}),
    dialect={"causal_alignment": "bottom_right", "window_count": "inclusive", "head_grouping": "blocked"},
    dtypes=("float32", "bfloat16", "float16"),
    devices=("cuda",),
    attend=with_attn_bias,
    untested="its kernels run on GPUs only",
)
# No gradients and no dropout.
PARTIAL = replace(
    EFFICIENT,
    name="xformers, partial",
    of="xformers 0.0.35, xformers.ops.memory_efficient_attention_partial",
    paths=("xformers.ops.memory_efficient_attention_partial", "xformers.ops.fmha.memory_efficient_attention_partial"),
    offers=frozenset({"value_width", "gqa", "mqa"}),
    without=frozenset({"backward", "bias_grad", "lse_grad", "dropout"}),
    dialect={**EFFICIENT.dialect, "lse_base": "e"},
)
CONVENTIONS = (
    EFFICIENT,
    PARTIAL,
    replace(PARTIAL.elsewhere(), paths=("*memory_efficient_attention_partial",)),
    EFFICIENT.elsewhere("query", "attn_bias", "p", "op"),
)
