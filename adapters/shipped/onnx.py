"""ONNX's Attention in ONNX's own evaluator and in onnxruntime, and the attention operators that onnxruntime has of its own.

Each call is a model of one node, that is built for the dtypes, the ranks and the attributes of a call, and kept for the next one
like it; its lengths are free. What stands in the scripts of failures, too, needs nothing of its module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np

from attnspec.adapters.contract import Adapter
from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.function import adapted
from attnspec.adapters.conventions.layout import Reading
from attnspec.adapters.conventions.signature import ResolveError

# THE MODEL, WHICH TAKES AND RETURNS ARRAYS


@lru_cache(maxsize=64)
def onnx_session(runtime, operator, inputs, outputs, attributes):  # type: ignore[no-untyped-def]
    """A function of arrays by name, that runs one node. operator: its name, its domain, and the opset.

    inputs: the name, the number of the dtype, and the rank of each, in the order of the operator; no name where one is left out.
    Beside a past it returns all outputs, which are the present, else the first alone.
    """
    from onnx import helper

    name, domain, opset = operator
    node = helper.make_node(name, [x for x, *_ in inputs], list(outputs), domain=domain, **dict(attributes))
    given = [helper.make_tensor_value_info(x, dtype, [None] * rank) for x, dtype, rank in inputs if x]
    wanted = outputs if any(x.startswith("past") for x, *_ in inputs) else outputs[:1]
    returned = [helper.make_tensor_value_info(x, inputs[0][1], None) for x in wanted]
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(helper.make_graph([node], "attention", given, returned), opset_imports=opsets, ir_version=11)
    if runtime == "onnx":
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it raises says the same
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def onnx_node(runtime, operator, order, outputs, flat, fixed, /, **given):  # type: ignore[no-untyped-def]
    """One call of a node: arrays are its inputs, all else its attributes.

    order: its inputs, queries, keys and values first, (b h i d). flat: its attributes for the heads of queries, and of keys and
    values, where it takes them as (b i h*d). fixed: attributes of every call. one_buffer: its outputs behind the first lie in the
    memory of the past. It returns the output, and the present where there is a past.
    """
    from onnx import helper

    q, k, v = (given[name] for name in order[:3])
    given |= fixed
    one_buffer = given.pop("one_buffer", False)
    if flat:
        given |= dict(zip(flat, (q.shape[1], k.shape[1]), strict=False))
        for name, x in zip(order[:3], (q, k, v), strict=True):
            b, h, n, d = x.shape
            given[name] = np.moveaxis(x, 1, 2).reshape(b, n, h * d)
    arrays = {name: x for name, x in given.items() if isinstance(x, np.ndarray)}
    last = max(n for n, name in enumerate(order) if name in arrays)
    inputs = tuple(
        (name, helper.np_dtype_to_tensor_dtype(arrays[name].dtype), arrays[name].ndim) if name in arrays else ("", 0, 0)
        for name in order[: last + 1]
    )
    attributes = tuple(sorted((name, x) for name, x in given.items() if name not in arrays))
    past = [name for name in order if name in arrays and name.startswith("past")]
    made = outputs if past or operator[1] else outputs[:1]
    session = onnx_session(runtime, operator, inputs, made, attributes)
    if one_buffer:
        binding = session.io_binding()
        for name, x in arrays.items():
            binding.bind_input(name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        binding.bind_output(outputs[0])
        for name, to in zip(past, outputs[1:], strict=True):
            binding.bind_output(to, "cpu", 0, arrays[name].dtype, arrays[name].shape, arrays[name].ctypes.data)
        session.run_with_iobinding(binding)
        output, *present = (binding.copy_outputs_to_cpu()[0], *(arrays[name] for name in past))
    else:
        output, *present = session.run(None, arrays)
    output = np.moveaxis(output.reshape(*q.shape[:1], q.shape[2], q.shape[1], v.shape[3]), 2, 1) if flat else output
    return (output, *present) if past else output


# THE SAME CALL IN AN OPERATOR'S WORDS


def onnx_attention(function, q, k, v, *, mask=None, bias=None, causal=False, scale=None, softcap=None, window=None, q_start=None):  # type: ignore[no-untyped-def]
    """ONNX Attention. A position of the first query is that of one behind a cache: the number of keys up to the last query.

    Key padding has no form of its own: a bool of two dimensions is (i j). A mask whose last axis is shorter than the keys hides
    the rest, so that it is given in full.
    """
    import torch

    from attnspec.adapters import Unsupported

    if k.ndim == 3:
        raise Unsupported("keys of three dimensions are (b j g*d), and no head that is shared")
    given = {"Q": q, "K": k, "V": v}
    shown = bias if mask is None else mask
    if mask is not None and mask.ndim == 2:
        shown = mask[:, None, None].expand(-1, -1, q.shape[2], -1)
    if shown is not None:
        given["attn_mask"] = shown.expand(*shown.shape[:-1], k.shape[2])
    if q_start is not None and (causal or window is not None):
        start = torch.tensor(q_start, dtype=torch.int64).expand(len(q))
        known = start + q.shape[2]
        seen = causal or (window is not None and window[1] == 0)
        if not seen or bool(((known < 0) | (known > k.shape[2])).any()):
            raise Unsupported("its cache ends with the last query")
        given["nonpad_kv_seqlen"] = known
    left, right = (-1 if side is None else side for side in window or (None, None))
    options: dict[str, Any] = {"left_window_size": (left, -1), "right_window_size": (right, -1), "is_causal": (int(causal), 0)}
    options |= {"scale": (scale, None), "softcap": (softcap, None)}
    return function(**given, **{name: x for name, (x, default) in options.items() if x != default})


def onnxruntime_mha(function, q, k, v, *, mask=None, bias=None, causal=False, scale=None):  # type: ignore[no-untyped-def]
    """com.microsoft MultiHeadAttention. Masks are of whole numbers, (b j) or (b i j); a bias has all queries and all keys."""
    import torch

    from attnspec.adapters import Unsupported

    if k.ndim == 3 or k.shape[1] != q.shape[1]:
        raise Unsupported("it has as many heads of keys as of queries")
    given = {"query": q, "key": k, "value": v}
    if mask is not None:
        if mask.ndim > 2 and mask.shape[-3] > 1:
            raise Unsupported("its mask is the same in all heads")
        rows = mask if mask.ndim == 2 else mask.squeeze(-3).expand(len(q), q.shape[2], k.shape[2])
        given["key_padding_mask"] = rows.to(torch.int32)
    if bias is not None:
        given["attention_bias"] = bias[(None,) * (4 - bias.ndim)].expand(-1, -1, q.shape[2], k.shape[2])
    options: dict[str, Any] = {"unidirectional": (int(causal), 0), "scale": (scale, None)}
    return function(**given, **{name: x for name, (x, default) in options.items() if x != default})


def onnxruntime_gqa(  # type: ignore[no-untyped-def]
    function, q, k, v, *, mask=None, bias=None, causal=False, scale=None, softcap=None, window=None, sinks=None
):
    """com.microsoft GroupQueryAttention. A mask is a number of keys for each batch item, which are the first."""
    import torch

    from attnspec.adapters import Unsupported

    if k.ndim == 3:
        raise Unsupported("keys of three dimensions are (b j g*d), and no head that is shared")
    lengths = torch.full((len(q),), k.shape[2], dtype=torch.int32)
    if mask is not None:
        lengths = mask.sum(-1).to(torch.int32)
        if mask.ndim != 2 or len(mask) != len(q) or not torch.equal(mask, torch.arange(k.shape[2]) < lengths[:, None]):
            raise Unsupported("its only mask is a number of keys for each batch item")
    total = torch.tensor(k.shape[2], dtype=torch.int32)
    given = {"query": q, "key": k, "value": v, "seqlens_k": lengths - 1, "total_sequence_length": total}
    if bias is not None:
        given["attention_bias"] = bias[(None,) * (4 - bias.ndim)].expand(-1, -1, q.shape[2], k.shape[2])
    if sinks is not None:
        given["head_sink"] = sinks.to(q.dtype)
    left, right = window or (None, None)
    if right or (window is not None and not causal):
        raise Unsupported("its window ends with the query")
    options: dict[str, Any] = {
        "causal": (int(causal), 1),
        "local_window_size": (left, None),
        "scale": (scale, None),
        "softcap": (softcap, None),
    }
    return function(**given, **{name: x for name, (x, default) in options.items() if x != default})


# THE SAME FOR CALLS OF MANY SEQUENCES


def onnx_lengths(function, q, k, v, k_lengths, *, causal=False, scale=None, softcap=None):  # type: ignore[no-untyped-def]
    """ONNX Attention of keys of which the first of each batch item are there. Beside them causal is of a cache."""
    from attnspec.adapters import Unsupported

    if causal:
        raise Unsupported("beside lengths causal is that of a cache")
    options = {name: x for name, x in (("scale", scale), ("softcap", softcap)) if x is not None}
    return function(Q=q, K=k, V=v, nonpad_kv_seqlen=k_lengths.long(), **options)


def onnx_cache(  # type: ignore[no-untyped-def]
    function, q, k_cache, v_cache, lengths, *, k_new=None, v_new=None, causal=False, scale=None, softcap=None, window=None
):
    """ONNX Attention beside a past, of which each batch item has as much, or with a cache that holds the new keys already.

    Its present is the past and the new keys: these are the rows of the next call's cache.
    """
    from attnspec.adapters import Unsupported

    left, right = (-1 if side is None else side for side in window or (None, None))
    options: dict[str, Any] = {"left_window_size": (left, -1), "right_window_size": (right, -1), "is_causal": (int(causal), 0)}
    options |= {"scale": (scale, None), "softcap": (softcap, None)}
    given = {name: x for name, (x, default) in options.items() if x != default}
    if k_new is None:
        if window is not None and not causal and right:
            raise Unsupported("its window beside lengths is that of a cache, which is causal")
        o = function(
            **{name: x.transpose(1, 2) for name, x in (("Q", q), ("K", k_cache), ("V", v_cache))},
            nonpad_kv_seqlen=lengths.long(),
            **given,
        )
        return o.transpose(1, 2)
    if (lengths != lengths[:1]).any():
        raise Unsupported("its past is as long for each batch item")
    if k_new.shape[1] != q.shape[1] and (causal or window is not None):
        raise Unsupported("its first query stands behind the past")
    filled = int(lengths[0]) if len(lengths) else 0
    new, whole = filled + k_new.shape[1], {"Q": q, "K": k_new, "V": v_new}
    whole |= {"past_key": k_cache[:, :filled], "past_value": v_cache[:, :filled]}
    o, k_present, v_present = function(**{name: x.transpose(1, 2) for name, x in whole.items()}, **given)
    k_cache[:, :new], v_cache[:, :new] = k_present.transpose(1, 2), v_present.transpose(1, 2)
    return o.transpose(1, 2)


def onnxruntime_mha_lengths(function, q, k, v, k_lengths, *, scale=None):  # type: ignore[no-untyped-def]
    """com.microsoft MultiHeadAttention, whose key_padding_mask may be the number of each batch item's keys."""
    from attnspec.adapters import Unsupported

    if k.shape[1] != q.shape[1]:
        raise Unsupported("it has as many heads of keys as of queries")
    return function(query=q, key=k, value=v, key_padding_mask=k_lengths, **({} if scale is None else {"scale": scale}))


