"""The files of a set of vectors: what the index says of a problem, and tensors as they are written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnspec.conformance.verdicts.lines import VerdictError
from attnspec.spec.files import Stored
from attnspec.spec.words import RETURNED

FORMAT = 1
ABOUT, INDEX = "set.json", "index.jsonl"
INPUTS, EXPECTED, ANSWER, REFUSAL = "inputs.safetensors", "expected.safetensors", "safetensors", "error.txt"
UNSUPPORTED = "unsupported"  # the first word of a refusal that is no failure


class VectorError(VerdictError):
    """A folder that is no set of vectors, or an option that does not go with it; what to do is said."""


@dataclass(frozen=True)
class Comparison:
    """What one test of the suite asks of a problem: the clauses that it decides, and the outputs that must be right.

    form: the clauses speak of shape and dtype alone, whatever the numbers are.
    """

    clauses: tuple[str, ...]
    outputs: tuple[str, ...]
    form: bool = False


@dataclass(frozen=True)
class Vector:
    """A line of the index. options: those of the call that are one value. outputs: what is asked for, o first.

    made: the test that made the problem itself, or ""; the case is then one that is like it, with other numbers.
    """

    id: str
    case: str
    dtype: str
    class_: str
    oracle: str
    needs: tuple[str, ...]
    dialect: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any]
    outputs: tuple[str, ...]
    asked_by: tuple[Comparison, ...]
    made: str = ""

    @property
    def clauses(self) -> tuple[str, ...]:
        """The clauses that ask this problem."""
        return tuple(dict.fromkeys(id_ for asks in self.asked_by for id_ in asks.clauses))

    @property
    def wrt(self) -> tuple[str, ...]:
        """The inputs whose gradients are asked for."""
        return tuple(name.removeprefix("d") for name in self.outputs if name not in RETURNED)

    def file(self, folder: Path, kind: str) -> Path:
        """One of its files."""
        return folder / f"{self.id}.{kind}"

    def line(self) -> str:
        """As it stands in the index."""
        said = {"class" if name == "class_" else name: x for name, x in asdict(self).items()}
        return json.dumps(said) + "\n"

    @classmethod
    def parse(cls, line: str) -> Vector:
        """Read a line. Raises ValueError, KeyError or TypeError where it is none."""
        said = json.loads(line)
        said["class_"] = said.pop("class")
        asked = tuple(Comparison(tuple(x["clauses"]), tuple(x["outputs"]), bool(x["form"])) for x in said["asked_by"])
        shapes = {name: tuple(shape) for name, shape in said["shapes"].items()}
        return cls(
            **{**said, "needs": tuple(said["needs"]), "outputs": tuple(said["outputs"]), "shapes": shapes, "asked_by": asked}
        )


def write_index(folder: Path, vectors: Iterable[Vector]) -> None:
    """The index of a set, a line for each problem."""
    (folder / INDEX).write_text("".join(vector.line() for vector in vectors), encoding="utf-8", newline="\n")


def read_index(folder: Path) -> list[Vector]:
    """The problems of a set. Raises VectorError where the folder is none."""
    return list(_vectors(folder))


def _vectors(folder: Path) -> Iterator[Vector]:
    try:
        lines = (folder / INDEX).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VectorError(f"{folder} is no set of vectors: {error}; write one with attnspec vectors write {folder}") from None
    if not lines:
        raise VectorError(f"{folder / INDEX} is empty; write the set again")
    for n, line in enumerate(lines, start=1):
        try:
            yield Vector.parse(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VectorError(f"{folder / INDEX}, line {n}: {type(error).__name__}: {error}; write the set again") from None


def about(folder: Path) -> dict[str, Any]:
    """What set.json says of a set. Raises VectorError where there is none, or of another format."""
    try:
        said = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VectorError(f"{folder} is no set of vectors: {error}; write one with attnspec vectors write {folder}") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise VectorError(f"{folder / ABOUT} is not of format {FORMAT}, which this attnspec reads; write the set again")
    return said


def stored(x: Tensor) -> Stored:
    """A tensor as it is written: row by row."""
    dense = x.detach().cpu().contiguous().reshape(-1)
    return Stored(str(x.dtype).removeprefix("torch."), tuple(x.shape), dense.view(torch.uint8).numpy())


def tensor(x: Stored) -> Tensor:
    """A tensor as it was read."""
    return torch.from_numpy(x.data.copy()).view(getattr(torch, x.dtype)).reshape(x.shape)
