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
from types import BuiltinFunctionType, FunctionType
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


@dataclass
class Originals:
    """Functions by their owner (a module or a class), and what functions of ours consist of."""

    kept: dict[tuple[str, str], tuple[Any, Any]] = field(default_factory=dict)  # owner and name → owner, function
    codes: dict[str, tuple[FunctionType, Any, Any]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)  # modules of ours that are kept

    def __post_init__(self) -> None:
        for module, names in FEW.items():
            self._keep(module.__name__, module, {name: vars(module)[name] for name in names})
        for module in ALL:
            functions = BuiltinFunctionType, FunctionType, np.ufunc, type(np.add.reduce), type(np.dot)
            self._keep(module.__name__, module, {name: x for name, x in vars(module).items() if isinstance(x, functions)})
        self.add()

    def add(self) -> None:
        """Keep what came with modules of ours that were imported since."""
        for name in [name for name in sys.modules if name.startswith(OWN) and name not in self.seen]:
            self.seen.add(name)
            for where, owner in _owners(name):
                found = {key: x for key, x in list(vars(owner).items()) if _is_code(x)}
                self._keep(where, owner, found)
                for key, x in found.items():
                    if isinstance(x, FunctionType):
                        self.codes[f"{where}.{key}"] = (x, x.__code__, x.__defaults__)

    def _keep(self, where: str, owner: Any, functions: Mapping[str, Any]) -> None:
        self.kept |= {(where, name): (owner, x) for name, x in functions.items()}

    def put_back(self) -> list[str]:
        """Names of what is no longer what it was; it then is again."""
        found = []
        for (where, name), (owner, x) in self.kept.items():
            if vars(owner).get(name) is not x:
                setattr(owner, name, x)
                found.append(f"{where}.{name}")
        for name, (function, code, defaults) in self.codes.items():
            if function.__code__ is not code or function.__defaults__ is not defaults:
                function.__code__, function.__defaults__ = code, defaults
                found.append(name)
        self.add()
        return list(dict.fromkeys(found))


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
