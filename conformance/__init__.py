"""The suite: what an implementation must show. `check` runs it as a function; `strategies` draws its problems."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `check` when somebody asks for it, because it needs the whole suite."""
    if name != "check":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from attnspec.conformance.plugin.check import check

    globals()["check"] = check
    return check
