"""What a convention has no words for is unsupported, counted with its share, and excuses nothing that one feature needs."""

from __future__ import annotations

import sys
import types
from collections import Counter
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from calling import padding, problem
from honest import eager
from judging import Outcome, judge
from mutants.base import MUTANTS, load
from torch import Tensor

from attnspec.adapters import RESTRICTIONS, Adapter, ResolveError, Unsupported, resolve
from attnspec.adapters.restrictions import needs, undeclared
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.verdicts.lines import mark, standing
from attnspec.spec import Problem
from attnspec.spec.words import FEATURES


def asked(thing: Any, *options: str) -> Outcome:
    """A run of smoke in float32 on something of this module."""
    module = types.ModuleType("restricted_implementations")
    module.thing = thing  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        return judge(f"{module.__name__}.thing", "--impl-dtypes=float32", "--impl-device=cpu", *options)
    finally:
        del sys.modules[module.__name__]


def counted(outcome: Outcome, clause: str) -> Counter:
    """The problems of a clause by verdict."""
    return sum((counts for cell, counts in outcome.record.counts.items() if cell[0] == clause), Counter())


class OneArgument(Adapter):
    """Bias and mask are one argument of its kernel, and causal excludes both."""

    offers = {"mha", "mask", "key_padding", "bias", "bias_grad", "causal", "scale", "backward", "strided"}
    dialect = {"causal_alignment": "top_left", "empty_row": "zero"}

    def attend(self, q, k, v, *, mask=None, bias=None, causal=False, scale=None):
        if (mask is not None) + (bias is not None) + causal > 1:
            raise Unsupported("bias and mask are one argument, and causal excludes it")
        mask = mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask
        return eager(q, k, v, mask if bias is None else bias, is_causal=causal, scale=scale)


# RAISE UNSUPPORTED


def test_a_combination_is_unsupported_and_no_failure():
    outcome = asked(OneArgument, "--clauses=CAUSAL,MASK-1,BIAS-1,SOFTMAX-1")
    assert outcome.exit == 0, outcome.screen
    assert not outcome.failures
    both = counted(outcome, "CAUSAL-6")
    assert (standing(both), both["UNSUPPORTED"] > 1) == ("unsupported", True)  # no problem was judged: it is not held
    some = counted(outcome, "SOFTMAX-1")
    assert some["PASS"] > 10 < some["UNSUPPORTED"]
    assert f", {some['UNSUPPORTED']} –" in outcome.screen
    share = f"SOFTMAX-1 {some['UNSUPPORTED']} of {some['UNSUPPORTED'] + some['PASS']} problems (restricted: bias_or_causal"
    assert share in outcome.screen
    assert "attnspec itself failed" not in outcome.screen


def test_whoever_refuses_what_one_feature_needs_fails_that_clause():
    class NoLongMasks(OneArgument):
        def attend(self, q, k, v, *, mask=None, **options):
            if mask is not None and k.shape[2] > 8:
                raise Unsupported("no long masks")
            return super().attend(q, k, v, mask=mask, **options)

    outcome = asked(NoLongMasks, "--clauses=MASK-2", "--case=i=3,j=17,mask=padding")
    assert outcome.exit == 1
    assert "MASK-2" in outcome.broken()
    assert "raised Unsupported: no long masks; it needs only key_padding, which is in `offers`: remove it" in outcome.screen

    class NoLongRows(Adapter):
        def attend(self, q, k, v):
            if k.shape[2] > 16:
                raise Unsupported("no long rows")
            return eager(q, k, v)

    outcome = asked(NoLongRows, "--clauses=SHAPE-2")
    assert outcome.exit == 1
    assert "raised Unsupported: no long rows; it is a plain call, or declare" in outcome.screen


@pytest.mark.parametrize(
    ("options", "excuse"),
    [
        ({}, False),
        ({"causal": True}, False),
        ({"mask": padding()}, False),
        ({"mask": padding(), "wrt": ("q",), "do": torch.ones(2, 3, 4, 8)}, False),  # no argument says that a gradient is wanted
        ({"bias": torch.zeros(4, 5)}, False),
        ({"causal": True, "mask": padding()}, True),
        ({"causal": True, "scale": 0.5}, True),
        ({"dropout": 0.5, "training": True}, True),  # not offered
    ],
)
def test_one_feature_is_a_promise_and_two_are_not(options, excuse):
    assert (undeclared(OneArgument.offers, (), problem(**options)) == "") is excuse


