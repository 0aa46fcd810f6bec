"""OpenVINO's ScaledDotProductAttention, compiled for the CPU.

Each call is a model of one node, that is compiled for the dtypes, the ranks and the options of a call, and kept for the next one
like it; its lengths are free, or with `static` those of the call. What stands in the scripts of failures, too, needs nothing of
its module.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from functools import lru_cache, partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np

from attnspec.adapters.contract import Adapter
from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.function import FamilyAdapter
from attnspec.adapters.conventions.layout import Reading
from attnspec.adapters.conventions.signature import ResolveError
from attnspec.adapters.shipped.onnx import FORWARD, needed, text

OPTIONS = ("opset", "precision", "static")


@lru_cache(maxsize=64)
def openvino_model(opset, precision, inputs, masked, scale, causal, instance):  # type: ignore[no-untyped-def]
    """A compiled node, for inputs of these types and shapes, −1 where a length is free.

    precision: of inference, "" for what OpenVINO takes by itself. instance: a number, which several of one kind differ in.
    """
    import openvino

    operators = getattr(openvino, f"opset{opset}")
    taken = [operators.parameter(openvino.PartialShape(list(shape)), getattr(openvino.Type, kind)) for kind, shape in inputs]
    number = None if scale is None else operators.constant(scale, getattr(openvino.Type, inputs[0][0]))
    node = operators.scaled_dot_product_attention(*taken[:3], taken[3] if masked else None, number, causal)
    hints = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    return openvino.compile_model(openvino.Model([node], taken), "CPU", hints)


def openvino_node(opset, precision, static, instance, /, query, key, value, attention_mask=None, scale=None, causal=False):  # type: ignore[no-untyped-def]
    """One call of the node. bfloat16 goes there and back by its bits. Inference has the dtype of the call, where none is given."""
    import openvino

    kinds = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "bool": "boolean"}
    given = [query, key, value] if attention_mask is None else [query, key, value, attention_mask]
    inputs = tuple((kinds[x.dtype.name], x.shape if static else (-1,) * x.ndim) for x in given)
    wanted = kinds[query.dtype.name].replace("f64", "f32") if precision is None else precision
    model = openvino_model(opset, wanted, inputs, attention_mask is not None, scale, causal, instance)
    # A tensor does not keep the array whose memory it shares.
    dense = [np.ascontiguousarray(x) for x in given]
    raw = [x.view(np.uint16) if x.dtype.name == "bfloat16" else x for x in dense]
    request = model.create_infer_request()
    for n, x in enumerate(raw):
        request.set_input_tensor(n, openvino.Tensor(x, openvino.Shape(x.shape), getattr(openvino.Type, inputs[n][0])))
    request.infer()
    output = request.get_output_tensor(0)
    bits = output.data.copy()
    return bits.view(np.uint16).reshape(tuple(output.shape)).view(query.dtype) if query.dtype.name == "bfloat16" else bits


def openvino_attention(function, q, k, v, *, mask=None, bias=None, causal=False, scale=None):  # type: ignore[no-untyped-def]
    """ScaledDotProductAttention: its mask is bool, or a bias."""
    from attnspec.adapters import Unsupported

    if k.ndim == 3:
        raise Unsupported("keys have the heads of the queries")
    given = {"query": q, "key": k, "value": v}
    shown = bias if mask is None else mask
    if shown is not None:
        given["attention_mask"] = mask[:, None, None] if mask is not None and mask.ndim == 2 else shown
    return function(**given, **({} if scale is None else {"scale": scale}), **({"causal": True} if causal else {}))


# Beside causal its mask is ignored, as it says itself. The formula in its specification has the triangle at the top left.
SDPA = Convention(
    name="OpenVINO",
    of="openvino 2026.4, opset13 scaled_dot_product_attention",
    reading=Reading(arrays="numpy"),
    offers=frozenset({"value_width"}),
    without=FORWARD,
    restrictions=frozenset({"mask_or_bias", "mask_or_causal", "bias_or_causal"}),
    dialect={"causal_alignment": "top_left"},
    # float64 is float32 inside; of bfloat16 NumPy knows by ml_dtypes.
    dtypes=("float32", *(("bfloat16",) if find_spec("ml_dtypes") else ()), "float16"),
    attend=openvino_attention,
)


INSTANCES = itertools.count(1)


class Compiled(FamilyAdapter):
    """A node whose models are kept, and with them what their first calls have made of them."""

    def fresh(self) -> Compiled:
        """The same settings, other models."""
        other = copy.copy(self)
        assert isinstance(self.function, partial)
        opset, precision, static, _ = self.function.args
        other.function = partial(openvino_node, opset, precision, static, next(INSTANCES))
        return other


def compiled(name: str, kwargs: Mapping[str, Any]) -> list[Adapter]:
    """The shipped adapter `openvino`. Raises ResolveError where the package is missing.

    kwargs: `opset`; `precision`, the hint for that of inference, "" for none; `static`, True for a model of each call's lengths.
    """
    needed(name, ("openvino",))
    if unknown := sorted(kwargs.keys() - set(OPTIONS)):
        raise ResolveError(f"{name} has no option {', '.join(unknown)}; --impl-kwargs takes {', '.join(OPTIONS)}")
    settings = (kwargs.get("opset", 13), kwargs.get("precision"), bool(kwargs.get("static")), 0)
    made = f"attend = partial(openvino_node, {', '.join(map(repr, settings))})"
    source = ("from functools import lru_cache, partial", "", "", *text(openvino_model), "", *text(openvino_node), "", "", made)
    adapter = Compiled(partial(openvino_node, *settings), name, source, SDPA)
    adapter.version = f"openvino {metadata.version('openvino')}"
    return [adapter]
