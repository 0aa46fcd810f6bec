"""What a mutant is, and the table of them all. Each module of this folder enters its own with ``@mutant``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import chains
import torch
from honest import check, tiled
from torch import Tensor

FAMILIES = (
    "mask",
    "causal",
    "bias",
    "scale",
    "shape",
    "sinks",
    "heads",
    "softcap",
    "softmax",
    "empty",
    "dropout",
    "gradients",
    "layout",
    "lse",
    "state",
    "decode",
    "dtype",
    "error",
    "mode",
    "window",
    "alibi",
    "position",
    "determinism",
    "together",
    "rotary",
    "mla",
    "varlen",
    "cache",
    "paged",
    "control",  # so wrong that a matrix in which one of them survives is void
)


@dataclass(frozen=True)
class Mutant:
    """An implementation with one fault."""

    name: str
    family: str
    clause: str  # the most basic sentence that it breaks
    source: str  # the public bugs that it repeats, "owner/repo#n owner/repo#n", or ""
    what: str  # the fault in one sentence
    kind: str  # "function" (torch SDPA's signature), "module" (an Attend class) or "liar"
    make: Callable[[], Any]  # a fresh one: a callable, or the class of a module
    witness: Callable[[Any], bool] | None = None  # of what `make` gives: True where the fault shows; None: one call shows it

    @property
    def sources(self) -> tuple[str, ...]:
        """The public bugs, one by one."""
        return tuple(self.source.split())


MUTANTS: dict[str, Mutant] = {}


@dataclass(frozen=True)
class Call:
    """The arguments of one call of SDPA."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

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

    @property
    def visible(self) -> Tensor:
        """Which keys mask and causal leave to each query, ``(b h i j)`` bool."""
        shown = torch.ones(self.shape, dtype=torch.bool, device=self.query.device)
        if self.bool_mask is not None:
            shown = shown & self.bool_mask
        if self.float_mask is not None:
            shown = shown & (self.float_mask != float("-inf"))
        return shown.tril() if self.is_causal else shown


def with_sdpa_signature(attend: Callable[[Call], Tensor], checked: bool = True) -> Callable[..., Tensor]:
    """A function of a call as a function with torch SDPA's parameters; `checked` refuses invalid arguments."""

    def run(*arguments: Any) -> Tensor:
        call = Call(*arguments)
        if checked:
            call.run(check)
        return attend(call)

    return chains.with_sdpa_signature(run)


def mutant(
    family: str,
    clause: str,
    source: str = "",
    *,
    kind: str = "function",
    raw: bool = False,
    witness: Callable[[Any], bool] | None = None,
    signed: Callable[..., Callable[..., Tensor]] = with_sdpa_signature,
) -> Callable[[Any], Any]:
    """Enter a mutant in MUTANTS, under its own name and with the first line of its docstring as description.

    kind "function": a function of one ``Call``, or a class whose objects are such functions (one object for each make, so
    that it may keep state). Invalid arguments are refused by all but the family "error". "module", "liar" and whatever is
    `raw`: the thing itself is handed out as it is. signed: makes a function with other parameters of one of a call.
    """

    def enter(faulty: Any) -> Any:
        name, what = faulty.__name__, (faulty.__doc__ or "").partition("\n")[0]
        if name in MUTANTS or family not in FAMILIES or not what:
            raise ValueError(f"mutant {name}: entered twice, of no family or without a description")

        def make() -> Any:
            if raw or kind != "function":
                return faulty
            attend = faulty() if isinstance(faulty, type) else faulty
            made = signed(attend, checked=family != "error")
            made.__name__ = made.__qualname__ = name
            return made

        MUTANTS[name] = Mutant(name, family, clause, source, what, kind, make, witness)
        return faulty

    return enter


def named(name: str, what: str, thing: Any) -> Any:
    """A function or class that is made by another one, under its own name and description."""
    thing.__name__, thing.__doc__ = name, what
    return thing


def load() -> dict[str, Mutant]:
    """The table, with all modules of this folder imported."""
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        importlib.import_module(f"mutants.{path.stem}")
    return MUTANTS
