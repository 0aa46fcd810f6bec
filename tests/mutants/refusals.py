"""Faults of errors and modes, and mutants so wrong that nothing may be measured where they survive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mutants.base import Call, mutant
from mutants.tools import with_gradient


def accepts(*shapes: tuple[int, ...], **options: Any):
    """A witness: q, k, v (and a mask) of these shapes, which must be refused, are answered."""

    def shows(attend: Any) -> bool:
        q, k, v = (torch.ones(shape) for shape in shapes[:3])
        try:
            attend(q, k, v, **{n: make() if callable(make) else make for n, make in options.items()})
        except Exception:
            return False
        return True

    return shows


@mutant("error", "ERROR-1", "keras-team/keras#23040")
def mask_ignored_beside_causal(call: Call) -> Tensor:
    """With is_causal the mask is not read, and nothing is raised."""
    return call.but(attn_mask=None if call.is_causal else call.attn_mask).run()


@mutant("error", "ERROR-1", "AI-Hypercomputer/maxtext#878")
def causal_ignored_beside_mask(call: Call) -> Tensor:
    """With a mask is_causal is not read, and nothing is raised."""
    return call.but(is_causal=call.is_causal and call.attn_mask is None).run()


@mutant("error", "ERROR-2", witness=accepts((1, 1, 2, 4), (1, 1, 5, 4), (1, 1, 4, 4)))
def mismatched_lengths_cut(call: Call) -> Tensor:
    """If key and value differ in length, both are cut to the shorter."""
    j = min(call.key.shape[2], call.value.shape[2])
    return call.but(key=call.key[:, :, :j], value=call.value[:, :, :j]).run()


@mutant("error", "ERROR-2", witness=accepts((1, 1, 2, 4), (1, 1, 4, 4), (1, 1, 5, 4)))
def surplus_values_cut(call: Call) -> Tensor:
    """Values beyond the last key are not read."""
    return call.but(value=call.value[:, :, : call.key.shape[2]]).run()


@mutant("error", "ERROR-2", witness=accepts((1, 1, 2, 4), (1, 1, 5, 3), (1, 1, 5, 4)))
def narrow_keys_padded(call: Call) -> Tensor:
    """Keys narrower than queries are filled with zeros."""
    missing = max(call.query.shape[3] - call.key.shape[3], 0)
    return call.but(key=torch.nn.functional.pad(call.key, (0, missing))).run()


@mutant("error", "ERROR-2", "pytorch/pytorch#139462", witness=accepts((3, 1, 2, 4), (2, 1, 5, 4), (2, 1, 5, 4)))
def batch_wraps_around(call: Call) -> Tensor:
    """Where there are fewer batch items of keys than of queries they begin again."""
    b = call.query.shape[0]
    at = torch.arange(b) % max(call.key.shape[0], 1)
    return call.but(key=call.key[at], value=call.value[at]).run()


@mutant("error", "ERROR-2", witness=accepts((1, 5, 2, 4), (1, 3, 5, 4), (1, 3, 5, 4), enable_gqa=True))
def head_counts_wrap_around(call: Call) -> Tensor:
    """Query heads that do not divide among the key/value heads use n mod g."""
    h, g = call.query.shape[1], call.key.shape[1]
    if not g or h % g == 0:
        return call.run()
    at = torch.arange(h) % g
    return call.but(key=call.key[:, at], value=call.value[:, at]).run()


@mutant(
    "error", "ERROR-2", witness=accepts((1, 1, 2, 4), (1, 1, 5, 4), (1, 1, 5, 4), attn_mask=lambda: torch.ones(1, 1, 1, 4).bool())
)
def short_mask_filled(call: Call) -> Tensor:
    """A mask shorter than the keys is filled up with False."""
    mask, j = call.attn_mask, call.key.shape[2]
    if mask is None or mask.ndim == 0 or mask.shape[-1] in (1, j) or mask.shape[-1] > j:
        return call.run()
    return call.but(attn_mask=torch.nn.functional.pad(mask, (0, j - mask.shape[-1]))).run()


@mutant("error", "ERROR-2", witness=accepts((1, 1, 5, 4), (1, 1, 7, 4), (1, 1, 7, 4), attn_mask=lambda: torch.zeros(4, 7)))
def rows_of_bias_repeated(call: Call) -> Tensor:
    """A bias with fewer rows than queries has its last row repeated."""
    bias, i = call.float_mask, call.query.shape[2]
    if bias is None or bias.ndim < 2 or bias.shape[-2] in (1, i) or bias.shape[-2] > i:
        return call.run()
    return call.but(attn_mask=torch.cat([bias, bias[..., -1:, :].expand(*bias.shape[:-2], i - bias.shape[-2], -1)], -2)).run()


@mutant("error", "ERROR-4", witness=accepts((1, 1, 2, 4), (1, 1, 5, 4), (1, 1, 5, 4), dropout_p=1.5))
def rates_clamped(call: Call) -> Tensor:
    """A dropout rate outside of 0 … 1 is brought inside."""
    return call.but(dropout_p=min(max(call.dropout_p, 0.0), 1.0)).run()


@mutant("error", "ERROR-1", "pytorch/pytorch#188322")
def dropout_ignored_beside_mask(call: Call) -> Tensor:
    """Beside a mask nothing is dropped."""
    return call.but(dropout_p=0.0 if call.attn_mask is not None else call.dropout_p).run()


# MODES


def recorded(call: Call) -> bool:
    """Whether a gradient can be asked for."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in (call.query, call.key, call.value))


