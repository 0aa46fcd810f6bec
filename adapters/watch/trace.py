"""Which operators a call really ran, as torch's dispatcher records them: whether a kernel is behind a name or a switch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

# An attention in parts, or what hands a call on to a backend.
NO_KERNELS = ("scaled_dot_product_attention", "_scaled_dot_product_attention_math", "_scaled_dot_product_attention_math_for_mps")
PRODUCTS = ("mm", "bmm", "baddbmm", "matmul", "einsum")
# What hands numbers on as they are, or cast.
VIEWS: tuple[str, ...] = ("alias", "as_strided", "chunk", "detach", "expand", "expand_as", "flatten", "movedim", "narrow")
VIEWS += ("permute", "reshape", "slice", "split", "squeeze", "swapaxes", "t", "transpose", "unbind", "unflatten", "unsqueeze")
VIEWS += ("view", "view_as")
COPIES = ("clone", "contiguous", "repeat", "repeat_interleave", "to", "type_as")
WEIGHTS = ("softmax", "_softmax", "_safe_softmax", "exp", "exp_", "exp2", "exp2_")


@dataclass(frozen=True)
class Trace:
    """The operators of one call, each once and in order, "aten::bmm"; empty where none went through torch's dispatcher.

    disturbed: what the call changed of the global state, by name, in words.
    """

    operators: tuple[str, ...]
    refusal: str | None = None
    disturbed: Mapping[str, str] = field(default_factory=dict)

    @property
    def fused(self) -> tuple[str, ...]:
        """Operators that are a whole attention, or that torch does not define and nobody can say what they are."""
        return tuple(
            name
            for name in self.operators
            if ("attention" in name and name.partition("::")[2] not in NO_KERNELS) or not name.startswith("aten::")
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """Products and softmaxes of an attention that is computed step by step; empty unless there are both."""
        names = {name: name.partition("::")[2] for name in self.operators}
        if not all(set(names.values()) & set(kind) for kind in (PRODUCTS, WEIGHTS)):
            return ()
        return tuple(name for name, plain in names.items() if plain in (*NO_KERNELS[1:], *PRODUCTS, *WEIGHTS))

    @property
    def unfused(self) -> bool:
        """True where the attention was seen in parts, and in nothing else."""
        return bool(self.parts) and not self.fused

    def __str__(self) -> str:
        if self.refusal is not None:
            return f"did not run: {self.refusal}"
        if self.fused:
            return ", ".join(self.fused)
        return f"{', '.join(self.parts)}, and no fused kernel" if self.parts else ""


def operators(call: Callable[[], Any]) -> tuple[Any, tuple[str, ...]]:
    """What a call returns, and the operators that it ran."""
    returned, events = _recorded(call)
    names = dict.fromkeys(event.name for event in events)
    compiled = ("Torch-Compiled Region", "CompiledFunction", "## Call CompiledFxGraph")
    return returned, tuple(name for name in names if "::" in name or name.startswith(compiled))


def wholly(call: Callable[[], Any]) -> str:
    """The kernel of torch's scaled_dot_product_attention that is all of a call: "_scaled_dot_product_attention_math".

    It runs once, and what else runs beside it hands numbers on as they are. '' where the call does anything else.
    """
    _, events = _recorded(call)
    outer = [event.name for event in events if event.cpu_parent is None]
    attention = [name for name in outer if name.startswith(("aten::scaled_dot_product_", "aten::_scaled_dot_product_"))]
    kernels = [event.name for event in events if event.name.startswith("aten::_scaled_dot_product_")]
    others = (name for name in outer if name not in attention)
    if len(attention) != 1 or len(kernels) != 1 or not all(name.removeprefix("aten::") in (*VIEWS, *COPIES) for name in others):
        return ""
    return kernels[0].removeprefix("aten::")


def _recorded(call: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """What a call returns, and what torch's dispatcher recorded of it.

    The recording is that of torch's old profiler, which changes nothing in how the call runs (a dispatch mode would keep
    compiled code from being used), starts in a millisecond and prints nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is old
        from torch.autograd import profiler_legacy

        if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]  # somebody else's: there can be one
            return call(), []
        with profiler_legacy.profile() as profile:
            returned = call()
    return returned, list(profile.function_events or ())