def onnxruntime_mha_cache(function, q, k_cache, v_cache, lengths, *, k_new=None, v_new=None, causal=False, scale=None):  # type: ignore[no-untyped-def]
    """com.microsoft MultiHeadAttention beside a past, of which each batch item has as much."""
    from attnspec.adapters import Unsupported

    if k_new is None or (lengths != lengths[:1]).any():
        raise Unsupported("it appends" if k_new is None else "its past is as long for each batch item")
    if k_new.shape[2] != q.shape[2] or v_new.shape[3] != q.shape[3]:
        raise Unsupported("its past has the heads and the width of its queries")
    if causal and k_new.shape[1] != q.shape[1]:
        raise Unsupported("its first query stands behind the past")
    filled = int(lengths[0]) if len(lengths) else 0
    new, given = filled + k_new.shape[1], {"query": q, "key": k_new, "value": v_new}
    given |= {"past_key": k_cache[:, :filled], "past_value": v_cache[:, :filled]}
    options = {"unidirectional": (int(causal), 0), "scale": (scale, None)}
    o, k_present, v_present = function(
        **{name: x.transpose(1, 2) for name, x in given.items()}, **{name: x for name, (x, off) in options.items() if x != off}
    )
    k_cache[:, :new], v_cache[:, :new] = k_present.transpose(1, 2), v_present.transpose(1, 2)
    return o.transpose(1, 2)