@mutant("mode", "MODE-1", "pytorch/pytorch#107084")
def bias_read_as_bool_in_no_grad(call: Call) -> Tensor:
    """Where nothing is recorded a float mask hides where it is not zero."""
    if recorded(call) or call.float_mask is None or call.float_mask.requires_grad:
        return call.run()
    return call.but(attn_mask=call.float_mask == 0).run()


@mutant("mode", "MODE-1")
def inference_mode_unscaled(call: Call) -> Tensor:
    """Under inference_mode the default scale is one."""
    return call.but(scale=1.0 if torch.is_inference_mode_enabled() and call.scale is None else call.scale).run()


@mutant("mode", "MODE-1")
def no_grad_path_drops_tail(call: Call) -> Tensor:
    """Under no_grad the last of more than one key is not read."""
    if torch.is_grad_enabled() or call.shape[3] < 2 or call.attn_mask is not None:
        return call.run()
    return call.but(key=call.key[:, :, :-1], value=call.value[:, :, :-1]).run()


@mutant("mode", "MODE-1")
def frozen_inputs_in_half(call: Call) -> Tensor:
    """Where no input requires a gradient float32 is computed in bfloat16."""
    if any(x.requires_grad for x in (call.query, call.key, call.value)) or call.query.dtype != torch.float32:
        return call.run()
    mask = call.attn_mask if call.float_mask is None else call.float_mask.bfloat16()
    half = {n: getattr(call, n).bfloat16() for n in ("query", "key", "value")}
    return call.but(**half, attn_mask=mask).run().float()


@mutant("mode", "MODE-1")
def gradients_lost_with_frozen_query(call: Call) -> Tensor:
    """Where the query requires no gradient nothing is recorded."""
    if call.query.requires_grad:
        return call.run()
    with torch.no_grad():
        return call.run()


@mutant("mode", "MODE-4", "pytorch/pytorch#99012")
def autocast_refuses_bias(call: Call) -> Tensor:
    """Under autocast a float mask raises."""
    if torch.is_autocast_enabled("cpu") and call.float_mask is not None:
        raise RuntimeError("expected attn_mask to have the dtype of the query")
    return call.run()


@mutant("mode", "MODE-4")
def autocast_in_fp8(call: Call) -> Tensor:
    """Under autocast queries and keys pass through fp8."""
    if not torch.is_autocast_enabled("cpu"):
        return call.run()
    query, key = (x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) for x in (call.query, call.key))
    return call.but(query=query, key=key).run()


@mutant("mode", "MODE-5", "pytorch/pytorch#195320 pytorch/pytorch#180445")
def compiled_without_scale(call: Call) -> Tensor:
    """Under torch.compile the default scale is one."""
    return call.but(scale=1.0 if torch.compiler.is_compiling() and call.scale is None else call.scale).run()


# CONTROLS


@mutant("control", "SOFTMAX-1")
def control_zeros(call: Call) -> Tensor:
    """The output is zero."""
    return call.run() * 0


@mutant("control", "SOFTMAX-1")
def control_nan(call: Call) -> Tensor:
    """The output is NaN."""
    return call.run() * float("nan")


@mutant("control", "SOFTMAX-1")
def control_mean(call: Call) -> Tensor:
    """The output is the mean of the visible values."""
    return call.but(query=call.query * 0).run()


@mutant("control", "GRAD-1")
def control_gradients_zero(call: Call) -> Tensor:
    """All gradients are zero."""
    return with_gradient(call.run(), torch.zeros_like)


@mutant("control", "SHAPE-1")
def control_wrong_shape(call: Call) -> Tensor:
    """The output lacks its first axis."""
    return call.run().flatten(0, 1)


@mutant("control", "ERROR-1")
def control_raises(call: Call) -> Tensor:
    """Every call with more than eight queries raises."""
    if call.shape[2] > 8:
        raise RuntimeError("not implemented")
    return call.run()
