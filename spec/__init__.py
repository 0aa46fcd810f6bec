"""What attention is: the clauses, the choices they leave open, and the problem they speak about.

The text in ``clauses/*.md`` is the only source; :func:`index` parses it. A reference function names its clauses with
:func:`implements`, a test with ``attnspec.conformance.testing.clause.clause``. Only what handles the memory of tensors needs torch.
"""

from typing import TYPE_CHECKING, Any

from attnspec.spec.dialect import CANONICAL, CHOICES, Choice, Dialect
from attnspec.spec.index import SPEC_VERSION, SPEC_VERSIONS, Clause, SpecError, implementations, implements, index, newer
from attnspec.spec.problem import COTANGENTS, DIFFERENTIABLE, OPTIONS, SCALARS, TENSORS, Problem, differentiable

if TYPE_CHECKING:
    from attnspec.spec.memory import memory_of, twin

__all__ = [
    "CANONICAL",
    "CHOICES",
    "COTANGENTS",
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
    "differentiable",
    "implementations",
    "implements",
    "index",
    "memory_of",
    "newer",
    "twin",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when somebody asks for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from attnspec.spec import memory

    globals()[name] = value = getattr(memory, name)
    return value
