"""The Attention cases of the ONNX backend suite, as they are published, and what each of them asks in our words.

Nothing is read from disk: the package makes the cases when its module is imported. Importing this needs `onnx`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any

import numpy as np
import onnx
import torch
from numpy import ndarray as Array
from onnx import helper
from onnx.backend.test.case import node as suite
from onnx.reference import ReferenceEvaluator

from attnspec.spec import Dialect, Problem

PLAIN = Dialect("top_left")
CACHED = Dialect("bottom_right")
WIDE = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
RAW, CAPPED, WITH_BIAS, PROBABILITIES = range(4)  # qk_matmul_output_mode


@dataclass(frozen=True, eq=False)
class Case:
    """One published case: the attributes of its node, its tensors by name, and its tolerance."""

    name: str
    opset: int
    attributes: dict[str, Any]
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    rtol: float
    atol: float

    # WHAT IT ASKS

    @property
    def window(self) -> tuple[int | None, int | None] | None:
        """How far to the left and to the right a query sees, our `window`; −1 is no limit."""
        left, right = (None if (n := self.attributes.get(f"{side}_window_size", -1)) < 0 else n for side in ("left", "right"))
        return None if left is right is None else (left, right)

    @property
    def softcap(self) -> float:
        return self.attributes.get("softcap", 0.0)

    @property
    def causal(self) -> bool:
        return bool(self.attributes.get("is_causal", 0))

    # ITS TENSORS: heads apart, the cache in front of the keys, the mask as long as they are

    def heads(self, x: Array, of: str) -> Array:
        """(b i n·d) as (b n i d); four dimensions stay."""
        return x if x.ndim == 4 else np.moveaxis(x.reshape(*x.shape[:2], self.attributes[f"{of}_num_heads"], -1), 2, 1)

    @cached_property
    def q(self) -> Array:
        return self.heads(self.inputs["Q"], "q")

    @cached_property
    def k(self) -> Array:
        return self._after("past_key", self.heads(self.inputs["K"], "kv"))

    @cached_property
    def v(self) -> Array:
        return self._after("past_value", self.heads(self.inputs["V"], "kv"))

    @property
    def y(self) -> Array:
        return self.heads(self.outputs["Y"], "q")

    def _after(self, past: str, new: Array) -> Array:
        return np.concatenate([self.inputs[past], new], 2) if past in self.inputs else new

    @property
    def lengths(self) -> Array | None:
        """The valid keys of each batch item, where a cache is handed over as a whole."""
        return self.inputs.get("nonpad_kv_seqlen")

    @property
    def offset(self) -> Array:
        """The position of the first query, () or (b,)."""
        if self.lengths is not None:
            return self.lengths - self.q.shape[2]
        return np.array(self.inputs["past_key"].shape[2] if "past_key" in self.inputs else 0)

    @property
    def mask(self) -> Array | None:
        """Bool or float. A mask that ends before the keys do hides the rest."""
        mask = self.inputs.get("attn_mask")
        if mask is None:
            return None
        short = [(0, 0)] * (mask.ndim - 1) + [(0, self.k.shape[2] - mask.shape[-1])]
        mask = np.pad(mask, short, constant_values=False if mask.dtype == bool else -np.inf)
        # A bool of two dimensions would be our key padding; theirs is (i j).
        return mask.reshape((1,) * max(0, 4 - mask.ndim) + mask.shape)

    def problem(self, item: int | None = None, keys: int | None = None, **options: Any) -> Problem:
        """All batch items or one of them, with all keys or the first of them."""
        some, mask = slice(None) if item is None else slice(item, item + 1), self.mask
        if mask is not None:
            mask = tensor((mask if mask.shape[0] == 1 else mask[some])[..., :keys])
            options["mask" if mask.dtype == torch.bool else "bias"] = mask
        k, v = self.k[some, :, :keys], self.v[some, :, :keys]
        scale, softcap = self.attributes.get("scale"), self.softcap or None
        return Problem(tensor(self.q[some]), tensor(k), tensor(v), scale=scale, softcap=softcap, **options)

    # HOW IT IS JUDGED

    @property
    def class_(self) -> str:
        """The accuracy class of the arithmetic that made the expected output.

        q and k, each multiplied by a root of the scale, the scores and the probabilities are stored in the dtype of the
        case. NumPy's softmax is made of primitives in that dtype (D), unless softmax_precision makes it wide (C). In
        float32 all classes round in float32, so it is held to what every float32 implementation is held to, A.
        """
        if self.q.dtype == np.float32:
            return "A"
        return "C" if self.attributes.get("softmax_precision") in WIDE else "D"

    def accepts(self, got: Array, expected: Array, runner: bool = True) -> bool:
        """Whether numbers, rounded to the dtype, are within the tolerance; the published runner widens bfloat16's."""
        with np.errstate(over="ignore"):
            got = got.astype(expected.dtype).astype(np.float64)
        rtol = max(self.rtol, 2.0**-6) if runner and expected.dtype.name == "bfloat16" else self.rtol
        return np.allclose(got, expected.astype(np.float64), rtol=rtol, atol=self.atol, equal_nan=True)


