"""Where an implementation is: a dotted path or a file, imported, and the callables that it holds."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from attnspec.adapters.conventions.signature import ResolveError
from attnspec.adapters.reading import words
from attnspec.adapters.shipped.names import SHIPPED


def short(text: str) -> str:
    """The beginning of a text that a user wrote, which may be of any length."""
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"


def load(target: str) -> tuple[Any, tuple[str, ...]]:
    """What a path names, and the lines of Python that name it `attend`. Raises ResolveError with what to write."""
    if "://" in target:
        raise ResolveError(f"--impl={short(target)} is a URL, and attnspec fetches nothing: download it and write file.py:name")
    if os.path.isdir(target) and not target.isidentifier():
        raise ResolveError(f"--impl={short(target)} is a folder; write file.py:name, or package.module.name")
    if ".py:" in target:
        file, _, name = target.rpartition(":")
        path = Path(file)
        found = _attribute(_load_file(path), name, target)
        return found, (f"import sys; sys.path.insert(0, {str(path.resolve().parent)!r})", import_line(path.stem, name))
    if target.endswith(".py"):
        names = ", ".join(_callables(_load_file(Path(target)))) or "nothing callable"
        raise ResolveError(f"--impl={target} names a file; add the name to test, {target}:NAME. It has {names}.")
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
            f"--impl={short(target)} was not found: Python can't import a module {short(parts[0])!r} from here, and it is "
            f"not a shipped name ({known}). Write package.module.name, file.py:name, or install the package."
        )
    if not rest or (rest == parts[-1] and not hasattr(module, rest) and _import_module(target)):
        names = ", ".join(_callables(_import_module(target))[:8]) or "nothing callable"
        raise ResolveError(f"--impl={target} names a module; add the name to test, {target}.NAME. It has {names}.")
    return _attribute(module, rest, target), (import_line(module.__name__, rest),)


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


def import_line(module: str, path: str) -> str:
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
        raise ResolveError(f"file {path} does not exist (searched from {Path.cwd().name}/)")
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
