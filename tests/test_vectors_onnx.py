"""Vectors as test cases of the ONNX backend suite: valid, found by its loader, and right for its own evaluator."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from attnspec.conformance.commands import main
from attnspec.conformance.vectors.onnx import said
from attnspec.reference import solve
from attnspec.spec import CANONICAL, Dialect, Problem

if find_spec("onnx") is None:
    pytest.skip("the package onnx is not installed", allow_module_level=True)

import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator
from onnx_cases import Case, parts

# ONNX's evaluator stores scores and probabilities, and its softmax is made of primitives in the dtype of the case: class D.
OPTIONS = ("--onnx", "--largest=20000", "--class=D", "--dialect=causal_alignment=top_left")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "attention"
    assert main(["vectors", "write", str(folder), *OPTIONS]) == 0
    return folder


def load(case: Path, name: str) -> np.ndarray:
    return numpy_helper.to_array(onnx.load_tensor(str(case / "test_data_set_0" / f"{name}.pb")))


def fine(x: np.ndarray, case: Path) -> bool:
    """As the README of the cases says it."""
    exact, bound = load(case, "exact_0"), load(case, "bound_0")
    with np.errstate(invalid="ignore"):
        return bool(((bound == np.inf) | (np.abs(x.astype(float) - exact) <= bound)).all())


def test_the_evaluator_of_onnx_is_right_and_a_wrong_answer_is_not(cases: Path) -> None:
    index = [json.loads(line) for line in (cases / "index.jsonl").read_text().splitlines()]
    kinds = set()
    for line in index:
        case = cases / line["name"]
        model = onnx.load(case / "model.onnx")
        onnx.checker.check_model(model, full_check=True)
        given = {x.name: load(case, f"input_{n}") for n, x in enumerate(model.graph.input)}
        with np.errstate(all="ignore"):
            y = ReferenceEvaluator(model).run(None, given)[0]
        assert fine(y, case), line["case"]
        expected = load(case, "output_0")
        assert (expected.shape, expected.dtype) == (y.shape, y.dtype)
        assert fine(expected, case)
        if load(case, "bound_0").max() < np.abs(load(case, "exact_0")).max() / 100:
            assert not fine(y.astype(float) * 1.05, case)
        kinds |= {y.dtype.name, *given, *(x.name for x in model.graph.node[0].attribute)}
    assert kinds == {"float64", "float32", "float16", "bfloat16", "Q", "K", "V", "attn_mask", "is_causal", "scale"}


def test_what_is_written_reads_as_the_problem_that_it_was(cases: Path) -> None:
    """By the reader of published cases, which shares nothing with the writer: the same exact output."""
    for line in (cases / "index.jsonl").read_text().splitlines():
        said = json.loads(line)
        case = cases / said["name"]
        model = onnx.load(case / "model.onnx")
        (node,) = model.graph.node
        attributes = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
        given = {x.name: load(case, f"input_{n}") for n, x in enumerate(model.graph.input)}
        asked = Case(said["name"], model.opset_import[0].version, attributes, given, {"Y": load(case, "output_0")}, 0.0, 0.0)
        for items, problem, dialect in parts(asked):
            exact = solve(problem, dialect)
            assert np.allclose(exact.o, load(case, "exact_0")[items], rtol=1e-12, atol=1e-300), said["case"]


def test_the_loader_of_onnx_finds_them(cases: Path) -> None:
    found = {case.name for case in load_model_tests(data_dir=str(cases.parent), kind="attention")}
    assert found == {json.loads(line)["name"] for line in (cases / "index.jsonl").read_text().splitlines()}


def test_what_is_left_out_is_counted(cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (cases / "README.md").read_text()
    assert "- a scale below zero: " in page
    assert "- a row without a visible key: " in page
    assert "bottom-right" not in page.partition("are not in here")[2]
    assert main(["vectors", "write", str(tmp_path / "x"), "--onnx", "--largest=20000", "--dtypes=float32"]) == 0
    written, *left = capsys.readouterr().out.splitlines()
    assert any(line.startswith("left out, causal that is aligned bottom-right: ") for line in left)
    ours = tmp_path / "ours"
    assert main(["vectors", "write", str(ours), "--largest=20000", "--dtypes=float32"]) == 0
    counts = [int(written.split()[0]), *(int(line.rpartition(" ")[2]) for line in left)]
    assert sum(counts) == len((ours / "index.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("options", "dialect", "why"),
    [
        ({"scale": -0.5}, {}, "a scale below zero"),
        ({"dropout": 0.5, "training": True}, {}, "dropout and training"),
        ({"scale": 0.3, "dtype": torch.float64}, {}, "a scale in float64 of which the operator takes the root in float32"),
        ({"causal": True}, {}, "causal that is aligned bottom-right"),
        ({}, {"head_grouping": "strided"}, "heads that are not grouped in blocks"),
        ({"bias": torch.zeros(4, 5, dtype=torch.float64)}, {}, "a bias of another dtype"),
    ],
)
def test_what_onnx_has_no_words_for(options: dict[str, Any], dialect: dict[str, str], why: str) -> None:
    dtype = options.pop("dtype", torch.float32)
    problem = Problem(torch.ones(1, 4, 4, 8, dtype=dtype), *torch.ones(2, 1, 2, 5, 8, dtype=dtype), **options)
    assert said(problem, Dialect(**dialect)) == (None, why)


def test_what_is_said_in_other_words_is_the_same_problem() -> None:
    """One 3-D head as one of four axes, a mask beside a bias as −∞; the exact output stays what it was."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(size, generator=draw) for size in ((2, 3, 4, 8), (2, 5, 8), (2, 5, 8)))
    mask = torch.tensor([[True, True, False, True, True], [True, False, False, True, False]])
    problem = Problem(q, k, v, mask, torch.randn(4, 5, generator=draw), scale=0.3, do=q, wrt=("q",))
    there, why = said(problem, CANONICAL)
    assert there is not None
    assert (why, there.mask, there.wrt, there.scale) == ("", None, (), float(np.float32(0.3)))
    assert there.k.ndim == 4
    same = solve(problem.replace(scale=there.scale), CANONICAL)
    assert np.array_equal(solve(there, CANONICAL).o, same.o)


def test_without_onnx_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.dict("sys.modules", {"onnx": None}):
        assert main(["vectors", "write", str(tmp_path / "x"), *OPTIONS]) == 2
    assert "needs the package onnx" in capsys.readouterr().err
