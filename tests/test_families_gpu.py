"""Kernel libraries for GPUs: functions for the CPU with their signatures are recognised, called so, and judged."""

from __future__ import annotations

import sys
from types import ModuleType

import gpu_signatures as gpu
import pytest
from judging import ended, judge

from attnspec.adapters import resolve
from attnspec.adapters.conventions.convention import convention_of, conventions
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.problems.case import Case
from attnspec.conformance.report.repro import script
from attnspec.conformance.subject.meeting import meet

PLAIN = (
    Case(i=3, j=5, d=8),
    Case(i=3, j=5, d=8, causal=True),
    Case(i=5, j=3, d=8, causal=True, b=2),
    Case(i=4, d=8, scale=0.3),
)
WINDOWS = (Case(i=6, j=8, d=8, window="2:1"), Case(i=5, j=7, d=8, window="2:", causal=True), Case(i=5, j=7, d=8, window=":1"))
GROUPED = (Case(heads="4/2", i=3, j=5, d=8), Case(heads="6/1", i=4, j=5, d=8))
CAPPED, ALIBI, LSE = (
    Case(i=4, j=5, d=8, softcap=0.7),
    Case(i=4, j=6, d=8, alibi_slopes="bh", b=2),
    Case(i=4, j=6, d=8, lse="returned"),
)
MASKED = tuple(Case(b=2, heads="4/4", i=3, j=5, d=8, mask=mask) for mask in ("padding", "bij", "rank3", "bhij"))
BIASED = tuple(
    Case(b=2, heads="4/4", i=3, j=5, d=8, bias=bias, wrt=wrt) for bias, wrt in (("ij", "all"), ("hij", "bias"), ("bhij", "v"))
)
MERGED = (
    Case(i=4, d=8, causal=True, bias="hij"),
    Case(i=3, j=5, d=8, causal=True, mask="bij"),
    Case(i=5, j=7, d=8, window="2:1", bias="ij", mask="padding"),
    Case(i=4, d=8, window="2:", causal=True, bias="ij"),
)
SUNK = (Case(heads="4/4", i=4, j=5, d=8, sinks="normal", causal=True), Case(heads="4/4", i=4, j=5, d=8, sinks="mixed", wrt="sinks"))
ROWS = "mha strided backward causal scale window window_right softcap lse"


def met(target: object):
    (adapter,) = resolve(target)
    return meet(adapter.on("cpu"), "cpu", {}, None, ("float32",))


def wrong(subject, *cases: Case) -> list[Case]:
    """The cases whose answers are not the exact ones, or that are not answered."""
    found = []
    for case in cases:
        problem = subject.problem(case)
        answer = subject.run(problem)
        if answer.refusal or subject.judge(answer, subject.solve(problem)).findings:
            found.append(case)
    return found


@pytest.fixture
def installed(monkeypatch):
    """Modules under the names of packages that are not installed, with the functions for the CPU."""

    def module(name: str, **members: object) -> None:
        parts = name.split(".")
        for n in range(1, len(parts) + 1):
            path = ".".join(parts[:n])
            monkeypatch.setitem(sys.modules, path, ModuleType(path))
            if n > 1:
                setattr(sys.modules[".".join(parts[: n - 1])], parts[n - 1], sys.modules[path])
        vars(sys.modules[name]).update(members)

    return module


@pytest.fixture
def biases(installed):
    """The classes of `xformers.ops.fmha.attn_bias`: its own, where xformers can be imported."""
    try:
        from xformers.ops.fmha import attn_bias  # noqa: F401
    except Exception:
        names = {name: kind for name, kind in vars(gpu).items() if isinstance(kind, type) and issubclass(kind, gpu.Bias)}
        installed("xformers.ops.fmha.attn_bias", **names)


