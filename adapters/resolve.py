"""From what stands after --impl to adapters: a dotted path, file.py:name, an adapter, or a shipped name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attnspec.adapters.attend import variants
from attnspec.adapters.contract import FEATURES, Adapter, check
from attnspec.adapters.convention import FunctionAdapter, UnknownSignature

# Shipped names, and the module and function that make their adapters; imported when asked for.
SHIPPED = {
    **{f"sdpa{suffix}": ("attnspec.adapters.sdpa", "pinned") for suffix in ("", "-math", "-flash", "-efficient", "-cudnn")},
    **{name: ("attnspec.adapters.seeds", "published") for name in (
        "mixture-of-attention", "audiolm-pytorch", "recurrent-memory-transformer-pytorch",
        "simple-hierarchical-transformer", "bs-roformer")},
}


class ResolveError(Exception):
    """--impl names nothing that can be tested. The message says what was found and what to do."""


def resolve(target: Any, kwargs: Mapping[str, Any] | None = None) -> list[Adapter]:
    """The adapters of an implementation, one for each variant. Raises ResolveError with one clear message."""
    kwargs = kwargs or {}
    if isinstance(target, str):
        if target in SHIPPED:
            module, function = SHIPPED[target]
            adapters = getattr(importlib.import_module(module), function)(target, kwargs)
        else:
            found, source = _load(target)
            adapters = _adapt(found, target, source, kwargs)
    else:
        name = getattr(target, "__qualname__", type(target).__qualname__)
        adapters = _adapt(target, name, (f"from {getattr(target, '__module__', '__main__')} import {name} as attend",), kwargs)
    for adapter in adapters:
        try:
            check(adapter)
        except ValueError as error:
            raise ResolveError(str(error)) from None
    return adapters


def parse_kwargs(text: str) -> dict[str, Any]:
    """--impl-kwargs: a JSON object, or name=value,name=value with Python's literals. Raises ResolveError."""
    if not text:
        return {}
    try:
        if text.lstrip().startswith("{"):
            return dict(json.loads(text))
        call = compile(f"f({text})", "--impl-kwargs", "eval", 1024)  # 1024: only parse
        import ast
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.body.keywords}  # type: ignore[attr-defined]
    except (ValueError, SyntaxError):
        raise ResolveError(f"--impl-kwargs {text!r} can't be read; write heads=8,dim=64 or a JSON object") from None


# FINDING THE OBJECT


def _load(target: str) -> tuple[Any, tuple[str, ...]]:
    if ".py:" in target:
        path, _, name = target.rpartition(":")
        module, source = _load_file(Path(path)), _file_source(Path(path), name)
        return _attribute(module, name, target), source
    if target.endswith(".py"):
        names = ", ".join(_callables(_load_file(Path(target)))) or "nothing callable"
        raise ResolveError(f"--impl={target} names a file; say which of its names, {target}:NAME. It holds {names}.")
    sys.path.insert(0, "")  # as `python -m pytest` would
    parts = target.split(".")
    for n in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:n])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(error.name + ".")):
                continue
            raise _import_failed(name, error) from None
        except (Exception, SystemExit) as error:
            raise _import_failed(name, error) from None
        found: Any = module
        for m, part in enumerate(parts[n:], n):
            found = _attribute(found, part, ".".join(parts[: m + 1]))
        return found, (f"from {'.'.join(parts[:-1])} import {parts[-1]} as attend" if n == len(parts) - 1
                       else f"import {name}; attend = {target}",)
    known = ", ".join(SHIPPED)
    raise ResolveError(f"--impl={target} was not found: no module {parts[0]!r} can be imported from here, and it is no shipped "
                       f"name ({known}). Write package.module.name, file.py:name, or install the package.")


