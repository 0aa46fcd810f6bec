"""Attention behind a model: ONNX's in its own evaluator and in onnxruntime, onnxruntime's own operators, and OpenVINO's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from honest import eager
from judging import ended, judge

from attnspec.adapters import Adapter, ResolveError, Unsupported, resolve
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.report.repro import script
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.subject.subject import OBSERVED, Subject

PACKAGES = {
    "onnx-reference": ("onnx",),
    "onnxruntime": ("onnx", "onnxruntime"),
    "onnxruntime-mha": ("onnx", "onnxruntime"),
    "onnxruntime-gqa": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
}
SHARED = {"mha", "strided", "scale", "bias", "rank3"}
MASKS, HEADS = {"mask", "key_padding"}, {"gqa", "mqa"}
START = {"q_start", "q_start_batch", "q_start_negative"}
MANY = {"padded", "cached", "cached_append"}
ATTENTION = SHARED | MASKS | HEADS | {"value_width", "causal", "softcap"}
OFFERS = {
    "onnx-reference": ATTENTION | START | MANY | {"window", "window_right"},
    "onnxruntime": ATTENTION | START | MANY,
    "onnxruntime-mha": SHARED | MANY | {"key_padding", "value_width", "causal"},
    "onnxruntime-gqa": SHARED | HEADS | {"causal", "softcap", "window", "sinks"},
    "openvino": SHARED | MASKS | {"value_width", "causal"},
}
RESTRICTED = {
    "onnx-reference": {"mask_or_bias"},
    "onnxruntime": {"mask_or_bias"},
    "onnxruntime-mha": {"always_append"},
    "onnxruntime-gqa": {"always_causal", "equal_lengths"},
    "openvino": {"mask_or_bias", "mask_or_causal", "bias_or_causal"},
}
TOP_LEFT = {"causal_alignment": "top_left"}
ZERO = TOP_LEFT | {"empty_row": "zero", "head_grouping": "blocked", "softcap_order": "before_bias", "window_count": "inclusive"}
DIALECT = {"onnx-reference": ZERO, "onnxruntime": ZERO, "onnxruntime-mha": TOP_LEFT, "onnxruntime-gqa": {}, "openvino": TOP_LEFT}
PLAIN = ["heads=3/3,b=2,i=4,j=7", "heads=2/2,i=4,j=4,layout=strided", "heads=2/2,i=5,j=7,bias=ij", "i=3,j=4,scale=0.3,e=9,b=2"]
MASKED = ["heads=2/2,b=2,i=7,j=4,mask=bhij", "heads=2/2,b=2,i=3,j=4,mask=padding", "heads=2/2,i=3,j=7,mask=bhi"]
GROUPED = ["heads=4/2,b=2,i=4,j=7", "heads=6/2,i=7,j=4,causal=True,bias=hij", "heads=4/1,i=4,j=4,softcap=1.0"]
PLACED = ["heads=2/2,b=2,i=3,j=9,causal=True,q_start=each", "i=2,j=7,causal=True,q_start=3"]
# ONNX's evaluator is asked for masks that have all queries, since it takes others for those of one query beside causal.
ASKED = {
    "onnx-reference": [*PLAIN, *MASKED, *GROUPED, *PLACED, "i=9,j=9,window=2:1", "i=5,j=9,window=2:,causal=True,mask=ij"],
    "onnxruntime": [*PLAIN, *MASKED, *GROUPED, *PLACED],
    "onnxruntime-mha": [*PLAIN, "heads=2/2,b=2,i=3,j=4,mask=padding", "heads=2/2,i=7,j=4,mask=ij", "i=5,j=5,causal=True,bias=bhij"],
    "onnxruntime-gqa": [
        "heads=4/2,b=2,i=5,d=16,causal=True",
        "heads=2/2,i=7,d=8,causal=True,window=3:",
        "heads=2/2,i=7,d=8,causal=True,softcap=1.0,bias=hij",
        "heads=4/4,b=2,i=7,d=8,causal=True,sinks=normal",
        "heads=4/1,i=5,d=24,causal=True,mask=padding,holes=prefix",
    ],
    "openvino": [*PLAIN, *MASKED, "heads=2/2,i=4,j=7,causal=True", "heads=2/2,i=7,j=4,causal=True,scale=0.3"],
}
HALVES = [("onnx-reference", "bfloat16"), ("onnx-reference", "float16"), ("openvino", "bfloat16"), ("openvino", "float16")]
HALVES += [("onnxruntime", "float16"), ("onnxruntime-mha", "float16")]


def there(name: str) -> None:
    """Skip where a package is missing."""
    for package in PACKAGES[name]:
        if find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")


def made(name: str, **kwargs: Any) -> Adapter:
    there(name)
    (adapter,) = resolve(name, kwargs)
    return adapter.on("cpu")


def met(name: str, *dtypes: str, **kwargs: Any) -> Subject:
    return meet(made(name, **kwargs), "cpu", {}, None, dtypes or ("float32",))


def findings(subject: Subject, token: str) -> list[Any]:
    problem = subject.problem(Case.parse(f"{token},wrt=none"))
    return list(subject.judge(subject.run(problem), subject.solve(problem)).findings)


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_promised(name: str) -> None:
    adapter = made(name)
    assert set(adapter.offers) == OFFERS[name]
    assert set(adapter.restrictions) == RESTRICTED[name]
    assert adapter.dialect == DIALECT[name]
    assert adapter.version.split()[0] == PACKAGES[name][-1]


@pytest.mark.parametrize("name", PACKAGES)
def test_it_is_right_and_what_is_wrong_is_seen(name: str) -> None:
    subject = met(name)
    assert subject.read_from.startswith("promised by")
    assert {token: found for token in ASKED[name] if (found := findings(subject, token))} == {}
    right = subject.adapter.function

    def wrong(**given: Any) -> Any:
        """Its keys stand the other way round."""
        key = next(x for x in given if x in ("K", "key"))
        return right(**{**given, key: given[key][:, :, ::-1]})

    subject.adapter.function = wrong
    subject.held.clear()
    assert [token for token in ASKED[name] if not findings(subject, token)] == []


@pytest.mark.parametrize(("name", "dtype"), HALVES)
def test_half_types_go_there_and_back_by_their_bits(name: str, dtype: str) -> None:
    # With free lengths OpenVINO 2026.4 answers bfloat16 out of memory that nobody wrote, on processors that multiply in it.
    subject = met(name, dtype, **({"static": True} if name == "openvino" else {}))
    assert [token for token in ASKED[name][:6] if findings(subject, f"{token},dtype={dtype}")] == []


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("name", ["onnx-reference", "onnxruntime"])
def test_each_opset_in_three_axes_and_in_four(name: str, opset: int) -> None:
    """A window came with opset 25, the lengths of a cache with opset 24."""
    for rank in (3, 4):
        subject = met(name, opset=opset, rank=rank)
        offered = set(subject.adapter.offers)
        assert offered == ATTENTION | (START | MANY if opset > 23 else set()) | (
            {"window", "window_right"} if opset > 24 else set()
        )
        assert [token for token in (*PLAIN, *GROUPED, *(PLACED if opset > 23 else ())) if findings(subject, token)] == []


def test_the_published_cases_are_put_as_they_are_published() -> None:
    """Those that have no cache give the evaluator's own output, bit by bit."""
    there("onnx-reference")
    from onnx_cases import parts, published, tensor

    adapters = {opset: made("onnx-reference", opset=opset) for opset in (23, 24, 25)}
    same = 0
    for case in published()[0]:
        if {"past_key", "nonpad_kv_seqlen"} & case.inputs.keys() or "softmax_precision" in case.attributes:
            continue
        for items, problem, _ in parts(case):
            answer = adapters[case.opset].run(problem)
            assert answer.refusal is None, case.name
            assert torch.equal(answer.o, tensor(np.ascontiguousarray(case.y[items]))), case.name
            same += 1
    assert same >= 50


