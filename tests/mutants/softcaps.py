"""Faults of the soft cap: what is capped, where, by how much, and what of it backward has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor

from mutants.base import Call, mutant
from mutants.tools import Keys, Steps


@dataclass(frozen=True)
class CappedCall(Call):
    """The arguments of one call of SDPA, and a soft cap."""

    softcap: float | None = None

    def run(self, kernel: Callable[..., Any] | None = None, **options: Any) -> Any:
        """The honest kernel on the call; any other one without its cap."""
        if kernel is None:
            return Honest()(self)
        given = {name: x for name, x in vars(self).items() if name != "softcap"}
        return kernel(**given, **options)

    @property
    def cap(self) -> float:
        return inf if self.softcap is None else self.softcap


class Honest(Steps):
    """The tiled kernel with a soft cap, and nothing wrong with it. c is the cap that is in use; inf is none."""

    call: CappedCall

    def cap(self) -> float:
        cap = self.call.softcap
        return inf if cap is None or cap <= 0 else cap

    def product(self, keys: Keys) -> Tensor:
        return self.q @ self.k[:, :, keys].mT * self.plan.scale

    def bias(self, keys: Keys) -> Tensor:
        bias = self.plan.bias.masked_fill(self.plan.bias == -inf, 0.0).to(self.q.dtype)
        return bias.expand_as(self.plan.hidden)[..., keys]

    def tanh(self, y: Tensor, c: float) -> Tensor:
        return torch.tanh(y)

    def capped(self, z: Tensor, keys: Keys) -> Tensor:
        c = self.cap()
        return z if c == inf else c * self.tanh(z / c, c)

    def scores(self, keys: Keys) -> Tensor:
        scores = self.capped(self.product(keys), keys) + self.bias(keys)
        return scores.masked_fill(self.plan.hidden[..., keys], -inf)

    def slope(self, keys: Keys) -> Tensor | float:
        c = self.cap()
        return 1.0 if c == inf else 1 - torch.tanh(self.product(keys) / c) ** 2

    def dq(self, ds: Tensor, keys: Keys) -> Tensor:
        return super().dq(self.rounded(ds * self.slope(keys)), keys)

    def dk(self, ds: Tensor, keys: Keys) -> Tensor:
        return super().dk(self.rounded(ds * self.slope(keys)), keys)


def with_softcap(attend: Callable[[CappedCall], Tensor], checked: bool = True) -> Callable[..., Tensor]:
    """A function of a call as one with torch SDPA's parameters and `softcap`."""

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        softcap: float | None = None,
    ) -> Tensor:
        return attend(CappedCall(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, softcap))

    return run


def capped(clause: str, source: str = "", *, witness: Callable[[Any], bool] | None = None) -> Callable[[Any], Any]:
    """Enter a mutant: a class of functions of a ``CappedCall``, a fresh one for each make, or one such function."""

    return mutant("softcap", clause, source, signed=with_softcap, witness=witness)


# WHETHER IT IS APPLIED


@capped("SOFTCAP-1", "flashinfer-ai/flashinfer#1193 vllm-project/vllm#7419 microsoft/onnxruntime-genai#692")
class SoftcapIgnored(Honest):
    """The soft cap is accepted and not applied."""

    def cap(self) -> float:
        return inf


def ignored(name: str, clause: str, what: str, where: Callable[[CappedCall], bool], source: str = "") -> None:
    """Enter a mutant that ignores the cap in some calls."""

    class Ignored(Honest):
        def cap(self) -> float:
            return inf if where(self.call) else super().cap()

    Ignored.__name__, Ignored.__doc__ = name, what
    capped(clause, source)(Ignored)


