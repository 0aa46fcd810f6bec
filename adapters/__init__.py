"""How the suite calls an implementation. Subclass :class:`Adapter`, or let :func:`resolve` recognise a signature."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attnspec.spec.words import FEATURES

if TYPE_CHECKING:
    from attnspec.adapters.answer import Answer, Unsupported
    from attnspec.adapters.contract import Adapter
    from attnspec.adapters.conventions.signature import ResolveError
    from attnspec.adapters.memory import same_bits
    from attnspec.adapters.resolving import parse_kwargs, resolve
    from attnspec.adapters.restrictions import RESTRICTIONS
    from attnspec.adapters.within import Call

__all__ = [
    "FEATURES",
    "RESTRICTIONS",
    "Adapter",
    "Answer",
    "Call",
    "ResolveError",
    "Unsupported",
    "parse_kwargs",
    "resolve",
    "same_bits",
]
# All of these need torch, and the process of an implementation is started before torch is imported.
_AT = {
    **dict.fromkeys(("Answer", "Unsupported"), "answer"),
    "Adapter": "contract",
    "same_bits": "memory",
    "ResolveError": "conventions.signature",
    **dict.fromkeys(("parse_kwargs", "resolve"), "resolving"),
    "RESTRICTIONS": "restrictions",
    "Call": "within",
}


def __getattr__(name: str) -> Any:
    """Import a name where somebody asks for it."""
    if name not in _AT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_AT[name]}"), name)
    return value
