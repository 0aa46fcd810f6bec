"""Faults of latents: which channels are the values, which the scores, which rows are read, and what is written."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import rotated
import torch
from rotated import Honest, Sequence, wide
from torch import Tensor

from attnspec.spec import Dialect
from mutants.base import mutant


def latent(clause: str, source: str = "") -> Callable[[Any], Any]:
    """Enter an adapter with a fault."""
    return mutant("mla", clause, source, raw=True, witness=lambda kind: rotated.wrong(kind, rotated.latents(), Dialect()))


# VALUES


@latent("MLA-1")
class LatentValuesAreTheLastChannels(Honest):
    """Values are the last e channels of a row."""

    def values(self, latents: Tensor, e: int) -> Tensor:
        return latents[..., latents.shape[-1] - e :]


@latent("MLA-1", "Dao-AILab/flash-attention#2368")
class LatentValuesAreLoadedWithTheirWidth(Honest):
    """Values are loaded as if a row had e channels."""

    def values(self, latents: Tensor, e: int) -> Tensor:
        if not latents.shape[0] or latents.shape[-1] == e:
            return latents[..., :e]
        return latents.reshape(-1)[: latents.shape[0] * latents.shape[1] * e].view(*latents.shape[:-1], e)


@latent("MLA-1")
class LatentValuesBeyond32AreZero(Honest):
    """Channels of the values from the 32nd on are left out."""

    def values(self, latents: Tensor, e: int) -> Tensor:
        found = latents[..., :e].clone()
        found[..., 32:] = 0
        return found


@latent("MLA-1", "flashinfer-ai/flashinfer#761")
class LatentMergeAssumesOneWidth(Honest):
    """More than 16 keys are split, and the part of the first split is read with the width of rows when the two are merged."""

    def weighted(self, s: Tensor, v: Tensor) -> Tensor:
        j, e, d = s.shape[-1], v.shape[-1], self.width
        if j <= 16 or e == d or not self.latent:
            return super().weighted(s, v)
        p = s.softmax(-1).nan_to_num()
        parts = [torch.einsum("hij,jhe->ihe", p[..., a:b], v[a:b]) for a, b in ((0, 16), (16, j))]
        at = torch.arange(parts[0].shape[0] * parts[0].shape[1])[:, None] * d + torch.arange(e)
        flat = parts[0].reshape(-1)
        return flat[at % len(flat)].view(parts[0].shape) + parts[1]

    width = 0

    def attended(self, one: Sequence, e: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.width = one.q.shape[2]
        return super().attended(one, e)


# SCORES


@latent("MLA-3")
class LatentScaleOfTheValues(Honest):
    """The default scale is that of the values' width."""

    def scaled(self, one: Sequence, e: int) -> float:
        return e**-0.5 if one.scale is None and self.latent else super().scaled(one, e)


@latent("MLA-3")
class LatentScaleOfBothWidths(Honest):
    """The default scale is that of the widths of rows and of values together."""

    def scaled(self, one: Sequence, e: int) -> float:
        return (e + one.q.shape[2]) ** -0.5 if one.scale is None and self.latent else super().scaled(one, e)


@latent("MLA-1")
class LatentGivenScaleIsNotRead(Honest):
    """Of latents the scale is that of the row's width, whatever is given."""

    def scaled(self, one: Sequence, e: int) -> float:
        return one.q.shape[2] ** -0.5 if self.latent else super().scaled(one, e)