def onnxruntime_gqa_cache(  # type: ignore[no-untyped-def]
    function,
    q,
    k_cache,
    v_cache,
    lengths,
    *,
    k_new=None,
    v_new=None,
    causal=False,
    scale=None,
    softcap=None,
    window=None,
    sinks=None,
    cos=None,
    sin=None,
    interleaved=False,
    one_buffer=False,
):
    """com.microsoft GroupQueryAttention beside a past, in buffers with room for the new keys. Its lengths are those after
    the call, less 1.

    It has no call without new keys: where there are none, the last ones are given once more, as many as queries. Where past and
    present are not one buffer, rows behind the last key are no part of the present. Several queries of several batch items need
    query_seqlens. It turns by tables of cos and sin, whose rows are counted from the first of a slot.
    """
    import torch

    from attnspec.adapters import Unsupported

    left, right = window or (None, None)
    if right or (window is not None and not causal):
        raise Unsupported("its window ends with the query")
    a, total = q.shape[1], lengths
    if k_new is None:
        if (lengths < a).any():
            raise Unsupported("a call appends a key for each query")
        places = (lengths[:, None].long() - a + torch.arange(a, device=q.device))[..., None, None]
        k_new, v_new = (torch.take_along_dim(x, places, 1) for x in (k_cache, v_cache))
    elif k_new.shape[1] == a:
        total = lengths + a
    else:
        raise Unsupported("a call appends a key for each query")
    given = {"query": q.transpose(1, 2), "key": k_new.transpose(1, 2), "value": v_new.transpose(1, 2)}
    past = [x.transpose(1, 2).contiguous() for x in (k_cache, v_cache)]
    given |= {"past_key": past[0], "past_value": past[1], "seqlens_k": total - 1, "total_sequence_length": total.max()}
    if a > 1 and len(q) > 1:
        if not causal:
            raise Unsupported("query_seqlens are for causal alone")
        given["query_seqlens"] = torch.full_like(lengths, a)
    if sinks is not None:
        given["head_sink"] = sinks.to(q.dtype)
    if cos is not None:
        if q.shape[3] % 16:
            raise Unsupported("it turns where widths are multiples of 16")
        given |= {"cos": cos, "sin": sin, "do_rotary": 1, "rotary_interleaved": int(interleaved)}
    options = {"causal": (int(causal), 1), "local_window_size": (left, None), "scale": (scale, None), "softcap": (softcap, None)}
    o, *present = function(**given, **{name: x for name, (x, off) in options.items() if x != off}, one_buffer=one_buffer)
    for cache, x in zip((k_cache, v_cache), present, strict=True):
        if one_buffer:
            cache.copy_(x.transpose(1, 2))
            continue
        for n, rows in enumerate(total.tolist()):
            cache[n, :rows] = x[n, :, :rows].transpose(0, 1)
    return o.transpose(1, 2)


