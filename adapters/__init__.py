"""How the suite calls an implementation. Subclass :class:`Adapter`, or let :func:`resolve` recognise a signature."""

from attnspec.adapters.contract import Adapter, Answer, Unsupported, same_bits
from attnspec.adapters.conventions.signature import ResolveError
from attnspec.adapters.resolve import parse_kwargs, resolve
from attnspec.adapters.restrictions import RESTRICTIONS
from attnspec.adapters.within import Call
from attnspec.spec.words import FEATURES

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
