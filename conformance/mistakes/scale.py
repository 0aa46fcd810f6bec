"""Mistakes of the scale (SCALE)."""

from __future__ import annotations

from math import log

import numpy as np
import torch

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter

SCALE = Chapter()
enter, special = SCALE.enter, SCALE.special

enter("scale_missing", "the scores are not scaled", lambda x: x.with_scale(1.0))
enter("scale_ignored", "a given scale is not used", lambda x: x.with_scale(x.default_scale))
enter("scale_twice", "a given scale is applied twice", lambda x: x.with_scale(x.scale**2, given=True))
enter("scale_1_over_d", "the default scale is 1/d instead of 1/√d", lambda x: x.with_scale(x.scale**2, given=False))
enter(
    "scale_of_model",
    "the default scale uses the width of all heads together",
    lambda x: x.with_scale(x.scale * max(x.h, 1) ** -0.5, given=False),
)
enter(
    "scale_of_values",
    "the default scale uses the width of the values",
    lambda x: x.with_scale(max(x.problem.e, 1) ** -0.5, given=False),
)
enter("scale_unsigned", "the sign of the scale is lost", lambda x: x.with_scale(abs(x.scale)))
enter("scale_off", "the scale is off by 0.1 %", lambda x: x.with_scale(1.001 * x.scale))
for n in (8, 16, 64):
    special(
        f"scale_of_width_padded_to_{n}",
        f"the default scale uses the width padded to a multiple of {n}",
        lambda x, n=n: x.with_scale((-(-x.problem.d // n) * n) ** -0.5, given=False),
        of="scale_of_width_padded_to_8",
    )
special(
    "scale_on_top", "a given scale is applied on top of the default", lambda x: x.with_scale(x.scale * x.default_scale, given=True)
)
special(
    "scale_default_twice",
    "the default scale is applied twice",
    lambda x: x.with_scale(x.scale**2, given=False),
    of="scale_1_over_d",
)
special("scale_inverted", "the scores are divided by the scale", lambda x: x.with_scale(1 / x.scale) if x.scale else None)
special("scale_of_width", "the default scale is d", lambda x: x.with_scale(float(x.problem.d), given=False))
special(
    "scale_of_kv_heads",
    "the default scale uses the width d·g/h",
    lambda x: x.with_scale((x.problem.d * x.g / x.h) ** -0.5, given=False),
)
special("scale_of_queries", "the default scale uses the number of queries", lambda x: x.with_scale(x.i**-0.5, given=False))
special(
    "scale_of_keys",
    "the default scale uses the number of keys",
    lambda x: x.with_scale(x.j**-0.5, given=False),
    of="scale_of_queries",
)
special("scale_base_two", "exp uses base 2", lambda x: base(x, log(2)))
special(
    "scale_base_two_twice",
    "the scores are multiplied by log₂ e, but exp uses base e",
    lambda x: base(x, 1 / log(2)),
    of="scale_base_two",
)
special("scale_base_two_rounded", "log₂ e is rounded to 1.4427", lambda x: x.with_scale(x.scale * 1.4427 * log(2)), of="scale_off")
special("scale_halved", "the scale is half of what it should be", lambda x: x.with_scale(x.scale / 2), of="scale_off")
special(
    "scale_in_bfloat16",
    "the scale is rounded to bfloat16",
    lambda x: x.with_scale(float(torch.tensor(x.scale).bfloat16())),
    of="scale_off",
)
special(
    "scale_ignored_with_bias",
    "a given scale is not used beside a bias",
    lambda x: x.with_scale(x.default_scale),
    "bias",
    of="scale_ignored",
)
special(
    "scale_of_output",
    "the output is multiplied by the scale",
    lambda x: {"o": x.scale * (x.p @ x.heads_v)} if x.scale != 1 else None,
)
special(
    "scale_of_tail_twice",
    "keys after the last full block of 16 are scaled twice",
    lambda x: x.on(k=x.k * np.where(np.arange(x.j) < x.j - x.j % 16, 1.0, x.scale)[:, None]) if x.j % 16 else None,
)


def base(x: Kernel, factor: float) -> Wrong:
    """The scores times a factor, bias and all."""
    return x.with_weights(x.weights(x.s * factor))


for default, name, says in ((True, "float32_default_scale", "the default scale"), (False, "float32_scale", "the scale")):
    special(
        name,
        f"{says} is rounded to float32",
        lambda x, default=default: (
            x.with_scale(float(np.float32(x.scale)), given=False if default else None) if x.problem.dtype == torch.float64 else None
        ),
        of="float32_scale",
    )
