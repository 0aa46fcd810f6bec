"""The same problems as test cases of the ONNX backend suite: a model of one Attention node, its inputs, its expected output.

A problem is written as ONNX can say it, and its answer is that of what is written: one 3-D head as a head of four axes,
a mask beside a bias as −∞ in the bias, a scale as the float32 that it is there, the output alone. What it has no words
for is left out, and counted by reason: a scale below zero (the function of the operator takes its root), rows without a
visible key, and choices that the operator makes otherwise (causal is aligned top-left, heads are grouped in blocks).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attnspec.conformance.problems.case import Case
from attnspec.conformance.vectors.format import INDEX, VectorError
from attnspec.conformance.vectors.write import expected, make_folder
from attnspec.reference import Exact
from attnspec.spec import Dialect, Problem

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

OPSET, IR = 23, 11
SAID = {"mask", "bias", "causal", "scale"}  # the options of a call that are written here
PAGE = Path(__file__).parent / "page-onnx.md"


@dataclass(frozen=True)
class Cases:
    """What was written: how many cases, and why problems were left out."""

    written: int
    left_out: Counter[str]

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        return [f"{self.written} test cases", *(f"left out, {why}: {n}" for why, n in self.left_out.most_common())]


def said(problem: Problem, dialect: Dialect) -> tuple[Problem | None, str]:
    """The problem as ONNX can say it, its output alone; or None and why it can't. A scale is a float32 there."""
    unsaid = sorted(problem.given().keys() - SAID)
    if unsaid:
        return None, " and ".join(unsaid)
    if problem.bias is not None and problem.bias.dtype != problem.dtype:
        return None, "a bias of another dtype"
    if problem.scale is not None and problem.scale < 0:
        return None, "a scale below zero"
    if problem.causal and problem.i != problem.j and dialect.causal_alignment != "top_left":
        return None, "causal that is aligned bottom-right"
    if 1 < problem.g < problem.h and dialect.head_grouping != "blocked":
        return None, "heads that are not grouped in blocks"
    changes: dict[str, Any] = {"do": None, "wrt": ()}
    if problem.scale is not None:
        changes["scale"] = scale = float(np.float32(problem.scale))
        if problem.dtype == torch.float64 and float(np.sqrt(np.float32(scale))) ** 2 != scale:
            return None, "a scale in float64 of which the operator takes the root in float32"
    if problem.shared:
        changes |= {"k": problem.k[:, None], "v": problem.v[:, None]}
    if problem.mask is not None and problem.bias is not None:
        mask = problem.mask[:, None, None] if problem.mask.ndim == 2 else problem.mask
        hidden = problem.bias.new_tensor(-torch.inf)
        changes |= {"mask": None, "bias": torch.where(mask, problem.bias, hidden)}
    return problem.replace(**changes), ""


def code(dtype: torch.dtype) -> int:
    """ONNX's number of a dtype."""
    from onnx import TensorProto

    words = {"float64": "DOUBLE", "float32": "FLOAT"}
    word = str(dtype).removeprefix("torch.")
    return int(TensorProto.DataType.Value(words.get(word, word.upper())))


def model(problem: Problem) -> tuple[ModelProto, list[tuple[str, Tensor]]]:
    """The model of a problem, and its inputs in their order."""
    from onnx import helper

    given = [("Q", problem.q), ("K", problem.k), ("V", problem.v)]
    mask = problem.mask if problem.mask is not None else problem.bias
    if mask is not None:
        # A bool of two dimensions is (i j) there, and a mask that ends before the keys do hides the rest, were it one for all.
        mask = mask[:, None, None] if problem.mask is not None and mask.ndim == 2 else mask
        given.append(("attn_mask", mask.expand(*mask.shape[:-2], problem.i, problem.j)))
    attributes: dict[str, Any] = {"is_causal": int(problem.causal)} if problem.causal else {}
    if problem.scale is not None:
        attributes["scale"] = problem.scale
    inputs = [helper.make_tensor_value_info(name, code(x.dtype), list(x.shape)) for name, x in given]
    shape = [problem.b, problem.h, problem.i, problem.e]
    node = helper.make_node("Attention", [name for name, _ in given], ["Y"], **attributes)
    graph = helper.make_graph([node], "attention", inputs, [helper.make_tensor_value_info("Y", code(problem.dtype), shape)])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="attnspec")
    return made, given


def message(name: str, x: Tensor) -> TensorProto:
    """A tensor as ONNX writes it, bfloat16 too."""
    from onnx import helper

    raw = x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return helper.make_tensor(name, code(x.dtype), list(x.shape), raw, raw=True)


def write_cases(
    folder: Path,
    problems: Iterable[tuple[Case, Problem]],
    dialect: Dialect,
    solve: Callable[[Problem], Exact],
    class_of: Callable[[str], str],
    about: dict[str, Any],
) -> Cases:
    """Write test cases into a new folder. Raises VectorError where nothing can be written, or the package onnx is not there."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise VectorError("--onnx needs the package onnx: pip install onnx") from None
    make_folder(folder)
    left: Counter[str] = Counter()
    index: list[str] = []
    for case, given in problems:
        problem, why = said(given, dialect)
        exact = solve(problem) if problem is not None else None
        if exact is not None and exact.empty.any():
            why = "a row without a visible key"
        if problem is None or exact is None or why:
            left[why] += 1
            continue
        name = f"test_attention_{len(index) + 1:04d}"
        _write_case(folder / name, problem, exact, class_of(case.dtype))
        index.append(json.dumps({"name": name, "case": case.token(), "scale": problem.scale, "class": class_of(case.dtype)}) + "\n")
    if not index:
        raise VectorError("ONNX has no words for any of these problems")
    (folder / INDEX).write_text("".join(index), encoding="utf-8", newline="\n")
    classes = ", ".join(f"{class_of(dtype)} for {dtype}" for dtype in about["dtypes"])
    reasons = "\n".join(f"- {why}: {n}" for why, n in left.most_common())
    page = PAGE.read_text(encoding="utf-8").format(
        problems=len(index), suite=about["suite"], spec=about["spec"], classes=classes, left=left.total(), reasons=reasons
    )
    (folder / "README.md").write_text(page, encoding="utf-8", newline="\n")
    return Cases(len(index), left)


def _write_case(folder: Path, problem: Problem, exact: Exact, class_: str) -> None:
    made, given = model(problem)
    data = folder / "test_data_set_0"
    data.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(made.SerializeToString(deterministic=True))
    found = expected(exact, class_, ("o",))
    files = {f"input_{n}": message(name, x) for n, (name, x) in enumerate(given)}
    files["output_0"] = message("Y", torch.from_numpy(found["o"]).to(problem.dtype))
    files |= {
        "exact_0": message("exact", torch.from_numpy(found["o"])),
        "bound_0": message("bound", torch.from_numpy(found["o.bound"])),
    }
    for name, tensor in files.items():
        (data / f"{name}.pb").write_bytes(tensor.SerializeToString(deterministic=True))
