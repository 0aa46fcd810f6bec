"""Implementations that are known by a short name, and what makes their adapters; imported when they are asked for."""

from __future__ import annotations

# Shipped names, and the module and function that make their adapters; imported when asked for.
SHIPPED = {
    **dict.fromkeys(
        ("sdpa", "sdpa-math", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn"), ("attnspec.adapters.shipped.sdpa", "pinned")
    ),
    **dict.fromkeys(
        (
            "mixture-of-attention",
            "audiolm-pytorch",
            "recurrent-memory-transformer-pytorch",
            "simple-hierarchical-transformer",
            "bs-roformer",
        ),
        ("attnspec.adapters.shipped.seeds", "published"),
    ),
    **dict.fromkeys(
        ("onnx-reference", "onnxruntime", "onnxruntime-mha", "onnxruntime-gqa", "onnxruntime-gqa-cache"),
        ("attnspec.adapters.shipped.onnx", "nodes"),
    ),
    "transformers-packed": ("attnspec.adapters.shipped.transformers", "packed"),
    **dict.fromkeys(("torch-paged", "transformers-paged"), ("attnspec.adapters.shipped.paged", "paged")),
    "openvino": ("attnspec.adapters.shipped.openvino", "compiled"),
}
