"""Classes of arithmetic: what an honest kernel rounds, and by how much.

The symbols are those of Higham, Accuracy and Stability of Numerical Algorithms (SIAM 2002): u is a unit roundoff, η the
absolute error of a rounding that underflows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy import ndarray as Array

from attnspec.spec import implements
from attnspec.spec.words import CLASSES

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TF32 = 2.0**-11
# Smallest normal number: flushing to zero is legal in all but float16, whose subnormals hardware keeps.
UNDERFLOW = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-25, "bfloat16": 2.0**-126}
LARGEST = {
    "float64": 1.7976931348623157e308,
    "float32": 3.4028234663852886e38,
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
}
EXP_ULPS = 42  # a vectorised exp of 20 ulp, and the rounding of its argument's reduction, in units of u
TANH_ULPS = 4  # of tanh as libraries have it, in units of u
TANH_APPROX = 2.0**-11  # of the tanh of a GPU in one instruction


def kappa(n: float, u: float) -> float:
    """n roundings of unit u in any order: nu/(1 − nu) (Higham 2002, lemma 3.1), and a larger value where that ends."""
    x = n * u
    return x / (1 - x) if x < 0.5 else 2 * x


def kappas(n: Array, u: float) -> Array:
    """κ for many n, at most a half: no sum of terms of one sign loses more than that and is still one."""
    x = np.minimum(n * u, 1 / 3)
    return x / (1 - x)


@dataclass(frozen=True)
class Arithmetic:
    """What one accuracy class may round in one dtype (docs/bounds.md).

    Fields u_… are unit roundoffs and fields eta_… are absolute errors of a rounding that underflows; exp, rescale and tanh are
    relative errors; prescaled and block are counts.
    """

    name: str
    dtype: str
    u_out: float  # storage of outputs
    eta_out: float
    u_acc: float  # accumulators and softmax internals
    eta_acc: float
    exp: float  # relative error of exp of a score
    rescale: float  # relative error of exp(old maximum − new maximum)
    tanh: float  # relative error of tanh
    u_in: float = 0.0  # operands on entry of a matmul (tf32)
    u_mma: float = 0.0  # probabilities and dS before a matmul
    eta_mma: float = 0.0
    u_s: float = 0.0  # every materialised score-like tensor
    eta_s: float = 0.0
    prescaled: int = 0  # operands that may be multiplied by a root of the scale and rounded
    u_softmax: float = 0.0  # softmax internals, and their autograd
    u_grad: float = 0.0  # gradient accumulators, written back once per block
    column: float = 1.0  # of what another form of ALiBi adds to all scores of a row
    block: int = 16  # smallest block of keys of an online softmax, and of rows between two write-backs


# What an arithmetic loses, in a reader's words, and the fields that say how much.
TERMS: dict[str, tuple[str, ...]] = {
    "rounding of the result": ("u_out", "eta_out"),
    "accumulation": ("u_acc", "eta_acc"),
    "exp": ("exp", "rescale"),
    "tanh": ("tanh",),
    "operands in tf32": ("u_in",),
    "P and dS rounded for a matmul": ("u_mma", "eta_mma"),
    "stored scores": ("u_s", "eta_s", "prescaled"),
    "softmax in the storage dtype": ("u_softmax",),
    "gradient accumulators in the storage dtype": ("u_grad",),
    "ALiBi by the column of the key": ("column",),
}


@cache
@implements("ACCURACY-4")
def arithmetic(class_: str, dtype: str) -> Arithmetic:
    """The arithmetic of a class for a storage dtype. Raises ValueError for an unknown class or dtype.

    Kernels compute float64 in float64, and everything else in float32 inside. For float32 and float64 storage B, C and D round at
    the precision in which A accumulates, so their bounds differ from A's by constants only. A star adds gradient accumulators that
    are kept in the storage dtype and rounded after every block.
    """
    if class_ not in CLASSES or dtype not in UNIT:
        raise ValueError(f"unknown accuracy class {class_!r} for {dtype!r}; choose from {', '.join(CLASSES)} for {', '.join(UNIT)}")
    u, eta = UNIT[dtype], UNDERFLOW[dtype]
    if class_.endswith("*"):
        return replace(arithmetic(class_[0], dtype), name=class_, u_grad=u)
    inside = "float64" if dtype == "float64" or class_ == "R" else "float32"
    # The reference itself is in float64: beside a kernel of class R its error counts as much as the kernel's.
    u_acc = UNIT[inside] * (2 if class_ == "R" and dtype != "float64" else 1)
    exp = (8 if inside == "float64" else EXP_ULPS) * u_acc
    wide = Arithmetic(class_, dtype, u, eta, u_acc, UNDERFLOW[inside], exp, exp, TANH_ULPS * u_acc)
    if class_ in ("R", "A"):
        return wide
    if class_ == "T":
        return replace(wide, u_in=TF32, u_mma=TF32) if dtype == "float32" else wide
    half = dtype in ("float16", "bfloat16")
    flash = wide
    if half:
        # A short polynomial for exp2 is legal once probabilities are rounded to a half type, and so is the tanh of one instruction;
        # not in the rescale, where it compounds.
        flash = replace(wide, u_mma=u, eta_mma=eta, exp=2.0**-13, tanh=TANH_APPROX)
    if class_ == "B":
        return flash
    eager = replace(flash, u_mma=u, eta_mma=eta, u_s=u, eta_s=eta, prescaled=2)
    if class_ == "C":
        return eager
    return replace(eager, u_softmax=u, eta_mma=3 * eta)


def default_class(dtype: str) -> str:
    """The class whose bounds an implementation must keep if it claims none (ACCURACY-1): A for float64 and float32, else C."""
    return "A" if dtype in ("float64", "float32") else "C"


def stricter(class_: str, dtype: str) -> list[str]:
    """The classes that can be told apart for this dtype, from the strictest up to and including `class_`."""
    ladder = {"float64": ["A"], "float32": ["A", "T"]}.get(dtype, ["A", "B", "C", "D"])
    if class_ in ladder:
        return ladder[: ladder.index(class_) + 1]
    base = class_.removesuffix("*")
    return [*(ladder[: ladder.index(base) + 1] if base in ladder else ["A"]), class_]


def without(a: Arithmetic, term: str) -> Arithmetic:
    """The same arithmetic without the error of one of TERMS."""
    return replace(a, **{name: type(getattr(a, name))() for name in TERMS[term]})
