"""From what stands after --impl to adapters: a dotted path, file.py:name, an adapter, or a shipped name."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch.nn import Module

from attnspec.adapters.contract import FEATURES, Adapter, check, quiet
from attnspec.adapters.conventions.attend import variants
from attnspec.adapters.conventions.function import FIELD_OF, FunctionAdapter, ResolveError, UnknownSignature, signature_of
from attnspec.adapters.reading import words

# Shipped names, and the module and function that make their adapters; imported when asked for.
SHIPPED = {
    **dict.fromkeys(
        ("sdpa", "sdpa-math", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn"), ("attnspec.adapters.shipped.sdpa", "pinned")
    ),
    **dict.fromkeys(
        (
            "mixture-of-attention",
            "audiolm-pytorch",
            "recurrent-memory-transformer-pytorch",
            "simple-hierarchical-transformer",
            "bs-roformer",
        ),
        ("attnspec.adapters.shipped.seeds", "published"),
    ),
}


def resolve(target: Any, kwargs: Mapping[str, Any] | None = None) -> list[Adapter]:
    """The adapters of an implementation, one for each variant. Raises ResolveError with one clear message."""
    kwargs = kwargs or {}
    with quiet():
        if isinstance(target, str) and target in SHIPPED:
            module, function = SHIPPED[target]
            adapters = getattr(importlib.import_module(module), function)(target, kwargs)
        elif isinstance(target, str):
            found, source = _load(target)
            adapters = _adapt(found, target, source, kwargs)
        else:
            kind = target if hasattr(target, "__qualname__") else type(target)
            adapters = _adapt(target, kind.__qualname__, (_import(kind.__module__, kind.__qualname__),), kwargs)
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
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError(text)
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        if None in values or len(values) < len(call.keywords):
            raise ValueError(text)
        return {str(name): value for name, value in values.items()}
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise ResolveError(f"--impl-kwargs {short(repr(text))} can't be read; write heads=8,dim=64 or a JSON object") from None


def short(text: str, most: int = 200) -> str:
    """The beginning of a text that a user wrote, which may be of any length."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


# FINDING THE OBJECT


def _load(target: str) -> tuple[Any, tuple[str, ...]]:
    if "://" in target:
        raise ResolveError(f"--impl={short(target)} is a URL, and nothing is fetched: download it and write file.py:name")
    if os.path.isdir(target) and not target.isidentifier():
        raise ResolveError(f"--impl={short(target)} is a folder; write file.py:name, or package.module.name")
    if ".py:" in target:
        file, _, name = target.rpartition(":")
        path = Path(file)
        found = _attribute(_load_file(path), name, target)
        return found, (f"import sys; sys.path.insert(0, {str(path.resolve().parent)!r})", _import(path.stem, name))
    if target.endswith(".py"):
        names = ", ".join(_callables(_load_file(Path(target)))) or "nothing callable"
        raise ResolveError(f"--impl={target} names a file; say which of its names, {target}:NAME. It holds {names}.")
    sys.path.insert(0, "")  # as `python -m pytest` would
    parts = target.split(".")
    module = None
    for n in range(1, max(len(parts), 2)):
        deeper = _import_module(".".join(parts[:n]))
        if deeper is None:
            break
        module, rest = deeper, ".".join(parts[n:])
    if module is None:
        known = ", ".join(SHIPPED)
        raise ResolveError(
            f"--impl={short(target)} was not found: no module {short(parts[0])!r} can be imported from here, and it is "
            f"no shipped name ({known}). Write package.module.name, file.py:name, or install the package."
        )
    if not rest or (rest == parts[-1] and not hasattr(module, rest) and _import_module(target)):
        names = ", ".join(_callables(_import_module(target))[:8]) or "nothing callable"
        raise ResolveError(f"--impl={target} names a module; say which of its names, {target}.NAME. It holds {names}.")
    return _attribute(module, rest, target), (_import(module.__name__, rest),)


def _import_module(name: str) -> ModuleType | None:
    """A module, or None where there is none of this name. Raises ResolveError where importing it fails."""
    if not all(name.split(".")):
        return None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        raise _import_failed(name, error) from None
    except (Exception, SystemExit) as error:
        raise _import_failed(name, error) from None


