"""Tensors in a file, in the layout of safetensors: the length of a header, the header in JSON, the numbers. Needs NumPy only.

The layout is that of https://github.com/huggingface/safetensors: eight bytes with the length of the header, little-endian; the
header, which says of each tensor its dtype, shape and place, and holds a mapping of texts, __metadata__; then the numbers, without
gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# The spec's word for a dtype: the file's, and the bytes of an element.
DTYPES = {
    "float64": ("F64", 8),
    "int64": ("I64", 8),
    "float32": ("F32", 4),
    "int32": ("I32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "bool": ("BOOL", 1),
    "uint8": ("U8", 1),
}
_WORDS = {code: word for word, (code, _) in DTYPES.items()}
LONGEST = 100_000_000  # bytes of a header, as safetensors has it


class Stored(NamedTuple):
    """One tensor of a file: its dtype (float32, bool, …), its shape, and its numbers row by row as bytes, uint8 (n)."""

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    @property
    def array(self) -> np.ndarray:
        """The numbers in their shape. NumPy has no bfloat16: those come as float32, which holds each of them exactly."""
        if self.dtype == "bfloat16":
            return (self.data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        return self.data.view(np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)

    @classmethod
    def of(cls, array: np.ndarray) -> Stored:
        """An array as it is written."""
        dense = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        return cls(array.dtype.name, array.shape, dense.reshape(-1).view(np.uint8))


def write(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name, the same bytes for the same content. Raises KeyError for a dtype that DTYPES does not have."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    # Wide elements first, so that all lie where their width wants them.
    order, at = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype][1], name)), 0
    for name in order:
        x = tensors[name]
        header[name] = {"dtype": DTYPES[x.dtype][0], "shape": list(x.shape), "data_offsets": [at, at + x.data.nbytes]}
        at += x.data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # A file that is there is written over: new memory for it would take as long as all the rest.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb", buffering=0) as file:
        whole = memoryview(b"".join([len(text).to_bytes(8, "little"), text, *(tensors[name].data.data for name in order)]))
        size = len(whole)
        while whole:
            whole = whole[file.write(whole) :]
        file.truncate(size)


def read(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a file by name, and its metadata. Raises ValueError where it is none, with what is wrong with it."""
    whole = np.fromfile(path, np.uint8)
    size = int.from_bytes(whole[:8].tobytes(), "little") if len(whole) >= 8 else -1
    if not 2 <= size <= min(LONGEST, len(whole) - 8):
        raise ValueError(f"{path.name} is no file of tensors: its first eight bytes do not say how long its header is")
    try:
        header = json.loads(whole[8 : 8 + size].tobytes())
        metadata = {str(name): str(text) for name, text in header.pop("__metadata__", {}).items()}
        found = {str(name): _stored(entry, whole[8 + size :], name) for name, entry in header.items()}
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name} is no file of tensors: its header can't be read ({type(error).__name__}: {error})") from None
    return found, metadata


def _stored(entry: dict[str, Any], numbers: np.ndarray, name: str) -> Stored:
    if entry["dtype"] not in _WORDS:
        raise ValueError(f"tensor {name} is of dtype {entry['dtype']}; choose from {', '.join(_WORDS)}")
    word, shape, (start, end) = _WORDS[entry["dtype"]], tuple(map(int, entry["shape"])), map(int, entry["data_offsets"])
    needs = math.prod(shape) * DTYPES[word][1]
    if min(shape, default=0) < 0 or not 0 <= start <= end <= len(numbers) or end - start != needs:
        raise ValueError(
            f"tensor {name} {list(shape)} needs {needs} bytes; its place [{start}, {end}) of {len(numbers)} is another"
        )
    return Stored(word, shape, numbers[start:end])
