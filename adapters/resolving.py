"""Finds what --impl names, and makes its adapters: for a dotted path, file.py:name, an adapter, or a shipped name."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from attnspec.adapters.contract import Adapter, check
from attnspec.adapters.conventions.attend import variants
from attnspec.adapters.conventions.function import adapted, family_of
from attnspec.adapters.conventions.signature import ResolveError, UnknownSignature
from attnspec.adapters.find import import_line, load, short
from attnspec.adapters.reading import words
from attnspec.adapters.remote.process import COMMAND
from attnspec.adapters.shipped.names import SHIPPED
from attnspec.adapters.stub import ten_lines
from attnspec.adapters.within import quiet


def resolve(target: Any, kwargs: Mapping[str, Any] | None = None) -> list[Adapter]:
    """The adapters of an implementation, one for each variant of it, such as the two settings of a module's flash switch.

    target: a function, a class, a module, an adapter, or a name as --impl takes it. kwargs: constructor arguments of a class.
    Raises ResolveError, which says what to do, if the target can't be found, constructed or called, or declares unknown words.
    """
    kwargs = kwargs or {}
    with quiet():
        if isinstance(target, str) and target in SHIPPED:
            module, function = SHIPPED[target]
            adapters = getattr(importlib.import_module(module), function)(target, kwargs)
        elif isinstance(target, str) and target.startswith(COMMAND):
            from attnspec.adapters.remote.isolated import isolated  # which asks a worker that imports this

            adapters = list(isolated(target, kwargs))
        elif isinstance(target, str) and target.endswith(".json"):
            from attnspec.adapters.solutions.adapter import solutions

            adapters = solutions(target, kwargs)
        elif isinstance(target, str):
            found, source = load(target)
            adapters = _adapt(found, target, source, kwargs)
        else:
            kind = target if hasattr(target, "__qualname__") else type(target)
            adapters = _adapt(target, kind.__qualname__, (import_line(kind.__module__, kind.__qualname__),), kwargs)
    for adapter in adapters:
        try:
            check(adapter)
        except ValueError as error:
            raise ResolveError(str(error)) from None
    return adapters


def parse_kwargs(text: str) -> dict[str, Any]:
    """The constructor arguments in --impl-kwargs: a JSON object, or name=value,name=value with Python literals.

    Raises ResolveError if the text is neither.
    """
    if not text:
        return {}
    try:
        if text.lstrip().startswith("{"):
            return dict(json.loads(text))
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError(text)
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        if None in values or len(values) < len(call.keywords):
            raise ValueError(text)
        return {str(name): value for name, value in values.items()}
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise ResolveError(f"--impl-kwargs {short(repr(text))} can't be read; write heads=8,dim=64 or a JSON object") from None


# FITTING IT WITH AN ADAPTER


def _adapt(found: Any, name: str, source: tuple[str, ...], kwargs: Mapping[str, Any]) -> list[Adapter]:
    adapter: Adapter
    if inspect.isclass(found) and issubclass(found, Adapter):
        adapter = _construct(lambda: found(**kwargs), name, kwargs)
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        return [_named(adapter, name, (*source, f"attend = attend({given}).attend"))]
    if not callable(found) and not isinstance(found, Adapter):
        raise ResolveError(
            f"--impl={name} is not callable: it is a {type(found).__name__}, {_short(found)}. "
            "Name a function, a class with forward(q, k, v), or an adapter."
        )
    if kwargs and not inspect.isclass(found):
        raise ResolveError(f"--impl-kwargs are constructor arguments, but {name} is not a class")
    if isinstance(found, Adapter):
        return [_named(found, name, (*source, "attend = attend.attend"))]
    adapters: list[Adapter] = []
    try:
        if inspect.isclass(found) and ((family := family_of(found, name)).attend is not None or family.forms):
            made = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
            with_options = (*source, f"from functools import partial; attend = partial(attend, {made})") if kwargs else source
            adapters = adapted(partial(found, **kwargs) if kwargs else found, name, with_options, family, kwargs)
        elif inspect.isclass(found):
            for attending in variants(found, name, source, kwargs):
                _construct(attending.instance, name, attending.kwargs)
                adapters.append(attending)
        else:
            adapters = adapted(found, name, source, family_of(found, name))
    except UnknownSignature as error:
        raise ResolveError(ten_lines(found, name, str(error))) from None
    for adapter in adapters:
        adapter.version = version_of(found)
    return list(adapters)


def _named(adapter: Adapter, name: str, source: tuple[str, ...]) -> Adapter:
    adapter.name = adapter.name or name
    adapter.source = adapter.source or source
    return adapter


def _construct(make: Callable[[], Any], name: str, kwargs: Mapping[str, Any]) -> Any:
    try:
        return make()
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no arguments"
        raise ResolveError(
            f"constructing {name} with {given} raised {words(error)}. "
            "Write constructor arguments as --impl-kwargs name=value,name=value."
        ) from None


def version_of(found: Any) -> str:
    """The package and version that an object comes from, or an empty string."""
    from importlib import metadata

    top = (getattr(found, "__module__", "") or "").split(".")[0]
    for distribution in metadata.packages_distributions().get(top, []):
        return f"{distribution} {metadata.version(distribution)}"
    version = getattr(sys.modules.get(top), "__version__", "")
    return f"{top} {version}" if version else ""


def _short(x: Any) -> str:
    text = " ".join(repr(x).split())
    return text if len(text) < 60 else text[:57] + "..."
