"""The judge is seen both passing and failing on each of its rules, and a reference with a planted error is noticed."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from attnspec.adapters import Adapter, Answer
from attnspec.conformance.judging.coarser import with_class
from attnspec.conformance.judging.finding import Finding, Judgement
from attnspec.conformance.judging.judge import compare, judge
from attnspec.conformance.verdicts.lines import judged
from attnspec.conformance.verdicts.verdict import JUDGED, Verdict
from attnspec.reference import Exact, solve
from attnspec.spec import Dialect, Problem
from attnspec.spec.words import OUTPUTS


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(default_rng([20, seed]).standard_normal(shape)).to(dtype)


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Two heads, three queries, four keys of which the last is hidden from everyone; values one wider than keys."""
    mask = torch.tensor([[True, True, True, False]])
    return Problem(
        random(1, 2, 3, 2, seed=0),
        random(1, 2, 4, 2, seed=1),
        random(1, 2, 4, 3, seed=2),
        mask,
        random(3, 4, seed=3),
        do=random(1, 2, 3, 3, seed=4),
        wrt=("q", "k", "v", "bias"),
    )


@pytest.fixture(scope="module")
def exact(problem: Problem) -> Exact:
    return solve(problem, Dialect())


@pytest.fixture(scope="module")
def right(exact: Exact) -> Answer:
    """The exact answer, rounded once."""
    tensors = {name: torch.from_numpy(np.array(x)).to(exact.problem.dtype) for name, x in exact.values.items()}
    return Answer(tensors.pop("o"), tensors)


def only(judgement: Judgement) -> Finding:
    assert len(judgement.findings) == 1, judgement.findings
    return judgement.findings[0]


def changed(x: torch.Tensor, at: tuple, number: float) -> torch.Tensor:
    x = x.clone()
    x[at] = number
    return x


def with_gradient(answer: Answer, name: str, gradient: object) -> Answer:
    return replace(answer, gradients={**answer.gradients, name: gradient})  # type: ignore[dict-item]


# ONE RULE AFTER THE OTHER


def test_the_right_answer_passes(right: Answer, exact: Exact) -> None:
    judgement = judge(right, exact, "A")
    assert not judgement.findings
    assert judgement.exempt == 0
    assert judgement.worst.keys() == {"o", "dq", "dk", "dv", "dbias"}
    assert all(0 < share <= 1 for share in judgement.worst.values())


def test_an_exception_is_a_finding_of_its_stage(exact: Exact) -> None:
    forward = only(judge(Answer(error=RuntimeError("no\nkernel")), exact, "A"))
    assert (forward.kind, forward.output, forward.message) == ("raised", "call", "raised RuntimeError: no kernel")
    backward = only(judge(Answer(error=RuntimeError("no"), stage="backward"), exact, "A"))
    assert (backward.kind, backward.output, backward.message) == ("raised", "call", "backward raised RuntimeError: no")
    assert (forward.stage, backward.stage) == ("forward", "backward")
    assert forward.likeness != backward.likeness
    unsupported = only(judge(Answer(unsupported="no form for it"), exact, "A"))
    assert (unsupported.kind, unsupported.message) == ("unsupported", "no form for it")


def test_what_ends_a_call_concerns_every_output(right: Answer, exact: Exact) -> None:
    for answer in (
        Answer(right.o, error=RuntimeError("no"), stage="backward"),
        replace(right, o=right.o[..., :2]),
        replace(right, o=right.o.double()),
        replace(right, changed=("q",)),
        Answer(error=RuntimeError("no")),
    ):
        for output in OUTPUTS:
            assert judge(answer, exact, "A").of((output,)), (answer, output)


def test_an_output_that_came_before_the_backward_raised_is_judged(right: Answer, exact: Exact) -> None:
    wrong = Answer(changed(right.o, (0, 0, 0, 0), 7.0), error=RuntimeError("no"), stage="backward")
    assert [(f.kind, f.output) for f in judge(wrong, exact, "A").findings] == [("value", "o"), ("raised", "call")]


def test_no_memory_is_no_verdict(right: Answer, exact: Exact) -> None:
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory")):
        assert only(judge(Answer(error=error), exact, "A")).kind == "memory"
        assert only(judge(Answer(right.o, error=error, stage="backward"), exact, "A")).kind == "memory"
    assert only(judge(Answer(error=RuntimeError("out of resource: shared memory")), exact, "A")).kind == "raised"


