"""Attention implementations with one deliberate fault each: the suite must name every one of them.

A fault is a function of one ``Call``; ``@fault`` gives it torch SDPA's signature and enters it in ``FAULTY``, with the
function's name as its name and the first line of its docstring as the description. Most change one argument or one
result of an honest kernel; those inside the arithmetic use ``dense``, two of whose steps can be replaced. Invalid
arguments are refused by all but the ERROR faults. The faulty modules follow the convention of ``honest.Attend``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from honest import Attend, Plan, check, for_each_query_head, prepare, softmax, tiled, widen
from mutants.modules import FlashIgnoresLastKeysMask
from mutants.modules_2 import DropoutInEval
from mutants.modules_3 import NoGradFastPath
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Faulty:
    """An implementation with one fault."""

    name: str
    make: Callable[[], object]  # gives a fresh callable, or the nn.Module class
    chapter: str  # of the spec, whose tests must catch it
    source: str  # the public bug that it repeats, or ''
    what: str  # the fault in one sentence


@dataclass(frozen=True)
class Call:
    """The arguments of one call of SDPA."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float | None
    enable_gqa: bool

    def but(self, **changes: Any) -> Call:
        return replace(self, **changes)

    def run(self, kernel: Callable[..., Any] = tiled, **options: Any) -> Any:
        return kernel(**vars(self), **options)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the scores, ``(b h i j)``."""
        b, h, i, _ = self.query.shape
        return b, h, i, self.key.shape[2]

    @property
    def scale_in_use(self) -> float:
        return max(self.query.shape[3], 1) ** -0.5 if self.scale is None else self.scale

    @property
    def bool_mask(self) -> Tensor | None:
        return self.attn_mask if self.attn_mask is not None and self.attn_mask.dtype == torch.bool else None

    @property
    def float_mask(self) -> Tensor | None:
        return self.attn_mask if self.bool_mask is None else None


FAULTY: list[Faulty] = []


def with_sdpa_signature(attend: Callable[[Call], Tensor], checked: bool) -> Callable[..., Tensor]:
    def scaled_dot_product_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        call = Call(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        if checked:
            call.run(check)
        return attend(call)

    return scaled_dot_product_attention


def fault(chapter: str, source: str = "") -> Callable[[Any], Any]:
    """Enter in ``FAULTY`` a function of a call, a class whose objects are such functions, or a module class."""

    def enter(faulty: Any) -> Any:
        def make() -> object:
            if isinstance(faulty, type) and issubclass(faulty, Attend):
                return faulty
            attend = faulty() if isinstance(faulty, type) else faulty
            return with_sdpa_signature(attend, checked=chapter != "ERROR")

        what = (faulty.__doc__ or "").partition("\n")[0]
        FAULTY.append(Faulty(faulty.__name__, make, chapter, source, what))
        return faulty

    return enter


# TOOLS


def softmax_below(scores: Tensor, pivot: Tensor | float) -> Tensor:
    """Softmax that subtracts ``pivot`` from the scores, and gives zero where no key has weight."""
    weights = torch.exp(scores - pivot)
    total = weights.sum(-1, keepdim=True)
    return (weights / total.masked_fill(total == 0.0, 1.0)).masked_fill(scores == -inf, 0.0)


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *options: Any,
    normalise: Callable[[Tensor], Tensor] = softmax,
    dropout: Callable[[Tensor, Plan], Tensor] = lambda probabilities, plan: plan.thin_out(probabilities),
    **named_options: Any,
) -> Tensor:
    """Attention in float32 or wider with two steps that can be replaced."""
    plan = prepare(query, key, value, *options, **named_options)
    q, k, v = widen(query, key, value)
    return (dropout(normalise(plan.scores(q, k)), plan) @ v).to(query.dtype)


def with_gradient(tensor: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """The same tensor, whose gradient is edited on its way back."""
    view = tensor.view_as(tensor)
    if view.requires_grad:
        view.register_hook(edit)
    return view


def read_without_strides(tensor: Tensor) -> Tensor:
    """What a kernel reads that assumes contiguous memory; past the end of the storage it begins again."""
    if tensor.is_contiguous():
        return tensor
    storage = tensor.new_empty(0).set_(tensor.untyped_storage())
    places = torch.arange(tensor.numel(), device=tensor.device) + tensor.storage_offset()
    return storage[places % len(storage)].view(tensor.shape)


def run_with_causal(call: Call, diagonal: int) -> Tensor:
    """The call; if it is causal, key ``c`` is visible to row ``r`` where ``c <= r + diagonal``."""
    if not call.is_causal:
        return call.run()
    mask = torch.ones(call.shape[2:], dtype=torch.bool, device=call.query.device).tril(diagonal)
    return call.but(is_causal=False, attn_mask=mask).run()


# FAULTS, by chapter


@fault("SHAPE", "pytorch/pytorch#169222")
def tail_keys_dropped(call: Call) -> Tensor:
    """Keys after the last full block of 16 are not read, where there is a full block."""
    j = call.key.shape[2]
    full = max(j - j % 16, min(j, 16))
    mask = call.attn_mask
    if mask is not None and mask.ndim > 0 and mask.shape[-1] == j:
        mask = mask[..., :full]
    return call.but(key=call.key[:, :, :full], value=call.value[:, :, :full], attn_mask=mask).run()


@fault("SHAPE", "pytorch/pytorch#176767")
def output_in_query_width(call: Call) -> Tensor:
    """The output is allocated like the query, so a value width other than the query's is cut or padded with zeros."""
    return pad(call.run(), (0, call.query.shape[3] - call.value.shape[3]))


