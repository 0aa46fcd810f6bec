"""torch's scaled_dot_product_attention: as it is, and pinned to one backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnspec.adapters.contract import Adapter
from attnspec.adapters.conventions.function import FunctionAdapter
from attnspec.adapters.conventions.signature import ResolveError
from attnspec.adapters.watch.trace import Trace
from attnspec.adapters.within import Call
from attnspec.spec import Problem

BACKENDS = {
    "sdpa-math": SDPBackend.MATH,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
}
# How the operator of each is called, on whatever device.
OPERATORS = {
    "sdpa-math": "_scaled_dot_product_attention_math",
    "sdpa-flash": "_scaled_dot_product_flash_attention",
    "sdpa-efficient": "_scaled_dot_product_efficient_attention",
    "sdpa-cudnn": "_scaled_dot_product_cudnn_attention",
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

    def trace(self, problem: Problem) -> Trace:
        """The operators of the pinned call. Raises ResolveError where another backend ran than the name promises.

        It is an error and no failure: the text has no clause on backends, and every verdict would be about another kernel.
        """
        seen = super().trace(problem)
        own = [name for name in seen.operators if OPERATORS[self.name] in name]
        if seen.refusal is None and seen.operators and (not own or (self.name == "sdpa-math" and seen.fused)):
            raise ResolveError(
                f"--impl={self.name} did not run its own backend: a plain {str(problem.dtype)[6:]} call on {problem.q.device} ran "
                f"{seen or 'an unknown one'}, expected {OPERATORS[self.name]}; nothing was tested. "
                "--impl=sdpa tests whichever backend torch chooses"
            )
        return seen


def pinned(name: str, kwargs: Mapping[str, Any]) -> list[Adapter]:
    """The shipped adapters `sdpa`, `sdpa-math`, `sdpa-flash`, `sdpa-efficient` and `sdpa-cudnn`."""
    if kwargs:
        raise ResolveError(f"--impl-kwargs are constructor arguments, but {name} is not a class")
    if name == "sdpa":
        adapter: Adapter = FunctionAdapter(F.scaled_dot_product_attention, name, (SOURCE,))
        adapter.version = f"torch {torch.__version__}"
        return [adapter]
    return [PinnedSDPA(name)]