@pytest.mark.parametrize(
    ("name", "convention", "offers", "cases", "broken", "shows"),
    [
        (
            "flash_attn_func",
            "flash-attention 2",
            ROWS + " gqa mqa dropout alibi alibi_batch",
            (*PLAIN, *WINDOWS, *GROUPED, CAPPED, ALIBI, LSE),
            "wrong_flash_attn_func",
            PLAIN[1],
        ),
        (
            "flash_attn_kvpacked_func",
            "flash-attention 2",
            ROWS + " gqa mqa dropout alibi alibi_batch",
            (*PLAIN, *WINDOWS, *GROUPED, CAPPED, ALIBI, LSE),
            "wrong_flash_attn_kvpacked_func",
            GROUPED[0],
        ),
        (
            "flash_attn_varlen_func",
            "flash-attention 2, varlen",
            ROWS + " gqa mqa dropout alibi alibi_batch packed paged paged_queries paged_any_entry",
            (*PLAIN, *WINDOWS, *GROUPED, CAPPED, ALIBI, LSE),
            "wrong_flash_attn_varlen_func",
            PLAIN[2],
        ),
        (
            "vllm_flash_attn_varlen_func",
            "vLLM's flash-attention",
            "mha strided causal scale window window_right softcap lse gqa mqa sinks packed paged paged_queries paged_any_entry",
            (*PLAIN, *WINDOWS, *GROUPED, CAPPED, LSE, SUNK[0]),
            None,
            None,
        ),
        (
            "flash_attn_3_func",
            "flash-attention 3",
            ROWS + " gqa mqa",
            (*PLAIN, *WINDOWS, *GROUPED, CAPPED, LSE),
            "wrong_flash_attn_3_func",
            WINDOWS[0],
        ),
        (
            "flash_attn_4_func",
            "flash-attention 4",
            ROWS + " gqa mqa sinks sinks_grad lse_grad",
            (*PLAIN, *WINDOWS, *GROUPED, CAPPED, LSE, *SUNK, Case(i=3, j=5, d=8, lse="both")),
            "wrong_flash_attn_4_func",
            SUNK[0],
        ),
        (
            "aiter_flash_attn_func",
            "aiter",
            "mha strided backward causal scale window window_right lse gqa mqa dropout alibi alibi_batch sinks first_tokens",
            (*PLAIN, *WINDOWS, *GROUPED, ALIBI, LSE, SUNK[0], Case(i=6, j=9, d=8, window="2:", first_tokens=2, causal=True)),
            "wrong_aiter_flash_attn_func",
            Case(i=6, j=9, d=8, window="2:", first_tokens=2, causal=True),
        ),
        (
            "sdpa_torch",
            "cuDNN's sdpa",
            "mha strided backward causal scale window window_right lse gqa mqa value_width sinks",
            (*PLAIN, *WINDOWS, *GROUPED, LSE, SUNK[0], Case(i=3, j=5, d=8, e=4)),
            None,
            None,
        ),
        (
            "single_prefill_with_kv_cache",
            "FlashInfer",
            "mha strided causal scale window softcap lse gqa mqa value_width mask key_padding rank3",
            (*PLAIN, WINDOWS[1], *GROUPED, CAPPED, LSE, *MASKED, Case(b=2, heads="4/2", i=3, j=5, d=8, mask="bhij")),
            "wrong_single_prefill_with_kv_cache",
            LSE,
        ),
        (
            "single_decode_with_kv_cache",
            "FlashInfer",
            "mha strided scale softcap lse gqa mqa",
            (PLAIN[0], PLAIN[3], *GROUPED, CAPPED, LSE),
            None,
            None,
        ),
        (
            "memory_efficient_attention",
            "xformers",
            "mha strided backward causal scale window window_right value_width mask key_padding rank3 bias bias_grad dropout"
            " packed cached cached_left cached_slots paged paged_queries",
            (*PLAIN, *WINDOWS, *MASKED, *BIASED, *MERGED, Case(i=3, j=5, d=8, e=4)),
            "wrong_memory_efficient_attention",
            PLAIN[1],
        ),
        (
            "memory_efficient_attention_partial",
            "xformers, partial",
            "mha strided causal scale window window_right value_width mask key_padding rank3 bias lse gqa mqa"
            " packed cached cached_left cached_slots paged paged_queries",
            (*PLAIN, *WINDOWS, *MASKED, *GROUPED, LSE, Case(b=2, heads="4/2", i=3, j=5, d=8, mask="bhij", lse="returned")),
            None,
            None,
        ),
    ],
)
def test_a_function_with_a_published_signature_is_recognised_and_called_so(name, convention, offers, cases, broken, shows, biases):
    subject = met(getattr(gpu, name))
    assert subject.adapter.convention.name == convention
    assert subject.adapter.read_by == convention
    assert set(subject.adapter.offers) == set(offers.split())
    assert subject.read_from == f"promised by {convention}"
    assert wrong(subject, *cases) == []
    if broken is not None:
        subject = met(getattr(gpu, broken))
        assert subject.adapter.convention.name == convention
        assert shows in wrong(subject, shows)


def test_one_tensor_of_queries_keys_and_values_has_one_length():
    subject = met(gpu.flash_attn_qkvpacked_func)
    assert subject.adapter.convention.of.endswith("flash_attn_qkvpacked_func")
    assert not subject.offers("gqa")
    assert (
        wrong(subject, *(Case(i=5, d=8, causal=causal, window=window) for causal in (False, True) for window in ("none", "2:1")))
        == []
    )
    assert subject.run(subject.problem(PLAIN[0])).unsupported.startswith("equal_lengths")


