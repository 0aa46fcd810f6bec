"""Arrays of other frameworks: tensors there and back, bit by bit, and their gradients as autograd asks for them.

A framework is a module with `there(x)`, which makes an array of a tensor, `here(x)`, which makes a tensor of an array, `own(x)`,
whether something is an array of it, and `vjp(function, arrays)`, which gives what a function returns, and a function from the
cotangents of that to the gradients of its inputs; it is None where the framework has no gradients. Such a module imports nothing
of attnspec: scripts of failures hold its text.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

# A framework by the name of its module here, and in words.
FRAMEWORKS = {"jax": "JAX", "mlx": "MLX", "tinygrad": "tinygrad", "numpy": "NumPy"}
WITHOUT_GRADIENTS = ("numpy",)


def framework(name: str) -> ModuleType:
    """A framework's module. Raises ImportError where its package is missing."""
    return import_module(f"{__name__}.{name}")


def loaded() -> tuple[str, ...]:
    """The frameworks that something in this process has imported; NumPy, which all has, last."""
    return tuple(name for name in FRAMEWORKS if name in sys.modules)


def bridged(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function of arrays as one of tensors."""
    from attnspec.adapters.arrays import bridge

    return partial(bridge.called, function, framework(name))


def source_of(name: str) -> list[str]:
    """Lines of Python that define `bridged(function)`, for a script that has nothing of attnspec."""
    from attnspec.adapters.arrays import bridge

    text = inspect.getsource(bridge) + "\n\n" + inspect.getsource(framework(name))
    lines = [line for line in text.splitlines() if not line.startswith("from __future__")]
    made = ("def bridged(function):", "    return partial(called, function, sys.modules[__name__])")
    return ["import sys", "from functools import partial", "", *lines, "", "", *made, ""]
