"""Problems and spies that the tests of adapters share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as torch_sdpa

from attnspec.adapters.conventions.function import FunctionAdapter
from attnspec.spec import Problem

OPTIONS = {"mask", "key_padding", "bias", "causal", "scale", "dropout", "gqa", "mqa", "rank3", "value_width", "bias_grad"}


def textbook(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


def problem(shared: bool = False, **options: object) -> Problem:
    """Two batch items, three heads, four queries, five keys; normal numbers."""
    draw = torch.Generator().manual_seed(0)
    heads = () if shared else (3,)
    q, k, v = (torch.randn(2, *h, n, 8, generator=draw) for h, n in (((3,), 4), (heads, 5), (heads, 5)))
    return Problem(q, k, v, **options)  # type: ignore[arg-type]


def padding() -> Tensor:
    return torch.tensor([[True, True, False, True, True], [True, False, False, True, False]])


class Spy:
    """A function of torch's convention that keeps what it was given."""

    def __call__(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        self.given = {name: x for name, x in locals().items() if name != "self"}
        return torch_sdpa(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)


def function(signature: str) -> FunctionAdapter:
    scope: dict = {}
    exec(f"def attend({signature}): ...", scope)
    return FunctionAdapter(scope["attend"], "attend", ())
