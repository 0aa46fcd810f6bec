"""A problem's tensors and an answer's on their way between two processes: files of tensors, and the memory that they lie in.

What is sent is the memory, and of each tensor how it lies in it. The receiver mirrors the sender's memory: a storage that comes
again lies where it lay, with what it holds now, until the sender has freed it; one tensor that is given twice is one there, too.
So what a kernel can see of addresses, strides and what lies around a tensor is as it would be in one process.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from attnspec.adapters.memory import bytes_of
from attnspec.adapters.reading import NoTensor, Unreadable, kind_of, readable
from attnspec.spec.files import DTYPES, Stored, read, write
from attnspec.spec.place import ALIGNED, Place, place_of


def dense(x: Tensor) -> Stored:
    """The numbers of a tensor row by row. Dtypes that a file has no word for are sent in a wider one."""
    x = x.detach().cpu().resolve_conj().resolve_neg().contiguous()
    word = str(x.dtype).removeprefix("torch.")
    if word not in DTYPES:
        x = x.to(torch.float64) if x.is_floating_point() else torch.zeros(x.shape, dtype=torch.uint8)
        word = str(x.dtype).removeprefix("torch.")
    return Stored(word, tuple(x.shape), x.reshape(-1).view(torch.uint8).numpy())


def tensor(stored: Stored) -> Tensor:
    """The tensor that a file holds."""
    dtype = getattr(torch, stored.dtype)
    return (
        torch.from_numpy(stored.data.copy()).view(dtype).reshape(stored.shape)
        if stored.data.size
        else torch.empty(stored.shape, dtype=dtype)
    )


@dataclass
class Sender:
    """Names the storages of this process for one receiver. contiguous: the receiver takes tensors row by row, and no memory."""

    contiguous: bool = False
    _names: dict[int, tuple[int, StorageWeakRef]] = field(default_factory=dict)  # of a storage: its name, and whether it lives
    _next: Any = field(default_factory=itertools.count)

    def write(self, path: Path, tensors: Mapping[str, Tensor]) -> list[int]:
        """Write tensors by name. Returns the names of storages that were freed since the last time."""
        if self.contiguous:
            write(path, {name: dense(x) for name, x in tensors.items()})
            return []
        first: dict[int, str] = {}
        freed = self.freed()
        memory: dict[str, dict[str, Any]] = {}
        stored: dict[str, Stored] = {}
        views: dict[str, dict[str, Any]] = {}
        for name, x in tensors.items():
            if first.setdefault(id(x), name) != name:
                views[name] = {"same": first[id(x)]}
                continue
            named = self._name(x)
            of = f"memory {named}"
            if of not in stored:
                data = bytes_of(x).cpu().numpy()
                stored[of] = Stored("uint8", (data.size,), data)
                memory[of] = {"name": named, "aligned": x.untyped_storage().data_ptr() % ALIGNED}
                if not x.untyped_storage().resizable():
                    memory[of]["fixed"] = True
                if (found := place_of(x)) is not None:
                    memory[of] |= {"place": found[0].number, "size": found[0].size, "at": found[1]}
            lies = {"shape": list(x.shape), "stride": list(x.stride()), "offset": x.storage_offset()}
            views[name] = {"memory": of, "dtype": str(x.dtype).removeprefix("torch."), **lies}
            if x.is_neg():
                views[name]["negated"] = True
        write(path, stored, {"views": json.dumps(views), "memory": json.dumps(memory)})
        return freed

    def _name(self, x: Tensor) -> int:
        storage = x.untyped_storage()
        known = self._names.get(storage._cdata)
        if known is None or known[1].expired():
            known = self._names[storage._cdata] = next(self._next), StorageWeakRef(storage)
        return known[0]

    def freed(self) -> list[int]:
        """The names of storages that were freed since the last time."""
        gone = [(key, name) for key, (name, lives) in self._names.items() if lives.expired()]
        for key, _ in gone:
            del self._names[key]
        return [name for _, name in gone]


@dataclass
class Receiver:
    """The mirrored memory of a sender, on one device."""

    device: str = "cpu"
    _memory: dict[int, Tensor] = field(default_factory=dict)
    _places: dict[int, Place] = field(default_factory=dict)

    def free(self, names: Iterable[int]) -> None:
        """Forget storages that the sender has freed."""
        for name in names:
            self._memory.pop(name, None)

    def read(self, path: Path) -> dict[str, Tensor]:
        """The tensors that a sender wrote, where they lay before. Raises ValueError for a file that is none of these."""
        stored, metadata = read(path)
        if "views" not in metadata:
            return {name: tensor(x).to(self.device) for name, x in stored.items()}
        memory = {name: self._mirrored(stored[name].data, how) for name, how in json.loads(metadata["memory"]).items()}
        found: dict[str, Tensor] = {}
        for name, how in json.loads(metadata["views"]).items():
            found[name] = found[how["same"]] if "same" in how else self._view(memory[how["memory"]], how)
        return found

    def holds(self, number: int) -> bool:
        """Whether something but this mirror holds the memory of a place; see :class:`attnspec.spec.place.Place`."""
        return number in self._places and self._places[number].taken

    def _mirrored(self, data: np.ndarray, how: dict[str, Any]) -> Tensor:
        known = self._memory.get(how["name"])
        if known is not None and len(known) == len(data):
            known.copy_(torch.from_numpy(data))
            return known
        made = self._memory[how["name"]] = self._made(data, how)
        return made

    def _made(self, data: np.ndarray, how: dict[str, Any]) -> Tensor:
        if self.device != "cpu":
            return torch.from_numpy(data).to(self.device, copy=True)
        if "place" in how:
            place = self._places.setdefault(how["place"], Place(how["size"]))
            return place.lay(torch.from_numpy(data), how["at"])
        if how.get("fixed") or how["aligned"]:
            room = np.empty(len(data) + ALIGNED, np.uint8)
            start = (how["aligned"] - room.ctypes.data) % ALIGNED
            room[start : start + len(data)] = data
            return torch.from_numpy(room[start : start + len(data)])
        return torch.from_numpy(data).clone()

    def _view(self, memory: Tensor, how: dict[str, Any]) -> Tensor:
        x = torch.empty(0, dtype=getattr(torch, how["dtype"]), device=memory.device)
        x.set_(memory.untyped_storage(), how["offset"], how["shape"], how["stride"])
        return torch._neg_view(x) if how.get("negated") else x


# ANSWERS


def written(path: Path, results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Write what an implementation returned, by name. Returns what no file can hold, in words or as the form of a tensor."""
    stored: dict[str, Stored] = {}
    strange: dict[str, dict[str, Any]] = {}
    for name, x in results.items():
        if isinstance(x, Unreadable):
            strange[name] = {"unreadable": x.what}
        elif isinstance(x, Tensor):
            word = str(x.dtype).removeprefix("torch.")
            if not readable(x) or word not in DTYPES:
                strange[name] = {"dtype": word, "shape": list(x.shape), "layout": str(x.layout), "device": str(x.device)}
            elif x.device.type != "cpu":
                strange[name] = {"device": str(x.device)}
            if x.layout == torch.strided and x.device.type != "meta":
                stored[name] = dense(x)
        else:
            strange[name] = {"kind": kind_of(x)}
    write(path, stored)
    return strange