def test_what_is_known_of_group_query_attention_is_observed() -> None:
    """With as many keys as queries, which is all that it takes."""
    subject = met("onnxruntime-gqa")
    assert (subject.dialect.window_count, subject.dialect.head_grouping) == ("total", "blocked")
    assert subject.sources["head_grouping"].startswith(OBSERVED)
    assert findings(subject, "i=4,d=8,causal=True,window=0:") == []  # of no key at all
    both_ways = met("onnxruntime-gqa", causal=0)
    assert set(both_ways.adapter.offers) == SHARED | HEADS | {"softcap", "sinks"}
    assert [token for token in ("heads=4/2,b=2,i=5,d=16", "i=5,d=8,softcap=1.0,bias=hij") if findings(both_ways, token)] == []


class Square(Adapter):
    """Groups of heads in stripes, and only as many keys as queries."""

    offers = frozenset({"mha", "gqa"})
    restrictions = frozenset({"equal_lengths"})

    def attend(self, q: Any, k: Any, v: Any) -> Any:
        if q.shape[2] != k.shape[2]:
            raise Unsupported("as many keys as queries")
        return eager(q, *(x.repeat(1, q.shape[1] // k.shape[1], 1, 1) for x in (k, v)))


def test_choices_are_observed_with_as_many_keys_as_queries() -> None:
    subject = meet(Square(), "cpu", {}, None, ("float32",))
    assert (subject.dialect.head_grouping, subject.sources["head_grouping"]) == ("strided", f"{OBSERVED} on a small problem")


def test_tests_that_make_their_own_lengths_make_those_that_are_taken() -> None:
    there("onnxruntime-gqa")
    some = "test_how_many_keys_a_window_holds or test_a_sink_counts_once_where_blocks_are_hidden"
    outcome = judge("onnxruntime-gqa", "--clauses=WINDOW-1,SINK-4", "--impl-dtypes=float32", "-k", some)
    assert outcome.record.counts
    assert not any(counts["HARNESS_ERROR"] for counts in outcome.record.counts.values()), outcome.screen


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("onnx-reference", "heads=2/shared,i=3,j=4"),
        ("onnx-reference", "i=3,j=4,q_start=3,causal=True"),
        ("onnxruntime-mha", "heads=2/2,i=3,j=4,mask=bhij"),
        ("onnxruntime-gqa", "i=4,d=8,window=1:2"),
        ("onnxruntime-gqa", "i=4,d=8,mask=ij,causal=True"),
        ("openvino", "heads=2/shared,i=3,j=4"),
        ("openvino", "i=4,j=4,mask=ij,causal=True"),
    ],
)
def test_what_it_has_no_words_for(name: str, token: str) -> None:
    subject = met(name)
    assert subject.run(subject.problem(Case.parse(f"{token},wrt=none"))).unsupported


@pytest.mark.parametrize(
    ("name", "options", "scale", "code"),
    [("onnxruntime-gqa", {}, None, 0), ("onnxruntime", {"rank": 3}, 2.0, 1), ("openvino", {}, None, 0), ("openvino", {}, 2.0, 1)],
)
def test_a_script_runs_alone(name: str, options: dict[str, Any], scale: float | None, code: int, tmp_path: Path) -> None:
    """It says 0 where the answer is right, and 1 beside the exact answer of another problem."""
    subject = met(name, **options)
    case = Case.parse(f"{ASKED[name][0]},wrt=none")
    problem = subject.problem(case)
    exact = subject.solve(problem.replace(scale=scale))
    text = script(subject, Explained("SHAPE-1", case, Finding("value", "o", "what was found"), problem, exact), None)
    assert text is not None
    (tmp_path / "repro.py").write_text(text)
    done = ended(tmp_path / "repro.py")
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named(name: str) -> None:
    with (
        mock.patch("attnspec.adapters.shipped.onnx.find_spec", return_value=None),
        pytest.raises(ResolveError, match=f"needs {' and '.join(PACKAGES[name])}: pip install {' '.join(PACKAGES[name])}"),
    ):
        resolve(name)


def test_an_option_that_is_none_is_refused() -> None:
    there("openvino")
    with pytest.raises(ResolveError, match="has no option heads; --impl-kwargs takes opset, precision, static"):
        resolve("openvino", {"heads": 2})


def test_a_fresh_openvino_has_models_that_were_never_called() -> None:
    """A model is prepared by the shapes of its first call: docs/found/others.md, 5."""
    there("openvino")
    from attnspec.adapters.shipped.openvino import openvino_model

    (adapter,) = resolve("openvino")
    other, problem, made = adapter.fresh(), build(Case(i=2, j=3, wrt="none")), []
    assert other is not None
    for one in (adapter, other, adapter, other):
        before = openvino_model.cache_info().hits
        assert one.run(problem).refusal is None
        made.append(openvino_model.cache_info().hits == before)
    assert made[1:] == [True, False, False]