def test_what_is_always_causal_is_plain():
    asks = problem(causal=True, mask=padding())
    assert not undeclared(OneArgument.offers, (), asks)
    assert "it needs only key_padding" in undeclared(OneArgument.offers, {"always_causal"}, asks)


def test_unsupported_in_backward_is_unsupported():
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, o):
            return o.clone()

        @staticmethod
        def backward(ctx, grad):
            raise Unsupported("no gradients of two options")

    class Forward(OneArgument):
        def attend(self, q, k, v, **options):
            return Backward.apply(super().attend(q, k, v, **options))

    adapter, asks = resolve(Forward)[0], {"wrt": ("q",), "do": torch.ones(2, 3, 4, 8)}
    assert adapter.run(problem(causal=True, scale=0.5, **asks)).unsupported == "no gradients of two options"
    assert "Unsupported: no gradients of two options; it needs only causal" in adapter.run(problem(causal=True, **asks)).refusal


def test_the_mark_of_a_cell_has_the_share():
    assert mark({"PASS": 12, "UNSUPPORTED": 4}) == "12/12, 4 –"
    assert mark({"PASS": 3, "FAIL": 1, "UNSUPPORTED": 4}) == "3/4 ✗, 4 –"
    assert mark({"UNSUPPORTED": 4}) == "unsupported"


def test_what_a_problem_needs():
    assert needs(problem()) == {"mha"}
    assert needs(problem(shared=True, mask=padding(), causal=True)) == {"shared_kv", "key_padding", "causal"}
    wide = Problem(torch.ones(1, 4, 3, 8), torch.ones(1, 2, 5, 8), torch.ones(1, 2, 5, 9), bias=torch.zeros(4, 3, 5), scale=1.0)
    assert needs(wide) == {"gqa", "value_width", "bias", "rank3", "scale"}
    assert needs(wide) <= FEATURES.keys()


# DECLARATIONS


def test_a_restriction_that_does_not_exist_is_refused():
    class Odd(OneArgument):
        restrictions = ("sundays",)

    with pytest.raises(ResolveError, match=r"Odd.restrictions names unknown sundays; choose from always_causal, some_heads,"):
        resolve(Odd)
    assert set(RESTRICTIONS) >= {"always_causal", "one_tensor", "backward_method"}


@pytest.mark.parametrize("helper", ["call", "run", "fresh", "on", "trace", "presented", "_run"])
def test_a_helper_that_hides_a_method_of_adapter_is_named(helper):
    class Helper(Adapter):
        def attend(self, q, k, v):
            return getattr(self, helper)(q, k, v, None)

    def four(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return eager(q, k, v)

    setattr(Helper, helper, four)
    with pytest.raises(ResolveError, match=rf"Helper\.{helper} takes the place of Adapter\.{helper}\(.*another name, say kernel_"):
        resolve(Helper)
    setattr(Helper, helper, 3)
    with pytest.raises(ResolveError, match=rf"Helper\.{helper} takes the place .*not a callable object"):
        resolve(Helper)


def test_a_method_that_stands_for_its_own_is_taken():
    class Own(Adapter):
        def attend(self, q, k, v):
            return eager(q, k, v)

        def call(self, asked, *, more=None):
            return super().call(asked)

    assert resolve(Own)[0].run(problem()).refusal is None


# FOUND BY THEMSELVES


def found(thing: Any) -> dict[str, str]:
    """The restrictions that the first questions find."""
    from attnspec.conformance.subject.meeting import meet

    (adapter,) = resolve(thing)
    return meet(adapter.on("cpu"), "cpu", {}, None, ("float32",)).found


def test_what_an_adapter_refuses_together_is_found_and_other_problems_are_asked_instead():
    assert found(OneArgument).keys() == {"mask_or_bias", "mask_or_causal", "bias_or_causal"}
    assert not found("sdpa-math")
    outcome = asked(OneArgument, "--clauses=MASK-2,BIAS-1,CAUSAL-6")
    assert outcome.exit == 0
    for clause in ("MASK-2", "BIAS-1"):
        assert counted(outcome, clause)["PASS"] > 12, clause
    assert standing(counted(outcome, "CAUSAL-6")) == "unsupported"
    assert "restricted, mask_or_bias: a mask or a bias, not both (found: each of the first calls raised" in outcome.screen
    assert "restricted: bias_or_causal, mask_or_bias, mask_or_causal" in outcome.record.reasons.values()


def lengths_must_agree(q, k, v):
    if q.shape[2] != k.shape[2]:
        raise ValueError("only self-attention")
    return eager(q, k, v)


def lengths_do_not_fit(q, k, v):
    return eager(q, k, v) + (q - k).sum() * 0  # an operator that throws where sizes do not match


def more_queries_refused(q, k, v):
    if q.shape[2] > k.shape[2]:
        raise ValueError("no more queries than keys")
    return eager(q, k, v)


def lengths_refused_and_wrong(q, k, v):
    if q.shape[2] != k.shape[2]:
        raise ValueError("only self-attention")
    return eager(q, k, v) * 1.01


def no_backward(q, k, v):
    if q.requires_grad or k.requires_grad or v.requires_grad:
        raise NotImplementedError("no backward on CPU")
    return eager(q, k, v)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, o):
        return o.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.reshape(3, 1, 7)  # a crash, on every problem


