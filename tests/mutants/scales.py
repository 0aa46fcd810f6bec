"""Faults of the scale."""

from __future__ import annotations

from math import log2

import torch
from honest import Plan
from torch import Tensor

from mutants.base import Call, mutant
from mutants.tools import Keys, Steps, dense, softmax_below


def default(call: Call, scale: float) -> Tensor:
    """The call with another default."""
    return call.but(scale=scale if call.scale is None else call.scale).run()


@mutant("scale", "SCALE-1", "lucidrains/vit-pytorch#65")
def scale_from_model_width(call: Call) -> Tensor:
    """The default scale uses the width of all heads together."""
    _, h, _, d = call.query.shape
    return default(call, max(h * d, 1) ** -0.5)


@mutant("scale", "SCALE-1")
def scale_from_value_width(call: Call) -> Tensor:
    """The default scale uses the width of the values."""
    return default(call, max(call.value.shape[3], 1) ** -0.5)


@mutant("scale", "SCALE-1")
def scale_from_padded_width(call: Call) -> Tensor:
    """The default scale uses the width padded to a multiple of 8."""
    return default(call, max(-(-call.query.shape[3] // 8) * 8, 1) ** -0.5)


@mutant("scale", "SCALE-1")
def scale_from_padded_width_of_64(call: Call) -> Tensor:
    """The default scale uses the width padded to a multiple of 64 where it is above 16."""
    d = call.query.shape[3]
    return default(call, max(d if d <= 16 else -(-d // 64) * 64, 1) ** -0.5)


@mutant("scale", "SCALE-1")
def scale_one_over_width(call: Call) -> Tensor:
    """The default scale is 1/d."""
    return default(call, 1.0 / max(call.query.shape[3], 1))


@mutant("scale", "SCALE-1")
def scale_missing(call: Call) -> Tensor:
    """Without a given scale the scores are not scaled."""
    return default(call, 1.0)


@mutant("scale", "SCALE-1")
def scale_of_kv_heads(call: Call) -> Tensor:
    """With grouped heads the default scale uses the width d·g/h."""
    h, g, d = call.query.shape[1], call.key.shape[1], call.query.shape[3]
    return default(call, (max(d * g, 1) / max(h, 1)) ** -0.5)


@mutant("scale", "SCALE-1")
def scale_rounded_to_bfloat16(call: Call) -> Tensor:
    """The scale passes through bfloat16."""
    return call.but(scale=float(torch.tensor(call.scale_in_use).bfloat16())).run()


@mutant("scale", "ACCURACY-5")
def scale_off_by_a_thousandth(call: Call) -> Tensor:
    """In half inputs the scale is too large by a thousandth."""
    half = call.query.dtype in (torch.float16, torch.bfloat16)
    return call.but(scale=call.scale_in_use * (1.001 if half else 1.0)).run()


@mutant("scale", "SCALE-1")
def scale_in_base_two_off(call: Call) -> Tensor:
    """The scale for exp2 is the scale times 1.4427."""
    return call.but(scale=call.scale_in_use * (1.4427 * log2(2) / 1.4426950408889634)).run()


@mutant("scale", "SCALE-2", "pytorch/pytorch#174049")
def scale_ignored(call: Call) -> Tensor:
    """A given scale is replaced by the default."""
    return call.but(scale=None).run()


@mutant("scale", "SCALE-2", "alipay/PainlessInferenceAcceleration#22")
def scale_on_top(call: Call) -> Tensor:
    """A given scale is applied on top of the default."""
    d = max(call.query.shape[3], 1)
    return call.but(scale=None if call.scale is None else call.scale * d**-0.5).run()


@mutant("scale", "SCALE-2")
def scale_twice(call: Call) -> Tensor:
    """A given scale multiplies queries and keys."""
    return call.but(scale=None if call.scale is None else call.scale**2).run()


@mutant("scale", "SCALE-3")
def scale_zero_taken_for_default(call: Call) -> Tensor:
    """A scale of zero is taken for none."""
    return call.but(scale=call.scale or None).run()


@mutant("scale", "SCALE-3")
def scale_absolute(call: Call) -> Tensor:
    """The sign of a scale is lost."""
    return call.but(scale=None if call.scale is None else abs(call.scale)).run()


@mutant("scale", "SCALE-3")
def scale_negative_refused(call: Call) -> Tensor:
    """A scale that is not positive raises."""
    if call.scale is not None and call.scale <= 0:
        raise ValueError("scale must be positive")
    return call.run()


@mutant("scale", "SCALE-3")
def maximum_before_negative_scale(call: Call) -> Tensor:
    """The maximum is taken before a negative scale, and is the minimum after it."""
    if call.scale is None or call.scale >= 0:
        return call.run()

    def normalise(scores: Tensor) -> Tensor:
        seen = scores.masked_fill(scores == float("-inf"), float("inf"))
        return softmax_below(scores, seen.amin(-1, keepdim=True).nan_to_num(posinf=0.0))

    return call.run(dense, normalise=normalise)


@mutant("scale", "SCALE-2")
def scale_limited(call: Call) -> Tensor:
    """A scale above one half is one half."""
    return call.but(scale=None if call.scale is None else min(call.scale, 0.5)).run()


@mutant("scale", "SCALE-2")
def scale_forgotten_with_bias(call: Call) -> Tensor:
    """Beside a float mask a given scale is not used."""
    return call.run() if call.float_mask is None else call.but(scale=None).run()


@mutant("scale", "SCALE-2")
def scale_multiplies_output(call: Call) -> Tensor:
    """With a single key the output is multiplied by a given scale."""
    out = call.run()
    return out if call.scale is None or call.shape[3] != 1 else out * call.scale


@mutant("scale", "GRAD-1", "tile-ai/tilelang-ascend#1670")
class ScaleOfPaddedWidthInBackward(Steps):
    """Backward uses the default scale of the width padded to a multiple of 16."""

    def scaled(self, gradient: Tensor) -> Tensor:
        d = self.call.query.shape[3]
        return gradient * (self.plan.scale if self.call.scale is not None else (-(-d // 16) * 16) ** -0.5)


@mutant("scale", "GRAD-1")
class ScaleDefaultInBackward(Steps):
    """Backward multiplies with the default scale where another was given."""

    def scaled(self, gradient: Tensor) -> Tensor:
        return gradient * max(self.call.query.shape[3], 1) ** -0.5


@mutant("scale", "GRAD-1")
class ScaleMissingInDq(Steps):
    """dq lacks the scale."""

    def dq(self, ds: Tensor, keys: Keys) -> Tensor:
        return super().dq(ds, keys) / (self.plan.scale or 1.0)


@mutant("scale", "GRAD-2")
class ScaleMissingInDk(Steps):
    """dk lacks the scale."""

    def dk(self, ds: Tensor, keys: Keys) -> Tensor:
        return super().dk(ds, keys) / (self.plan.scale or 1.0)


@mutant("scale", "SCALE-2", "pytorch/pytorch#191203")
def scale_must_be_the_default(call: Call) -> Tensor:
    """A scale other than the default raises."""
    if call.scale is not None and call.scale != call.query.shape[3] ** -0.5:
        raise NotImplementedError("scale must be a constant")
    return call.run()


@mutant("scale", "SCALE-2")
def scale_applied_to_tail_twice(call: Call) -> Tensor:
    """Keys behind the last full 16 are scaled twice where a scale is given."""
    if call.scale is None or call.scale == 0:
        return call.run()

    def score(scores: Tensor, plan: Plan) -> Tensor:
        late = torch.arange(scores.shape[-1]) >= scores.shape[-1] // 16 * 16
        plain = scores - plan.bias.masked_fill(plan.bias == float("-inf"), 0.0)
        return torch.where(late & ~plan.hidden, scores + plain * (plan.scale - 1), scores)

    return call.run(dense, score=score)
