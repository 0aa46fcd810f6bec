"""Calls of many sequences in released packages that run on a CPU: the words that conventions have for them, and their answers.

Poison is finite for those into whose sums NaN gets from what is hidden; docs/found says which.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnspec.adapters import resolve
from attnspec.adapters.forms import BY_FEATURE
from attnspec.adapters.forms.paged import paged
from attnspec.adapters.restrictions import forbidden
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.subject.subject import Subject

APPEND = "heads=4/2,b=2,i=2,j=7,d=8,carrier=cached+append"
PACK = "heads=4/2,b=3,i=5,j=5,d=16,carrier=packed,lengths=5:5/0:0/3:3"
# Of each: what is imported for it, and problems to which it has words, of different lengths where it takes those.
ASKED = {
    "onnx-reference": (
        "onnx",
        [
            f"{APPEND},lengths=2:7/2:7,causal=True",
            f"{APPEND},lengths=2:7/2:7,softcap=1.0",
            "b=2,i=3,j=7,carrier=padded,lengths=3:7/3:2,poison=lure",
        ],
    ),
    "onnxruntime": (
        "onnxruntime",
        [
            f"{APPEND},lengths=2:7/2:7,causal=True",
            "heads=4/2,b=3,i=2,j=7,e=5,carrier=cached+room,lengths=2:7/2:3/2:5,causal=True,poison=lure",
            "heads=4/2,b=3,i=3,j=7,carrier=padded,lengths=3:7/3:2/3:5,poison=lure",
        ],
    ),
    "onnxruntime-mha": (
        "onnxruntime",
        [
            "heads=2/2,b=2,i=2,j=7,d=8,carrier=cached+append,lengths=2:7/2:7",
            "heads=2/2,b=2,i=3,j=7,d=8,carrier=padded,lengths=3:7/3:2,poison=lure",
        ],
    ),
    "onnxruntime-gqa-cache": (
        "onnxruntime",
        [
            f"{APPEND},lengths=2:7/2:3,causal=True",
            f"{APPEND}+room,lengths=2:7/2:3,causal=True,window=3:",
            "heads=4/2,b=2,i=1,j=7,d=8,carrier=cached+append+room,lengths=1:7/1:2,causal=True,softcap=1.0",
        ],
    ),
    "jax.nn.dot_product_attention": (
        "jax",
        [
            "heads=4/2,b=2,i=3,j=5,d=8,carrier=padded,lengths=3:5/3:2,poison=lure",
            "heads=4/2,b=2,i=3,j=5,d=8,carrier=padded,lengths=3:5/2:2,causal=True,poison=lure",
        ],
    ),
    "jax.experimental.pallas.ops.tpu.ragged_paged_attention.ref_ragged_paged_attention": (
        "jax",
        [
            "heads=4/2,b=2,i=2,j=7,d=8,carrier=paged+3+dealt,lengths=2:7/1:4,causal=True",
            "heads=4/2,b=2,i=2,j=7,d=8,carrier=paged+3+dealt,lengths=2:7/1:4,causal=True,window=3:,softcap=1.0",
        ],
    ),
    "transformers-packed": ("transformers", [PACK, f"{PACK},causal=True", f"{PACK},scale=0.3,e=9"]),
    "torch.nn.attention.flex_attention.flex_attention": (
        "torch",
        [
            "heads=4/2,b=3,i=5,j=7,carrier=packed,lengths=5:7/0:0/3:2,causal=True",
            "heads=4/2,b=3,i=5,j=7,carrier=packed+gaps+tail,lengths=5:7/1:3/3:2,poison=lure",
            "heads=4/2,b=2,i=5,j=7,carrier=packed+turned,lengths=5:7/3:2,window=1:1,softcap=2.0",
        ],
    ),
    "fla.ops.attn.naive.naive_attn_decoding": (
        "fla",
        ["heads=4/2,b=2,i=1,j=7,carrier=packed,lengths=1:7/1:2", "heads=4/2,b=2,i=1,j=7,carrier=packed,lengths=1:7/1:4,window=3:"],
    ),
    "fla.ops.attn.parallel.parallel_attn": ("fla", [f"{PACK},causal=True", f"{PACK},causal=True,window=2:,sinks=normal"]),
}


def subjects(path: str) -> list[Subject]:
    """Those of a path; skipped where its package is missing."""
    package, _ = ASKED[path]
    if find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    if path.endswith("parallel_attn") and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("without a GPU it runs in Triton's interpreter: TRITON_INTERPRET=1")
    return [meet(adapter.on("cpu"), "cpu", {}, None, ("float32",)) for adapter in resolve(path, {})]


def wrong_in(subject: Subject, token: str) -> list[Any]:
    """What is wrong with the answer to a problem: numbers, and memory that was changed."""
    problem = subject.problem(Case.parse(f"{token},wrt=none"))
    answer = subject.run(problem)
    assert answer.refusal is None, (token, answer.refusal)
    return [*subject.judge(answer, subject.solve(problem)).findings, *answer.changed]


@pytest.mark.parametrize("path", ASKED)
def test_it_is_right_and_what_is_wrong_is_seen(path: str) -> None:
    for subject in subjects(path):
        assert {token: found for token in ASKED[path][1] if (found := wrong_in(subject, token))} == {}, subject.adapter.variant
        for feature in {Case.parse(token).carrier.partition("+")[0] for token in ASKED[path][1]}:
            method = BY_FEATURE[feature].method
            right = getattr(subject.adapter, method)

            def wrong(right: Any = right, **given: Any) -> Any:
                """Its queries stand the other way round."""
                return right(**{**given, "q": given["q"].flip(-1)})

            setattr(subject.adapter, method, wrong)
        subject.held.clear()
        assert [token for token in ASKED[path][1] if not wrong_in(subject, token)] == [], subject.adapter.variant


def test_a_query_beside_a_cache_stands_at_its_key_in_every_dialect() -> None:
    """ONNX aligns dense calls at the first key, and those beside a past at the last one."""
    (subject,) = subjects("onnxruntime")
    assert subject.dialect.causal_alignment == "top_left"
    problem = subject.problem(Case.parse("heads=2/2,b=1,i=2,j=6,carrier=cached+append,causal=True,wrt=none"))
    exact = subject.solve(problem)
    assert exact.forward.visible[0, 0].sum(-1).tolist() == [5, 6]
    dense = subject.problem(Case.parse("heads=2/2,b=1,i=2,j=6,causal=True,wrt=none"))
    assert subject.solve(dense).forward.visible[0, 0].sum(-1).tolist() == [1, 2]
    assert not torch.equal(torch.from_numpy(exact.values["o"]), torch.from_numpy(subject.solve(dense).values["o"]))


def test_a_pool_has_a_page_if_nobody_has_a_key() -> None:
    """An array without a page can't be read at any entry, which JAX refuses before it knows the lengths."""
    seen = []

    def attend(k_pages: torch.Tensor, table: torch.Tensor, q: torch.Tensor, **given: Any) -> torch.Tensor:
        seen.append((tuple(k_pages.shape), table.tolist()))
        return torch.zeros_like(q)

    none = torch.zeros(1, 2, 0, 8)
    paged(attend, torch.zeros(1, 2, 3, 8), none, none, q_lengths=(3,), k_lengths=(0,), size=4, columns=1, unused=-1)
    assert seen == [((1, 4, 2, 8), [[-1]])]


