"""torch's scaled_dot_product_attention: as it is, and pinned to one backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from attnspec.adapters.contract import Adapter, Call
from attnspec.adapters.convention import FunctionAdapter, ResolveError
from attnspec.spec import Problem

BACKENDS = {
    "sdpa-math": SDPBackend.MATH,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
}
SOURCE = "from torch.nn.functional import scaled_dot_product_attention as attend"
# What each fused backend's documentation and source leave out of scaled_dot_product_attention's offer, by device type.
NOT_OFFERED = {
    ("sdpa-flash", "cpu"): {"value_width", "rank3", "bias_grad", "dropout"},
    ("sdpa-flash", "cuda"): {"value_width", "mask", "key_padding", "bias", "bias_grad", "rank3"},
    ("sdpa-cudnn", "cuda"): {"bias_grad"},
}
# The class that each source shows. The CPU's flash backward adds into dq, dk and dv as they are stored, block by block.
CLAIMS = {("sdpa-math", "cpu"): "A", ("sdpa-math", "cuda"): "A", ("sdpa-flash", "cpu"): "B*"}
CUDA_ONLY = ("sdpa-efficient", "sdpa-cudnn")


class PinnedSDPA(FunctionAdapter):
    """scaled_dot_product_attention under sdpa_kernel, which runs the one backend that is named or raises.

    math computes the half types in float32 inside, so it claims class A; the fused kernels round probabilities, and the
    CPU's flash kernel keeps its gradient accumulators in the storage dtype.
    """

    offers: Iterable[str]

    def __init__(self, name: str) -> None:
        super().__init__(
            F.scaled_dot_product_attention,
            name,
            (
                "from torch.nn.attention import SDPBackend, sdpa_kernel",
                "from torch.nn.functional import scaled_dot_product_attention",
                "def attend(*args, **kwargs):",
                f"    with sdpa_kernel(SDPBackend.{BACKENDS[name].name}):",
                "        return scaled_dot_product_attention(*args, **kwargs)",
            ),
        )
        self.backend = BACKENDS[name]
        self.version = f"torch {torch.__version__}"
        self.devices = ("cuda",) if name in CUDA_ONLY else None

    def call(self, problem: Problem) -> Call:
        """The pinned call."""
        plain = super().call(problem)

        def pinned(**arguments: Any) -> Any:
            with sdpa_kernel(self.backend):
                return plain.function(**arguments)

        return Call(pinned, plain.arguments, plain.source)

    def on(self, device: str) -> Adapter:
        """The offer differs by device: each has a kernel of its own behind one name."""
        adapter = super().on(device)
        adapter.offers = frozenset(self.offers) - NOT_OFFERED.get((self.name, device.split(":")[0]), set())
        adapter.accuracy = CLAIMS.get((self.name, device.split(":")[0]), adapter.accuracy)
        return adapter

    def trace(self) -> str | None:
        """The operators of a plain call that say which backend ran, as torch's dispatcher saw them."""
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        q = torch.zeros(1, 1, 8, 8, device=device, dtype=torch.float16 if device else torch.float32)
        with Dispatched() as seen:
            answer = self.run(Problem(q, q.clone(), q.clone()))
        fused = [name for name in seen.operators if "scaled_dot_product" in name]
        # The math backend is no operator: it is dispatched as its parts.
        parts = [name for name in seen.operators if "softmax" in name or name == "aten::bmm"]
        if answer.refusal is not None or not fused + parts:
            return f"did not run: {answer.refusal}"
        return ", ".join(fused) or f"math, as {', '.join(parts)}"


class Dispatched(TorchDispatchMode):
    """Keeps the names of all operators that are dispatched, in order, each once."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.setdefault(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


def pinned(name: str, kwargs: Mapping[str, Any]) -> list[Adapter]:
    """The shipped adapters `sdpa`, `sdpa-math`, `sdpa-flash`, `sdpa-efficient` and `sdpa-cudnn`."""
    if kwargs:
        raise ResolveError(f"--impl-kwargs are constructor arguments, and {name} is no class")
    if name == "sdpa":
        adapter: Adapter = FunctionAdapter(F.scaled_dot_product_attention, name, (SOURCE,))
        adapter.version = f"torch {torch.__version__}"
        return [adapter]
    return [PinnedSDPA(name)]
