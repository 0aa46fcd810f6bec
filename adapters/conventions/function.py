"""Calling conventions as data: which parameter of a signature carries which field of a problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnspec.adapters.contract import DEFAULT_OFFERS, Adapter, Unsupported
from attnspec.adapters.conventions import lses
from attnspec.adapters.conventions.signature import Signature, UnknownSignature
from attnspec.adapters.conventions.wording import passed
from attnspec.adapters.within import Call
from attnspec.spec import OPTIONS, Problem
from attnspec.spec.problem import gradient_features


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
        offers = set(DEFAULT_OFFERS) | {own.feature for name, own in OPTIONS.items() if own.feature and name in fields}
        if "mask" in fields:
            offers |= {"key_padding", "rank3"}
        if "alibi_slopes" in fields:
            offers.add("alibi_batch")
        if "enable_gqa" in fields:
            offers |= {"gqa", "mqa"}
        if self.torch_convention:
            offers |= {"bias", "value_width"}
            self.dialect = {"causal_alignment": "top_left", "empty_row": "zero", "head_grouping": "blocked"}
        offers |= gradient_features(offers)
        for said in self.signature.said.values():
            offers |= said.features
            self.dialect = {**self.dialect, **said.dialect}
        self.returned = lses.Returned()
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
        options: dict[str, Any] = dict.fromkeys(OPTIONS) | problem.given()  # None where an option is not asked for
        options |= {"mask": mask, "bias": bias, "causal": causal or None}
        options["training"] = problem.training if "training" in fields else None
        if not problem.training and "training" not in fields:
            options["dropout"] = None
        options["enable_gqa"] = True if "enable_gqa" in fields and problem.g != problem.h else None
        for field, value in passed(options, self.signature.said, self.signature.off, problem):
            if field not in fields:
                raise Unsupported(f"{self.name} has no parameter for {field}")
            arguments[fields[field]] = value
        called: Callable[..., Any] = self.function
        source = self.source
        if isinstance(self.function, torch.nn.Module):
            called, mode = ready(self.function, problem)
            source = (*source, f"attend{mode}")
        return Call(lses.picked(called, self.returned, problem.q) if problem.lse else called, arguments, source)


def ready(module: torch.nn.Module, problem: Problem) -> tuple[torch.nn.Module, str]:
    """A module in the problem's mode and on its device, and what says the same in Python."""
    device = problem.q.device
    moved = "" if device.type == "cpu" else f".to({str(device)!r})"
    return module.train(problem.training).to(device), f".train({problem.training}){moved}"


def merge_causal(mask: Tensor | None, problem: Problem, alignment: str) -> Tensor:
    """A bool mask that also holds the triangle, as torch's documentation writes it for its own, top-left, alignment."""
    offset = problem.j - problem.i if alignment == "bottom_right" else 0
    if problem.q_start is None:
        triangle = torch.ones((problem.i, problem.j), dtype=torch.bool, device=problem.q.device).tril(offset)
    else:  # (1 1 i j), or (b 1 i j)
        first = torch.tensor(problem.q_start, device=problem.q.device).view(-1, 1, 1, 1)
        places = torch.arange(max(problem.i, problem.j), device=problem.q.device)
        triangle = places[: problem.j] <= places[: problem.i, None] + first
    return triangle if mask is None else mask & triangle