def load_file(path: Path, name: str) -> ModuleType:
    """Import one file as a module, without running the package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ResolveError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ResolveError(f"there is no file {path} (looked from {Path.cwd().name}/)")
    sys.path.insert(0, str(path.resolve().parent))
    try:
        return load_file(path, path.stem)
    except ResolveError:
        raise
    except (Exception, SystemExit) as error:
        raise _import_failed(str(path), error) from None


def _file_source(path: Path, name: str) -> tuple[str, ...]:
    return (f"import sys; sys.path.insert(0, {str(path.resolve().parent)!r})", f"from {path.stem} import {name} as attend")


def _import_failed(name: str, error: BaseException) -> ResolveError:
    return ResolveError(f"importing {name} raised {type(error).__name__}: {error}. Try `python -c 'import {Path(name).stem}'`.")


def _attribute(owner: Any, name: str, path: str) -> Any:
    if not hasattr(owner, name):
        near = [n for n in _callables(owner) if n.lower().startswith(name[:1].lower())] or _callables(owner)
        raise ResolveError(f"{path} does not exist: {getattr(owner, '__name__', owner)} has no {name!r}; "
                           f"it has {', '.join(near[:8]) or 'nothing callable'}.")
    return getattr(owner, name)


def _callables(owner: Any) -> list[str]:
    return [n for n in dir(owner) if not n.startswith("_") and callable(getattr(owner, n, None))]


# FITTING IT WITH AN ADAPTER


def _adapt(found: Any, name: str, source: tuple[str, ...], kwargs: Mapping[str, Any]) -> list[Adapter]:
    if isinstance(found, Adapter):
        return [_named(found, name)]
    try:
        if inspect.isclass(found) and issubclass(found, Adapter):
            return [_named(_construct(found, name, kwargs), name)]
        if not callable(found):
            raise ResolveError(f"--impl={name} is not callable: it is a {type(found).__name__}, {_short(found)}. "
                               "Name a function, a class with forward(q, k, v), or an adapter.")
        adapters: list[Adapter]
        if inspect.isclass(found):
            as_class = (*source[:-1], source[-1].replace(" as attend", ""))
            adapters = list(variants(found, name, as_class, kwargs))
            for adapter in adapters:
                _construct(lambda **_: adapter._instance(), name, {})  # type: ignore[attr-defined]  # noqa: B023
        else:
            if kwargs:
                raise ResolveError(f"--impl-kwargs are constructor arguments, and {name} is no class")
            adapters = [FunctionAdapter(found.forward if isinstance(found, torch.nn.Module) else found, name, source)]
    except UnknownSignature as error:
        raise ResolveError(_ten_lines(found, name, str(error))) from None
    for adapter in adapters:
        adapter.version = version_of(found)
    return adapters


def _named(adapter: Adapter, name: str) -> Adapter:
    adapter.name = adapter.name or name
    return adapter


def _construct(kind: Any, name: str, kwargs: Mapping[str, Any]) -> Any:
    try:
        return kind(**kwargs)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no arguments"
        raise ResolveError(f"constructing {name} with {given} raised {type(error).__name__}: {error}. "
                           "Constructor arguments are given with --impl-kwargs name=value,name=value.") from None


def version_of(found: Any) -> str:
    """The version of the distribution that an object comes from, or an empty string."""
    from importlib import metadata

    top = (getattr(found, "__module__", "") or "").split(".")[0]
    for distribution in metadata.packages_distributions().get(top, []):
        return f"{distribution} {metadata.version(distribution)}"
    return f"{top} {getattr(sys.modules.get(top), '__version__', '')}".strip() if top and top != "__main__" else ""


def _short(x: Any) -> str:
    text = " ".join(repr(x).split())
    return text if len(text) < 60 else text[:57] + "..."


def _ten_lines(found: Any, name: str, problem: str) -> str:
    try:
        signature = str(inspect.signature(found))
    except (TypeError, ValueError):
        signature = "(…)"
    module, _, attribute = name.replace(".py:", ".").rpartition(".")
    return f"""--impl={name} has a signature that no convention covers: {attribute}{signature}
{problem}.

Write an adapter, say attn_adapter.py, and run pytest --impl=attn_adapter.py:Attention

    from attnspec.adapters import Adapter
    from {module or "mypackage"} import {attribute}

    class Attention(Adapter):
        offers = {{"mha", "backward", "causal"}}       # of {', '.join(FEATURES)}

        def attend(self, q, k, v, *, mask=None, bias=None, causal=False, scale=None, dropout=0.0, training=False):
            # q (b h i d), k (b g j d), v (b g j e)  →  o (b h i e); options that are not offered never arrive
            return {attribute}(q, k, v, causal)
"""
