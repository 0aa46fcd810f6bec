"""What the right answer is: exact values, gradients and error bounds.

:func:`solve` gives the exact answer to a problem. :func:`check_answer` compares an answer of your own with it.
:mod:`stages` holds the formulas, :mod:`dense` puts them in order. :mod:`witnesses` has two other forms that share nothing with
them: one uses autograd, one encloses the exact numbers in balls. :mod:`bounds` says how far an honest kernel may be off, and
:mod:`rows` is for very long rows. :func:`merge` makes one answer of those to parts of the keys.
"""

from attnspec.reference.bounds.accuracy import Arithmetic, arithmetic, default_class, stricter
from attnspec.reference.check import check_answer
from attnspec.reference.exact import Exact, Tolerance
from attnspec.reference.numbers import to_float64
from attnspec.reference.rows import SampledRows
from attnspec.reference.solve import solve
from attnspec.reference.stages.lse import Part, merge, merge_error, merge_gradients
from attnspec.spec.words import CLASSES, INPUT_OF, OUTPUTS

__all__ = [
    "CLASSES",
    "INPUT_OF",
    "OUTPUTS",
    "Arithmetic",
    "Exact",
    "Part",
    "SampledRows",
    "Tolerance",
    "arithmetic",
    "check_answer",
    "default_class",
    "merge",
    "merge_error",
    "merge_gradients",
    "solve",
    "stricter",
    "to_float64",
]
