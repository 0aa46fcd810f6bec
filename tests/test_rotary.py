"""Calls that turn new keys and queries: turns are exact, honest kernels are right, and each fault is seen by its clause."""

from __future__ import annotations

from dataclasses import replace

import pytest
import rotated
import torch
from mutants.base import MUTANTS, load

from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.subject.meeting import meet
from attnspec.reference import solve
from attnspec.spec import CANONICAL, Dialect, Problem
from attnspec.spec.ragged import carrier_from
from attnspec.spec.turns import cos_and_sin, turned
from attnspec.spec.words import DTYPES

load()
FAULTS = [one for one in MUTANTS.values() if one.family == "rotary"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_turns_are_exact(dtype: str) -> None:
    """There and back, in each dtype, with both pairs; other channels stay, and so do lengths of rows."""
    x = torch.randn(2, 3, 7, 12, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    for width, interleaved, steady in ((2, False, False), (8, True, False), (12, False, True), (12, True, True)):
        there = turned(x, range(5, 12), width, interleaved, steady)
        assert torch.equal(turned(there, range(5, 12), width, interleaved, steady, back=True), x)
        assert torch.equal(there[..., width:], x[..., width:])
        assert not torch.equal(there, x)
        assert torch.equal(there.abs().sort(-1).values, x.abs().sort(-1).values)
    wide = x.double()
    cos, sin = cos_and_sin(range(5, 12), 6, False, wide)
    a, b = wide[..., :6], wide[..., 6:]
    assert torch.equal(turned(wide, range(5, 12), 12, False, False), torch.cat([a * cos - b * sin, a * sin + b * cos], -1))


def test_tables_differ_from_row_to_row_and_from_pair_to_pair() -> None:
    cos, sin = cos_and_sin(range(300), 8, False, torch.zeros(0))
    rows = torch.cat([cos, sin], 1)
    assert all(not torch.equal(rows[n], rows[m]) for n in range(300) for m in range(max(0, n - 8), n))
    assert (cos**2 + sin**2 == 1).all()
    shares = [(c[:, 0] == 1).float().mean() for c in (cos, -cos, sin, -sin)]
    assert min(shares) > 0.15


def test_scores_of_steady_turns_depend_on_distances_alone() -> None:
    q, k = torch.randn(2, 1, 1, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    one = [(turned(q, [p], 12, True, True) * turned(k, [p - 3], 12, True, True)).sum() for p in (3, 8, 100)]
    assert max(one) - min(one) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_kernels_are_right(dtype: str) -> None:
    """Whatever is turned, in both rules for queries that see all keys; nothing is written but what is new."""
    for kind in (rotated.Honest, rotated.LikeTheFirst):
        dialect = Dialect(**{name: kind.dialect[name] for name in ("rotary_pairs", "rotary_query") if name in kind.dialect})
        for problem in rotated.turns()[::3]:
            asked = problem.replace(**{name: getattr(problem, name).to(getattr(torch, dtype)) for name in "qkv"})
            answer = kind().run(asked)
            assert not answer.changed
            assert not judge(answer, solve(asked, dialect), "A" if dtype in ("float32", "float64") else "C").findings


@pytest.mark.parametrize("one", FAULTS, ids=lambda one: one.name)
def test_every_fault_shows(one) -> None:
    assert one.witness is not None
    assert one.witness(one.make())


def test_an_honest_kernel_shows_none() -> None:
    assert not rotated.wrong(rotated.Honest, rotated.turns(), CANONICAL)
    assert rotated.wrong(rotated.LikeTheFirst, rotated.turns(), CANONICAL)


def test_there_are_enough_faults() -> None:
    assert len(FAULTS) >= 20


def test_the_choices_are_seen() -> None:
    """Where no call names the pairs, and nobody promised a rule."""

    class Silent(rotated.LikeTheFirst):
        dialect = rotated.Honest.dialect

    for kind, pairs, query in ((rotated.Honest, "halves", "each"), (Silent, "interleaved", "first")):
        subject = meet(kind(), "cpu", {}, None, ("float32",))
        assert (subject.dialect.rotary_pairs, subject.dialect.rotary_query) == (pairs, query)
        assert subject.sources["rotary_query"].startswith("observed")


@pytest.mark.parametrize("name", ["RotaryQueriesLikeTheFirst", "RotaryKeysWrittenAsTheyCame", "RotaryLeftSubtracted"])
def test_the_suite_stops_them(name: str) -> None:
    one = MUTANTS[name]
    result = check_(one.make()(), one.clause)
    assert one.clause in result


def check_(adapter, clauses: str) -> set[str]:
    from attnspec.conformance import check

    return set(check(adapter, clauses=clauses, dtypes="float32", search=False, isolate=False).broken)


def test_a_carrier_with_turns_is_written_and_read() -> None:
    problem = rotated.turns()[0]
    assert problem.carrier is not None
    assert carrier_from(problem.carrier.data()) == problem.carrier
    assert Problem.from_bytes(problem.to_bytes()).carrier == problem.carrier
    assert {"rotary", "cached_rotary", "rotary_told", "rotary_any_width"} <= problem.carrier.needs()
    case = Case.parse("b=2,heads=2/2,i=3,j=9,d=8,carrier=cached+append+rotary+interleaved,lengths=3:9/3:4")
    assert Case.parse(case.token()) == case
    assert build(replace(case, wrt="none")).carrier.rotary == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"rotary": 3}, "an even number"), ({"rotary": 10}, "of the 8 channels"), ({"new": ()}, "there are none")],
)
def test_what_can_not_turn_is_refused(change: dict, says: str) -> None:
    problem = rotated.turns()[0]
    with pytest.raises(ValueError, match=says):
        problem.replace(carrier=replace(problem.carrier, **change))  # type: ignore[type-var]