def returned(path: Path, strange: Mapping[str, dict[str, Any]], device: str) -> dict[str, Any]:
    """What :func:`written` wrote, on the device on which it was. Raises ValueError for a file that is none of these."""
    found: dict[str, Any] = {name: tensor(x) for name, x in read(path)[0].items()}
    for name, how in strange.items():
        if "kind" in how:
            found[name] = NoTensor(how["kind"])
        elif "unreadable" in how:
            found[name] = Unreadable(how["unreadable"])
        elif "dtype" in how:
            found[name] = _formed(found.get(name), how)
    if device != "cpu":
        where = {name: strange.get(name, {}).get("device", "cpu") for name in found}
        found = {name: x.to(where[name]) if isinstance(x, Tensor) and x.device.type == "cpu" else x for name, x in found.items()}
    return found


def _formed(numbers: Tensor | None, how: dict[str, Any]) -> Tensor:
    """A tensor of the form that is said; the numbers that were sent, if any."""
    dtype = getattr(torch, how["dtype"])
    if how["layout"] != "torch.strided":
        return (
            torch.empty(how["shape"], dtype=dtype).to_sparse()
            if how["layout"] == "torch.sparse_coo"
            else torch.empty(how["shape"], dtype=dtype, layout=getattr(torch, how["layout"].removeprefix("torch.")))
        )
    if numbers is None or torch.device(how["device"]).type == "meta":
        return torch.empty(how["shape"], dtype=dtype, device="meta")
    return numbers.to(dtype)
