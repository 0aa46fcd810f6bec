"""Faulty implementations in the convention of the ``Attend`` modules; ``faulty.FAULTY`` lists them with the others."""

from __future__ import annotations

import torch
from honest import Attend, tiled
from torch import Tensor


class DropoutInEval(Attend):
    """Dropout is applied in eval mode too."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return tiled(q, k, v, attn_mask=self.visible(q, k, mask), dropout_p=self.dropout)


class FlashIgnoresLastKeysMask(Attend):
    """With flash=True the last key is never masked as padding."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.flash and mask is not None:
            last = torch.arange(mask.shape[1], device=mask.device) == mask.shape[1] - 1
            mask = mask | last
        return super().forward(q, k, v, mask)


class NoGradFastPath(Attend):
    """Under no_grad a fast path computes with half the scale."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(q if torch.is_grad_enabled() else q / 2, k, v, mask)