def test_grouped_heads_of_xformers_are_called_and_not_promised(biases):
    subject = met(gpu.memory_efficient_attention)
    problem = subject.problem(Case(heads="4/2", i=3, j=5, d=8, wrt="none"))
    assert subject.judge(subject.run(problem), subject.solve(problem)).findings == ()


def test_a_module_of_transformer_engine(installed):
    installed("transformer_engine.pytorch", DotProductAttention=gpu.DotProductAttention)
    subject = met("transformer_engine.pytorch.DotProductAttention")
    assert subject.adapter.read_by == "TransformerEngine"
    assert subject.offers("mask", "bias", "bias_grad", "alibi", "alibi_batch", "sinks", "sinks_grad", "window", "dropout", "gqa")
    assert not subject.offers("softcap")
    cases = (*PLAIN, *WINDOWS, *GROUPED, ALIBI, *MASKED, *BIASED, *SUNK, Case(i=4, j=6, d=8, window=":0"))
    assert wrong(subject, *cases) == []
    installed("transformer_engine.pytorch", DotProductAttention=gpu.WrongDotProductAttention)
    assert wrong(met("transformer_engine.pytorch.DotProductAttention"), *MASKED) == list(MASKED)


def test_a_graph_of_cudnn(installed):
    named = {name: ModuleType(name) for name in ("data_type", "diagonal_alignment", "heur_mode")}
    vars(named["data_type"]).update(HALF=1, BFLOAT16=2, FLOAT=3)
    vars(named["diagonal_alignment"]).update(TOP_LEFT=1)
    vars(named["heur_mode"]).update(A=1, FALLBACK=2)
    installed("cudnn", pygraph=gpu.pygraph, **named)
    subject = met("cudnn.pygraph")
    assert subject.adapter.read_by == "cuDNN's graph"
    assert wrong(subject, *PLAIN, *WINDOWS, *GROUPED, LSE, *BIASED[::2], *MERGED[::3]) == []
    hiding = type("hiding", (gpu.pygraph,), {"first_key_is_hidden": True})
    installed("cudnn", pygraph=hiding, **named)
    assert wrong(met("cudnn.pygraph"), *PLAIN) == list(PLAIN)


def test_packages_promise_dtypes_and_devices_and_functions_elsewhere_do_not():
    flash = convention_of(gpu.flash_attn_func, "flash_attn.flash_attn_func", frozenset())
    assert (flash.dtypes, flash.devices) == (("float16", "bfloat16"), ("cuda",))
    elsewhere = resolve(gpu.flash_attn_func)[0]
    assert (elsewhere.dtypes, elsewhere.devices) == (None, None)


@pytest.mark.parametrize("convention", [one for one in conventions() if one.untested], ids=lambda one: one.of.split()[-1])
def test_paths_of_packages_are_known(convention):
    """The path that a user writes, and that of the module in which the function is."""
    for path in convention.paths:
        assert convention_of(object(), path.replace("*", ""), frozenset()) is convention


@pytest.mark.parametrize(
    ("name", "clause", "case"),
    [
        ("flash_attn_kvpacked_func", "SHARED-2", GROUPED[0]),
        ("flash_attn_varlen_func", "SHAPE-1", Case(b=2, i=3, j=5, d=8, wrt="none")),
        ("single_prefill_with_kv_cache", "LSE-1", LSE),
    ],
)
def test_a_script_of_a_failure_holds_how_the_family_is_called(name, clause, case, tmp_path):
    """It ends with 1 on the wrong function, and with 0 on the right one."""
    subject = met(getattr(gpu, f"wrong_{name}"))
    problem = subject.problem(case)
    exact = subject.solve(problem)
    finding = subject.judge(subject.run(problem), exact).findings[0]
    text = script(subject, Explained(clause, case, finding, problem, exact), None)
    assert text is not None
    for function, code in ((f"wrong_{name}", 1), (name, 0)):
        path = tmp_path / "repro.py"
        path.write_text(text.replace(f"import wrong_{name}", f"import {function}"))
        done = ended(path)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stdout + done.stderr


def test_problems_that_tests_make_have_one_length_where_no_other_is_taken(tmp_path, monkeypatch):
    """One-hot values were made for as many keys as were asked for, and not as there are."""
    monkeypatch.chdir(tmp_path)
    outcome = judge(f"{gpu.__file__}:flash_attn_qkvpacked_func", "--impl-dtypes=float32", "--clauses=WINDOW-1,ALIBI-6")
    assert outcome.exit == 0, outcome.screen
