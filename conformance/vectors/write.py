"""A set of vectors: each problem with its exact answer and the bound of each element."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from attnspec.adapters.restrictions import needs
from attnspec.conformance.problems.case import Case
from attnspec.conformance.vectors.format import (
    ABOUT,
    EXPECTED,
    FORMAT,
    INPUTS,
    Comparison,
    Vector,
    VectorError,
    stored,
    write_index,
)
from attnspec.conformance.vectors.readme import README, text
from attnspec.reference import Exact
from attnspec.reference.check import beyond, together
from attnspec.reference.stages.lse import dtype_of
from attnspec.spec import CHOICES, OPTIONS, SCALARS, Problem
from attnspec.spec.files import DTYPES, Stored, write
from attnspec.spec.problem import plain_options
from attnspec.spec.words import INPUT_OF

ALWAYS = ("causal", "scale")  # options that stand in every line, given or not


class Task(NamedTuple):
    """A problem to be written: as a case and as tensors, its exact answer, the class of its bound, who asks it and who made it."""

    case: Case
    problem: Problem
    exact: Exact
    class_: str
    asked_by: tuple[Comparison, ...]
    made: str = ""


@dataclass(frozen=True)
class Written:
    """What came of it: the problems, and the bytes of all files."""

    vectors: tuple[Vector, ...]
    bytes: int


def size(problem: Problem) -> int:
    """Bytes of the numbers in the two files of a problem, the rest that float64 leaves of float64 included."""
    own = [*problem.inputs().values(), *problem.cotangents().values()]
    wanted = sum(math.prod(problem.shape_of(name)) for name in problem.outputs)
    each = 24 if str(problem.dtype) == "torch.float64" else 16
    return sum(x.numel() * x.element_size() for x in own) + wanted * each


def features(problem: Problem) -> frozenset[str]:
    """What an implementation must offer to be asked a problem."""
    gradients = {own.gradient for name, own in OPTIONS.items() if name in problem.wrt}
    gradients |= {"lse_grad"} if problem.dlse is not None else set()
    return needs(problem) | gradients | ({"backward"} if problem.wrt else set())


def choices_of(problem: Problem, exact: Exact) -> dict[str, str]:
    """The choices of a dialect on which the answer to a problem may depend."""
    dialect, has_empty = exact.dialect, bool(exact.forward.bare.any())  # a sink is a term of a row without a key
    of_keys = dialect.lse_includes_sink == "no" and bool(exact.empty.any())
    slopes = problem.alibi_slopes is not None
    placed = problem.causal or problem.window is not None or (slopes and dialect.alibi_form == "distance")
    matter = {
        "causal_alignment": placed and problem.i != problem.j and problem.q_start is None,
        "empty_row": has_empty,
        "head_grouping": 1 < problem.g < problem.h,
        "window_count": problem.window is not None,
        "softcap_order": problem.softcap is not None and (problem.bias is not None or slopes),
        "alibi_form": slopes,
        "rotary_pairs": False,  # files hold no calls with new keys
        "rotary_query": False,
        "lse_base": problem.lse,
        "lse_empty": problem.lse and (has_empty or of_keys),
        "lse_dtype": problem.lse,
        "lse_includes_sink": problem.lse and problem.sinks is not None,
    }
    return {name: getattr(dialect, name) for name in CHOICES if matter.get(name, True)}


def expected(exact: Exact, class_: str, outputs: tuple[str, ...]) -> dict[str, Array]:
    """The exact value of each output, its bound, and what float64 leaves of the value: the judge's own numbers.

    A bound is +∞ where nothing is asked. It is 0 where the answer must be exactly zero, and NaN where it must be NaN.
    """
    tolerance, found = exact.tolerance(class_), {}
    for name in outputs:
        value, bound, exempt = together(exact, tolerance.bound, tolerance.exempt, name)
        # No number is within NaN; the judge lets pass what hits the exact value, as a bound of 0 does.
        bound = np.where(np.isnan(bound) & ~np.isnan(value), 0.0, bound)
        found[name] = np.ascontiguousarray(value, float)
        found[f"{name}.bound"] = np.where(exempt, np.inf, bound)
        if exact.oracle != "float64":
            found[f"{name}.rest"] = np.ascontiguousarray(beyond(exact, name), float)
    return found


def write_vector(folder: Path, number: int, task: Task) -> Vector:
    """Write the two files of a problem."""
    problem, exact = task.problem, task.exact
    vector = Vector(
        f"{number:04d}",
        task.case.token(),
        task.case.dtype,
        task.class_,
        exact.oracle,
        tuple(sorted(features(problem))),
        choices_of(problem, exact),
        {name: tuple(x.shape) for name, x in problem.inputs().items()},
        plain_options({name: getattr(problem, name) for name in SCALARS if name in ALWAYS or name in problem.given()}),
        problem.outputs,
        task.asked_by,
        task.made,
    )
    tensors = {name: stored(x) for name, x in problem.inputs().items()}
    tensors |= {name: stored(x) for name, x in problem.cotangents().items()}
    said = {name: json.dumps(x) for name, x in vector.options.items()}
    write(vector.file(folder, INPUTS), tensors, {"id": vector.id, "case": vector.case, "outputs": ",".join(vector.outputs), **said})
    answer = {name: Stored.of(x) for name, x in expected(exact, task.class_, vector.outputs).items()}
    if exact.empty.any():
        answer["empty"] = Stored.of(exact.empty)
    types = {name: str(getattr(problem, INPUT_OF.get(name, "q")).dtype).removeprefix("torch.") for name in problem.outputs}
    if problem.lse:
        types["lse"] = dtype_of(problem, exact.dialect)
    codes = {f"{name}.dtype": DTYPES[dtype][0] for name, dtype in types.items()}
    write(
        vector.file(folder, EXPECTED),
        answer,
        {"id": vector.id, "outputs": ",".join(vector.outputs), **codes, "class": task.class_, "oracle": exact.oracle},
    )
    return vector


def make_folder(folder: Path) -> None:
    """Make a folder that is not there yet, or is empty. Raises VectorError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise VectorError(f"{folder} is there already; name a new folder, so that no file of an older set is left in it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VectorError(f"{folder} can't be made: {error.strerror}; name another folder") from None


def write_set(folder: Path, tasks: Iterable[Task], about: Mapping[str, Any]) -> Written:
    """Write a set into a folder that does not exist yet, or is empty. Raises VectorError."""
    make_folder(folder)
    vectors = [write_vector(folder, number, task) for number, task in enumerate(tasks, start=1)]
    if not vectors:
        raise VectorError("no problem is left; offer more, or raise --largest")
    write_index(folder, vectors)
    said = {"format": FORMAT, **about, "problems": len(vectors)}
    (folder / ABOUT).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8", newline="\n")
    (folder / README).write_text(text(vectors, said), encoding="utf-8", newline="\n")
    return Written(tuple(vectors), sum(file.stat().st_size for file in folder.iterdir()))


def fingerprint(folder: Path, kind: str = "") -> str:
    """sha256 over the names and bytes of the files of a set, in the order of their names; `kind`: of those that end so."""
    found = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name.endswith(kind):
            data = file.read_bytes()
            found.update(f"{file.name} {len(data)}\n".encode() + data)
    return found.hexdigest()


def pack(folder: Path, archive: Path) -> None:
    """The files of a set in one zip archive: the same bytes for the same files, whenever it is made."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as whole:
        for file in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(f"{folder.name}/{file.name}", (1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            whole.writestr(entry, file.read_bytes())
