"""The memory that holds tensors: copies that keep its layout, and problems as bytes, without pickle."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnspec.spec.problem import TENSORS, Problem, options_from, plain_options


def to_bytes(problem: Problem) -> bytes:
    """The problem as the bytes of an .npz archive: raw memory, shapes and strides, so that every bit comes back."""
    arrays: dict[str, np.ndarray] = {}
    meta: dict[str, Any] = {name: value for name, value in vars(problem).items() if name not in TENSORS}
    for name in TENSORS:
        x = getattr(problem, name)
        if x is not None:
            memory = memory_of(x)
            arrays[name] = memory.view(torch.uint8).cpu().numpy()
            meta[name] = {
                "dtype": str(x.dtype).removeprefix("torch."),
                "shape": list(x.shape),
                "stride": list(x.stride()),
                "offset": x.storage_offset(),
            }
    arrays["meta"] = np.frombuffer(json.dumps(plain_options(meta)).encode(), np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def from_bytes(data: bytes) -> Problem:
    """Read what :func:`to_bytes` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        meta = json.loads(archive["meta"].tobytes())
        fields: dict[str, Any] = {}
        for name, value in meta.items():
            if name in TENSORS:
                dtype, raw = getattr(torch, value["dtype"]), torch.from_numpy(archive[name].copy())
                memory = raw.view(dtype) if len(raw) else torch.empty(0, dtype=dtype)
                value = memory.as_strided(value["shape"], value["stride"], value["offset"])
            fields[name] = value
    return Problem(**options_from(fields))


def twin(x: Tensor) -> Tensor:
    """A copy in its own memory, with the same strides and offset, so that a kernel takes the same path through it."""
    return memory_of(x).clone().as_strided(x.shape, x.stride(), x.storage_offset()) if x.numel() else x.clone()


def expanded(x: Tensor) -> bool:
    """Whether one element of memory is several of a tensor."""
    return any(stride == 0 < size - 1 for size, stride in zip(x.shape, x.stride(), strict=True))


def memory_of(x: Tensor) -> Tensor:
    """A 1-D view of a tensor's storage, from its start to the last element of the tensor."""
    if x.numel() == 0:
        return x.new_empty(0)
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.detach().as_strided((x.storage_offset() + span,), (1,), 0)