class Scored(Honest):
    """Scores of latents in two parts; without latents there is one."""

    def of_turned(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(q, k, 0)

    def scores(self, q: Tensor, k: Tensor, e: int) -> Tensor:
        if e >= q.shape[2] or not self.latent:
            return super().scores(q, k, e)
        return super().scores(q[..., :e], k[..., :e], e) + self.of_turned(q[..., e:], k[..., e:])


@latent("MLA-1")
class LatentTurnedPartIgnored(Scored):
    """q_pe and k_pe are left out."""

    def of_turned(self, q: Tensor, k: Tensor) -> Tensor:
        return 0 * super().of_turned(q, k)


@latent("MLA-1")
class LatentTurnedPartOfAnotherPage(Scored):
    """From the 17th key on k_pe is that of the key 16 before."""

    def of_turned(self, q: Tensor, k: Tensor) -> Tensor:
        return super().of_turned(q, torch.cat([k[:16], k[:-16]]) if len(k) > 16 else k)


@latent("MLA-1")
class LatentTurnedPartOfTheFirstHead(Scored):
    """All heads have the q_pe of the first."""

    def of_turned(self, q: Tensor, k: Tensor) -> Tensor:
        return super().of_turned(q[:, :1].expand_as(q), k)


@latent("MLA-1")
class LatentTurnedPartOfTheFirstQuery(Scored):
    """Of several queries all have the q_pe of the first."""

    def of_turned(self, q: Tensor, k: Tensor) -> Tensor:
        return super().of_turned(q[:1].expand_as(q), k)


@latent("MLA-1")
class LatentTurnedPartBeyond4Ignored(Scored):
    """Of q_pe and k_pe the first four channels are read."""

    def of_turned(self, q: Tensor, k: Tensor) -> Tensor:
        return super().of_turned(q[..., :4], k[..., :4])


@latent("MLA-7")
class LatentLseOfTheLatentsAlone(Honest):
    """The lse is that of scores without the turned part."""

    def attended(self, one: Sequence, e: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = super().attended(one, e)
        if e >= one.q.shape[2] or not self.latent:
            return found
        cut = [x[..., :e] for x in (one.q, torch.cat([one.k, one.k_new]))]
        s = torch.einsum("ihd,jhd->hij", wide(cut[0]), wide(cut[1].expand(-1, one.q.shape[1], -1))) * self.scaled(one, e)
        if one.causal:
            i, j = s.shape[1:]
            s = s.masked_fill(torch.ones(i, j, dtype=torch.bool).triu(1 + j - i), -inf)
        return found[0], torch.logsumexp(s, -1), *found[2:]


# ROWS


@latent("MLA-8", "flashinfer-ai/flashinfer#3716")
class LatentHiddenRowsAreValues(Honest):
    """The rest of the last page is read as values of weight zero."""

    def attend_paged(self, q, cu_q, max_q, k_pages, v_pages, table, lengths, **options):  # type: ignore[no-untyped-def]
        returned = super().attend_paged(q, cu_q, max_q, k_pages, v_pages, table, lengths, **options)
        o, size = (returned[0] if options.get("lse") else returned), k_pages.shape[1]
        e = options.get("value_width")
        for n in range(len(lengths)) if e is not None and options.get("k_new") is None else ():
            rest = int(lengths[n]) % size
            if rest:
                hidden = k_pages[int(table[n, int(lengths[n]) // size]), rest:, 0, :e]
                o[int(cu_q[n]) : int(cu_q[n + 1])] += (0 * hidden).sum(0)
        return returned


@latent("MLA-6")
class LatentTurnedPartNotWritten(Honest):
    """Of a new row the latent alone is written."""

    def written(self, one: Sequence, keys: Tensor) -> tuple[Tensor, Tensor]:
        found, e = keys.clone(), one.v.shape[-1]
        found[..., e:] = 0
        return found, one.v_new


@latent("MLA-6")
class LatentLastNewRowNotWritten(Honest):
    """Of several new rows the last one's turned part is not written."""

    def written(self, one: Sequence, keys: Tensor) -> tuple[Tensor, Tensor]:
        found = keys.clone()
        if len(found) > 1:
            found[-1, :, one.v.shape[-1] :] = 0
        return found, one.v_new


@latent("MLA-2")
class LatentCacheValuesAreTheLastChannels(Honest):
    """In a cache, values are the last e channels of a row."""

    def attend_cached(self, *args: Any, **options: Any) -> Any:
        self.cached = True
        try:
            return super().attend_cached(*args, **options)
        finally:
            self.cached = False

    cached = False

    def values(self, latents: Tensor, e: int) -> Tensor:
        return latents[..., latents.shape[-1] - e :] if self.cached else latents[..., :e]


# WIDTHS APART


@latent("MLA-9", "Dao-AILab/flash-attention#2368")
class PagedValuesOfTheWidthOfKeys(Honest):
    """Values that are narrower than keys are loaded as wide as keys, from pages of their own."""

    def attend_paged(self, q, cu_q, max_q, k_pages, v_pages, table, lengths, **options):  # type: ignore[no-untyped-def]
        if v_pages is not None and v_pages.shape[-1] < k_pages.shape[-1]:
            flat, d, e = v_pages.reshape(-1), k_pages.shape[-1], v_pages.shape[-1]
            at = torch.arange(v_pages.numel() // e)[:, None] * d + torch.arange(e)
            v_pages = flat[at % max(len(flat), 1)].view(v_pages.shape)
        return super().attend_paged(q, cu_q, max_q, k_pages, v_pages, table, lengths, **options)