# WHAT IS KNOWN OF EACH

QUERIES = ("query", "key", "value")
CACHE = ("past_key", "past_value")
WINDOW, START = frozenset({"window", "window_right"}), frozenset({"q_start", "q_start_batch", "q_start_negative"})
LENGTHS = frozenset({"padded", "cached", "cached_append"})
# The operator's text says all of this but how heads are grouped, which the function that defines it says.
ATTENTION = Convention(
    name="ONNX Attention",
    of="onnx 1.23, the operator's text in opsets 23, 24 and 25",
    reading=Reading(arrays="numpy"),
    offers=frozenset({"gqa", "mqa", "value_width"}),
    restrictions=frozenset({"mask_or_bias"}),
    dialect={
        "causal_alignment": "top_left",
        "empty_row": "zero",
        "head_grouping": "blocked",
        "softcap_order": "before_bias",
        "window_count": "inclusive",
    },
    attend=onnx_attention,
    forms={"padded": onnx_lengths, "cached": onnx_cache},
)
REFERENCE = replace(ATTENTION, accuracy="D")  # its softmax is of primitives in the dtype of the call
MHA = Convention(
    name="com.microsoft MultiHeadAttention",
    of="onnxruntime 1.32, the operator's schema",
    reading=Reading(arrays="numpy"),
    offers=frozenset({"value_width"}),
    without=frozenset({"mask"}),  # of those that are not key padding it takes some
    restrictions=frozenset({"always_append"}),
    dialect={"causal_alignment": "top_left"},  # its source hides what is behind a query's own place from the first key on
    attend=onnxruntime_mha,
    forms={"padded": onnxruntime_mha_lengths, "cached": onnxruntime_mha_cache},
)
# Without a cache it has as many keys as queries. Its sinks have the dtype of the queries, and those of float16 hold few numbers: it
# is tested in float16 where that is asked for.
GQA = Convention(
    name="com.microsoft GroupQueryAttention",
    of="onnxruntime 1.32, the operator's schema",
    reading=Reading(arrays="numpy"),
    offers=frozenset({"gqa", "mqa"}),
    without=frozenset({"mask", "key_padding", "window_right"}),
    restrictions=frozenset({"equal_lengths", "always_causal"}),
    dtypes=("float32",),
    widths=(8, 16, 24, 32, 40, 64, 72, 80, 96, 128, 160, 192, 256),  # multiples of 8
    attend=onnxruntime_gqa,
)
# What "at or beyond T" its text calls unspecified is there, in one buffer, what it was.
CACHED = replace(
    GQA,
    name="com.microsoft GroupQueryAttention, with a past",
    without=GQA.without | {"backward", "rotary_any_width"},
    restrictions=frozenset({"always_causal", "always_append"}),
    attend=None,
    forms={"cached": onnxruntime_gqa_cache},
    variants={
        "past and present in one buffer": {"fixed": {"one_buffer": True}},
        "a present of its own": {"fixed": {"one_buffer": False}},
    },
)
BIDIRECTIONAL = replace(GQA, without=GQA.without | {"causal", "window"}, restrictions=frozenset({"equal_lengths"}))
FORWARD = frozenset({"backward", "bias_grad", "sinks_grad"})  # a model has no gradients


