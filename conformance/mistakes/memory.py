"""Mistakes in how a kernel reads memory: strides and offsets (LAYOUT)."""

from __future__ import annotations

from functools import partial

import torch

from attnspec.conformance.mistakes.kernel import Kernel, Wrong
from attnspec.conformance.mistakes.table import Chapter

MEMORY = Chapter()
enter, special = MEMORY.enter, MEMORY.special


def misread(x: Kernel, name: str, at_start: bool) -> Wrong:
    """What stands in a tensor's memory if it were contiguous, or began with the memory; None where it is so, or memory ends."""
    tensor = getattr(x.problem, name).detach()
    strides, offset = torch.empty(tensor.shape, device="meta").stride(), tensor.storage_offset()
    room = tensor.untyped_storage().nbytes() // tensor.element_size()
    if (not offset) if at_start else (tensor.is_contiguous() or offset + tensor.numel() > room):
        return None
    wrong = x.on(**{name: tensor.as_strided(tensor.shape, tensor.stride() if at_start else strides, 0 if at_start else offset)})
    return {output: value for output, value in wrong.items() if name != "do" or output != "o"}


for name in ("q", "k", "v", "do"):
    enter(f"strides_of_{name}", f"{name} is read as if it were contiguous", partial(misread, name=name, at_start=False), name)
for name in ("q", "k", "v"):
    enter(f"offset_of_{name}", f"{name} is read from the start of its memory", partial(misread, name=name, at_start=True))
for name in ("mask", "bias"):
    special(f"strides_of_{name}", f"the {name} is read as if it were contiguous", partial(misread, name=name, at_start=False), name)
    special(
        f"offset_of_{name}", f"the {name} is read from the start of its memory", partial(misread, name=name, at_start=True), name
    )