def test_who_always_appends_is_asked_for_a_key_for_each_query() -> None:
    """Longer caches where there were fewer keys than queries, and no call that only reads."""
    adapter = SimpleNamespace(offers={"mha", "cached", "cached_append"}, restrictions={"always_append"}, widths=None)
    for token in ("b=3,i=5,j=3,carrier=cached,lengths=mixed", "b=2,i=3,j=9,carrier=cached+append,lengths=3:1/3:9"):
        case = fit(Case.parse(f"{token},wrt=none"), adapter)  # type: ignore[arg-type]
        problem = build(case)
        assert forbidden({"always_append"}, problem) == "", case
        assert problem.carrier.new == (case.i,) * case.b  # type: ignore[union-attr]
    assert forbidden({"always_append"}, build(Case.parse("i=3,j=9,carrier=cached,wrt=none")))


def test_who_takes_as_many_keys_as_queries_is_asked_for_them_in_each_sequence() -> None:
    adapter = SimpleNamespace(offers={"mha", "packed", "padded", "padded_queries"}, restrictions={"equal_lengths"}, widths=None)
    for form in ("packed", "padded"):
        for lengths in ("mixed", "crossed", "zero_first", "no_keys", "5:2/3:9"):
            case = fit(Case.parse(f"b=3,i=5,j=9,carrier={form},lengths={lengths},wrt=none"), adapter)  # type: ignore[arg-type]
            carrier = build(case).carrier
            assert carrier is not None
            assert carrier.q_lengths == carrier.k_lengths
            assert forbidden({"equal_lengths"}, build(case)) == ""
    assert forbidden({"equal_lengths"}, build(Case.parse("b=2,i=5,j=5,carrier=packed,lengths=5:3/2:5,wrt=none")))
