"""How a parameter asks for the lse, and which of several returned tensors it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from attnspec.adapters.conventions.wording import Wording
from attnspec.spec import Problem

# Parameters that ask for it, and what their documentation promises of its choices. flash-attention's names (return_attn_probs,
# return_softmax_lse) come with a natural one, which differs in its empty rows from path to path; flex_attention's and FlashInfer's
# share a name and no base; torch's varlen_attn and flex_attention take an AuxRequest.
NAMES: dict[str, dict[str, str]] = {
    "return_lse": {},
    "return_aux": {"lse_base": "e"},
    "return_softmax_lse": {"lse_base": "e"},
    "return_attn_probs": {"lse_base": "e"},
    "return_logsumexp": {},
    "return_residual": {"lse_base": "e"},
    "output_lse": {},
    "with_lse": {},
    "need_lse": {},
    "lse": {},
}
# Those whose lse has no gradient, as their authors say (flash-attention#404), or as their source shows (JAX stops it).
WITHOUT_GRADIENT = ("return_softmax_lse", "return_attn_probs", "return_residual")


@dataclass(frozen=True)
class Said(Wording):
    """How one parameter asks for the lse. request: what is passed, True or the object that the annotation names."""

    name: str
    request: Any = True

    @classmethod
    def of(cls, parameter: inspect.Parameter, function: Callable[..., Any] | None = None) -> Said:
        """Read a parameter: its name, and whether it takes an object of its own."""
        noted = "" if parameter.annotation is parameter.empty else str(parameter.annotation)
        if parameter.name != "return_aux" and "AuxRequest" not in noted:
            return cls(parameter.name)
        kind = getattr(import_module(getattr(function, "__module__", "torch")), "AuxRequest", None)
        return cls(parameter.name, True if kind is None else kind(lse=True))

    @property
    def features(self) -> frozenset[str]:
        """Whether a gradient may go through it; a plain call shows whether one does."""
        return frozenset() if self.name in WITHOUT_GRADIENT else frozenset({"lse_grad"})

    @property
    def dialect(self) -> Mapping[str, str]:
        """The choices that its documentation makes."""
        return NAMES[self.name]

    def value(self, problem: Problem) -> Any:
        """What asks for it."""
        return self.request


class Returned:
    """Picks output and lse out of what a call returns: the output comes first, and the lse is found by its shape.

    It is (b h i), or (b i h) where the first lse that can tell came so; that stays for all calls.
    """

    def __init__(self) -> None:
        self.turned: bool | None = None

    def pick(self, returned: Any, q: Tensor) -> Any:
        """(o, lse (b h i)); what was returned as it is where no lse is found in it."""
        if not isinstance(returned, tuple | list) or len(returned) < 2:
            return returned
        o, *others = returned
        found = [x for y in others for x in ((y.lse,) if hasattr(y, "lse") else (y,)) if isinstance(x, Tensor)]
        shape = tuple(q.shape[:3])
        turned = (shape[0], shape[2], shape[1])
        if self.turned is None and shape != turned:
            seen = {tuple(x.shape) for x in found}
            self.turned = True if turned in seen and shape not in seen else False if shape in seen else None
        own = next((x for x in found if tuple(x.shape) == (turned if self.turned else shape)), found[0] if found else None)
        if own is None:
            return returned
        return o, own.transpose(1, 2) if self.turned and own.ndim == 3 else own


def picked(called: Callable[..., Any], returned: Returned, q: Tensor) -> Callable[..., Any]:
    """The same function, which returns output and lse."""

    def both(**arguments: Any) -> Any:
        return returned.pick(called(**arguments), q)

    return both
