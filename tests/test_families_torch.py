"""Families of torch and of model libraries: functions with the published signatures are recognised, called rightly, and judged.

What the packages themselves answer is asked in test_families_packages.py, where they are installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import relatives
import torch
from judging import ended

from attnspec.adapters import Adapter, resolve
from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.families import diffusers, fla, lucidrains, transformers
from attnspec.adapters.conventions.families import torch as of_torch
from attnspec.adapters.conventions.function import adapted
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import OPTIONS, Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.report.repro import script
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.subject.subject import Subject

SQUARE = Case(b=2, heads="4/4", i=6, j=6, d=8)
CASES = {
    "plain": Case(b=2, heads="4/4", i=5, j=7, d=8),
    "square": SQUARE,
    "gqa": Case(b=2, heads="4/2", i=6, j=6, d=8),
    "mqa": Case(b=2, heads="4/1", i=6, j=6, d=8),
    "width": Case(b=2, heads="4/4", i=6, j=6, d=8, e=5),
    "padding": Case(b=2, heads="4/4", i=5, j=7, d=8, mask="padding"),
    "mask": Case(b=2, heads="4/4", i=5, j=7, d=8, mask="bhij"),
    "rank3": Case(b=2, heads="4/4", i=5, j=7, d=8, mask="hij"),
    "causal": Case(b=2, heads="4/4", i=5, j=7, d=8, causal=True),
    "causal, square": Case(b=2, heads="4/4", i=6, j=6, d=8, causal=True),
    "causal, tall": Case(b=2, heads="4/4", i=7, j=5, d=8, causal=True),
    "causal and padding": Case(b=2, heads="4/4", i=6, j=6, d=8, causal=True, mask="padding"),
    "causal and mask": Case(b=2, heads="4/4", i=6, j=6, d=8, causal=True, mask="ij"),
    "bias": Case(b=2, heads="4/4", i=5, j=7, d=8, bias="bhij"),
    "bias and padding": Case(b=2, heads="4/4", i=5, j=7, d=8, bias="ij", mask="padding"),
    "bias and mask": Case(b=2, heads="4/4", i=5, j=7, d=8, bias="hij", mask="bhij"),
    "bias and causal": Case(b=2, heads="4/4", i=6, j=6, d=8, bias="bhij", causal=True),
    "scale": Case(b=2, heads="4/4", i=6, j=6, d=8, scale=0.7),
    "softcap": Case(b=2, heads="4/4", i=6, j=6, d=8, softcap=1.5, values="peaked"),
    "softcap and bias": Case(b=2, heads="4/4", i=6, j=6, d=8, softcap=1.5, values="peaked", bias="ij"),
    "window": Case(b=2, heads="4/4", i=6, j=6, d=8, window="2:", causal=True),
    "window of two sides": Case(b=2, heads="4/4", i=6, j=9, d=8, window="2:1"),
    "sinks": Case(b=2, heads="4/4", i=6, j=6, d=8, sinks="normal"),
    "slopes": Case(b=2, heads="4/4", i=6, j=6, d=8, alibi_slopes="bh"),
    "start": Case(b=2, heads="4/4", i=3, j=9, d=8, q_start="half", causal=True),
    "lse": Case(b=2, heads="4/4", i=6, j=7, d=8, lse="returned"),
}
HEADS = {"gqa", "mqa"}
MASKS = {"padding", "mask", "rank3"}
CAUSAL = {"causal", "causal, square", "causal, tall"}
BIAS = {"bias", "bias and padding", "bias and mask"}
WITH_CAUSAL = {"causal and padding", "causal and mask"}
EAGER = {"plain", "square", "width", "scale"} | MASKS | BIAS

# Function, its convention, its variants, and what of CASES it is asked.
FUNCTIONS: list[tuple[Callable[..., Any], Convention, int, set[str]]] = [
    (
        relatives.flex_attention,
        of_torch.FLEX,
        1,
        set(CASES) - {"sinks"},
    ),
    (
        relatives.multi_head_attention_forward,
        of_torch.MULTIHEAD,
        2,
        {"plain", "square", "bias and causal", "causal and padding"} | MASKS | CAUSAL | BIAS,
    ),
    (relatives.llama, transformers.GROUPED, 1, EAGER | HEADS),
    (relatives.bert, transformers.EAGER, 1, EAGER),
    (relatives.gemma, transformers.CAPPED, 1, EAGER | HEADS | {"softcap", "softcap and bias"}),
    (relatives.gpt_oss, transformers.WITH_SINKS, 1, EAGER | HEADS | {"sinks"}),
    (relatives.sdpa_forward, transformers.SDPA, 1, EAGER | HEADS | CAUSAL | {"bias and causal"}),
    (
        relatives.flex_forward,
        transformers.FLEX,
        1,
        EAGER | CAUSAL | HEADS | WITH_CAUSAL | {"softcap", "softcap and bias", "bias and causal"},
    ),
    (relatives.dispatch_attention_fn, diffusers.DISPATCH, 2, EAGER | CAUSAL | HEADS | WITH_CAUSAL | {"bias and causal"}),
    (relatives.naive_parallel_attn, fla.NAIVE, 1, {"square", "causal, square", "window", "scale", "sinks"} | HEADS),
    (
        relatives.default_attention,
        lucidrains.RING,
        1,
        {"plain", "padding", "causal and padding", "width", "softcap"} | CAUSAL | HEADS,
    ),
    (relatives.ring_flash_attn, lucidrains.RING_FLASH, 2, {"plain", "padding", "softcap"} | CAUSAL | HEADS),
    (
        relatives.memory_efficient_attention,
        lucidrains.MEMORY_EFFICIENT,
        2,
        {"plain", "padding", "causal and padding", "bias", "bias and padding", "bias and causal"} | CAUSAL,
    ),
]
BY_PATH: list[tuple[Any, str, Convention, int, set[str]]] = [
    (
        relatives.Attend,
        "x_transformers.attend.Attend",
        lucidrains.X_TRANSFORMERS,
        2,
        EAGER | HEADS | CAUSAL | WITH_CAUSAL | {"bias and causal"},
    ),
    (
        relatives.flash_function,
        "memory_efficient_attention_pytorch.flash_attention.FlashAttentionFunction.apply",
        lucidrains.FLASH_FUNCTION,
        2,
        {"plain"} | MASKS | CAUSAL | WITH_CAUSAL,
    ),
]


def met(adapter: Adapter) -> Subject:
    return meet(adapter.on("cpu"), "cpu", {}, None, ("float32",))


def findings(subject: Subject, case: Case) -> tuple[Finding, ...]:
    """What the judge says of a case that is offered as it stands."""
    fitted = fit(case, subject.adapter)
    assert all(getattr(fitted, name) == getattr(case, name) for name in (*OPTIONS, "heads", "e")), (case.token(), fitted.token())
    problem = subject.problem(fitted)
    answer = subject.run(problem)
    assert not answer.refusal, (case.token(), answer.refusal)
    return tuple(subject.judge(answer, subject.solve(problem)).findings)


def right(subject: Subject, names: set[str]) -> None:
    for name in sorted(names):
        assert not (found := findings(subject, CASES[name])), (name, found[0])


def told(adapters: list[Adapter], convention: Convention, variants: int) -> Iterator[Subject]:
    """Subjects of adapters, which must have the name of a convention, and whose calls are read as that says."""
    assert len(adapters) == variants
    assert len({adapter.variant for adapter in adapters}) == variants
    for adapter in adapters:
        subject = met(adapter)
        assert subject.read_from == f"promised by {convention.name}"
        assert convention.restrictions <= set(subject.adapter.restrictions)
        settled = {name: value for name, value in convention.dialect.items() if name in subject.sources}  # as far as it is offered
        assert {name: getattr(subject.dialect, name) for name in settled} == settled
        yield subject


@pytest.mark.parametrize(("function", "convention", "variants", "names"), FUNCTIONS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_function_with_the_published_signature_is_called_rightly(function, convention, variants, names):
    for subject in told(resolve(function), convention, variants):
        right(subject, names)


@pytest.mark.parametrize(("thing", "path", "convention", "variants", "names"), BY_PATH, ids=lambda x: getattr(x, "__name__", ""))
def test_what_only_its_path_shows_is_called_rightly(thing, path, convention, variants, names):
    assert convention.at(path)
    for subject in told(adapted(thing, path, (), convention), convention, variants):
        right(subject, names)


def test_an_own_switch_of_the_constructor_leaves_one_variant():
    one, other = adapted(relatives.Attend, "", (), lucidrains.X_TRANSFORMERS)
    assert {"softcap", "sinks"} <= set(one.offers)
    assert not {"softcap", "sinks", "sinks_grad"} & set(other.offers)
    (alone,) = adapted(relatives.Attend, "", (), lucidrains.X_TRANSFORMERS, {"flash": True})
    assert alone.variant == "flash=True"
    right(met(one), {"softcap", "softcap and bias", "sinks"})


def without(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """The same function, which does not do what these parameters say."""

    @wraps(function)
    def wrong(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **{name: x for name, x in options.items() if name not in names})

    return wrong


def scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose queries are a tenth of a thousandth too large."""

    @wraps(function)
    def wrong(*arguments: Any, **options: Any) -> Any:
        larger = [name for name in ("q", "query") if name in options]
        if larger:
            return function(*arguments, **options | {larger[0]: options[larger[0]] * 1.0001})
        at = next(n for n, x in enumerate(arguments) if isinstance(x, torch.Tensor))
        return function(*(x * 1.0001 if n == at else x for n, x in enumerate(arguments)), **options)

    return wrong


