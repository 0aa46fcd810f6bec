"""One attention call: its tensors, exactly as the implementation receives them, and its options."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnspec.spec.index import implements

TENSORS = ("q", "k", "v", "mask", "bias", "do")
DIFFERENTIABLE = ("q", "k", "v", "bias")


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that determines one attention call.

    q (b h i d), k (b g j d) and v (b g j e), or one shared head k (b j d) and v (b j e).
    mask bool, True = may attend: key padding (b j), or anything that broadcasts to (b h i j) with 3 or 4 dimensions.
    bias float, added to the scaled scores, broadcasts to (b h i j). do (b h i e) is the cotangent of the output.
    wrt names the inputs whose gradients are asked for. Values and strides are what the implementation will see.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    bias: Tensor | None = None
    causal: bool = False
    scale: float | None = None
    dropout: float = 0.0
    training: bool = False
    do: Tensor | None = None
    wrt: tuple[str, ...] = ()

    @implements("ERROR-2", "ERROR-4")
    def __post_init__(self) -> None:
        """Raise ValueError, with what was found and what was expected, for inputs that are not one attention call."""
        if self.q.ndim != 4 or self.k.ndim not in (3, 4) or self.v.ndim != self.k.ndim:
            raise ValueError(f"expected q (b h i d) with k, v (b g j d) or (b j d); found {self._shapes('q', 'k', 'v')}")
        same = (
            self.k.shape[0] == self.v.shape[0] == self.b and self.k.shape[-1] == self.d and self.k.shape[:-1] == self.v.shape[:-1]
        )
        if not same:
            raise ValueError(f"batch, key length or query width do not agree: {self._shapes('q', 'k', 'v')}")
        if self.h % self.g if self.g else self.h:
            raise ValueError(f"{self.h} query heads can't be shared evenly among {self.g} key/value heads")
        if self.mask is not None:
            if self.mask.dtype != torch.bool:
                raise ValueError(f"a mask is bool (True = may attend), found {self.mask.dtype}; a float is a bias")
            expected = (self.b, self.j) if self.mask.ndim == 2 else (self.b, self.h, self.i, self.j)
            self._must_broadcast("mask", expected)
        if not self.q.dtype.is_floating_point or not self.q.dtype == self.k.dtype == self.v.dtype:
            raise ValueError(f"q, k, v are floats of one dtype; found {self._dtypes('q', 'k', 'v')}")
        if self.bias is not None:
            narrow = not self.bias.dtype.is_floating_point or self.bias.element_size() < self.q.element_size()
            if narrow:
                raise ValueError(f"a bias is a float as wide as q, or wider; found {self._dtypes('q', 'bias')}; a bool is a mask")
            self._must_broadcast("bias", (self.b, self.h, self.i, self.j))
        if self.scale is not None and not math.isfinite(self.scale):
            raise ValueError(f"a scale is a finite number, or None for the default; found {self.scale}")
        strange = [name for name in self.wrt if name not in DIFFERENTIABLE or getattr(self, name) is None]
        if strange or len(set(self.wrt)) < len(self.wrt):
            given = [name for name in DIFFERENTIABLE if getattr(self, name) is not None]
            raise ValueError(
                f"wrt names inputs whose gradients are asked for, each once, of {', '.join(given)}; found {self.wrt!r}"
            )
        if self.do is not None and self.do.dtype != self.dtype:
            raise ValueError(f"the cotangent has the dtype of the output; found {self._dtypes('q', 'do')}")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout is a probability, found {self.dropout}")
        if self.do is not None and self.do.shape != (self.b, self.h, self.i, self.e):
            raise ValueError(f"the cotangent has shape {tuple(self.do.shape)}, the output {(self.b, self.h, self.i, self.e)}")

    def _shapes(self, *names: str) -> str:
        return ", ".join(f"{name} {tuple(getattr(self, name).shape)}" for name in names)

    def _dtypes(self, *names: str) -> str:
        return ", ".join(f"{name} {str(getattr(self, name).dtype).removeprefix('torch.')}" for name in names)

    def _must_broadcast(self, name: str, shape: tuple[int, ...]) -> None:
        found = tuple(getattr(self, name).shape)
        fits = len(found) <= len(shape) and all(a in (1, b) for a, b in zip(reversed(found), reversed(shape), strict=False))
        if not fits:
            raise ValueError(f"{name} {found} does not broadcast to {shape}")

    # SIZES, in the letters of the spec

    @property
    def b(self) -> int:
        """Batch items."""
        return self.q.shape[0]

    @property
    def h(self) -> int:
        """Query heads."""
        return self.q.shape[1]

    @property
    def g(self) -> int:
        """Key/value heads; 1 for one shared head."""
        return 1 if self.shared else self.k.shape[1]

    @property
    def i(self) -> int:
        """Queries."""
        return self.q.shape[2]

    @property
    def j(self) -> int:
        """Keys."""
        return self.k.shape[-2]

    @property
    def d(self) -> int:
        """Width of queries and keys."""
        return self.q.shape[3]

    @property
    def e(self) -> int:
        """Width of values."""
        return self.v.shape[-1]

    @property
    def shared(self) -> bool:
        """True where keys and values are one 3-D head, (b j d)."""
        return self.k.ndim == 3

    @property
    def dtype(self) -> torch.dtype:
        """The storage dtype of queries."""
        return self.q.dtype

    def replace(self, **changes: Any) -> Problem:
        """The same problem with some fields changed."""
        return dataclasses.replace(self, **changes)

    def inputs(self) -> dict[str, Tensor]:
        """The tensors that are given to the implementation, by name."""
        return {name: x for name in TENSORS[:-1] if (x := getattr(self, name)) is not None}

    # FILES, without pickle

    def to_bytes(self) -> bytes:
        """The problem as an .npz archive: raw memory, shapes and strides, so that it comes back bit by bit."""
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {name: getattr(self, name) for name in ("causal", "scale", "dropout", "training", "wrt")}
        for name in TENSORS:
            x = getattr(self, name)
            if x is not None:
                memory = memory_of(x)
                arrays[name] = memory.view(torch.uint8).cpu().numpy()
                meta[name] = {
                    "dtype": str(x.dtype).removeprefix("torch."),
                    "shape": list(x.shape),
                    "stride": list(x.stride()),
                    "offset": x.storage_offset(),
                }
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Problem:
        """Read what :meth:`to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            meta = json.loads(archive["meta"].tobytes())
            fields: dict[str, Any] = {}
            for name, value in meta.items():
                if name in TENSORS:
                    dtype, raw = getattr(torch, value["dtype"]), torch.from_numpy(archive[name].copy())
                    memory = raw.view(dtype) if len(raw) else torch.empty(0, dtype=dtype)
                    value = memory.as_strided(value["shape"], value["stride"], value["offset"])
                fields[name] = tuple(value) if name == "wrt" else value
        return cls(**fields)


def twin(x: Tensor) -> Tensor:
    """A copy in memory of its own with the same strides and offset, so that a kernel takes the same path through it."""
    return memory_of(x).clone().as_strided(x.shape, x.stride(), x.storage_offset()) if x.numel() else x.clone()


def memory_of(x: Tensor) -> Tensor:
    """The storage that a tensor lies in, from its start to the tensor's last element, as a 1-D tensor."""
    if x.numel() == 0:
        return x.new_empty(0)
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.detach().as_strided((x.storage_offset() + span,), (1,), 0)