@pytest.mark.parametrize(
    ("o", "found"),
    [((torch.zeros(1), torch.zeros(1)), "a tuple of 2"), (None, "nothing (None)"), ([1.0], "a list"), (1.0, "a float")],
)
def test_the_output_is_one_tensor(o: object, found: str, exact: Exact) -> None:
    finding = only(judge(Answer(o), exact, "A"))
    assert (finding.kind, finding.output) == ("type", "call")
    assert found in finding.message


def test_shape_dtype_and_device(right: Answer, exact: Exact) -> None:
    for tensor, kind, words in (
        (right.o[..., :2], "shape", "(1, 2, 3, 2), expected (1, 2, 3, 3)"),
        (right.o.transpose(1, 2), "shape", "(1, 3, 2, 3)"),
        (right.o.double(), "dtype", "float64, expected float32"),
        (right.o.to("meta"), "device", "on meta, the inputs are on cpu"),
    ):
        finding = only(judge(replace(right, o=tensor), exact, "A"))
        assert (finding.kind, finding.output) == (kind, "call")
        assert words in finding.message
    assert only(judge(with_gradient(right, "dv", right.gradients["dv"].half()), exact, "A")).kind == "dtype"
    finding = only(judge(with_gradient(right, "dk", right.gradients["dk"][:, :1]), exact, "A"))
    assert (finding.kind, finding.output) == ("shape", "dk")


def test_a_gradient_that_is_asked_for_is_there(right: Answer, exact: Exact) -> None:
    finding = only(judge(with_gradient(right, "dk", None), exact, "A"))
    assert (finding.kind, finding.output) == ("missing", "dk")


def test_inputs_are_left_alone(right: Answer, exact: Exact, problem: Problem) -> None:
    finding = only(judge(replace(right, changed=("q", "k")), exact, "A"))
    assert (finding.kind, finding.output) == ("changed", "call")
    assert "q and k" in finding.message

    class Scales(Adapter):
        def attend(self, q, k, v, **options):
            q.mul_(2)
            return q

    assert Scales().run(problem.replace(do=None, wrt=())).changed == ("q",)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_nan_and_infinity_are_no_numbers(bad: float, right: Answer, exact: Exact) -> None:
    finding = only(judge(replace(right, o=changed(right.o, (0, 1, 2, 0), bad)), exact, "A"))
    assert (finding.kind, finding.output, finding.index, finding.outside) == ("nonfinite", "o", (0, 1, 2, 0), 1)
    assert finding.ratio == inf


def test_nan_where_the_rule_says_so(problem: Problem, right: Answer) -> None:
    hidden = problem.replace(mask=changed(torch.ones(1, 1, 3, 4, dtype=torch.bool), (0, 0, 1), False), do=None, wrt=())
    exact = solve(hidden, Dialect(empty_row="nan"))
    good = torch.from_numpy(exact.o).float()
    assert good[0, :, 1].isnan().all()
    assert not judge(Answer(good), exact, "A").findings
    finding = only(judge(Answer(good.nan_to_num(0.0)), exact, "A"))
    assert (finding.kind, finding.index[2], finding.outside, finding.total) == ("value", 1, 6, 18)
    assert np.isnan(finding.expected)
    assert only(judge(Answer(changed(good, (0, 0, 1, 0), inf)), exact, "A")).outside == 1
    assert only(judge(Answer(changed(good, (0, 0, 0, 0), nan)), exact, "A")).kind == "nonfinite"


def test_zero_means_zero(right: Answer, exact: Exact) -> None:
    """The last key is hidden: 1e-30 there is wrong, minus zero is not."""
    dv = right.gradients["dv"]
    finding = only(judge(with_gradient(right, "dv", changed(dv, (0, 1, 3, 2), 1e-30)), exact, "A"))
    assert (finding.kind, finding.output, finding.index, finding.bound) == ("zero", "dv", (0, 1, 3, 2), 0.0)
    assert not judge(with_gradient(right, "dv", changed(dv, (0, 1, 3), -0.0)), exact, "A").findings