def backward_crashes(q, k, v):
    return Backward.apply(eager(q, k, v))


def checkpointed(q, k, v):
    return torch.utils.checkpoint.checkpoint(eager, q, k, v, use_reentrant=True)


def padding_alone(q, k, v, mask=None):
    if mask is not None:
        b, j = mask.shape
        mask = mask.view(b, 1, 1, j)
    return eager(q, k, v, mask)


def mask_beside_bias_refused(q, k, v, mask=None, bias=None):
    assert mask is None or bias is None, "a mask or a bias"
    return eager(q, k, v, mask if bias is None else bias)


def causal_alone(q, k, v, causal=False):
    if not causal:
        raise NotImplementedError("only causal attention")
    return eager(q, k, v, is_causal=True)


def one_tensor_alone(q, k, v, causal=False):
    if not (q is k is v):
        raise ValueError("self-attention of one tensor")
    return eager(q, k, v, is_causal=causal)


def causal_alone_and_wrong(q, k, v, causal=False):
    return causal_alone(q, k, v, causal) * 1.5


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lengths_must_agree, {"equal_lengths"}),
        (causal_alone, {"always_causal"}),
        (one_tensor_alone, {"one_tensor"}),
        (causal_alone_and_wrong, set()),
        (lengths_do_not_fit, set()),
        (more_queries_refused, set()),
        (lengths_refused_and_wrong, set()),
        (no_backward, {"no_backward:cpu"}),
        (backward_crashes, set()),
        (checkpointed, {"backward_method"}),
        (padding_alone, {"padding_only"}),
        (mask_beside_bias_refused, {"mask_or_bias"}),
    ],
)
def test_refusals_are_found_and_crashes_are_not(function, names):
    assert found(function).keys() == names


@pytest.mark.parametrize("function", [lengths_must_agree, no_backward, checkpointed, padding_alone, causal_alone, one_tensor_alone])
def test_a_function_with_a_restriction_conforms_in_what_it_does(function):
    outcome = asked(function, "--clauses=SHAPE,MASK,GRAD,SOFTMAX")
    assert outcome.exit == 0, outcome.screen
    assert "restricted, " in outcome.screen
    assert counted(outcome, "SHAPE-1")["PASS"] > 10


@pytest.mark.parametrize("function", [lengths_do_not_fit, lengths_refused_and_wrong, backward_crashes])
def test_a_crash_stays_red(function):
    assert asked(function, "--clauses=SHAPE-2,GRAD-1,SOFTMAX-1").exit == 1