# CALLS OF RELEASED KERNELS, as CPU functions with their signatures


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    """flash-attention 2's, with its rule for queries and its default of pairs."""
    assert rotary_cos is None or rotary_cos.shape[1] % 8 == 0
    window = None if window_size == (-1, -1) else tuple(None if side < 0 else side for side in window_size)
    how = {
        "cos": rotary_cos,
        "sin": rotary_sin,
        "causal": causal,
        "scale": softmax_scale,
        "window": window,
        "lse": return_softmax_lse,
    }
    how |= {"interleaved": rotary_interleaved}
    kernel = rotated.LikeTheFirst()
    if block_table is None:
        return kernel.attend_cached(
            q, k_cache, v_cache, cache_seqlens, k_new=k, v_new=v, left=cache_leftpad, slots=cache_batch_idx, **how
        )
    b, i, *_ = q.shape
    starts = torch.arange(b + 1)
    of_new = {} if k is None else {"k_new": k.flatten(0, 1), "v_new": v.flatten(0, 1), "cu_new": starts * k.shape[1]}
    o = kernel.attend_paged(q.flatten(0, 1), starts * i, i, k_cache, v_cache, block_table, cache_seqlens, **of_new, **how)
    return o.unflatten(0, (b, i))


def test_flash_attentions_rotary_is_called_by_its_signature() -> None:
    """Both pairs, the default, all queries like the first, in a cache and in pages."""
    from attnspec.adapters.conventions.families.kvcache import KVCACHE
    from attnspec.adapters.conventions.function import FamilyAdapter

    adapter = FamilyAdapter(flash_attn_with_kvcache, "flash_attn_with_kvcache", (), replace(KVCACHE, dtypes=None, devices=None))
    assert {"rotary", "cached_rotary", "paged_rotary", "rotary_told"} <= set(adapter.offers)
    assert "rotary_any_width" not in adapter.offers
    dialect = Dialect(rotary_pairs="interleaved", rotary_query="first")
    for carrier, causal in (("cached+append+left", False), ("cached+append", True), ("paged+256+append", False)):
        problem = build(
            Case(heads="4/2", b=2, i=3, j=9, d=32, values="peaked", carrier=carrier, lengths="3:9/3:5", causal=causal, wrt="none")
        )
        for interleaved, told in ((False, True), (True, True), (True, False)):
            how = {"rotary": 16, "interleaved": interleaved, "told": told}
            asked = problem.replace(carrier=replace(problem.carrier, **how))  # type: ignore[type-var]
            answer = adapter.run(asked)
            assert answer.unsupported is None
            assert not answer.changed
            assert not judge(answer, solve(asked, dialect), "A").findings