def test_the_edge_of_the_bound() -> None:
    """An error of exactly the bound passes, of 1.0000001 of it does not, on either side."""
    expected, bound, exempt = np.full((2, 3), 5.0), np.full((2, 3), 0.25), np.zeros((2, 3), bool)
    for sign in (1, -1):
        inside, outside = expected.copy(), expected.copy()
        inside[1, 2] += sign * 0.25
        outside[1, 2] += sign * 0.25 * 1.0000001
        assert compare(inside, expected, bound, exempt, "o") == (None, 1.0)
        finding, ratio = compare(outside, expected, bound, exempt, "o")
        assert finding is not None
        assert (finding.kind, finding.index, finding.outside, finding.total) == ("value", (1, 2), 1, 6)
        assert ratio == finding.ratio == pytest.approx(1.0000001, abs=1e-8)


def test_the_worst_element_is_shown() -> None:
    """Index, numbers and counts are those of the element that is furthest outside; an infinite one comes first."""
    expected, bound, exempt = np.zeros((2, 2, 2)), np.ones((2, 2, 2)), np.zeros((2, 2, 2), bool)
    got = np.array([[[0.5, 2.0], [7.0, 0.0]], [[-3.0, 1.0], [0.0, 0.0]]])
    finding, ratio = compare(got, expected, bound, exempt, "dk")
    assert finding == Finding("value", "dk", "", (0, 1, 0), 7.0, 0.0, 1.0, 7.0, 3, 8)
    assert ratio == 7
    bound[1, 0, 0] = 0
    finding, _ = compare(got, expected, bound, exempt, "dk")
    assert finding is not None
    assert (finding.kind, finding.index, finding.ratio) == ("zero", (1, 0, 0), inf)
    got[0, 0, 0] = nan
    finding, _ = compare(got, expected, bound, exempt, "dk")
    assert finding is not None
    assert finding.outside == 4


def test_exempt_elements_are_skipped() -> None:
    expected, bound, got = np.zeros(3), np.ones(3), np.array([9.0, 0.5, nan])
    exempt = np.array([True, False, True])
    assert compare(got, expected, bound, exempt, "o") == (None, 0.5)
    finding, _ = compare(got, expected, bound, np.array([True, False, False]), "o")
    assert finding is not None
    assert finding.outside == 1


def test_infinity_agrees_with_nothing() -> None:
    """Infinity is outside the domain of the exact answer: it passes only where the element is exempt."""
    one = np.ones(1)
    for got, expected in ((inf, 0.0), (inf, -inf), (0.0, inf), (nan, inf), (inf, nan), (inf, inf)):
        finding, ratio = compare(one * got, one * expected, one, one == 0, "o")
        assert finding is not None
        assert ratio == inf
        assert compare(one * got, one * expected, one, one == 1, "o") == (None, 0.0)


def test_an_empty_output_has_no_element_to_be_wrong() -> None:
    none = np.zeros((0, 3))
    assert compare(none, none, none, none > 0, "o") == (None, 0.0)


def test_overflow_of_a_legal_intermediate_is_exempt() -> None:
    """q·k is 2·10⁵ before a scale of 10⁻⁴: class C of float16 may lose it, class A may not."""
    q = torch.full((1, 1, 1, 1), 448.0, dtype=torch.float16)
    k, v = q.expand(1, 1, 2, 1), torch.ones(1, 1, 2, 1, dtype=torch.float16)
    exact = solve(Problem(q, k, v, scale=1e-4), Dialect())
    lost = Answer(torch.full_like(q, nan))
    assert judge(lost, exact, "C").exempt == 1
    assert not judge(lost, exact, "C").findings
    assert only(judge(lost, exact, "A")).kind == "nonfinite"


def test_a_tensor_given_twice_has_the_sum_of_its_gradients() -> None:
    q, x, do = random(1, 1, 3, 2, seed=5), random(1, 1, 4, 2, seed=6), random(1, 1, 3, 2, seed=7)
    exact = solve(Problem(q, x, x, do=do, wrt=("q", "k", "v")), Dialect())
    o, dq, dk, dv = (torch.from_numpy(exact.values[name]).float() for name in ("o", "dq", "dk", "dv"))
    both = Answer(o, {"dq": dq, "dk": dk + dv, "dv": dk + dv})
    assert not judge(both, exact, "A").findings
    assert {f.output for f in judge(Answer(o, {"dq": dq, "dk": dk, "dv": dv}), exact, "A").findings} == {"dk", "dv"}
    own = solve(Problem(q, x, x.clone(), do=do, wrt=("q", "k", "v")), Dialect())
    assert not judge(Answer(o, {"dq": dq, "dk": dk, "dv": dv}), own, "A").findings