@fault("DTYPE")
def float32_for_bfloat16(call: Call) -> Tensor:
    """For bfloat16 inputs the accumulator is returned, in float32."""
    out = call.run()
    return out.float() if out.dtype == torch.bfloat16 else out


@fault("SCALE", "lucidrains/vit-pytorch#65")
def scale_from_model_width(call: Call) -> Tensor:
    """The default scale uses the width of all heads together."""
    _, h, _, d = call.query.shape
    return call.but(scale=max(h * d, 1) ** -0.5 if call.scale is None else call.scale).run()


@fault("SCALE", "pytorch/pytorch#174049")
def scale_ignored(call: Call) -> Tensor:
    """A given scale is replaced by the default."""
    return call.but(scale=None).run()


@fault("BIAS")
def bias_scaled(call: Call) -> Tensor:
    """A float mask is added before the scores are scaled, so it is scaled too."""
    if call.float_mask is None:
        return call.run()
    mask = (call.float_mask * call.scale_in_use).masked_fill(call.float_mask == -inf, -inf)
    return call.but(attn_mask=mask).run()


@fault("BIAS", "huggingface/transformers#38094")
def bias_cast_to_bool(call: Call) -> Tensor:
    """A float mask is cast to bool, so what is not zero may attend and what is zero is hidden."""
    return call.run() if call.float_mask is None else call.but(attn_mask=call.float_mask.bool()).run()


@fault("MASK", "InseeFrLab/torchTextClassifiers#92")
def mask_inverted(call: Call) -> Tensor:
    """A bool mask hides where it is True."""
    return call.run() if call.bool_mask is None else call.but(attn_mask=~call.bool_mask).run()


@fault("MASK", "tenstorrent/tt-metal#39910")
def padding_of_first_batch_item(call: Call) -> Tensor:
    """A key padding mask (b 1 1 j) is read from batch item 0 for all."""
    mask = call.attn_mask
    if mask is not None and mask.ndim == 4 and mask.shape[1] == mask.shape[2] == 1:
        mask = mask[:1]
    return call.but(attn_mask=mask).run()


@fault("MASK", "onnx/onnx#8108")
def rank_3_mask_per_batch_item(call: Call) -> Tensor:
    """A mask (h i j) is read as (b i j) where there are as many batch items as heads."""
    mask = call.attn_mask
    if mask is not None and mask.ndim == 3 and mask.shape[0] == call.query.shape[0]:
        mask = mask[:, None]
    return call.but(attn_mask=mask).run()


@fault("MASK", "microsoft/onnxruntime#18945")
def mask_as_prefix_length(call: Call) -> Tensor:
    """Of each row of a bool mask only the number of visible keys is used, as the length of a prefix."""
    if call.bool_mask is None:
        return call.run()
    mask = call.bool_mask.expand(call.shape)
    return call.but(attn_mask=torch.arange(call.shape[3], device=mask.device) < mask.sum(-1, keepdim=True)).run()


@fault("CAUSAL", "PaddlePaddle/flash-attention#48")
def causal_off_by_one(call: Call) -> Tensor:
    """A query does not see the key at its own position."""
    return run_with_causal(call, -1)


