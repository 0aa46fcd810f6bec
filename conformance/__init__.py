"""What an implementation must show."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`check`, imported when it is asked for: it needs the whole suite."""
    if name != "check":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from attnspec.conformance.plugin.check import check

    globals()["check"] = check
    return check