def test_the_finest_arithmetic_that_holds_is_named(problem: Problem) -> None:
    """float32 inside float64 is named, and so is class B, probabilities in bfloat16; a fault has no name."""
    wide = {name: getattr(problem, name).double() for name in ("q", "k", "v", "bias", "do")}
    double = problem.replace(**wide, wrt=())
    exact = solve(double, Dialect())
    narrow = Answer(torch.from_numpy(exact.o).float().double())
    finding = only(judge(narrow, exact, "A"))
    assert with_class(finding, narrow, exact).class_ == "A of float32"
    halves = {name: getattr(problem, name).bfloat16() for name in ("q", "k", "v", "bias", "do")}
    problem = problem.replace(**halves, wrt=())
    exact = solve(problem, Dialect())
    p = torch.from_numpy(exact.forward.p).bfloat16().double()
    rounded = Answer((p @ problem.v.double()).bfloat16())
    finding = only(judge(rounded, exact, "A"))
    assert with_class(finding, rounded, exact).class_ == "B of bfloat16"
    fault = Answer(rounded.o + 1)
    assert with_class(only(judge(fault, exact, "A")), fault, exact).class_ == ""


# WHAT IS COUNTED AS JUDGED, AND WHAT IS EXEMPT


def test_one_list_says_what_was_judged() -> None:
    for verdict in Verdict:
        assert bool(judged({str(verdict): 1})) is (verdict in JUDGED), verdict


def test_a_question_of_what_is_exempt_leaves_the_answer_as_it_was() -> None:
    q = torch.full((1, 1, 2, 64), 70.0, dtype=torch.float16)
    exact = solve(Problem(q, q, torch.ones_like(q)), Dialect())
    assert exact.tolerance("C").exempt["o"].all()
    assert not exact.promising_all().tolerance("C").exempt["o"].any()
    assert exact.tolerance("C").exempt["o"].all()


# WHAT IS NO PROBLEM


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wrt": ("x",)}, "wrt names inputs whose gradients are asked for, each once, of q, k, v, bias; found ('x',)"),
        ({"wrt": ("q", "q")}, "each once"),
        ({"bias": None}, "of q, k, v; found ('q', 'k', 'v', 'bias')"),
        ({"bias": torch.ones(3, 4, dtype=torch.bool)}, "a bias is a float as wide as q, or wider; found q float32, bias bool"),
        ({"k": torch.zeros(1, 2, 4, 2).half()}, "q, k, v are floats of one dtype; found q float32, k float16, v float32"),
        ({"scale": nan}, "a scale is a finite number, or None for the default; found nan"),
        ({"scale": inf}, "found inf"),
        ({"do": torch.zeros(1, 2, 3, 3).half()}, "the cotangent has the dtype of the output; found q float32, do float16"),
    ],
)
def test_what_is_no_attention_call_is_refused(changes: dict, words: str, problem: Problem) -> None:
    with pytest.raises(ValueError, match="found") as error:
        problem.replace(**changes)
    assert words in str(error.value)


def test_a_bias_in_float32_beside_half_types_is_a_problem(problem: Problem) -> None:
    half = {name: getattr(problem, name).half() for name in ("q", "k", "v", "do")}
    assert problem.replace(**half).bias.dtype == torch.float32


# WHAT LIES AROUND AN INPUT


@pytest.mark.parametrize("place", ["behind k", "before k", "in k"])
def test_a_write_around_an_input_is_seen_and_set_back(place: str) -> None:
    buffer = torch.arange(40.0)
    k = buffer[8:24].view(1, 1, 4, 4)

    class Writes(Adapter):
        def attend(self, q, k, v, **options):
            at = {"behind k": 24, "before k": 7, "in k": 9}[place]
            torch.as_strided(k, (1,), (1,), at)[0] = -1.0
            return v[..., :2, :] * 1

    answer = Writes().run(Problem(torch.ones(1, 1, 2, 4), k, torch.ones(1, 1, 4, 4)))
    assert answer.changed == (("k",) if place == "in k" else ("k (in the memory around it)",))
    assert torch.equal(buffer, torch.arange(40.0))