def _import(module: str, path: str) -> str:
    """A line of Python that calls something in a module `attend`."""
    if not all(part.isidentifier() for part in module.split(".")):
        return f"from importlib import import_module; attend = import_module({module!r}).{path}"
    first, *rest = path.split(".")
    return f"from {module} import {first} as attend" + (f"; attend = attend.{'.'.join(rest)}" if rest else "")


def load_file(path: Path, name: str) -> ModuleType:
    """Import one file as a module, without running the package around it. Raises ResolveError where that fails."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ResolveError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_failed(str(path), error) from None
    return module


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ResolveError(f"there is no file {path} (looked from {Path.cwd().name}/)")
    sys.path.insert(0, str(path.resolve().parent))
    return load_file(path, path.stem)


def _import_failed(name: str, error: BaseException) -> ResolveError:
    alone = f"python {name}" if name.endswith(".py") else f"python -c 'import {name}'"
    return ResolveError(f"importing {name} raised {words(error)}. Try `{alone}`.")


def _attribute(module: Any, path: str, target: str) -> Any:
    found = module
    for name in path.split("."):
        if not hasattr(found, name):
            there = _callables(found)
            own = [n for n in there if getattr(getattr(found, n), "__module__", None) == getattr(found, "__name__", None)] or there
            near = difflib.get_close_matches(name, own, 8, 0.3) or own
            raise ResolveError(
                f"--impl={target} does not exist: {getattr(found, '__name__', found)} has no {name!r}; "
                f"it has {', '.join(near[:8]) or 'nothing callable'}."
            )
        found = getattr(found, name)
    return found


def _callables(owner: Any) -> list[str]:
    return [n for n in dir(owner) if not n.startswith("_") and callable(getattr(owner, n, None))]


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
        raise ResolveError(f"--impl-kwargs are constructor arguments, and {name} is no class")
    if isinstance(found, Adapter):
        return [_named(found, name, (*source, "attend = attend.attend"))]
    try:
        if inspect.isclass(found):
            adapters = variants(found, name, source, kwargs)
            for attending in adapters:
                _construct(attending.instance, name, attending.kwargs)
        else:
            adapters = [FunctionAdapter(found, name, source)]  # type: ignore[list-item]
    except UnknownSignature as error:
        raise ResolveError(_ten_lines(found, name, str(error))) from None
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
            "Constructor arguments are given with --impl-kwargs name=value,name=value."
        ) from None


def version_of(found: Any) -> str:
    """The version of the distribution that an object comes from, or an empty string."""
    from importlib import metadata

    top = (getattr(found, "__module__", "") or "").split(".")[0]
    for distribution in metadata.packages_distributions().get(top, []):
        return f"{distribution} {metadata.version(distribution)}"
    version = getattr(sys.modules.get(top), "__version__", "")
    return f"{top} {version}" if version else ""


def _short(x: Any) -> str:
    text = " ".join(repr(x).split())
    return text if len(text) < 60 else text[:57] + "..."


def _ten_lines(found: Any, name: str, problem: str) -> str:
    last = name.rpartition(":" if ".py:" in name else ".")[2].split(".")[-1]
    module = (inspect.isclass(found) and issubclass(found, Module)) or isinstance(found, Module)
    inside = (
        "\nMost modules project embeddings before they attend: forward is then no attention of q, k, v. Call what lies inside."
        if module
        else ""
    )
    return f"""--impl={name} has a signature that no convention covers: {last}{_signature(found)}
{problem}.{inside}

{stub(found, name)}"""


DEFAULTS = {"mask": "None", "bias": "None", "causal": "False", "scale": "None", "dropout": "0.0", "training": "False"}
LIKE = {"causal": "causal", "mask": "mask", "bias": "bias", "scal": "scale", "drop": "dropout", "training": "training"}


class Reading(NamedTuple):
    """How a call is to be read: it takes and returns (b i h d), the output is the first of a tuple, its arrays are not torch's."""

    transposed: bool = False
    first: bool = False
    arrays: bool = False


PLAINLY = Reading()


