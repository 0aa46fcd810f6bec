"""The functions that a verdict goes through, as they were before the implementation was imported.

What is tested shares its process with who judges it, unless it is isolated. Who replaces a function of the judge, or one of
NumPy that the judge calls, decides about himself. So these functions are looked at when something of the implementation has
run, and put back. A kernel that puts back itself what it replaced, or that reaches further than functions, is not seen: for
code that nobody trusts there are processes (docs/untrusted.md).
"""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter, is_
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import numpy as np
import pytest
import torch

# Packages replace some functions for good reasons; nobody has one for these.
FEW = {
    builtins: ("abs", "all", "any", "getattr", "hasattr", "isinstance", "issubclass", "len", "max", "min", "sorted", "sum", "zip"),
    pytest: ("exit", "fail", "main", "skip", "xfail"),
    torch: ("allclose", "equal", "isfinite"),
}
ALL = (np, np.linalg, math)
OWN = "attnspec."
EVERY, MAP, VARS = all, map, vars  # as they were: who replaces one of them does not decide what is seen
CODE, DEFAULTS = attrgetter("__code__"), attrgetter("__defaults__")


@dataclass
class Originals:
    """Functions by their owner (a module or a class), and what functions of ours consist of.

    They are looked at after each test: one comparison for all names of an owner.
    """

    kept: dict[str, Owned] = field(default_factory=dict)
    codes: dict[str, Codes] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)  # modules that were looked at; those of ours are kept

    def __post_init__(self) -> None:
        for module, names in FEW.items():
            self._keep(module.__name__, module, {name: vars(module)[name] for name in names})
        for module in ALL:
            functions = BuiltinFunctionType, FunctionType, np.ufunc, type(np.add.reduce), type(np.dot)
            self._keep(module.__name__, module, {name: x for name, x in vars(module).items() if isinstance(x, functions)})
        self.add()

    def add(self) -> None:
        """Keep what came with modules of ours that were imported since."""
        new = sys.modules.keys() - self.seen
        self.seen |= new
        for name in [name for name in sys.modules if name in new and name.startswith(OWN)]:
            for where, owner in _owners(name):
                found = {key: x for key, x in list(vars(owner).items()) if _is_code(x)}
                self._keep(where, owner, found)
                own = {f"{where}.{key}": x for key, x in found.items() if isinstance(x, FunctionType)}
                if own:
                    functions = tuple(own.values())
                    self.codes[where] = Codes(tuple(own), functions, tuple(map(CODE, functions)), tuple(map(DEFAULTS, functions)))

    def _keep(self, where: str, owner: Any, functions: Mapping[str, Any]) -> None:
        if functions:
            self.kept[where] = Owned(owner, tuple(functions), tuple(functions.values()))

    def put_back(self) -> list[str]:
        """Names of what is no longer what it was; it then is again."""
        found = [f"{where}.{name}" for where, owned in self.kept.items() if not owned.same() for name in owned.put_back()]
        found += [name for codes in self.codes.values() if not codes.same() for name in codes.put_back()]
        self.add()
        return list(dict.fromkeys(found))


@dataclass
class Owned:
    """Functions of one owner, by name."""

    owner: Any
    names: tuple[str, ...]
    functions: tuple[Any, ...]

    def same(self) -> bool:
        """Whether the owner still has them all."""
        return EVERY(MAP(is_, MAP(VARS(self.owner).get, self.names), self.functions))

    def put_back(self) -> list[str]:
        """Give them back, and return the names of those that were missing or others."""
        found = []
        for n, name in enumerate(self.names):
            if VARS(self.owner).get(name) is not self.functions[n]:
                setattr(self.owner, name, self.functions[n])
                found.append(name)
        return found


@dataclass
class Codes:
    """Functions of one owner of ours, with the code and the defaults of each."""

    names: tuple[str, ...]
    functions: tuple[FunctionType, ...]
    codes: tuple[CodeType, ...]
    defaults: tuple[tuple[Any, ...] | None, ...]

    def same(self) -> bool:
        """Whether each still consists of the same."""
        return EVERY(MAP(is_, MAP(CODE, self.functions), self.codes)) and EVERY(
            MAP(is_, MAP(DEFAULTS, self.functions), self.defaults)
        )

    def put_back(self) -> list[str]:
        """Give them back what they consisted of, and return the names of those that had changed."""
        found = []
        for n, function in enumerate(self.functions):
            if function.__code__ is not self.codes[n] or function.__defaults__ is not self.defaults[n]:
                function.__code__, function.__defaults__ = self.codes[n], self.defaults[n]
                found.append(self.names[n])
        return found


def _owners(name: str) -> Iterator[tuple[str, Any]]:
    """A module, and the classes that it defines."""
    module = sys.modules[name]
    yield name, module
    for key, x in list(vars(module).items()):
        if isinstance(x, type) and x.__module__ == name:
            yield f"{name}.{key}", x


def _is_code(x: Any) -> bool:
    return isinstance(x, FunctionType | BuiltinFunctionType | type | property | staticmethod | classmethod)


def named(replaced: list[str], most: int = 4) -> str:
    """These names in a few words."""
    more = f" and {len(replaced) - most} more" if len(replaced) > most else ""
    return f"{', '.join(replaced[:most])}{more}"
