"""Solutions and Definitions of FlashInfer-Bench, read from JSON. Importing this needs neither torch nor that package."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from attnspec.adapters.conventions.signature import ResolveError

LANGUAGES = ("python", "triton")
KINDS = {str: "a text", dict: "an object", list: "a list", bool: "true or false"}


@dataclass(frozen=True)
class Tensor:
    """An input or an output of a Definition. shape: the names of its axes; None for a number."""

    shape: tuple[str, ...] | None
    dtype: str


@dataclass(frozen=True)
class Definition:
    """What a kernel computes. axes: the size of each; None for one that differs from call to call. origin: where it comes from."""

    name: str
    axes: Mapping[str, int | None]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    constraints: tuple[str, ...] = ()
    origin: str = ""

    def size(self, tensor: str, axis: int) -> int | None:
        """How long an axis of an input is; None where that differs from call to call."""
        shape = self.inputs[tensor].shape or ()
        return self.axes[shape[axis]]


@dataclass(frozen=True)
class Solution:
    """A kernel: its sources, and the function in them that is called.

    in_place: it writes its outputs into tensors that follow its inputs; else it returns them.
    """

    name: str
    definition: str
    path: Path
    in_place: bool


def read_solution(path: Path) -> Solution:
    """The Solution in a file. Raises ResolveError with the field that is wrong."""
    data = _json(path)
    if "sources" not in data or "spec" not in data:
        raise ResolveError(
            f"--impl={path} holds no Solution of FlashInfer-Bench: it has the fields {', '.join(data) or 'none'}, and a Solution "
            "has name, definition, spec and sources"
        )
    name, definition = (_field(data, key, str, path) for key in ("name", "definition"))
    spec = _field(data, "spec", dict, path)
    language, entry = (_field(spec, key, str, path, "spec.") for key in ("language", "entry_point"))
    in_place = _field({"destination_passing_style": True, **spec}, "destination_passing_style", bool, path, "spec.")
    if language not in LANGUAGES:
        raise ResolveError(
            f"--impl={path} is written in {language}: attnspec builds nothing, and runs {' and '.join(LANGUAGES)} alone. "
            "Build the kernel, and name the Python function that calls it, file.py:name."
        )
    file, _, function = entry.partition("::")
    if entry.count("::") != 1 or not file.endswith(".py") or not function.isidentifier():
        raise ResolveError(f"{path}: spec.entry_point is {entry!r}, and is the file and the function, such as main.py::run")
    sources = [_source(one, n, path) for n, one in enumerate(_field(data, "sources", list, path))]
    if file not in sources:
        raise ResolveError(f"{path}: spec.entry_point names {file}, and sources has {', '.join(sources) or 'no files'}")
    return Solution(name, definition, path, in_place)


def definition_of(solution: Solution, given: str | None = None) -> Definition:
    """The Definition of a Solution: the one that is given, one beside it, or what its name says. Raises ResolveError."""
    if given is not None:
        found = read_definition(Path(given))
        if found.name != solution.definition:
            raise ResolveError(f"{solution.path} solves {solution.definition!r}, and {given} defines {found.name!r}")
        return found
    beside = solution.path.parent / f"{solution.definition}.json"
    folders = [parent / "definitions" for parent in solution.path.resolve().parents]
    for place in (beside, *(file for folder in folders for file in sorted(folder.glob(f"**/{solution.definition}.json")))):
        if place.is_file() and place.resolve() != solution.path.resolve():
            return read_definition(place)
    said = by_name(solution.definition)
    if said is None:
        raise ResolveError(
            f"--impl={solution.path} solves {solution.definition!r}, whose Definition was not found: {beside} and "
            f"definitions/**/{solution.definition}.json in the folders above it were looked for, and the name is none of "
            f"{', '.join(NAMES)}. Write --impl-kwargs definition='FILE.json'."
        )
    return said


def read_definition(path: Path) -> Definition:
    """The Definition in a file. Raises ResolveError with the field that is wrong."""
    data = _json(path)
    name = _field(data, "name", str, path)
    axes = {axis: _axis(axis, said, path) for axis, said in _field(data, "axes", dict, path).items()}
    tensors = {
        which: {one: _tensor(f"{which}.{one}", said, axes, path) for one, said in _field(data, which, dict, path).items()}
        for which in ("inputs", "outputs")
    }
    constraints = tuple(str(one) for one in data.get("constraints") or ())
    return Definition(name, axes, tensors["inputs"], tensors["outputs"], constraints, str(path))


# WHAT A NAME SAYS

Q, ROWS = ("total_q", "num_qo_heads"), ("num_pages", "page_size")
NAMES = {
    "gqa_paged_decode_hH_kvG_dD_psS": r"gqa_paged_decode_h(\d+)_kv(\d+)_d(\d+)_ps(\d+)",
    "gqa_paged_prefill_causal_hH_kvG_dD_psS": r"gqa_paged_prefill_causal_h(\d+)_kv(\d+)_d(\d+)_ps(\d+)",
    "gqa_ragged_prefill_causal_hH_kvG_dD": r"gqa_ragged_prefill_causal_h(\d+)_kv(\d+)_d(\d+)",
    "mla_paged_decode_hH_ckvC_kpeR_psS": r"mla_paged_decode_h(\d+)_ckv(\d+)_kpe(\d+)_ps(\d+)",
    "mla_paged_prefill_causal_hH_ckvC_kpeR_psS": r"mla_paged_prefill_causal_h(\d+)_ckv(\d+)_kpe(\d+)_ps(\d+)",
    "mla_ragged_prefill_causal_hH_qkD_voE": r"mla_ragged_prefill_causal_h(\d+)_qk(\d+)_vo(\d+)",
}


def by_name(name: str) -> Definition | None:
    """The Definition that a well-known name stands for, in bfloat16; None for any other name."""
    found = next((match for pattern in NAMES.values() if (match := re.fullmatch(pattern, name))), None)
    if found is None:
        return None
    family, form, stage = name.split("_")[:3]
    axes: dict[str, int | None] = {"total_q": None, "len_indptr": None}
    sizes = list(map(int, found.groups()))
    if family == "gqa":
        keys: tuple[str, ...] = ("num_kv_heads", "head_dim")
        axes |= dict(zip(("num_qo_heads", "num_kv_heads", "head_dim", "page_size"), sizes, strict=False))
        wide = {"q": (*Q, "head_dim"), "k": keys, "v": keys, "output": "head_dim"}
    elif form == "paged":
        axes |= dict(zip(("num_qo_heads", "head_dim_ckv", "head_dim_kpe", "page_size"), sizes, strict=True))
        wide = {"q_nope": (*Q, "head_dim_ckv"), "q_pe": (*Q, "head_dim_kpe"), "ckv": ("head_dim_ckv",), "kpe": ("head_dim_kpe",)}
        wide["output"] = "head_dim_ckv"
    else:
        axes |= dict(zip(("num_qo_heads", "head_dim_qk", "head_dim_vo"), sizes, strict=True))
        wide = {"q": (*Q, "head_dim_qk"), "k": ("num_qo_heads", "head_dim_qk"), "v": ("num_qo_heads", "head_dim_vo")}
        wide["output"] = "head_dim_vo"
    axes |= dict.fromkeys(("num_pages", "num_kv_indices", "batch_size") if form == "paged" else ("total_kv",))
    inputs = {}
    for one, shape in wide.items():
        if one.startswith("q"):
            inputs[one] = Tensor(tuple(shape), "bfloat16")
        elif one != "output":
            rows = ROWS if form == "paged" else ("total_kv",)
            inputs[one + "_cache" * (form == "paged")] = Tensor((*rows, *shape), "bfloat16")
    tables = ["qo_indptr"] * (stage == "prefill") + ["kv_indptr"] + ["kv_indices"] * (form == "paged")
    if axes.get("page_size", 1) != 1:
        tables.append("kv_last_page_len")
    lengths = {"kv_indices": "num_kv_indices", "kv_last_page_len": "batch_size"}
    inputs |= {one: Tensor((lengths.get(one, "len_indptr"),), "int32") for one in tables}
    inputs["sm_scale"] = Tensor(None, "float32")
    outputs = {"output": Tensor((*Q, str(wide["output"])), "bfloat16"), "lse": Tensor(Q, "float32")}
    constraints = ("total_q == total_kv",) if (family, form) == ("mla", "ragged") else ()
    return Definition(name, axes, inputs, outputs, constraints, "its name")


# READING JSON


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResolveError(f"file {path} does not exist (searched from {Path.cwd().name}/)") from None
    except (OSError, ValueError) as error:
        raise ResolveError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ResolveError(f"{path} holds no JSON object")
    return data


def _field(data: Mapping[str, Any], name: str, kind: type, path: Path, inside: str = "") -> Any:
    value = data.get(name)
    if not isinstance(value, kind) or (kind is str and not value):
        found = "is missing" if name not in data else f"is {value!r:.80}"
        raise ResolveError(f"{path}: {inside}{name} {found}, and must be {KINDS[kind]}")
    return value


def _source(one: Any, n: int, path: Path) -> str:
    """The path of a source, which stays inside its folder."""
    if not isinstance(one, dict):
        raise ResolveError(f"{path}: sources[{n}] is {one!r:.80}, and must be an object with path and content")
    place = _field(one, "path", str, path, f"sources[{n}].")
    _field(one, "content", str, path, f"sources[{n}].")
    if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
        raise ResolveError(f"{path}: sources[{n}].path is {place!r}, which leaves the folder of the sources")
    return str(place)


def _axis(name: str, said: Any, path: Path) -> int | None:
    kind = said.get("type") if isinstance(said, dict) else None
    if kind == "var":
        return None
    value = said.get("value") if kind == "const" else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ResolveError(f'{path}: axes.{name} is {said!r:.80}, and must be {{"type": "var"}} or {{"type": "const", "value": 8}}')
    return value


def _tensor(name: str, said: Any, axes: Mapping[str, Any], path: Path) -> Tensor:
    shape = said.get("shape", ...) if isinstance(said, dict) else ...
    if not (shape is None or (isinstance(shape, list) and all(isinstance(x, str) for x in shape))):
        raise ResolveError(f"{path}: {name} is {said!r:.80}, and must have a shape, the names of its axes or null, and a dtype")
    strange = [x for x in shape or () if x not in axes]
    if strange:
        raise ResolveError(f"{path}: {name} has the axis {strange[0]!r}, and axes has {', '.join(axes)}")
    return Tensor(None if shape is None else tuple(shape), _field(said, "dtype", str, path, f"{name}."))
