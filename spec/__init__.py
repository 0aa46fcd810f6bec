"""What attention is: the clauses, the choices they leave open, and the problem they speak about.

The text in ``clauses/*.md`` is the one source of truth; :func:`index` parses it. Code binds itself to a clause with
:func:`implements` (reference functions) or ``attnspec.conformance.testing.clause.clause`` (tests). Only the memory of
tensors needs torch.
"""

from typing import TYPE_CHECKING, Any

from attnspec.spec.dialect import CANONICAL, CHOICES, Choice, Dialect
from attnspec.spec.index import SPEC_VERSION, SPEC_VERSIONS, Clause, SpecError, implementations, implements, index, newer
from attnspec.spec.problem import DIFFERENTIABLE, OPTIONS, SCALARS, TENSORS, Problem

if TYPE_CHECKING:
    from attnspec.spec.memory import memory_of, twin

__all__ = [
    "CANONICAL",
    "CHOICES",
    "DIFFERENTIABLE",
    "OPTIONS",
    "SCALARS",
    "SPEC_VERSION",
    "SPEC_VERSIONS",
    "TENSORS",
    "Choice",
    "Clause",
    "Dialect",
    "Problem",
    "SpecError",
    "implementations",
    "implements",
    "index",
    "memory_of",
    "newer",
    "twin",
]


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from attnspec.spec import memory

    globals()[name] = value = getattr(memory, name)
    return value