@pytest.mark.parametrize("function", [row[0] for row in FUNCTIONS], ids=lambda x: x.__name__)
def test_a_wrong_one_is_recognised_and_is_wrong(function):
    for adapter in resolve(scaled(function)):
        subject = met(adapter)
        assert findings(subject, SQUARE)[0].kind == "value"


@pytest.mark.parametrize(
    ("function", "ignored", "name"),
    [
        (relatives.flex_attention, "block_mask", "window of two sides"),
        (relatives.flex_attention, "score_mod", "slopes"),
        (relatives.multi_head_attention_forward, "key_padding_mask", "padding"),
        (relatives.multi_head_attention_forward, "attn_mask", "causal"),
        (relatives.gemma, "softcap", "softcap"),
        (relatives.sdpa_forward, "is_causal", "causal"),
        (relatives.sdpa_forward, "position_bias", "bias"),
        (relatives.dispatch_attention_fn, "attn_mask", "causal and padding"),
        (relatives.naive_parallel_attn, "sink_bias", "sinks"),
        (relatives.naive_parallel_attn, "window_size", "window"),
        (relatives.default_attention, "softclamp_qk_sim", "softcap"),
        (relatives.memory_efficient_attention, "mask", "padding"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_parameter_that_does_nothing_is_seen(function, ignored, name):
    subject = met(resolve(without(function, ignored))[0])
    assert findings(subject, CASES[name])


def test_sinks_have_the_dtype_of_the_queries_where_nothing_else_is_taken():
    subject = meet(resolve(relatives.naive_parallel_attn)[0].on("cpu"), "cpu", {}, None, ("bfloat16",))
    assert not findings(subject, replace(CASES["sinks"], dtype="bfloat16"))


def test_what_its_neighbours_take_is_not_said_to_a_function():
    """llama's function takes any keyword: a cap that it never heard of would be ignored."""
    subject = met(resolve(relatives.llama)[0])
    problem = subject.problem(SQUARE).replace(softcap=1.0)
    assert subject.run(problem).unsupported == "transformers, eager has no words for softcap"


@pytest.mark.parametrize("kind", [torch.nn.MultiheadAttention, torch.nn.functional.multi_head_attention_forward])
def test_multi_head_attention_of_torch(kind):
    names = {"plain", "square", "bias and causal", "causal and padding"} | MASKS | CAUSAL | BIAS
    ways = list(told(resolve(kind), of_torch.MULTIHEAD, 2))
    assert [way.adapter.variant for way in ways] == ["need_weights=True", "need_weights=False"]
    assert [way.dialect.empty_row for way in ways] == ["nan", "zero"]
    for way in ways:
        right(way, names)


@pytest.mark.parametrize("kind", [torch.nn.MultiheadAttention, torch.nn.functional.multi_head_attention_forward])
def test_what_one_head_gives_is_not_spread_to_the_others(kind):
    """Head 1 has no key for query 2, and gives NaN there: by a mask, beside padding too, and by a bias."""
    for subject in told(resolve(kind), of_torch.MULTIHEAD, 2):
        for name in ("mask", "bias", "bias and padding"):
            problem = subject.problem(CASES[name])
            if problem.bias is None:
                mask = problem.mask.expand(2, 4, 5, 7).clone()
                mask[..., 0] = True
                mask[:, 1, 2] = False
                problem = problem.replace(mask=mask)
            else:
                bias = problem.bias.detach().expand(2, 4, 5, 7).clone()
                bias[:, 1, 2] = float("-inf")
                problem = problem.replace(bias=bias.requires_grad_(problem.bias.requires_grad))
            answer = subject.run(problem)
            assert not subject.judge(answer, subject.solve(problem)).findings
            assert answer.o[:, 0].isfinite().all()
            assert answer.gradients["dv"][:, 0].isfinite().all()


def test_the_fast_path_of_the_module_is_asked_where_it_has_one():
    """Self-attention without gradients: the three tensors stay one."""
    subject = met(resolve(torch.nn.MultiheadAttention)[0])
    x = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 6, [True, True, False, True, False, True]])
    problem = subject.problem(SQUARE).replace(q=x, k=x, v=x, wrt=(), do=None, mask=mask)
    assert "aten::_native_multi_head_attention" in subject.adapter.trace(problem).operators
    assert not subject.judge(subject.run(problem), subject.solve(problem)).findings


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_of_torch():
    from torch.nn.attention.flex_attention import flex_attention

    (subject,) = told(resolve(flex_attention), of_torch.FLEX, 1)
    assert not {"backward", "bias_grad", "alibi_grad"} & set(subject.adapter.offers)
    assert {"lse", "window_right", "q_start_batch", "alibi_batch", "softcap", "gqa"} <= set(subject.adapter.offers)
    right(subject, {"gqa", "bias and mask", "window of two sides", "lse"})


def test_a_script_runs_alone(tmp_path: Path):
    """It has the text of the family's function, ends with 1 on the wrong one, and with 0 on the right one."""
    subject = met(resolve("relatives.wrong_llama")[0])
    problem = subject.problem(CASES["padding"])
    exact = subject.solve(problem)
    finding = subject.judge(subject.run(problem), exact).findings[0]
    text = script(subject, Explained("MASK-1", CASES["padding"], finding, problem, exact), None)
    assert text is not None
    for name, code in (("wrong_llama", 1), ("llama", 0)):
        path = tmp_path / f"{name}.py"
        path.write_text(text.replace("from relatives import wrong_llama as attend", f"from relatives import {name} as attend"))
        done = ended(path)
        assert done.returncode == code, done.stderr