@fault("CAUSAL", "pytorch/executorch#22426")
def causal_bottom_right(call: Call) -> Tensor:
    """The last query sees the last key, where SDPA aligns the first query with the first key."""
    return run_with_causal(call, call.shape[3] - call.shape[2])


@fault("CAUSAL", "ml-explore/mlx#2967")
def causal_alignment_changes_with_more_keys(call: Call) -> Tensor:
    """Top-left while there are at least as many queries as keys, bottom-right otherwise."""
    return run_with_causal(call, max(call.shape[3] - call.shape[2], 0))


@fault("CAUSAL")
def causal_alignment_changes_with_more_queries(call: Call) -> Tensor:
    """Top-left while there are at least as many keys as queries, bottom-right otherwise."""
    return run_with_causal(call, min(call.shape[3] - call.shape[2], 0))


@fault("SOFTMAX")
def softmax_without_maximum(call: Call) -> Tensor:
    """Scores are exponentiated as they are, so large ones overflow."""
    return call.run(dense, normalise=lambda scores: softmax_below(scores, 0.0))


@fault("SOFTMAX", "flashinfer-ai/flashinfer#4267")
def softmax_maximum_starts_at_zero(call: Call) -> Tensor:
    """The running maximum starts at 0, so a row whose scores all lie far below it underflows to zero."""
    return call.run(dense, normalise=lambda scores: softmax_below(scores, pad(scores, (0, 1)).amax(-1, keepdim=True)))


@fault("EMPTY", "NVIDIA/apex#1390")
def empty_row_uniform(call: Call) -> Tensor:
    """Under a mask with its own rows for each batch item, a row without a key gets the mean of all values."""
    out, mask = call.run(), call.bool_mask
    if mask is None or mask.ndim < 4 or mask.shape[0] != call.query.shape[0]:
        return out
    mean = for_each_query_head(call.value, call.query.shape[1]).sum(2, keepdim=True) / max(call.key.shape[2], 1)
    return torch.where(mask.any(-1, keepdim=True), out, mean)


@fault("EMPTY", "pytorch/pytorch#103749")
def empty_row_nan(call: Call) -> Tensor:
    """The softmax of a row without a key is 0 / 0."""
    return call.run(dense, normalise=lambda scores: torch.softmax(scores, dim=-1))


@fault("SHARED")
def heads_interleaved(call: Call) -> Tensor:
    """Query head n uses key/value head n % g."""
    h, g = call.query.shape[1], call.key.shape[1]
    if g in (0, h):
        return call.run()
    head = torch.arange(h, device=call.query.device) % g
    return call.but(key=call.key[:, head], value=call.value[:, head]).run()


