"""FlashInfer's functions for one sequence: no batch axis, (i h d) queries, an lse of base 2, and no gradients."""

from __future__ import annotations

from dataclasses import replace

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS


def each_sequence(  # type: ignore[no-untyped-def]
    function,
    q,
    k,
    v,
    *,
    mask=None,
    causal=False,
    scale=None,
    window=None,
    softcap=None,
    lse=False,
):
    """Each batch item is a call of its own. A mask is (i j), so that where heads differ in theirs each head is one, too."""
    import torch

    (b, h, i), j = q.shape[:3], k.shape[2]
    masks = [[None]] * b
    if mask is not None:
        masks = (mask[:, None, None, :] if mask.ndim == 2 else mask.expand(b, *mask.shape[-3:])).expand(b, -1, i, j)
    if window is not None and window[1] is not None and not causal:
        from attnspec.adapters import Unsupported

        raise Unsupported("window_left does not limit what is behind the query")
    options = {"causal": causal, "kv_layout": "NHD", "return_lse": lse, "sm_scale": scale, "logits_soft_cap": softcap}
    options["window_left"] = -1 if window is None or window[0] is None else window[0]
    found = []
    for queries, keys, values, own in zip(q, k, v, masks, strict=True):
        group = h // max(len(keys), 1)
        heads = [slice(0, h)] if len(own) == 1 else [slice(n, n + 1) for n in range(h)]
        for one, custom_mask in zip(heads, own, strict=True):
            shared = slice(None) if len(own) == 1 else slice(one.start // group, one.start // group + 1)
            tensors = [x.transpose(0, 1) for x in (queries[one], keys[shared], values[shared])]
            returned = function(*tensors, custom_mask=custom_mask, **options)
            found.append(returned if lse else (returned,))
    if not found:  # a batch of nothing is no call
        nothing = q.new_empty(b, h, i, v.shape[3])
        return (nothing, q.new_empty(b, h, i, dtype=torch.float32)) if lse else nothing
    outputs = [torch.cat([x.transpose(0, 1) for x in each]).unflatten(0, (b, h)) for each in zip(*found, strict=True)]
    return tuple(outputs) if lse else outputs[0]


def each_query(  # type: ignore[no-untyped-def]
    function, q, k, v, *, scale=None, softcap=None, lse=False
):
    """Each query of each batch item is a call of its own: it sees all keys, as the newest does when a model writes."""
    import torch

    options = {"kv_layout": "NHD", "return_lse": lse, "sm_scale": scale, "logits_soft_cap": softcap}
    found = []
    for queries, keys, values in zip(q, k, v, strict=True):
        for query in queries.unbind(1):
            returned = function(query, keys.transpose(0, 1), values.transpose(0, 1), **options)
            found.append(returned if lse else (returned,))
    if not found:  # a batch of nothing is no call
        nothing = q.new_empty(*q.shape[:3], v.shape[3])
        return (nothing, q.new_empty(q.shape[:3], dtype=torch.float32)) if lse else nothing
    outputs = [torch.stack(each).unflatten(0, (len(q), q.shape[2])).transpose(1, 2) for each in zip(*found, strict=True)]
    return tuple(outputs) if lse else outputs[0]


PREFILL = Convention(
    name="FlashInfer",
    of="flashinfer-python 0.7.4, flashinfer.single_prefill_with_kv_cache",
    paths=("flashinfer.single_prefill_with_kv_cache", "flashinfer.prefill.single_prefill_with_kv_cache"),
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa", "value_width"}),
    without=frozenset({"backward", "lse_grad", "window_right"}),
    restrictions=frozenset({"mask_or_causal"}),
    dialect={
        "causal_alignment": "bottom_right",
        "head_grouping": "blocked",
        "window_count": "inclusive",
        "lse_base": "2",
        "lse_dtype": "wide",
    },
    dtypes=("float16", "bfloat16"),
    devices=("cuda",),
    attend=each_sequence,
    untested="its kernels run on GPUs only",
)
DECODE = replace(
    PREFILL,
    of="flashinfer-python 0.7.4, flashinfer.single_decode_with_kv_cache",
    paths=("flashinfer.single_decode_with_kv_cache", "flashinfer.decode.single_decode_with_kv_cache"),
    offers=frozenset({"gqa", "mqa"}),
    restrictions=frozenset(),
    attend=each_query,
)
CONVENTIONS = (
    PREFILL,
    DECODE,
    PREFILL.elsewhere("custom_mask", "kv_layout", "logits_soft_cap"),
    DECODE.elsewhere("kv_layout", "pos_encoding_mode", "use_tensor_cores"),
)
