"""The closed vocabularies of the field, each in one place, as values and as types. Nothing in here needs torch."""

from __future__ import annotations

from typing import Literal, get_args

from attnspec.spec.problem import DIFFERENTIABLE, OPTIONS
from attnspec.spec.ragged import FEATURES as OF_CARRIERS

Dtype = Literal["float32", "float64", "bfloat16", "float16"]
Output = Literal["o", "dq", "dk", "dv", "dbias", "dalibi_slopes", "dsinks", "lse"]
AccuracyClass = Literal["R", "A", "T", "B", "B*", "C", "C*", "D"]
# What is wrong with an answer. There was none: it raised, there was no memory, its process ended (crash), or it did not come in
# time. Its form: type, shape,
# dtype, device, or a gradient is missing. It changed its inputs. Its numbers: nonfinite, not exactly zero, outside of the bound
# (value). Two answers do not fit together (relation), or errors lean in one direction (biased). unsupported is no fault: it was
# not asked.
FindingKind = Literal[
    "raised",
    "memory",
    "crash",
    "timeout",
    "type",
    "shape",
    "dtype",
    "device",
    "missing",
    "changed",
    "nonfinite",
    "zero",
    "value",
    "relation",
    "biased",
    "unsupported",
]

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
OUTPUTS: tuple[Output, ...] = get_args(Output)
CLASSES: tuple[AccuracyClass, ...] = get_args(AccuracyClass)  # the strictest first
RETURNED = ("o", "lse")  # by the call; the others are gradients
INPUT_OF = {f"d{name}": name for name in DIFFERENTIABLE}  # of each gradient

# What an implementation may promise beyond right numbers: the same bits. Few do, and nobody misses what is not promised.
PROMISES: dict[str, str] = {
    "deterministic": "the same bits of the output and of the lse on every call",
    "deterministic_backward": "the same bits of the gradients on every call",
    "deterministic_flag": "the same bits on every call that asks for them, by torch's flag or by a parameter `deterministic`",
    "same_when_asked": "the same bits of the output, whether gradients and the lse are asked for or not",
    "batch_invariant": "the same bits of a row of the output and of the lse, whatever its companions in the call",
    "batch_invariant_backward": "the same bits of the gradients of a batch item, whatever its companions in the call",
    "row_invariant": "the same bits of a row of the output and of the lse, whatever other queries its sequence has in the call",
}
REPEATING = ("deterministic", "deterministic_backward")  # what an adapter says by deterministic = True
# What an implementation may offer, in words: forms of the inputs, what an option on its line in Problem says, and ways of use.
FEATURES: dict[str, str] = {
    "mha": "as many key/value heads as query heads",
    "mqa": "one key/value head, 4-D",
    "gqa": "groups of query heads share a key/value head",
    "shared_kv": "keys and values are one 3-D head (b j d)",
    "strided": "inputs whose last dimension is not dense",
    "value_width": "values wider or narrower than keys",
    **{
        feature: says
        for option in OPTIONS.values()
        if option.feature
        for feature, says in {option.feature: option.says, **option.forms}.items()
    },
    "backward": "gradients of q, k, v",
    **{own.gradient: f"the gradient of the {name.replace('_', ' ')}" for name, own in OPTIONS.items() if own.gradient},
    "module": "a module with train() and eval()",
    **PROMISES,
}
# Of calls of many sequences, which have tensors of their own; the others are of a dense call.
RAGGED = tuple(feature for feature in FEATURES if feature in OF_CARRIERS)
# What a mask says, where a function takes one.
MASKS = {
    "shows": "a mask is True where a query may attend",
    "hides": "a mask is True where a query may not attend",
    "adds": "a mask is added to the scores, 0 or −∞",
}