@fault("SHARED", "marin-community/levanter#449")
def group_gradient_not_summed(call: Call) -> Tensor:
    """The gradient of a shared key or value head is that of the first query head of its group."""
    h, g = call.query.shape[1], call.key.shape[1]
    if g in (0, h):
        return call.run()
    first = (torch.arange(h, device=call.query.device) % (h // g) == 0)[:, None, None]
    key, value = (
        with_gradient(for_each_query_head(x, h), lambda grad: grad.masked_fill(~first, 0.0)) for x in (call.key, call.value)
    )
    return call.but(key=key, value=value).run()


@fault("DROPOUT")
def dropout_not_rescaled(call: Call) -> Tensor:
    """The surviving probabilities are not divided by 1 - p."""
    return call.run(dense, dropout=lambda probabilities, plan: probabilities.masked_fill(plan.dropped, 0.0))


@fault("DROPOUT", "pytorch/pytorch#196586")
def dropout_redrawn_in_backward(call: Call) -> Tensor:
    """The backward uses a dropout pattern other than the forward's."""

    def dropout(probabilities: Tensor, plan: Plan) -> Tensor:
        in_backward = replace(plan, dropped=plan.dropped.flip(-1)).thin_out(probabilities)
        return in_backward + (plan.thin_out(probabilities) - in_backward).detach()

    return call.run(dense, dropout=dropout)


@fault("GRAD")
def gradient_without_delta(call: Call) -> Tensor:
    """The gradient of the scores is P * dP: the row sum of dO * O is not subtracted."""

    def normalise(scores: Tensor) -> Tensor:
        lse = torch.logsumexp(scores, dim=-1, keepdim=True).detach()
        return torch.exp(scores - lse.masked_fill(lse == -inf, 0.0))

    return call.run(dense, normalise=normalise)


@fault("GRAD")
def bias_gradient_averaged(call: Call) -> Tensor:
    """The gradient of a broadcast float mask is the mean over what it was broadcast to, not the sum."""
    if call.float_mask is None:
        return call.run()
    b, h, i, j = call.shape
    share = call.float_mask.numel() / max(b * h * i * j, 1)
    return call.but(attn_mask=with_gradient(call.float_mask, lambda grad: grad * share)).run()


@fault("GRAD", "pytorch/pytorch#148476")
def key_gradient_alone_wrong(call: Call) -> Tensor:
    """The gradient of the key is doubled if nothing else needs one."""
    others = (call.query, call.value, call.attn_mask)
    if any(x is not None and x.requires_grad for x in others):
        return call.run()
    return call.but(key=with_gradient(call.key, lambda grad: grad * 2)).run()


@fault("ACCURACY")
def float64_in_float32(call: Call) -> Tensor:
    """float64 inputs are computed in float32."""
    if call.query.dtype != torch.float64:
        return call.run()
    mask = call.attn_mask if call.float_mask is None else call.float_mask.float()
    narrow = call.but(query=call.query.float(), key=call.key.float(), value=call.value.float(), attn_mask=mask)
    return narrow.run().double()


@fault("ACCURACY")
def float32_with_bfloat16_probabilities(call: Call) -> Tensor:
    """For float32 inputs the probabilities pass through bfloat16."""
    if call.query.dtype != torch.float32:
        return call.run()
    return call.run(dense, normalise=lambda scores: softmax(scores).bfloat16().float())


@fault("LAYOUT", "pytorch/pytorch#163597")
def key_read_without_strides(call: Call) -> Tensor:
    """A key that is not contiguous is read as if it were."""
    return call.but(key=call.key + (read_without_strides(call.key) - call.key).detach()).run()


@fault("GRAD", "Dao-AILab/flash-attention#355")
def cotangent_read_without_strides(call: Call) -> Tensor:
    """A cotangent that is not contiguous is read as if it were."""
    return with_gradient(call.run(), read_without_strides)


@fault("PURITY", "PaddlePaddle/Paddle#55969")
def query_scaled_in_place(call: Call) -> Tensor:
    """The caller's query is scaled in place, and restored only if there is no mask."""
    out = call.but(query=call.query.clone()).run()
    if call.attn_mask is not None and call.query.is_contiguous():
        call.query.data.mul_(call.scale_in_use)
    return out


@fault("PURITY")
class AnswerCachedByShape:
    """A second call with the same shapes and dtype gets the answer of the first."""

    def __init__(self) -> None:
        self.answers: dict[object, Tensor] = {}

    def __call__(self, call: Call) -> Tensor:
        out = call.run()
        shapes = (out.dtype, *(x.shape for x in (call.query, call.key, call.value)))
        return out + (self.answers.setdefault(shapes, out.detach().clone()) - out).detach()


@fault("PURITY")
def output_is_the_value(call: Call) -> Tensor:
    """With one key and no options the output is a view of the value."""
    b, h, i, j = call.shape
    if j != 1 or h != call.value.shape[1] or call.attn_mask is not None or call.dropout_p:
        return call.run()
    out = call.run()
    out.data = call.value.data.expand(b, h, i, -1)
    return out


@fault("PURITY")
def global_generator_seeded(call: Call) -> Tensor:
    """Each call without dropout seeds torch's global generator."""
    if not call.dropout_p:
        torch.manual_seed(0)
    return call.run()


@fault("ERROR", "keras-team/keras#23040")
def mask_ignored_beside_causal(call: Call) -> Tensor:
    """With is_causal the mask is not read, and nothing is raised."""
    return call.but(attn_mask=None if call.is_causal else call.attn_mask).run()


@fault("ERROR")
def mismatched_lengths_cut(call: Call) -> Tensor:
    """If key and value differ in length, both are cut to the shorter."""
    j = min(call.key.shape[2], call.value.shape[2])
    return call.but(key=call.key[:, :, :j], value=call.value[:, :, :j]).run()


fault("MODE", "pytorch/pytorch#124464")(DropoutInEval)
fault("MODE")(FlashIgnoresLastKeysMask)
fault("MODE")(NoGradFastPath)
