"""Calls of many sequences: functions for the CPU with published signatures are recognised and called so, and faults are found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import block_diagonal
import pytest
import ragged_signatures as ragged

from attnspec.adapters import Adapter, resolve
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors.factor import Failing
from attnspec.conformance.problems.factors.ragged import CARRIER, LENGTHS, carrier_clause, form_of
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build, restricted
from attnspec.reference import solve
from attnspec.reference.ragged import RaggedExact
from attnspec.spec import CANONICAL, Dialect
from attnspec.spec.problem import differentiable

SIZES: dict[str, Any] = {"b": 3, "i": 3, "j": 7, "d": 8, "heads": "4/2", "wrt": "none"}
PACKED = "packed packed+tail+slack packed+turned packed+gaps+tail+turned"
CACHED = "cached cached+append cached+left+room cached+slots cached+append+left+room+slots"
PAGED = "paged paged+1+dealt+minus paged+3+spare+dealt paged+append+dealt paged+3+append+dealt+beyond"


def levels() -> list[Case]:
    """Each carrier with other lengths, and plain, causal, with a window, and beside an lse or gradients."""
    assert {*PACKED.split(), *CACHED.split(), *PAGED.split()} <= set(CARRIER.levels)
    beside: list[dict[str, Any]] = [
        {},
        {"causal": True},
        {"causal": True, "window": "2:"},
        {"lse": "returned"},
        {"wrt": "all", "causal": True},
        {"scale": 0.3, "softcap": 0.7},
        {"alibi_slopes": "bh", "causal": True},
        {"sinks": "normal", "causal": True},
    ]
    carriers = [*PACKED.split(), *CACHED.split(), *PAGED.split()]
    found = []
    for n, carrier in enumerate(carriers):
        for m, more in enumerate(beside):
            lengths = LENGTHS.levels[1 + (3 * n + m) % (len(LENGTHS.levels) - 1)]
            found.append(Case(**{**SIZES, **more, "carrier": carrier, "lengths": lengths, "seed": n}))
    return found


@cache
def exact(case: Case, gradients: tuple[str, ...], restrictions: frozenset[str], dialect: Dialect) -> RaggedExact:
    """The exact answer to a case, which many functions are asked."""
    return solve(restricted(build(case, "cpu", gradients), restrictions), dialect)  # type: ignore[return-value]


def findings(adapter: Adapter, case: Case) -> list[Finding]:
    """What is wrong with the answer to a case that is offered as it is; nothing where it has no words for the combination."""
    dialect = replace(CANONICAL, **adapter.dialect)
    right = exact(case, differentiable(adapter.offers) if case.wrt != "none" else (), frozenset(adapter.restrictions), dialect)
    answer = adapter.run(right.problem)
    return [] if answer.unsupported is not None else list(judge(answer, right, "C").findings)


def offered(adapter: Adapter) -> list[Case]:
    """The cases as they are offered, each once; those that gradients or a form are left of are as good."""
    return list(dict.fromkeys(case for one in levels() if form_of(case := fit(one, adapter)) == form_of(one)))


def named(adapter: Adapter) -> Iterator[str]:
    """The clauses that wrong answers break."""
    for case in offered(adapter):
        for finding in findings(adapter, case):
            failing = Failing(finding.kind, finding.output, finding.output.startswith("d"), False, CANONICAL)
            yield "VARLEN-11" if finding.kind == "changed" and "packed" in case.carrier else carrier_clause(case, failing)


@pytest.fixture
def installed(monkeypatch):
    """Modules under the names of packages that are not installed."""
    blocks = {"xformers.ops.fmha.attn_bias": block_diagonal.KINDS}
    for name, members in {**ragged.installed_as(), **blocks}.items():
        parts = name.split(".")
        for n in range(1, len(parts) + 1):
            path = ".".join(parts[:n])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, ModuleType(path))
            if n > 1:
                monkeypatch.setattr(sys.modules[".".join(parts[: n - 1])], parts[n - 1], sys.modules[path], raising=False)
        for member, x in members.items():
            monkeypatch.setattr(sys.modules[name], member, x, raising=False)


KERNELS: list[tuple[Any, str, str, dict[str, str]]] = [
    (
        ragged.flash_attn_varlen_func,
        "flash-attention 2, varlen",
        "packed paged paged_queries paged_any_entry",
        {"longest": "VARLEN-2", "one_more": "VARLEN-1", "in_order": "PAGED-1", "writes_back": "VARLEN-11"},
    ),
    (ragged.flash_attn_varlen_kvpacked_func, "flash-attention 2, varlen", "packed", {"one_more": "VARLEN-1"}),
    (ragged.flash_attn_varlen_qkvpacked_func, "flash-attention 2, varlen", "packed", {"one_more": "VARLEN-1"}),
    (
        ragged.flash_attn_with_kvcache,
        "flash-attention 2 with a cache",
        "cached cached_append cached_left cached_slots paged paged_append paged_any_entry",
        {"one_more": "CACHE-1", "not_new": "CACHE-2", "own_slot": "CACHE-7", "not_left": "CACHE-6", "spills": "CACHE-4"},
    ),
    (
        ragged.flash_attn_3_varlen_func,
        "flash-attention 3, varlen",
        "packed packed_gaps",
        {"longest": "VARLEN-9", "one_more": "VARLEN-9"},
    ),
    (
        ragged.flash_attn_3_with_kvcache,
        "flash-attention 3 with a cache",
        "cached cached_append cached_left cached_slots paged paged_append paged_queries paged_any_size paged_any_entry",
        {"longest": "PAGED-6", "one_more": "PAGED-1", "not_new": "PAGED-7", "in_order": "PAGED-1", "spills": "PAGED-7"},
    ),
    (
        ragged.flash_attn_4_varlen_func,
        "flash-attention 4, varlen",
        "packed packed_gaps paged paged_queries paged_any_size paged_any_entry",
        {"one_more": "VARLEN-4", "in_order": "PAGED-1"},
    ),
    (ragged.aiter_flash_attn_varlen_func, "aiter, varlen", "packed packed_gaps", {"one_more": "VARLEN-9"}),
    (
        ragged.vllm_flash_attn_varlen_func,
        "vLLM's flash-attention",
        "packed paged paged_queries paged_any_entry",
        {"longest": "PAGED-6", "in_order": "PAGED-1"},
    ),
    (
        ragged.unified_attention,
        "vLLM's unified attention",
        "paged paged_queries paged_any_entry",
        {"longest": "PAGED-6", "one_more": "PAGED-6"},
    ),
    (ragged.varlen_attn, "torch varlen_attn", "packed paged paged_queries", {"longest": "VARLEN-2", "in_order": "PAGED-1"}),
    (
        ragged.varlen_attn_with_a_cache,
        "torch varlen_attn",
        "packed cached cached_append cached_slots",
        {"one_more": "CACHE-1", "not_new": "CACHE-2", "own_slot": "CACHE-2"},
    ),
    (
        block_diagonal.memory_efficient_attention,
        "xformers",
        "packed cached cached_left cached_slots paged paged_queries",
        {"longest": "VARLEN-2", "one_more": "CACHE-1", "in_order": "PAGED-1"},
    ),
    (
        block_diagonal.memory_efficient_attention_partial,
        "xformers, partial",
        "packed cached cached_left cached_slots paged paged_queries",
        {"one_more": "CACHE-1"},
    ),
    (
        "flashinfer.BatchPrefillWithRaggedKVCacheWrapper",
        "FlashInfer, ragged",
        "packed",
        {"longest": "VARLEN-2", "natural": "VARLEN-1"},
    ),
    (
        "flashinfer.BatchPrefillWithPagedKVCacheWrapper",
        "FlashInfer, paged",
        "paged paged_append paged_queries paged_any_size paged_any_entry",
        {"one_more": "PAGED-1", "spills": "PAGED-7", "in_order": "PAGED-1"},
    ),
    (
        "flashinfer.BatchDecodeWithPagedKVCacheWrapper",
        "FlashInfer, paged decode",
        "paged paged_any_size paged_any_entry",
        {"one_more": "PAGED-1"},
    ),
    (ragged.trtllm_batch_decode_with_kv_cache, "TensorRT-LLM's decode in FlashInfer", "paged", {"one_more": "PAGED-6"}),
    ("transformer_engine.pytorch.DotProductAttention", "TransformerEngine", "packed packed_gaps", {"one_more": "VARLEN-9"}),
]


@pytest.mark.parametrize(("function", "convention", "offers", "faults"), KERNELS, ids=lambda x: getattr(x, "__name__", None))
def test_a_call_of_many_sequences_is_recognised_and_put_so(function, convention, offers, faults, installed):
    """An honest function has no finding; one with a fault breaks the clause that says so."""
    adapter, *_ = resolve(function)
    assert adapter.convention.name == convention  # type: ignore[attr-defined]
    known = set(CARRIER.examples) | {"paged_queries", "padded_queries"}
    assert known & set(adapter.offers) == set(offers.split())
    assert not [(case, wrong) for case in offered(adapter) for wrong in findings(adapter, case)]
    for fault, clause in faults.items():
        with ragged.faulty(fault):
            assert clause in named(adapter), fault


@pytest.mark.parametrize("function", [one for one, *_ in KERNELS if not isinstance(one, str)], ids=lambda x: x.__name__)
def test_what_is_asked_for_in_each_form_is_answered(function, installed):
    """A form that is offered is refused for no single feature."""
    adapter, *_ = resolve(function)
    for carrier in ("packed", "cached", "paged"):
        if carrier in adapter.offers:
            case = fit(Case(**{**SIZES, "heads": "2/2", "carrier": carrier, "lengths": "mixed"}), adapter)
            problem = restricted(build(case, "cpu", (), adapter.reading), adapter.restrictions)
            answer = adapter.run(problem)
            assert answer.refusal is None, answer.refusal