ignored(
    "SoftcapIgnoredInDecode",
    "SOFTCAP-1",
    "A single query has no soft cap.",
    lambda call: call.shape[2] == 1,
    "vllm-project/vllm-metal#665",
)
ignored(
    "SoftcapIgnoredBesideBias", "SOFTCAP-3", "Beside a float mask there is no soft cap.", lambda call: call.float_mask is not None
)
ignored(
    "SoftcapIgnoredBesideMask", "SOFTCAP-6", "Beside a bool mask there is no soft cap.", lambda call: call.bool_mask is not None
)
ignored("SoftcapIgnoredInCausal", "SOFTCAP-6", "Under causal there is no soft cap.", lambda call: call.is_causal)
ignored(
    "SoftcapIgnoredAtNegativeScale",
    "SOFTCAP-10",
    "Under a negative scale there is no soft cap.",
    lambda call: call.scale_in_use < 0,
)
ignored(
    "SoftcapIgnoredForGroups",
    "SOFTCAP-1",
    "Where heads share keys there is no soft cap.",
    lambda call: call.key.shape[1] < call.shape[1],
)
ignored("SoftcapIgnoredInHalf", "SOFTCAP-1", "In bfloat16 there is no soft cap.", lambda call: call.query.dtype == torch.bfloat16)
ignored("SoftcapIgnoredBelowOne", "SOFTCAP-1", "A soft cap below one is taken for none.", lambda call: call.cap < 1)
ignored("SoftcapIgnoredAt17Keys", "SOFTCAP-1", "With 17 keys there is no soft cap.", lambda call: call.shape[3] == 17)


@capped("SOFTCAP-1")
class SoftcapOfFirstHeadAlone(Honest):
    """Heads behind the first have no soft cap."""

    def capped(self, z: Tensor, keys: Keys) -> Tensor:
        return torch.cat([super().capped(z, keys)[:, :1], z[:, 1:]], 1)

    def slope(self, keys: Keys) -> Tensor | float:
        slope = super().slope(keys)
        return torch.cat([slope[:, :1], torch.ones_like(slope[:, 1:])], 1) if isinstance(slope, Tensor) else slope


@capped("SOFTCAP-1")
class SoftcapOfFirstBlockAlone(Honest):
    """Keys behind the first block of 64 have no soft cap."""

    def capped(self, z: Tensor, keys: Keys) -> Tensor:
        return super().capped(z, keys) if keys.start < 64 else z

    def slope(self, keys: Keys) -> Tensor | float:
        return super().slope(keys) if keys.start < 64 else 1.0


@capped("SOFTCAP-1")
class SoftcapOfTailLost(Honest):
    """The last, partial block of keys has no soft cap."""

    def capped(self, z: Tensor, keys: Keys) -> Tensor:
        return super().capped(z, keys) if z.shape[-1] == self.block else z

    def slope(self, keys: Keys) -> Tensor | float:
        return super().slope(keys) if (keys.stop - keys.start) == self.block else 1.0


# WHAT IT IS


@capped("SOFTCAP-1")
class SoftcapClamps(Honest):
    """Scores are cut off at the cap."""

    def capped(self, z: Tensor, keys: Keys) -> Tensor:
        return z.clamp(-self.cap(), self.cap())

    def slope(self, keys: Keys) -> Tensor | float:
        return (self.product(keys).abs() < self.cap()).to(self.q.dtype)


@capped("SOFTCAP-1", "Dao-AILab/flash-attention#2402")
class SoftcapNotDivided(Honest):
    """tanh meets the score, not its quotient by the cap."""

    def capped(self, z: Tensor, keys: Keys) -> Tensor:
        return z if self.cap() == inf else self.cap() * torch.tanh(z)

    def slope(self, keys: Keys) -> Tensor | float:
        return 1.0 if self.cap() == inf else self.cap() * (1 - torch.tanh(self.product(keys)) ** 2)


@capped("SOFTCAP-1")
class SoftcapNotMultiplied(Honest):
    """tanh is not multiplied by the cap."""

    def capped(self, z: Tensor, keys: Keys) -> Tensor:
        return z if self.cap() == inf else torch.tanh(z / self.cap())

    def slope(self, keys: Keys) -> Tensor | float:
        return 1.0 if self.cap() == inf else super().slope(keys) / self.cap()


@capped("SOFTCAP-1")
class SoftcapBeforeScale(Honest):
    """The product is capped before it is scaled."""

    def capped(self, z: Tensor, keys: Keys) -> Tensor:
        scale = self.plan.scale
        return z if scale == 0 else super().capped(z / scale, keys) * scale

    def slope(self, keys: Keys) -> Tensor | float:
        c, scale = self.cap(), self.plan.scale
        return 1.0 if c == inf or scale == 0 else 1 - torch.tanh(self.product(keys) / scale / c) ** 2


