"""What attention is: the clauses, the choices they leave open, and the problem they speak about.

The text in ``clauses/*.md`` is the one source of truth; :func:`index` parses it. Code binds itself to a clause with
:func:`implements` (reference functions) or ``attnspec.conformance.clause`` (tests).
"""

from attnspec.spec.dialect import CANONICAL, CHOICES, Choice, Dialect
from attnspec.spec.index import SPEC_VERSION, Clause, SpecError, implementations, implements, index
from attnspec.spec.problem import DIFFERENTIABLE, TENSORS, Problem, memory_of, twin

__all__ = [
    "CANONICAL",
    "CHOICES",
    "DIFFERENTIABLE",
    "SPEC_VERSION",
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
    "twin",
]
