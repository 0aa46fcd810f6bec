"""Calling conventions as data: which parameter of a signature carries which field of a problem."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnspec.adapters.contract import DEFAULT_OFFERS, Adapter, Call, Unsupported
from attnspec.spec import Problem

PARAMETERS: dict[str, tuple[str, ...]] = {
    "q": ("q", "query", "queries"),
    "k": ("k", "key", "keys"),
    "v": ("v", "value", "values"),
    "mask": ("mask", "attn_mask", "attention_mask"),
    "bias": ("attn_bias", "bias", "attention_bias"),
    "causal": ("causal", "is_causal"),
    "scale": ("scale", "sm_scale", "softmax_scale"),
    "dropout": ("dropout", "dropout_p"),
    "training": ("training", "is_training"),
    "flash": ("flash", "use_flash", "use_flash_attn"),
    "enable_gqa": ("enable_gqa",),
}
FIELD_OF = {name: field for field, names in PARAMETERS.items() for name in names}
OFF = {"causal": False, "dropout": 0.0}  # what turns an option off, where leaving it out would not


class ResolveError(Exception):
    """--impl names nothing that can be tested. The message says what was found and what to do."""


class UnknownSignature(ResolveError):
    """A signature that no convention covers; an adapter of ten lines does."""


@dataclass(frozen=True)
class Signature:
    """The parameters of a callable by the field that they carry, and those that carry none.

    off: of the fields whose parameter is on where it is left out (`causal=True`, `dropout=0.1`), the value that turns them off.
    """

    fields: dict[str, str]
    unknown_required: tuple[str, ...]
    unknown_optional: tuple[str, ...]
    off: dict[str, Any]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Signature:
        """Read a signature. Raises UnknownSignature where Python can't show one."""
        parameters = signature_of(function).parameters.values()
        fields: dict[str, str] = {}
        required, optional, off = [], [], {}
        for p in parameters:
            if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                optional.append(str(p))
            elif p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
                raise UnknownSignature(f"its parameter {p.name} is positional-only, and conventions go by name")
            elif p.name in FIELD_OF and FIELD_OF[p.name] not in fields and p.kind is not p.POSITIONAL_ONLY:
                fields[FIELD_OF[p.name]] = p.name
                if FIELD_OF[p.name] in OFF and isinstance(p.default, bool | int | float) and p.default:
                    off[FIELD_OF[p.name]] = OFF[FIELD_OF[p.name]]
            elif p.default is p.empty:
                required.append(p.name)
            else:
                optional.append(p.name)
        return cls(fields, tuple(required), tuple(optional), off)


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


def is_torch_convention(signature: Signature) -> bool:
    """True for torch's scaled_dot_product_attention and its likes: one mask parameter for bool and float, is_causal."""
    return signature.fields.get("mask") == "attn_mask" and signature.fields.get("causal") == "is_causal"


class FunctionAdapter(Adapter):
    """A function of tensors (b h i d). What is offered follows from its parameters.

    With torch SDPA's parameters it promises torch's semantics: `attn_mask` is bool or float, the causal alignment is
    top-left, a row without a key is zero, and `attn_mask` and `is_causal` are exclusive, so that causal is merged into
    the mask where both are asked for, as torch's documentation tells its users to.
    """

    def __init__(self, function: Callable[..., Any], name: str, source: tuple[str, ...]) -> None:
        self.function, self.name, self.source = function, name, source
        self.signature = Signature.of(function)
        fields = self.signature.fields
        missing = [field for field in "qkv" if field not in fields]
        if missing or self.signature.unknown_required:
            raise UnknownSignature(
                (f"no parameter for {', '.join(missing)}" if missing else "")
                + (" and " if missing and self.signature.unknown_required else "")
                + (
                    f"required parameters that no convention knows: {', '.join(self.signature.unknown_required)}"
                    if self.signature.unknown_required
                    else ""
                )
            )
        self.torch_convention = is_torch_convention(self.signature)
        offers = set(DEFAULT_OFFERS) | ({"mask", "key_padding", "causal", "scale", "dropout", "bias"} & fields.keys())
        if "mask" in fields:
            offers |= {"key_padding", "rank3"}
        if "enable_gqa" in fields:
            offers |= {"gqa", "mqa"}
        if self.torch_convention:
            offers |= {"bias", "value_width"}
            self.dialect = {"causal_alignment": "top_left", "empty_row": "zero", "head_grouping": "blocked"}
        if "bias" in offers:
            offers.add("bias_grad")
        self.offers = frozenset(offers)

    def merged(self, problem: Problem) -> tuple[Tensor | None, Tensor | None, bool]:
        """Mask, bias and causal: with torch's parameters causal goes into a mask beside it, and the mask into a bias."""
        mask, bias, causal = problem.mask, problem.bias, problem.causal
        if mask is not None and mask.ndim == 2 and "padding_only" not in self.restrictions:
            mask = mask[:, None, None, :]
        if self.torch_convention:
            if causal and not (mask is None and bias is None):
                mask, causal = merge_causal(mask, problem, self.dialect["causal_alignment"]), False
            if bias is not None and mask is not None:
                hidden = torch.logical_not(mask)
                mask, bias = None, bias.masked_fill(hidden, float("-inf"))
        return mask, bias, causal

    def presented(self, problem: Problem) -> Problem:
        """With mask, bias and causal merged as the call merges them."""
        mask, bias, causal = self.merged(problem)
        return problem.replace(mask=mask, bias=bias, causal=causal)

    def call(self, problem: Problem) -> Call:
        """The function's own arguments for a problem."""
        if problem.shared:
            raise Unsupported("a function of (b h j d) keys has no form for one shared head (b j d)")
        fields = self.signature.fields
        arguments: dict[str, Any] = {fields["q"]: problem.q, fields["k"]: problem.k, fields["v"]: problem.v}
        mask, bias, causal = self.merged(problem)
        if self.torch_convention and bias is not None:
            mask, bias = bias, None
        options = {
            "mask": mask,
            "bias": bias,
            "causal": causal or None,
            "scale": problem.scale,
            "dropout": (problem.dropout or None) if problem.training or "training" in fields else None,
            "training": problem.training if "training" in fields else None,
            "enable_gqa": True if "enable_gqa" in fields and problem.g != problem.h else None,
        }
        for field, asked in options.items():
            value = self.signature.off.get(field) if asked is None else asked
            if value is None:
                continue
            if field not in fields:
                raise Unsupported(f"{self.name} has no parameter for {field}")
            arguments[fields[field]] = value
        if not isinstance(self.function, torch.nn.Module):
            return Call(self.function, arguments, self.source)
        module, mode = ready(self.function, problem)
        return Call(module, arguments, (*self.source, f"attend{mode}"))


def ready(module: torch.nn.Module, problem: Problem) -> tuple[torch.nn.Module, str]:
    """A module in the problem's mode and on its device, and what says the same in Python."""
    device = problem.q.device
    moved = "" if device.type == "cpu" else f".to({str(device)!r})"
    return module.train(problem.training).to(device), f".train({problem.training}){moved}"


def merge_causal(mask: Tensor | None, problem: Problem, alignment: str) -> Tensor:
    """A bool mask that also holds the triangle, as torch's documentation writes it for its own, top-left, alignment."""
    offset = problem.j - problem.i if alignment == "bottom_right" else 0
    triangle = torch.ones((problem.i, problem.j), dtype=torch.bool, device=problem.q.device).tril(offset)
    return triangle if mask is None else mask & triangle
