"""What attention is: the clauses, the choices they leave open, and the problem they speak about.

The text in ``clauses/*.md`` is the one source of truth; :func:`index` parses it. Code binds itself to a clause with
:func:`implements` (reference functions) or ``attnspec.conformance.testing.clause.clause`` (tests). The clauses and the choices
need no torch; a problem does.
"""

from typing import TYPE_CHECKING, Any

from attnspec.spec.dialect import CANONICAL, CHOICES, Choice, Dialect
from attnspec.spec.index import SPEC_VERSION, SPEC_VERSIONS, Clause, SpecError, implementations, implements, index, newer

if TYPE_CHECKING:
    from attnspec.spec.problem import DIFFERENTIABLE, TENSORS, Problem, memory_of, twin

__all__ = [
    "CANONICAL",
    "CHOICES",
    "DIFFERENTIABLE",
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
    """What speaks of tensors, imported when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from attnspec.spec import problem

    globals()[name] = value = getattr(problem, name)
    return value
