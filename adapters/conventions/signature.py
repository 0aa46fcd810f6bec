"""A signature, read: which parameter is which input, and what no convention covers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from attnspec.adapters.conventions import lses, starts, windows
from attnspec.adapters.conventions.wording import Wording
from attnspec.spec import OPTIONS, SCALARS

PARAMETERS: dict[str, tuple[str, ...]] = {
    "q": ("q", "query", "queries"),
    "k": ("k", "key", "keys"),
    "v": ("v", "value", "values"),
    "mask": ("mask", "attn_mask", "attention_mask"),
    "bias": ("attn_bias", "bias", "attention_bias"),
    "causal": ("causal", "is_causal"),
    "scale": ("scale", "sm_scale", "softmax_scale"),
    "softcap": (
        "softcap",
        "soft_cap",
        "logits_soft_cap",
        "logits_softcap",
        "attn_logits_soft_cap",
        "attn_logit_softcapping",
        "attn_softcap",
        "attention_softcap",
        "softcapping",
        "logit_cap",
        "logits_cap",
    ),
    "window": windows.NAMES,
    "lse": tuple(lses.NAMES),
    # No `alibi`: that is a flag, the slopes, or, in models, all that they add.
    "alibi_slopes": ("alibi_slopes", "alibi_slope", "slopes"),
    "q_start": starts.NAMES,
    "first_tokens": ("first_tokens", "sink_token_length", "n_sink", "num_sink_tokens"),
    "sinks": (
        "sinks",
        "s_aux",  # transformers, and vLLM's fork of flash-attention
        "learnable_sink",  # flash-attention 4
        "attn_sink",  # FlashMLA
        "attn_sinks",
        "attention_sink",
        "attention_sinks",
        "sink",
        "head_sink",  # onnxruntime
        "sink_token",  # cuDNN
        "softmax_offset",  # TransformerEngine
    ),
    "dropout": ("dropout", "dropout_p"),
    "training": ("training", "is_training"),
    "flash": ("flash", "use_flash", "use_flash_attn"),
    "enable_gqa": ("enable_gqa",),
}
WORDINGS: dict[str, Callable[[inspect.Parameter, Callable[..., Any]], Wording]] = {
    "window": windows.Said.of,
    "lse": lses.Said.of,
    "q_start": starts.Said.of,
}
FIELD_OF = {name: field for field, names in PARAMETERS.items() for name in names}
# What turns an option off, where leaving it out would not.
OFF = {name: OPTIONS[name].default for name in SCALARS if OPTIONS[name].default is not None}


class ResolveError(Exception):
    """--impl, or another option, names nothing that the suite can test. The message says what it found, and what to do."""


class UnknownSignature(ResolveError):
    """No convention covers this signature. `resolve` adds an adapter of ten lines to the message."""


@dataclass(frozen=True)
class Signature:
    """The parameters of a callable by the field that they carry, and those that carry none.

    off: of the fields whose parameter is on where it is left out (`causal=True`, `dropout=0.1`), the value that turns them off.
    said: of the fields whose parameters differ from package to package (WORDINGS), how its parameter says them.
    """

    fields: dict[str, str]
    unknown_required: tuple[str, ...]
    unknown_optional: tuple[str, ...]
    off: dict[str, Any]
    said: dict[str, Wording]

    @property
    def parameters(self) -> frozenset[str]:
        """The names of all, but for those that take any name."""
        optional = (name for name in self.unknown_optional if not name.startswith("*"))
        return frozenset({*self.fields.values(), *self.unknown_required, *optional})

    @classmethod
    def of(cls, function: Callable[..., Any], names: Mapping[str, str] = MappingProxyType({})) -> Signature:
        """Read a signature. Raises UnknownSignature where Python can't show one.

        names: parameters that carry a field in this family alone, before those that carry it anywhere.
        """
        parameters = signature_of(function).parameters.values()
        field_of = {**FIELD_OF, **names}
        fields: dict[str, str] = {}
        required, optional, off = [], [], dict[str, Any]()
        said: dict[str, Wording] = {}
        for p in parameters:
            if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                optional.append(str(p))
            elif p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
                raise UnknownSignature(f"its parameter {p.name} is positional-only, but conventions pass arguments by name")
            elif field_of.get(p.name, "") not in ("", *fields) and p.kind is not p.POSITIONAL_ONLY:
                field = field_of[p.name]
                fields[field] = p.name
                if field in OFF and isinstance(p.default, bool | int | float) and p.default:
                    off[field] = OFF[field]
                if field in WORDINGS:
                    said[field] = WORDINGS[field](p, function)
            elif p.default is p.empty:
                required.append(p.name)
            else:
                optional.append(p.name)
        return cls(fields, tuple(required), tuple(optional), off, said)


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """A callable's signature; of an operator from its schema, of a compiled function from its docstring's first line.

    Raises UnknownSignature where none of them shows one.
    """
    if isinstance(function, torch.nn.Module):
        function = function.forward
    # An operator of torch.library, or of torch.ops, or neither.
    operator = getattr(function, "_opoverload", getattr(function, "default", function))
    schema = getattr(operator, "_schema", None)
    try:
        if schema is not None and hasattr(schema, "arguments"):
            return inspect.Signature(
                [
                    inspect.Parameter(
                        a.name,
                        inspect.Parameter.POSITIONAL_OR_KEYWORD if not a.kwarg_only else inspect.Parameter.KEYWORD_ONLY,
                        default=a.default_value if a.has_default_value() else inspect.Parameter.empty,
                    )
                    for a in schema.arguments
                ]
            )
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        name = getattr(function, "__name__", "")
        written = re.search(rf"^\s*{re.escape(name)}\((.*?)\)\s*(->|:|\n\n|$)", function.__doc__ or "", re.DOTALL)
        if not name or written is None:
            raise UnknownSignature(f"Python can't show its signature ({error})") from None
    scope: dict[str, Any] = {}
    try:
        exec(f"from __future__ import annotations\ndef f({written[1]}): ...", scope)
    except Exception:
        raise UnknownSignature(f"its docstring begins with {name}({written[1]}), which Python can't read") from None
    return inspect.signature(scope["f"])