def stub(found: Any, name: str, reading: Reading = PLAINLY, restrictions: tuple[str, ...] = ()) -> str:
    """An adapter for what no convention covers, made from its own parameters; what nobody can guess is left as `...`.

    restrictions: those that were found.
    """
    file, _, inside = name.rpartition(":" if ".py:" in name else ".")
    module = Path(file).stem if file.endswith(".py") else file or getattr(found, "__module__", "mypackage")
    made = f"attend = {inside}({_required(found)})" if inspect.isclass(found) else f"attend = {inside}"
    imported = inside.split(".")[0] + (f"; {made}" if made != "attend = attend" else "")
    beside = f", beside {Path(file).name}" if file.endswith(".py") else ""
    turn, pick = ".transpose(1, 2)" if reading.transposed else "", "[0]" if reading.first else ""
    there = ".numpy()" if reading.arrays else ""
    arguments, options = [], []
    for parameter, field in _fields(found).items():
        if field == "...":
            arguments.append(f"{parameter}=...")
        elif field in ("q", "k", "v"):
            arguments.append(f"{parameter}={field}{turn}{there}")
        else:
            tensor = there and field in ("mask", "bias")
            arguments.append(f"{parameter}=None if {field} is None else {field}{there}" if tensor else f"{parameter}={field}")
            options.append(field)
    offers = [
        "mha",
        *(() if there else ("backward",)),
        *(("key_padding",) if "mask" in options else ()),
        *(x for x in options if x not in ("training",)),
    ]
    keywords = "".join(f", {option}={DEFAULTS[option]}" for option in options)
    fill = (
        "\n            # fill in what stands as ...: no convention knows it" if any(x.endswith("=...") for x in arguments) else ""
    )
    answer = f"attend({', '.join(arguments)}){pick}"
    answer = f"torch.from_numpy(np.array({answer}))" if there else answer
    imports = "\n    import numpy as np, torch" if there else ""
    limits = f"\n        restrictions = {set(restrictions)}" if restrictions else ""
    return f"""Write an adapter, say attn_adapter.py{beside}, and run pytest --impl=attn_adapter.py:Attention

    from attnspec.adapters import Adapter{imports}
    from {module} import {imported}

    class Attention(Adapter):
        offers = {{{", ".join(f'"{x}"' for x in offers)}}}       # of {", ".join(FEATURES)}{limits}

        def attend(self, q, k, v{", *" if options else ""}{keywords}):{fill}
            # q (b h i d), k (b g j d), v (b g j e)  →  o (b h i e); options that are not offered never arrive
            return {answer}{turn}
"""


def _fields(found: Any) -> dict[str, str]:
    """Parameter → the field that it carries, or looks as if it did; "..." for a required one that shows nothing."""
    function = vars(found).get("forward", vars(found).get("__call__", found)) if inspect.isclass(found) else found
    try:
        parameters = [p for p in signature_of(function).parameters.values() if p.name != "self"]
    except UnknownSignature:
        return {"...": "..."}
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    fields = {p.name: FIELD_OF[p.name] for p in named if FIELD_OF.get(p.name) in (*DEFAULTS, *"qkv")}
    for part, field in LIKE.items():  # a name shows a field where it is the only one that is like it
        like = [p.name for p in named if p.name not in fields and part in p.name.lower()]
        if len(like) == 1 and field not in fields.values():
            fields[like[0]] = field
    known = {p.name: fields.get(p.name, "...") for p in named if p.name in fields or p.default is p.empty}
    if not set(known.values()) & {"q", "k", "v"}:  # then the first three that must be given
        first = [name for name, field in known.items() if field == "..."][:3]
        known |= dict(zip(first, "qkv", strict=False))
    return known


def _required(kind: type) -> str:
    """The arguments that a constructor must be given, to be filled in."""
    try:
        parameters = signature_of(kind).parameters.values()
    except UnknownSignature:
        return ""
    needed = (p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
    return ", ".join(f"{p.name}=..." for p in needed)


def _signature(found: Any) -> str:
    try:
        if not inspect.isclass(found):
            return str(inspect.signature(getattr(found, "forward", found)))
        method = "forward" if hasattr(found, "forward") else "__call__"
        return f"{inspect.signature(found)}, whose {method} is {inspect.signature(getattr(found, method))}"
    except (TypeError, ValueError):
        return "(…)"
