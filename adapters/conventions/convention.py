"""How a family of implementations is called, as data: one file a family, in the folder families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from typing import Any

from attnspec.adapters.conventions.layout import Reading

# Modules of the folder families; of two that know a signature the first is meant.
FAMILIES = ("tinygrad", "torch", "jax", "flax", "keras", "mlx")


@dataclass(frozen=True)
class Convention:
    """How the functions of one family are called.

    name: of the family, for the header. of: the package, and the version that was read. paths: import paths of its functions, as
    fnmatch reads them. shown_by: parameters that no other family has together, for a function at another path. when: of several
    conventions for one path whether it is this one, asked once the function is imported.
    reading: order of axes, returned tensors, arrays and polarity of masks, as documented; None where plain calls show it.
    names: parameters beside those that every convention knows, and what each carries. fixed: parameters that are always passed.
    offers: what it takes beside what its parameters show. without: what its parameters show, and it does not take.
    restrictions, dialect, dtypes, widths, devices, accuracy: what its documentation says, as for an adapter.
    merges: its mask is a bias too, and excludes causal, so that the mask and causal are merged where both are asked for.
    attend: for what parameters can't say, family(function, q, k, v, *, …) as an adapter's attend has it. Scripts of failures hold
    its text: it imports what it needs inside, and has a name of its own.
    untested: why its package does not run on a CPU, where it doesn't; functions with its signature are then what tests have asked.
    """

    name: str
    of: str
    paths: tuple[str, ...] = ()
    shown_by: frozenset[str] = frozenset()
    when: Callable[[], bool] | None = None
    reading: Reading | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
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
    untested: str = ""

    def knows(self, path: str, parameters: frozenset[str]) -> bool:
        """Whether a function at this import path, with these parameters, is of the family."""
        return self.at(path) or (bool(self.shown_by) and self.shown_by <= parameters and self.holds)

    def at(self, path: str) -> bool:
        """Whether an import path is one of the family's."""
        return any(fnmatchcase(path, known) for known in self.paths) and self.holds

    @property
    def holds(self) -> bool:
        """Whether it is this one of several."""
        return self.when is None or self.when()


ANY = Convention("q, k, v and options by name", "")


@cache
def conventions() -> tuple[Convention, ...]:
    """All that are known, family by family."""
    modules = (import_module(f"attnspec.adapters.conventions.families.{name}") for name in FAMILIES)
    return tuple(one for module in modules for one in module.CONVENTIONS)


def convention_of(function: Any, named: str, parameters: frozenset[str]) -> Convention:
    """The convention of a function: that of its import path, else that of its parameters, else any.

    named: the path by which it was asked for; it may be imported from elsewhere.
    """
    path = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    for one in conventions():
        if one.at(path) or one.at(named):
            return one
    return next((one for one in conventions() if one.knows(path, parameters)), ANY)
