"""Latents: what is asked is right, honest kernels are, and each fault is seen."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import rotated
import torch
from mutants.base import MUTANTS, load

from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build
from attnspec.reference import solve
from attnspec.spec import CANONICAL, Dialect, Problem
from attnspec.spec.ragged import Kept
from attnspec.spec.words import DTYPES

pytestmark = pytest.mark.filterwarnings("error:attnspec could not diagnose")  # a cache of latents has no values

load()
FAULTS = [one for one in MUTANTS.values() if one.family == "mla"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_kernels_are_right(dtype: str) -> None:
    for problem in rotated.latents()[::2]:
        asked = problem.replace(**{name: getattr(problem, name).to(getattr(torch, dtype)) for name in "qkv"})
        answer = rotated.Honest().run(asked)
        assert not answer.changed
        assert not judge(answer, solve(asked, CANONICAL), "A" if dtype in ("float32", "float64") else "C").findings


@pytest.mark.parametrize(
    "one", [one for one in FAULTS if one.clause != "MLA-9" and "Beyond" not in one.name], ids=lambda one: one.name
)
def test_every_fault_shows(one) -> None:
    assert one.witness is not None
    assert one.witness(one.make())


def test_there_are_enough_faults() -> None:
    assert len(FAULTS) >= 16
    assert not rotated.wrong(rotated.Honest, rotated.latents(), CANONICAL)


def test_the_answer_is_that_of_the_parts() -> None:
    """Scores are the sum of two products, and values are latents, as written out here."""
    problem = rotated.latents()[0]
    exact, e = solve(problem, CANONICAL), problem.e
    assert problem.carrier is not None
    for n, j in enumerate(problem.carrier.k_lengths):
        q, k = problem.q[n].double(), problem.k[n, 0, :j].double()
        x = (q[..., :e] @ k[:, :e].T + q[..., e:] @ k[:, e:].T) * problem.d**-0.5
        torch.testing.assert_close(x.softmax(-1) @ k[:, :e], torch.from_numpy(exact.o[n]))
        torch.testing.assert_close(torch.logsumexp(x, -1), torch.from_numpy(exact.lse[n]))


def test_a_latent_is_one_head_whose_values_are_its_own() -> None:
    problem = rotated.latents()[0]
    assert isinstance(problem.carrier, Kept)
    assert problem.carrier.needs() == {"cached", "cached_latent"}
    assert Problem.from_bytes(problem.to_bytes()).carrier == problem.carrier
    other = solve(problem.replace(v=problem.v + 1), CANONICAL)  # of which the call gets nothing
    assert (other.o == solve(problem, CANONICAL).o).all()
    two = build(Case(heads="4/2", i=3, j=9, d=8, e=4, carrier="cached", wrt="none"))
    assert two.carrier is not None
    with pytest.raises(ValueError, match="latents are keys of one head"):
        two.replace(carrier=replace(two.carrier, latent=True))  # type: ignore[call-arg]


def test_keys_and_values_with_the_same_numbers_give_the_same_answer() -> None:
    for problem in rotated.latents()[::4]:
        apart = problem.replace(v=problem.v.clone(), carrier=replace(problem.carrier, latent=False))  # type: ignore[type-var]
        assert torch.equal(rotated.Honest().run(problem).o, rotated.Honest().run(apart).o)


@pytest.mark.parametrize("name", ["LatentValuesAreTheLastChannels", "LatentTurnedPartNotWritten", "PagedValuesOfTheWidthOfKeys"])
def test_the_suite_stops_them(name: str) -> None:
    from attnspec.conformance import check

    one = MUTANTS[name]
    result = check(one.make()(), clauses=one.clause, dtypes="float32", search=False, isolate=False)
    assert one.clause in result.broken


# CALLS OF RELEASED KERNELS, as CPU functions with their signatures


def on_cpu(q, pages, table, lengths, e, causal, scale):
    """(b i h e) and (b h i), of queries (b i h d) and pages of latents."""
    found = []
    for n, j in enumerate(lengths.tolist()):
        rows = pages[table[n].long().clamp(0, len(pages) - 1)].flatten(0, 1)[:j, 0].double()
        s = torch.einsum("ihd,jd->hij", q[n].double(), rows) * (q.shape[3] ** -0.5 if scale is None else scale)
        if causal:
            s = s.masked_fill(torch.ones(s.shape[1:], dtype=torch.bool).triu(1 + j - s.shape[1]), -torch.inf)
        found.append((torch.einsum("hij,je->ihe", s.softmax(-1), rows[:, :e]).to(q.dtype), torch.logsumexp(s, -1).float()))
    return tuple(torch.stack(x) for x in zip(*found, strict=True))


def flash_mla_with_kvcache(
    q,
    k_cache,
    block_table,
    cache_seqlens,
    head_dim_v,
    tile_scheduler_metadata,
    num_splits=None,
    softmax_scale=None,
    causal=False,
    is_fp8_kvcache=False,
    indices=None,
):
    assert tile_scheduler_metadata == "plan"
    assert q.shape[3] == 576
    return on_cpu(q, k_cache, block_table, cache_seqlens, head_dim_v, causal, softmax_scale)


class BatchMLAPagedAttentionWrapper:
    """Of sequences with as many queries each."""

    def __init__(self, float_workspace_buffer, use_cuda_graph=False, qo_indptr=None, kv_indptr=None, backend="auto"):
        assert float_workspace_buffer.numel() >= 128 << 20

    def plan(
        self,
        qo_indptr,
        kv_indptr,
        kv_indices,
        kv_len_arr,
        num_heads,
        head_dim_ckv,
        head_dim_kpe,
        page_size,
        causal,
        sm_scale,
        q_data_type,
        kv_data_type,
        use_profiler=False,
    ):
        assert (head_dim_ckv, head_dim_kpe) == (512, 64)
        self.begins, self.pages, self.own = qo_indptr, (kv_indptr, kv_indices), (kv_len_arr, causal, sm_scale)

    def run(self, q_nope, q_pe, ckv_cache, kpe_cache, out=None, lse=None, return_lse=False):
        rows, q = torch.cat([ckv_cache, kpe_cache], -1)[:, :, None], torch.cat([q_nope, q_pe], -1)
        outputs, sums = [], []
        for n, length in enumerate(self.own[0].tolist()):
            table = self.pages[1][self.pages[0][n] : self.pages[0][n + 1]][None]
            own = q[self.begins[n] : self.begins[n + 1]][None]
            o, s = on_cpu(own, rows, table, torch.tensor([length]), ckv_cache.shape[-1], *self.own[1:])
            outputs.append(o[0])
            sums.append(s[0].T / torch.log(torch.tensor(2.0)))
        return (torch.cat(outputs), torch.cat(sums)) if return_lse else torch.cat(outputs)


@pytest.mark.parametrize("family", ["FLASH_MLA", "FLASHINFER_MLA"])
def test_released_kernels_are_called_by_their_signature(family: str, monkeypatch) -> None:
    """Latents alone, and beside values that are theirs; an lse; a scale and none; pages in any order."""
    from attnspec.adapters.conventions.families import mla
    from attnspec.adapters.conventions.function import FamilyAdapter

    monkeypatch.setitem(sys.modules, "flash_mla", SimpleNamespace(get_mla_metadata=lambda *given: ("plan", None)))
    convention = replace(getattr(mla, family), dtypes=None, devices=None)
    function = flash_mla_with_kvcache if family == "FLASH_MLA" else BatchMLAPagedAttentionWrapper
    adapter = FamilyAdapter(function, function.__name__, (), convention)
    assert {"paged_latent", "mqa", "lse"} <= set(adapter.offers)
    dialect = Dialect(lse_base=convention.dialect["lse_base"])
    for carrier, how in (("paged+64+dealt+latent", {"causal": True}), ("paged+64+spare+dealt", {"scale": 0.02})):
        problem = build(
            Case(
                dtype="bfloat16",
                heads="4/1",
                b=2,
                i=2,
                j=70,
                d=576,
                e=512,
                carrier=carrier,
                lengths="2:70/2:9",
                lse="returned",
                wrt="none",
                **how,
            )
        )
        problem = problem.replace(v=problem.k[..., :512].clone())
        answer = adapter.run(problem)
        assert answer.unsupported is None
        assert not answer.changed
        assert not judge(answer, solve(problem, dialect), "C").findings
