"""How a family of implementations is called, as data: one file a family, in the folder families."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from types import CodeType
from typing import Any

from attnspec.adapters.conventions.layout import Reading

FAMILIES = (  # modules of the folder families
    "tinygrad",
    "torch",
    "varlen",
    "kvcache",
    "mla",
    "vllm",
    "torch_varlen",
    "flash",
    "xformers",
    "flashinfer",
    "flashinfer_batch",
    "transformer_engine",
    "cudnn",
    "transformers",
    "diffusers",
    "lucidrains",
    "fla",
    "jax",
    "flax",
    "keras",
    "mlx",
)


@dataclass(frozen=True)
class Convention:
    """How the functions of one family are called.

    name: of the family, for the header. of: the package, and the version that was read. paths: import paths of its functions, as
    fnmatch reads them. when: of several conventions for one path whether it is this one, asked once the function is imported.
    shown_by: parameters that no other family has together, for a function elsewhere. reads: names that its code uses, where
    parameters alone don't tell it from its neighbours.
    reading: order of axes, returned tensors, arrays and polarity of masks, as documented; None where plain calls show it.
    names: parameters beside those that every convention knows, and what each carries. fixed: parameters that are always passed.
    variants: ways to call it that must agree, each by its label, and what of this convention differs in it.
    offers: what it takes beside what its parameters show. without: what its parameters show, and it does not take.
    restrictions, dialect, dtypes, widths, devices, accuracy: what its documentation says, as for an adapter.
    merges: its mask is a bias too, and excludes causal, so that the mask and causal are merged where both are asked for.
    attend: for what parameters can't say, family(function, q, k, v, *, …) as an adapter's attend has it. Scripts of failures hold
    its text: it imports what it needs inside, and has a name of its own.
    forms: for calls of many sequences, family(function, q, …) for each of packed, padded, cached and paged that it takes, as an
    adapter's attend_packed and so on have it (:mod:`attnspec.adapters.forms`). Without `attend`, dense problems take the first.
    plain: dense problems are put as its parameters show, beside its forms.
    untested: why its package does not run on a CPU, where it doesn't; functions with its signature are then what tests have asked.
    """

    name: str
    of: str
    paths: tuple[str, ...] = ()
    shown_by: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    when: Callable[[], bool] | None = None
    reading: Reading | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    offers: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    restrictions: frozenset[str] = frozenset()
    dialect: Mapping[str, str] = field(default_factory=dict)
    dtypes: tuple[str, ...] | None = None
    widths: tuple[int, ...] | None = None
    devices: tuple[str, ...] | None = None
    accuracy: str | None = None
    merges: bool = False
    attend: Callable[..., Any] | None = None
    forms: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    plain: bool = False
    untested: str = ""

    def shows(self, parameters: frozenset[str], used: frozenset[str]) -> bool:
        """Whether a function with these parameters, whose code uses these names, is of the family."""
        return bool(self.shown_by) and self.shown_by <= parameters and self.reads <= used and self.holds

    def at(self, path: str) -> bool:
        """Whether an import path is one of the family's."""
        return any(fnmatchcase(path, known) for known in self.paths) and self.holds

    @property
    def holds(self) -> bool:
        """Whether it is this one of several."""
        return self.when is None or self.when()

    def each(self, given: Mapping[str, Any]) -> dict[str, Convention]:
        """Its variants by their labels, but for those that differ from what is given; itself, without a label, where it has none.

        given: what of the parameters that they fix is settled already.
        """
        found = {label: replace(self, **change, variants={}) for label, change in self.variants.items()}
        fit = {label: one for label, one in found.items() if all(given.get(name, x) == x for name, x in one.fixed.items())}
        return fit or {"": self}

    def elsewhere(self, *parameters: str) -> Convention:
        """The same for functions at other paths, which have these parameters: of dtypes and devices they promise nothing."""
        return replace(self, paths=(), shown_by=frozenset(parameters), dtypes=None, devices=None, untested="")


ANY = Convention("q, k, v and options by name", "")


@cache
def conventions() -> tuple[Convention, ...]:
    """All that are known, family by family."""
    modules = (import_module(f"attnspec.adapters.conventions.families.{name}") for name in FAMILIES)
    return tuple(one for module in modules for one in module.CONVENTIONS)


def convention_of(function: Any, named: str, parameters: frozenset[str]) -> Convention:
    """The convention of a function: that of its import path, else that of its parameters, else any.

    Of several that its parameters show it is the one that is shown by most. named: the path by which it was asked for; it may be
    imported from elsewhere.
    """
    path = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    for one in conventions():
        if one.at(path) or one.at(named):
            return one
    code = getattr(inspect.unwrap(function), "__code__", None)
    used = frozenset[str]() if code is None else names_in(code)
    shown = [one for one in conventions() if one.shows(parameters, used)]
    return max(shown, key=lambda one: len(one.shown_by) + len(one.reads), default=ANY)


def names_in(code: CodeType) -> frozenset[str]:
    """The names of globals and attributes that code uses, and what is defined in it."""
    return frozenset(code.co_names).union(*(names_in(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
