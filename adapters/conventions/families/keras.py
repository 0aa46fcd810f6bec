"""keras.ops.dot_product_attention. Its arrays, and what is right of them, are those of the backend that KERAS_BACKEND names."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import Reading


def _on(backend: str) -> bool:
    """Whether keras, once imported, runs on this; torch where it is not imported, as a function of its signature then is."""
    keras = sys.modules.get("keras")
    return bool((keras.backend.backend() if hasattr(keras, "backend") else "torch") == backend)  # type: ignore[union-attr]


# Values are as wide as keys. attn_logits_soft_cap is for JAX on a TPU alone. All but OpenVINO hide with a low finite number: a row
# without a key is the mean of the values.
TORCH = Convention(
    name="keras on torch",
    of="keras 3.15.1, keras.ops.dot_product_attention",
    paths=("keras.ops.dot_product_attention", "keras.ops.nn.dot_product_attention", "keras.src.ops.nn.dot_product_attention"),
    shown_by=frozenset({"flash_attention", "attn_logits_soft_cap"}),
    when=partial(_on, "torch"),
    reading=Reading("b i h d"),
    offers=frozenset({"gqa", "mqa"}),
    without=frozenset({"softcap"}),
    restrictions=frozenset({"mask_or_bias"}),  # it says so where it raises
    dialect={"causal_alignment": "top_left", "empty_row": "uniform", "head_grouping": "blocked"},
)
JAX = replace(
    TORCH,
    name="keras on JAX",
    when=partial(_on, "jax"),
    reading=Reading("b i h d", arrays="jax"),
    without=frozenset({"softcap", "strided"}),
    restrictions=frozenset(),
)
NUMPY = replace(
    TORCH,
    name="keras on NumPy",
    when=partial(_on, "numpy"),
    reading=Reading("b i h d", arrays="numpy"),
    without=frozenset({"softcap", "strided", "backward", "bias_grad"}),
    restrictions=frozenset(),
)
OPENVINO = replace(
    NUMPY,
    name="keras on OpenVINO",
    when=partial(_on, "openvino"),
    dialect={"causal_alignment": "top_left"},
)
CONVENTIONS = (TORCH, JAX, NUMPY, OPENVINO)