def tensor(x: Array) -> torch.Tensor:
    """An array as a tensor of the same dtype, bfloat16 too."""
    x = np.array(x)
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else torch.from_numpy(x)


@cache
def published() -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """All cases, and those that repeat one of them with the operator written out as the graph of its function."""
    state = np.random.get_state()  # making the cases seeds NumPy's global generator
    import_module("onnx.backend.test.case.node.attention")
    np.random.set_state(state)
    cases: tuple[list[Case], list[Case]] = ([], [])
    for made in suite._NodeTestCases:
        if made.name.startswith("test_attention_"):
            cases["_expanded" in made.name].append(_read(made))
    return tuple(cases[0]), tuple(cases[1])


def _read(made: Any) -> Case:
    graph, ((inputs, outputs),) = made.model.graph, made.data_sets
    (opset,) = (x.version for x in made.model.opset_import if x.domain in ("", "ai.onnx"))
    return Case(
        made.name.removeprefix("test_attention_"),
        opset,
        {x.name: helper.get_attribute_value(x) for x in graph.node[0].attribute},
        dict(zip((x.name for x in graph.input), inputs, strict=True)),
        dict(zip((x.name for x in graph.output), outputs, strict=True)),
        made.rtol,
        made.atol,
    )


# IN OUR WORDS

Part = tuple[slice, Problem, Dialect]  # some batch items as one problem


def parts(case: Case) -> Iterator[Part]:
    """What a case asks, in our words.

    Without a cache the position of a query is that of our top-left. With one, the last query stands on the last valid key: our
    bottom-right on the valid keys of each batch item, for nobody sees the others. Where neither causal nor a window asks for
    positions, their lengths are our key padding.
    """
    placed = {"causal": case.causal, "window": case.window}
    if not case.causal and case.window is None:
        problem = case.problem()
        if case.lengths is not None:
            padding = torch.from_numpy(np.arange(problem.j) < case.lengths[:, None])
            problem = problem.replace(mask=padding if problem.mask is None else problem.mask & padding[:, None, None])
        yield slice(None), problem, PLAIN
    elif case.lengths is not None:
        for n, length in enumerate(case.lengths):
            yield slice(n, n + 1), case.problem(n, int(length), **placed), CACHED
    elif "past_key" in case.inputs:
        last = int(case.offset) + case.q.shape[2]  # there may be new keys behind the last query, which causal hides
        assert last == case.k.shape[2] or case.causal
        yield slice(None), up_to(case.problem(keys=last, **placed), last), CACHED
    else:
        yield slice(None), case.problem(**placed), PLAIN


def up_to(problem: Problem, keys: int) -> Problem:
    """With keys that nobody sees in the places, up to so many, for which there are none: where queries stand on them."""
    if problem.j >= keys:
        return problem
    assert problem.mask is problem.bias is None
    more = torch.zeros(problem.b, problem.g, keys - problem.j, 1, dtype=problem.dtype)
    k, v = (torch.cat([x, more.expand(-1, -1, -1, x.shape[-1])], 2) for x in (problem.k, problem.v))
    return problem.replace(k=k, v=v, mask=(torch.arange(keys) < problem.j).expand(problem.b, -1))


# THE PUBLISHED REFERENCE


def evaluate(opset: int, inputs: dict[str, Array], attributes: dict[str, Any] | None = None, body: bool = False) -> Array:
    """Y of ONNX's own evaluator: of the operator's reference, or of the graph of the function that defines it."""

    def describe(name: str, x: Array, shape: tuple[int, ...] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), shape)

    nodes = [helper.make_node("Attention", list(inputs), ["Y"], **attributes or {})]
    given = [describe(name, x, x.shape) for name, x in inputs.items()]
    opsets = [helper.make_opsetid("", opset)]
    if body:
        ((nodes, _),), _ = suite.function_testcase_helper(nodes[0], [x.type for x in given], "body", opsets)
    graph = helper.make_graph(nodes, "attention", given, [describe("Y", inputs["Q"], None)])
    with np.errstate(invalid="ignore"):
        return ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, inputs)[0]  # type: ignore