@capped("SOFTCAP-1")
class SoftcapTwice(Honest):
    """The soft cap is applied twice."""

    def capped(self, z: Tensor, keys: Keys) -> Tensor:
        return super().capped(super().capped(z, keys), keys)

    def slope(self, keys: Keys) -> Tensor | float:
        c = self.cap()
        return 1.0 if c == inf else super().slope(keys) * (1 - torch.tanh(torch.tanh(self.product(keys) / c)) ** 2)


@capped("SOFTCAP-2", "vllm-project/vllm#56579")
class SoftcapOverflows(Honest):
    """tanh y is (e^y − e^−y)/(e^y + e^−y), which is NaN as soon as e^y is infinite."""

    def tanh(self, y: Tensor, c: float) -> Tensor:
        return (y.exp() - (-y).exp()) / (y.exp() + (-y).exp())


@capped("SOFTCAP-2")
class SoftcapOneSided(Honest):
    """tanh y is 1 − 2/(e^2y + 1), with the exponential limited to e^8."""

    def tanh(self, y: Tensor, c: float) -> Tensor:
        return 1 - 2 / ((2 * y).exp().clamp(max=2981.0) + 1)


@capped("SOFTCAP-1")
class SoftcapEven(Honest):
    """Of a negative score the tanh of its size is used where it is beyond the cap."""

    def tanh(self, y: Tensor, c: float) -> Tensor:
        return torch.tanh(torch.where(y < -1, -y, y))


@capped("SOFTCAP-8")
class SoftcapLimited(Honest):
    """A soft cap above 100 is 100."""

    def cap(self) -> float:
        return min(super().cap(), 100.0) if self.call.softcap is not None else inf


@capped("SOFTCAP-1")
class SoftcapInHalf(Honest):
    """The soft cap passes through bfloat16."""

    def cap(self) -> float:
        return float(torch.tensor(super().cap()).bfloat16())


# WHERE IT STANDS


@capped("SOFTCAP-6", "onnx/onnx#7865")
class SoftcapAfterMask(Honest):
    """What is hidden is −∞ before the cap, and −c after it."""

    def scores(self, keys: Keys) -> Tensor:
        hidden = self.plan.hidden[..., keys]
        scores = self.capped((self.product(keys)).masked_fill(hidden, -inf), keys)
        return scores + self.bias(keys)


@capped("SOFTCAP-6")
class SoftcapLetsBiasThrough(Honest):
    """−∞ in a float mask goes through the cap; a bool mask and causal hide."""

    def scores(self, keys: Keys) -> Tensor:
        scores, c = super().scores(keys), self.cap()
        if self.call.float_mask is None or c == inf:
            return scores
        return scores.masked_fill((self.plan.bias == -inf).expand_as(self.plan.hidden)[..., keys], -c)


@capped("SOFTCAP-5", "onnx/onnx#7865")
class SoftcapOrderChangesInDecode(Honest):
    """With a single query the bias is capped, too."""

    def scores(self, keys: Keys) -> Tensor:
        if self.call.shape[2] > 1:
            return super().scores(keys)
        return self.capped(self.product(keys) + self.bias(keys), keys).masked_fill(self.plan.hidden[..., keys], -inf)

    def slope(self, keys: Keys) -> Tensor | float:
        c = self.cap()
        if self.call.shape[2] > 1 or c == inf:
            return super().slope(keys)
        return 1 - torch.tanh((self.product(keys) + self.bias(keys)) / c) ** 2


# BACKWARD


@capped("SOFTCAP-7", "Dao-AILab/flash-attention#2402")
class SoftcapSlopeMissing(Honest):
    """dq and dk lack the slope of the cap."""

    def slope(self, keys: Keys) -> float:
        return 1.0


@capped("SOFTCAP-7")
class SoftcapSlopeMissingInDk(Honest):
    """dk lacks the slope of the cap."""

    def dk(self, ds: Tensor, keys: Keys) -> Tensor:
        return Steps.dk(self, ds, keys)


@capped("SOFTCAP-7")
class SoftcapSlopeMissingInDq(Honest):
    """dq lacks the slope of the cap."""

    def dq(self, ds: Tensor, keys: Keys) -> Tensor:
        return Steps.dq(self, ds, keys)