@pytest.mark.parametrize("restriction", ["always_causal", "one_tensor", "equal_lengths"])
def test_a_declared_restriction_bends_every_problem(restriction):
    class Restricted(Adapter):
        offers = {"mha", "key_padding", "causal", "backward", "strided"}
        dialect = {"causal_alignment": "top_left", "empty_row": "zero"}
        restrictions = {restriction}

        def attend(self, q, k, v, *, mask=None, causal=False):
            assert causal or restriction != "always_causal"
            assert q.shape[2] == k.shape[2] or restriction == "always_causal"
            assert (q is k is v) or restriction != "one_tensor"
            shown = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(0 if causal else k.shape[2])
            return eager(q, k, v, shown if mask is None else shown & mask[:, None, None, :])

    outcome = asked(Restricted, "--clauses=SHAPE,SOFTMAX,MASK,GRAD,CAUSAL,MODE")
    assert outcome.exit == 0, outcome.screen
    assert f"restricted, {restriction}: " in outcome.screen
    assert counted(outcome, "SOFTMAX-1")["UNSUPPORTED"] > 0 < counted(outcome, "SOFTMAX-1")["PASS"]


def one_number(reach: int):
    """A right window of so many keys, the query's own among them, where reach is 0; else one key too many or too few."""

    def attend(q, k, v, causal=False, window=None):
        i, j = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2], torch.arange(k.shape[2])
        shown = (j <= i) | torch.tensor(not causal)
        if window is not None:
            assert causal
            shown = shown & (j > i - window - reach)
        return eager(q, k, v, shown)

    return attend


def test_a_window_of_one_number_is_asked_beside_causal_alone():
    """Nobody knows what it shows behind the query. Before, our own Unsupported was a failure of WINDOW-1."""
    words = ("--clauses=WINDOW", "--dialect=window_count=total")
    right, wrong = asked(one_number(0), *words), asked(one_number(1), *words)
    assert right.exit == 0, right.screen
    assert "restricted, window_with_causal: a window beside causal alone" in right.screen
    assert counted(right, "WINDOW-7")["PASS"] > 10
    assert wrong.exit == 1, wrong.screen
    assert "a window shows one key too many before the query" in wrong.screen


REFUSING = [
    name for name, one in load().items() if one.family in ("error", "control") or "refused" in name or name.endswith("raises")
]


@pytest.mark.parametrize("name", REFUSING)
def test_no_mutant_turns_green_by_refusing(name):
    mutant = MUTANTS[name]
    if mutant.kind == "function":
        assert not found(mutant.make())


def test_a_training_argument_is_passed():
    given = []

    def attend(q, k, v, dropout=0.0, training=False):
        given.append((dropout, training))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout if training else 0.0)

    (adapter,) = resolve(attend)
    for training in (True, False):
        adapter.run(problem(dropout=0.5, training=training))
    assert given == [(0.5, True), (0.5, False)]


def test_a_choice_is_observed_in_a_form_that_is_taken():
    """The first form of an empty row is refused: another one shows the choice, and what nobody promised is not asked for."""

    def of_padding(q, k, v, mask=None, causal=False):
        scores = q @ k.mT * q.shape[-1] ** -0.5
        lowest = torch.finfo(q.dtype).min
        if mask is not None:
            b, j = mask.shape  # of four dimensions there are too many values to unpack
            scores = scores.masked_fill(~mask.view(b, 1, 1, j), lowest)
        if causal:
            i, j = scores.shape[-2:]
            scores = scores.masked_fill(~torch.ones(i, j, dtype=torch.bool).tril(j - i), lowest)
        return scores.softmax(-1) @ v

    def of_padding_and_bias(q, k, v, mask=None, causal=False, bias=None):
        return of_padding(q, k, v, mask, causal) if bias is None else torch.softmax(q @ k.mT * q.shape[-1] ** -0.5 + bias, -1) @ v

    def of_causal_alone(q, k, v, mask=None, causal=False):
        if mask is not None:
            raise NotImplementedError("no mask")
        return of_padding(q, k, v, None, causal)

    for function in (of_padding, of_padding_and_bias, of_causal_alone):
        (subject,) = (meet(adapter.on("cpu"), "cpu", {}, None, ("float32",)) for adapter in resolve(function))
        assert (subject.dialect.empty_row, subject.sources["empty_row"]) == ("uniform", "observed on a small problem")