@dataclass(frozen=True)
class Node:
    """One operator in one runtime. flat: its attributes for heads, where it takes (b i h*d)."""

    runtime: str
    operator: tuple[str, str]
    order: tuple[str, ...]
    convention: Convention
    outputs: tuple[str, ...] = ("Y", "present_key", "present_value")
    flat: tuple[str, ...] = ()
    opset: int = 21


GROUPED: tuple[str, ...] = (
    *QUERIES,
    *CACHE,
    "seqlens_k",
    "total_sequence_length",
    "cos",
    "sin",
    "places",
    "attention_bias",
    "head_sink",
)
GROUPED += ("k_scale", "v_scale", "q_norm_weight", "k_norm_weight", "query_seqlens")
OWN = {
    "onnx-reference": Node(
        "onnx", ("Attention", ""), ("Q", "K", "V", "attn_mask", *CACHE, "nonpad_kv_seqlen"), REFERENCE, opset=25
    ),
    # The newest opset for which onnxruntime has a kernel: that of a newer one is the graph that defines it, of other operators.
    "onnxruntime": Node(
        "onnxruntime", ("Attention", ""), ("Q", "K", "V", "attn_mask", *CACHE, "nonpad_kv_seqlen"), ATTENTION, opset=24
    ),
    "onnxruntime-mha": Node(
        "onnxruntime",
        ("MultiHeadAttention", "com.microsoft"),
        (*QUERIES, "bias", "key_padding_mask", "attention_bias", *CACHE),
        MHA,
        flat=("num_heads",),
    ),
    "onnxruntime-gqa": Node(
        "onnxruntime",
        ("GroupQueryAttention", "com.microsoft"),
        GROUPED,
        GQA,
        flat=("num_heads", "kv_num_heads"),
    ),
    "onnxruntime-gqa-cache": Node(
        "onnxruntime",
        ("GroupQueryAttention", "com.microsoft"),
        GROUPED,
        CACHED,
        flat=("num_heads", "kv_num_heads"),
    ),
}


def nodes(name: str, kwargs: Mapping[str, Any]) -> list[Adapter]:
    """The shipped adapters of ONNX and onnxruntime. Raises ResolveError where a package is missing.

    kwargs: `opset` and, for ONNX's Attention, `rank`, 3 for (b i h*d); all others are attributes of the node in every call.
    """
    own, packages, fixed = OWN[name], ("onnx",) if name == "onnx-reference" else ("onnx", "onnxruntime"), dict(kwargs)
    needed(name, packages)
    opset, rank = fixed.pop("opset", own.opset), fixed.pop("rank", 4)
    convention = BIDIRECTIONAL if own.convention is GQA and fixed.get("causal") == 0 else own.convention
    without = convention.without | FORWARD
    if not own.operator[1]:
        without |= (WINDOW if opset < 25 else frozenset()) | (START | LENGTHS if opset < 24 else frozenset())
    flat = own.flat or (("q_num_heads", "kv_num_heads") if rank == 3 else ())
    settings = (own.runtime, (*own.operator, opset), own.order, own.outputs, flat, fixed)
    made = f"attend = partial(onnx_node, {', '.join(map(repr, settings))})"
    source = ("from functools import lru_cache, partial", "", "", *text(onnx_session), "", *text(onnx_node), "", "", made)
    adapters = adapted(partial(onnx_node, *settings), name, source, replace(convention, without=without))
    for adapter in adapters:
        adapter.version = ", ".join(f"{package} {metadata.version(package)}" for package in reversed(packages))
    return adapters


def text(function: Callable[..., Any]) -> list[str]:
    """The lines of a function, for a script."""
    return inspect.getsource(function).splitlines()


def needed(name: str, packages: tuple[str, ...]) -> None:
    """Raise ResolveError where a package is missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        some = " and ".join(missing)
        raise ResolveError(f"--impl={name} needs {some}: pip install {' '.join(missing)}")