@capped("SOFTCAP-7")
class SoftcapSlopeTwice(Honest):
    """dq and dk have the slope of the cap twice."""

    def slope(self, keys: Keys) -> Tensor | float:
        return super().slope(keys) ** 2


@capped("SOFTCAP-7")
class SoftcapSlopeOfScore(Honest):
    """The slope is 1 − s² instead of 1 − (s/c)²."""

    def slope(self, keys: Keys) -> Tensor | float:
        return 1.0 if self.cap() == inf else 1 - self.capped(self.product(keys), keys) ** 2


@capped("SOFTCAP-7")
class SoftcapSlopeOfTailMissing(Honest):
    """Keys behind the last full block of 16 lack the slope in backward."""

    def slope(self, keys: Keys) -> Tensor | float:
        return super().slope(keys) if keys.stop - keys.start == self.block else 1.0


@capped("SOFTCAP-7")
class SoftcapSlopeOfFirstHead(Honest):
    """All heads have the slope of the first one."""

    def slope(self, keys: Keys) -> Tensor | float:
        slope = super().slope(keys)
        return slope[:, :1].expand_as(slope) if isinstance(slope, Tensor) else slope


@capped("SOFTCAP-7")
class SoftcapSlopeInBiasGradient(Honest):
    """The gradient of the bias has the slope, too."""

    def dscores(self, p: Tensor, dp: Tensor, delta: Tensor, keys: Keys) -> Tensor:
        return super().dscores(p, dp, delta, keys) * super().slope(keys)

    def slope(self, keys: Keys) -> float:
        return 1.0


@capped("SOFTCAP-7")
class SoftcapIgnoredInBackwardBesideBias(Honest):
    """Beside a float mask backward recomputes the scores without the cap."""

    def backward_scores(self, keys: Keys) -> Tensor:
        if self.call.float_mask is None:
            return self.scores(keys)
        return (self.product(keys) + self.bias(keys)).masked_fill(self.plan.hidden[..., keys], -inf)


# CALL AFTER CALL


def caps_mixed(attend: Callable[..., Tensor]) -> bool:
    """Whether a call with another cap, or without one, gives what the call before it gave."""
    x = torch.linspace(-3, 3, 24).reshape(1, 1, 3, 8)
    answers = [attend(x, x, x, softcap=cap) for cap in (0.7, 50.0, None)]
    return any(torch.equal(one, other) for one, other in pairwise(answers))


@capped("SOFTCAP-9", "Dao-AILab/flash-attention#2402", witness=caps_mixed)
class SoftcapOfFirstCall(Honest):
    """A kernel is kept for each shape and dtype with the cap that it was compiled for."""

    def __init__(self) -> None:
        self.compiled: dict[Any, float] = {}

    def cap(self) -> float:
        key = self.call.shape, self.call.query.dtype
        own = super().cap()
        return own if own == inf else self.compiled.setdefault(key, own)


@capped("SOFTCAP-9", witness=caps_mixed)
class SoftcapStays(Honest):
    """A call without a cap has that of the last call in its shape that had one."""

    def __init__(self) -> None:
        self.last: dict[Any, float] = {}

    def cap(self) -> float:
        key, own = (self.call.shape, self.call.query.dtype), super().cap()
        if own != inf:
            self.last[key] = own
        return self.last.get(key, inf)


# NO CAP


def divides_by_it(attend: Callable[..., Tensor]) -> bool:
    """Whether a cap of zero is neither refused nor taken for none."""
    x = torch.linspace(-3, 3, 24).reshape(1, 1, 3, 8)
    try:
        return not torch.equal(attend(x, x, x, softcap=0.0), attend(x, x, x))
    except (ValueError, RuntimeError):
        return False


@capped("SOFTCAP-11", witness=divides_by_it)
class SoftcapOfZeroIsNaN(Honest):
    """Whatever number is given is a cap."""

    def cap(self) -> float:
        return inf if self.call.softcap is None else self.call.softcap

    def capped(self, z: Tensor, keys: Keys) -> Tensor:
        c = self.cap()
        return z if c == inf else c * torch.tanh(z / torch.tensor(c, dtype=z.dtype))
