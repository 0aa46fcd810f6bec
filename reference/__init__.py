"""What the right answer is: exact values, gradients and error bounds.

:func:`solve` gives the exact answer to a problem; :mod:`dense` holds the formulas, one function a stage;
:mod:`autograd` is a second form that shares nothing with it, and :mod:`enclosure` a third that encloses the exact numbers;
:mod:`bounds` and :mod:`gradient_bounds` say how far an honest kernel may be; :mod:`rows` is for rows that are very long.
"""

from attnspec.reference.accuracy import CLASSES, Arithmetic, arithmetic, default_class, stricter
from attnspec.reference.rows import SampledRows
from attnspec.reference.solve import INPUT_OF, OUTPUTS, Exact, Tolerance, solve, to_float64

__all__ = [
    "CLASSES",
    "INPUT_OF",
    "OUTPUTS",
    "Arithmetic",
    "Exact",
    "SampledRows",
    "Tolerance",
    "arithmetic",
    "default_class",
    "solve",
    "stricter",
    "to_float64",
]
