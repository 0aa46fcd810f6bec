"""What others have published agrees with the exact reference, or is explained.

The cases of the ONNX backend suite, its reference on random problems, and the formulas that four projects state.
`pytest tests/test_published.py -s -k table` prints the tables that docs/published.md reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf

import numpy as np
import pytest
import torch
from numpy import ndarray as Array
from numpy.random import Generator, default_rng
from random_problems import draw, share
from torch import Tensor

from attnspec.reference import Exact, solve
from attnspec.spec import CANONICAL, CHOICES, Dialect, Problem

ONNX = find_spec("onnx") is not None
needs_onnx = pytest.mark.skipif(not ONNX, reason="the package onnx is not installed")
if ONNX:
    import onnx
    from onnx_cases import CAPPED, PLAIN, PROBABILITIES, RAW, WITH_BIAS, Case, Part, evaluate, parts, published


def four(x: Tensor) -> Tensor:
    """Keys or values with a head axis, where one head is shared."""
    return x[:, None] if x.ndim == 3 else x


def lifted(mask: Tensor | None) -> Tensor | None:
    """Key padding (b j) as a mask of four dimensions."""
    return mask[:, None, None] if mask is not None and mask.ndim == 2 else mask


# THE ONNX CASES

# opset: agree, explained, repeated as the graph of the function
TABLE = {23: (69, 0, 69), 24: (13, 0, 13), 25: (11, 0, 11)}
VERSION = "1.23."  # of the package that the table is for
EXPLAINED: dict[str, str] = {}  # name: why it differs, and what gives its numbers


@dataclass(frozen=True)
class Verdict:
    """What became of one case: its worst share of the bound, and what in it disagrees."""

    case: Case
    worst: float
    findings: tuple[str, ...]

    @property
    def outcome(self) -> str:
        if self.findings:
            return "explained" if self.case.name in EXPLAINED else "disagrees"
        return "agree"


def judge(case: Case, asked: Callable[[Case], Iterator[Part]] | None = None) -> Verdict:
    """Our exact answer against the expected one: within the tolerance of the case, and within our bound."""
    findings, worst = [], 0.0
    product = np.full((*case.q.shape[:3], case.k.shape[2]), np.nan)
    mode = case.attributes.get("qk_matmul_output_mode", RAW)
    for items, problem, dialect in (asked or parts)(case):
        exact, expected = solve(problem, dialect), case.y[items]
        worst = max(worst, worst_share(expected, exact, case.class_))
        if not case.accepts(exact.o, expected):
            findings.append("our Y is outside its tolerance")
        if "qk_matmul_output" in case.outputs:
            f = exact.forward
            product[items] = 0.0 if mode == PROBABILITIES else -inf  # of keys that no query sees
            capped = f.scores[problem.softcap is not None]
            seen = {RAW: f.z, CAPPED: capped, PROBABILITIES: f.p}.get(mode, np.where(f.visible, f.s, -inf))
            product[items][..., : problem.j] = seen
            if mode == PROBABILITIES:  # one-hot values read them out, with a bound
                each = torch.eye(problem.j).to(problem.dtype).expand(*problem.v.shape[:-1], problem.j)
                probabilities = case.outputs["qk_matmul_output"][items]
                worst = max(worst, worst_share(probabilities, solve(problem.replace(v=each), dialect), case.class_))
    if worst > 1:
        findings.append(f"its output is at {worst:.3g} of our bound")
    for name, whole in {"present_key": case.k, "present_value": case.v}.items():
        if name in case.outputs and not np.array_equal(case.outputs[name], whole):
            findings.append(f"{name} is not the cache and the new ones behind it")
    ours = mode in (RAW, CAPPED, WITH_BIAS, PROBABILITIES) and "qk_matmul_output" in case.outputs
    if ours and not case.accepts(product, case.outputs["qk_matmul_output"]):
        findings.append("our scores or probabilities are outside its tolerance")
    return Verdict(case, worst, tuple(findings))


def worst_share(got: Array, exact: Exact, class_: str) -> float:
    return share(got.astype(np.float64), exact.o, exact.tolerance(class_).bound["o"], np.zeros(exact.o.shape, bool))


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    return [judge(case) for case in published()[0]]


@needs_onnx
def test_the_table_of_the_onnx_cases(verdicts: list[Verdict]) -> None:
    """Every case agrees or is explained."""
    repeated = Counter(case.opset for case in published()[1])
    table = {}
    print("\n\nopset  agree  explained  repeated as a graph")
    for opset in sorted({x.case.opset for x in verdicts}):
        count = Counter(x.outcome for x in verdicts if x.case.opset == opset)
        table[opset] = (count["agree"], count["explained"], repeated[opset])
        print("{:5}  {:5}  {:9}  {:19}".format(opset, *table[opset]))
    for class_ in "ACD":
        some = [x.worst for x in verdicts if x.case.class_ == class_]
        print(f"class {class_}: {len(some)} cases, at most {max(some):.3f} of the bound")
    assert {x.case.name: x.findings for x in verdicts if x.findings and x.case.name not in EXPLAINED} == {}
    assert {x.case.name for x in verdicts if x.findings} == EXPLAINED.keys()
    if onnx.__version__.startswith(VERSION):
        assert table == TABLE


@needs_onnx
def test_the_expanded_cases_repeat_the_others() -> None:
    """Each case is there a second time, with the same numbers and the operator written out."""
    cases, again = published()
    assert len(cases) == len(again)
    for case, other in zip(cases, again, strict=True):
        assert other.name.startswith(f"{case.name}_expanded")
        for one, two in ((case.inputs, other.inputs), (case.outputs, other.outputs)):
            assert one.keys() == two.keys()
            assert all(np.array_equal(one[name], two[name]) for name in one)


@needs_onnx
def test_their_tolerance_alone_refuses_correctly_rounded_bfloat16(verdicts: list[Verdict]) -> None:
    """The cases say 1e-3, a quarter of what rounding to bfloat16 does. Their runner knows, and allows two units."""
    refused = set()
    for case in (x.case for x in verdicts):
        answers = [(solve(problem, dialect).o, case.y[items]) for items, problem, dialect in parts(case)]
        if not all(case.accepts(ours, expected, runner=False) for ours, expected in answers):
            refused.add(case.name)
    assert refused == {x.case.name for x in verdicts if x.case.q.dtype.name == "bfloat16"}
    assert len(refused) >= 5


def placed(case: Case) -> bool:
    """Whether positions decide what is seen."""
    return case.causal or case.window is not None


@needs_onnx
@pytest.mark.parametrize(
    ("choice", "value", "asks"),
    [
        ("causal_alignment", "bottom_right", lambda case: placed(case) and "past_key" not in case.inputs and case.lengths is None),
        ("causal_alignment", "top_left", lambda case: placed(case) and ("past_key" in case.inputs or case.lengths is not None)),
        ("head_grouping", "strided", lambda case: 1 < case.k.shape[1] < case.q.shape[1]),
        ("empty_row", "uniform", lambda case: not case.y.any(-1).all()),
        ("empty_row", "nan", lambda case: not case.y.any(-1).all()),
    ],
)
def test_cases_that_ask_for_a_choice_disagree_with_another(choice: str, value: str, asks: Callable[[Case], bool]) -> None:
    """The comparison can fail: with one choice made otherwise just those cases disagree in which it makes a difference."""

    def changed(case: Case) -> Iterator[Part]:
        return ((items, problem, dialect.with_choice(choice, value)) for items, problem, dialect in parts(case))

    cases = published()[0]
    differ = {case.name for case in cases if judge(case, changed).findings}
    # As many queries as keys leave no choice of alignment; values that are all the same, as those of one case, show nothing.
    square = {c.name for c in cases if choice == "causal_alignment" and all(p.i == p.j for _, p, _ in parts(c))}
    alike = {case.name for case in cases if (case.v == case.v.flat[0]).all()}
    assert differ == {case.name for case in cases if asks(case)} - square - alike
    assert len(differ) >= 3


# THE REFERENCE OF ONNX, which the cases were made with

# What it does otherwise than we.
NEGATIVE = "the root of a negative scale is NaN"
COARSE = "the root of the scale is rounded to float32"
ONE_COLUMN = "a mask of one column hides all keys but the first"
ONE_ROW = "under a mask of one row, causal takes every query for the first"


def as_onnx_reads(problem: Problem) -> tuple[Problem, set[str]]:
    """The problem whose right answer the published reference gives instead, and why."""
    why, read = set(), problem
    allowed = problem.mask if problem.mask is not None else problem.bias
    if problem.scale is not None and problem.scale < 0:
        why.add(NEGATIVE)
    elif problem.scale is not None:
        # The attribute comes as float32, and so does its root; q and k are each multiplied by it.
        taken = float(np.sqrt(np.float32(problem.scale))) ** 2
        if taken != problem.scale:
            why.add(COARSE)
            read = read.replace(scale=taken)
    if allowed is None:
        return read, why
    if allowed.shape[-1] == 1 < problem.j:
        why.add(ONE_COLUMN)
        rest = allowed.new_full((*allowed.shape[:-1], problem.j - 1), False if allowed.dtype == torch.bool else -inf)
        longer = torch.cat([allowed, rest], -1)
        read = read.replace(**{"mask" if problem.mask is not None else "bias": longer})
    if problem.causal and allowed.shape[-2] == 1 < problem.i:
        why.add(ONE_ROW)
        first = torch.zeros(1, 1, 1, problem.j, dtype=torch.bool)
        first[..., 0] = True
        read = read.replace(causal=False, mask=first if read.mask is None else first & read.mask)
    return read, why


def onnx_answer(problem: Problem, opset: int = 24) -> Array:
    inputs = {"Q": problem.q.numpy(), "K": problem.k.numpy(), "V": problem.v.numpy()}
    allowed = problem.mask if problem.mask is not None else problem.bias
    if allowed is not None:
        inputs["attn_mask"] = allowed.numpy()
    attributes = {"is_causal": int(problem.causal)} | ({} if problem.scale is None else {"scale": problem.scale})
    return evaluate(opset, inputs, attributes)


def one_attn_mask(drawn: Problem) -> Problem:
    """A drawn problem in the inputs that the operator has: one mask, bool or float, and no dropout."""
    mask, bias = lifted(drawn.mask), drawn.bias
    if mask is not None and bias is not None:
        mask, bias = None, torch.where(mask, bias, -inf)
    scale = None if drawn.scale is None else float(np.float32(drawn.scale))
    some = {"k": four(drawn.k), "v": four(drawn.v), "mask": mask, "bias": bias, "scale": scale}
    return drawn.replace(**some, dropout=0.0, training=False, do=None, wrt=())


@needs_onnx
def test_the_table_of_random_problems_for_the_reference_of_onnx() -> None:
    """600 problems in float64: it gives our answer, or just what comes of four things that it does otherwise."""
    rng, counts, worst = default_rng(5), Counter(), 0.0
    for _ in range(600):
        problem = one_attn_mask(draw(rng, least=1).problem)
        got, exact = onnx_answer(problem), solve(problem, PLAIN)
        read, why = as_onnx_reads(problem)
        answered = solve(read, PLAIN)
        expected = np.where(answered.empty[..., None], 0.0, np.nan) if NEGATIVE in why else answered.o
        nothing = np.zeros(expected.shape, bool)
        ratio = share(got, expected, answered.tolerance("A").bound["o"], nothing)
        assert ratio <= 1, f"{ratio:.3g} of the bound, with {why or 'nothing otherwise'}"
        worst = max(worst, ratio)
        agrees = share(got, exact.o, exact.tolerance("A").bound["o"], nothing) <= 1
        assert agrees or why
        counts.update(["agree"] if agrees else ["explained", *why])
    print(f"\n\nONNX's reference on 600 random problems, at most {worst:.3f} of the bound; several reasons may meet in one")
    for what, n in counts.most_common():
        print(f"{n:5}  {what}")
    assert counts["agree"] >= 250
    assert min(counts[what] for what in (NEGATIVE, COARSE, ONE_COLUMN, ONE_ROW)) >= 30


def equal_scores(i: int, j: int) -> dict[str, Array]:
    """Inputs whose output rows are the probabilities, all scores being equal."""
    zero = np.zeros((1, 1, max(i, j), 1), np.float32)
    return {"Q": zero[:, :, :i], "K": zero[:, :, :j], "V": np.eye(j, dtype=np.float32)[None, None]}


@needs_onnx
@pytest.mark.parametrize("opset", [23, 24, 25])
def test_what_the_reference_of_onnx_does_otherwise_one_by_one(opset: int) -> None:
    """Beside it, what the graph of the operator's function gives: under a mask of one row that one is right."""
    inputs = equal_scores(3, 3)
    causal, everyone = np.tril(np.ones((3, 3))) / [[1], [2], [3]], np.full((3, 3), 1 / 3)

    def asked(mask: Array | None, body: bool, **attributes: object) -> Array:
        given = inputs if mask is None else inputs | {"attn_mask": mask}
        return evaluate(opset, given, attributes, body)[0, 0]

    for row in (np.ones((1, 3), bool), np.zeros((1, 3), np.float32)):
        assert (asked(row, body=False, is_causal=1) == [1, 0, 0]).all()
        np.testing.assert_allclose(asked(row, body=True, is_causal=1), causal, rtol=1e-6)
    with pytest.raises(ValueError, match="unpack"):
        asked(np.ones(3, bool), body=False, is_causal=1)
    np.testing.assert_allclose(asked(np.ones(3, bool), body=True, is_causal=1), causal, rtol=1e-6)
    # One column. The text of 23 broadcasts; that of 24 and 25 does so, and makes a short mask longer: it says both.
    column = np.ones((3, 1), bool)
    assert (asked(column, body=False) == [1, 0, 0]).all()
    np.testing.assert_allclose(asked(column, body=True), everyone if opset == 23 else [[1, 0, 0]] * 3, rtol=1e-6)
    # A negative scale is NaN in both: it is the text that takes the root.
    assert np.isnan(asked(None, body=False, scale=-0.5)).all()
    assert np.isnan(asked(None, body=True, scale=-0.5)).all()
    assert np.isfinite(solve(Problem(*map(torch.from_numpy, inputs.values()), scale=-0.5), PLAIN).o).all()


@needs_onnx
@pytest.mark.parametrize(("q_heads", "k_heads", "v_heads"), [(2, 2, 1), (1, 3, 3)])
def test_the_reference_of_onnx_answers_head_counts_that_do_not_fit(q_heads: int, k_heads: int, v_heads: int) -> None:
    """It takes the number of value heads from the keys, and leaves to broadcasting what it can't divide. We refuse."""
    x = np.ones((1, 6, 2, 4), np.float32)
    q, k, v = x[:, :q_heads], x[:, :k_heads], x[:, :v_heads]
    assert evaluate(24, {"Q": q, "K": k, "V": v}).shape == (1, max(q_heads, k_heads, v_heads), 2, 4)
    with pytest.raises(ValueError, match=r"do not agree|shared evenly"):
        Problem(*map(torch.from_numpy, (q, k, v)))


# WHAT FOUR PROJECTS STATE, in our words


def flash_attention(p: Problem, keep: Tensor | None = None) -> Tensor:
    """`attention_ref` of Dao-AILab/flash-attention, hopper/test_util.py; the mask is key padding, the scale the default.

    Causal stands on the last key that is not padding. Rows that causal leaves without a key, and padded columns, are
    set to zero after the softmax.
    """
    k, v = (x.repeat_interleave(p.h // p.g, 1) for x in (p.k, p.v))
    s = (p.q / p.d**0.5) @ k.mT
    padding = None if p.mask is None else ~p.mask[:, None, None]
    valid = torch.tensor(p.j) if p.mask is None else p.mask.sum(-1)[:, None, None, None]
    later = (torch.arange(p.j) - torch.arange(p.i)[:, None] > valid - p.i) if p.causal else None
    for hidden in (padding, later):
        s = s if hidden is None else s.masked_fill(hidden, -inf)
    if p.bias is not None:
        s = s + p.bias
    weights = s.softmax(-1)
    for hidden in (padding, None if later is None else later.all(-1, keepdim=True)):
        weights = weights if hidden is None else weights.masked_fill(hidden, 0)
    if keep is not None:
        weights = weights.masked_fill(~keep, 0) / (1 - p.dropout)
    return weights @ v


def torch_documentation(p: Problem, keep: Tensor | None = None) -> Tensor:
    """What torch's documentation of scaled_dot_product_attention calls "equivalent to the following".

    One mask, which is bool or is added; never together with causal, which is top-left. Rows without a key are 0/0.
    """
    assert not p.causal or p.mask is p.bias is None
    added = torch.zeros(p.i, p.j, dtype=p.q.dtype)
    if p.causal:
        added = added.masked_fill(torch.ones(p.i, p.j).triu(1) > 0, -inf)
    if p.mask is not None:
        added = torch.where(lifted(p.mask), added, -inf)
    if p.bias is not None:
        added = added + p.bias
    k, v = (x.repeat_interleave(p.h // x.shape[1], 1) for x in (p.k, p.v))
    factor = p.d**-0.5 if p.scale is None else p.scale
    return (p.q @ k.mT * factor + added).softmax(-1) @ v


def jax_documentation(p: Problem, keep: Tensor | None = None, inside: torch.dtype = torch.float64) -> Tensor:
    """`jax.nn.dot_product_attention`, jax/_src/nn/functions.py, xla: first the bias, then mask and top-left causal select.

    What is hidden gets 0.7 of float32's most negative number. The softmax is in float32; `inside` says otherwise.
    """
    q = p.q.unflatten(1, (p.g, p.h // p.g))  # a group of query heads beside each key/value head
    s = (q @ p.k[:, :, None].mT).flatten(1, 2) * (p.d**-0.5 if p.scale is None else p.scale)
    if p.bias is not None:
        s = s + p.bias
    if p.mask is not None or p.causal:
        seen = torch.ones(p.i, p.j, dtype=torch.bool)
        seen = seen.tril() if p.causal else seen
        seen = seen if p.mask is None else seen & lifted(p.mask)
        s = torch.where(seen, s, -0.7 * torch.finfo(torch.float32).max)
    weights = s.to(inside).softmax(-1).to(p.v.dtype).unflatten(1, (p.g, p.h // p.g))
    return (weights @ p.v[:, :, None]).flatten(1, 2)


def x_transformers(p: Problem, keep: Tensor | None = None) -> Tensor:
    """The eager `Attend` of lucidrains/x-transformers, attend.py: strided groups, bottom-right causal, a finite fill.

    Rows that the mask alone leaves without a key are set to zero; those that causal empties keep what the fill gives.
    """
    k, v = (x.repeat(1, p.h // p.g, 1, 1) for x in (p.k, p.v))
    s = (p.q @ k.mT) * (p.d**-0.5 if p.scale is None else p.scale)
    s = s if p.bias is None else s + p.bias
    lowest, mask = -torch.finfo(s.dtype).max, lifted(p.mask)
    if mask is not None:
        s = s.masked_fill(~mask, lowest)
    if p.causal and p.i > 1:
        s = s.masked_fill(torch.ones(p.i, p.j).triu(p.j - p.i + 1) > 0, lowest)
    o = s.softmax(-1) @ v
    return o if mask is None else o.masked_fill(~mask.any(-1, keepdim=True), 0)


Text = Callable[..., Tensor]
STATED: dict[Text, Dialect] = {
    flash_attention: Dialect("bottom_right", "zero", "blocked"),
    torch_documentation: Dialect("top_left", "nan", "blocked"),
    jax_documentation: Dialect("top_left", "uniform", "blocked"),
    x_transformers: Dialect("bottom_right", "uniform", "strided"),  # and zero for rows that the mask empties
}
EACH = 300  # problems per text


def expressible(text: Text, drawn: Problem, rng: Generator) -> Problem:
    """A drawn problem without what the text has no input for."""
    p = drawn.replace(k=four(drawn.k), v=four(drawn.v))
    if text is flash_attention:
        padding = p.mask if p.mask is None else torch.arange(p.j) < torch.from_numpy(rng.integers(0, p.j + 1, (p.b, 1)))
        # It leaves NaN where a bias of −∞ hides the last key of a row; that is a case of its own, below.
        bias = p.bias if p.bias is None else p.bias.masked_fill(p.bias == -inf, 0.0)
        rate = p.dropout if p.dropout < 1 else 0.0
        return p.replace(mask=padding, bias=bias, scale=None, dropout=rate, training=rate > 0)
    if text is torch_documentation:
        one_of = {"bias": None} if rng.random() < 0.5 else {"mask": None}
        changes = {"mask": None, "bias": None} if p.causal else one_of if p.mask is not None else {}
        left = tuple(name for name in p.wrt if name != "bias" or changes.get("bias", p.bias) is not None)
        p = p.replace(**changes, wrt=left)
    return p.replace(dropout=0.0, training=False, wrt=tuple(x for x in p.wrt if getattr(p, x) is not None))


def answer(text: Text, p: Problem, keep: Tensor | None) -> dict[str, Array]:
    """Output and gradients of a formula, by autograd."""
    leaves = {name: getattr(p, name).clone().requires_grad_() for name in p.wrt}
    o = text(p.replace(**leaves), keep)
    gradients = torch.autograd.grad(o, list(leaves.values()), p.do)
    return {"o": o.detach().numpy()} | {f"d{name}": x.numpy() for name, x in zip(leaves, gradients, strict=True)}


def compared(text: Text, p: Problem, got: dict[str, Array], keep: Array | None) -> Iterator[tuple[str, float]]:
    """The worst share of the bound of each output, in the dialect that the text states."""
    dialect, some = STATED[text], got
    if text is flash_attention and p.causal and p.mask is not None:
        # Valid keys are what it aligns with: each batch item by itself, as if the padding were not there.
        for n, length in enumerate(p.mask.sum(-1).tolist()):
            one, last = slice(n, n + 1), slice(0, length)
            few = {name: getattr(p, name)[one, :, last] for name in ("k", "v")} | {"q": p.q[one], "mask": None, "do": None}
            bias = p.bias if p.bias is None or p.bias.shape[-1] == 1 else p.bias[..., last]
            bias = bias[one] if bias is not None and bias.ndim == 4 and bias.shape[0] > 1 else bias
            kept = None if keep is None else keep[one, :, :, last]
            exact = solve(p.replace(**few, bias=bias, wrt=()), dialect, kept)
            yield "o", share(got["o"][one], exact.o, exact.tolerance("A").bound["o"], exact.undefined["o"])
        return
    exact = solve(p, dialect, keep)
    if text is x_transformers and p.mask is not None:
        by_mask = np.broadcast_to(~lifted(p.mask).any(-1).numpy(), exact.empty.shape)
        zero = solve(p, dialect.with_choice("empty_row", "zero"))
        if not (exact.empty & ~by_mask).any():
            exact = zero
        elif by_mask.any():  # both kinds of rows: two rules in one call, which no dialect is
            rows, some = by_mask[..., None], {"o": got["o"]}
            bound = np.where(rows, zero.tolerance("A").bound["o"], exact.tolerance("A").bound["o"])
            yield "both", share(got["o"], np.where(rows, zero.o, exact.o), bound, exact.undefined["o"] & ~rows)
            return
    if text is flash_attention and exact.empty.any():
        some.pop("dbias", None)  # NaN; a case of its own, below
    for name, value in some.items():
        # In float64 a tolerance is twice the bound: once for them, and once for us.
        yield name, share(value, exact.values[name], exact.tolerance("A").bound[name], exact.undefined[name])


@pytest.mark.parametrize("text", STATED, ids=lambda text: text.__name__)
def test_a_stated_formula_agrees_in_its_dialect(text: Text) -> None:
    """Outputs and gradients in float64, on problems of every form that the text has inputs for."""
    rng, seen, worst = default_rng([11, list(STATED).index(text)]), Counter(), 0.0
    for _ in range(EACH):
        drawn = draw(rng, least=1)
        p = expressible(text, drawn.problem, rng)
        keep = drawn.keep if p.dropout else None
        for name, ratio in compared(text, p, answer(text, p, keep), None if keep is None else keep.numpy()):
            assert ratio <= 1, f"{name} is at {ratio:.3g} of the bound: {drawn.choices}"
            worst = max(worst, ratio)
            seen[name] += 1
        lengths = "i=j" if p.i == p.j else "i<j" if p.i < p.j else "i>j"
        seen.update([("causal", lengths)] if p.causal else [])
        seen.update([("grouped", 1 < p.g < p.h), ("mask", p.mask is not None), ("bias", p.bias is not None)])
        seen["an empty row"] += solve(p.replace(do=None, dropout=0.0), STATED[text]).empty.any()
    asked = [("causal", x) for x in ("i<j", "i=j", "i>j")]
    asked += [(name, True) for name in ("grouped", "mask", "bias")] + ["an empty row", "dq", "dk", "dv", "dbias"]
    assert {what: seen[what] for what in asked if seen[what] < 15} == {}
    assert worst > 0.001  # it is arithmetic of its own, not ours


# WHERE THE TEXTS DIFFER


def seen_keys(text: Text, i: int, j: int, **options: object) -> list[list[float]]:
    """What each query weighs each key with, all scores being equal."""
    zero, one_hot = torch.zeros(1, 1, max(i, j), 1).double(), torch.eye(j).double()[None, None]
    return text(Problem(zero[:, :, :i], zero[:, :, :j], one_hot, **options))[0, 0].tolist()


def test_the_texts_align_causal_differently() -> None:
    """Two queries and three keys: two texts let the last query see the last key, two do not."""
    bottom_right = [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]
    top_left = [[1, 0, 0], [1 / 2, 1 / 2, 0]]
    for text, dialect in STATED.items():
        expected = {"bottom_right": bottom_right, "top_left": top_left}[dialect.causal_alignment]
        np.testing.assert_allclose(seen_keys(text, 2, 3, causal=True), expected, rtol=1e-15)
    assert {dialect.causal_alignment for dialect in STATED.values()} == set(CHOICES["causal_alignment"].values)


def test_the_texts_fill_empty_rows_differently() -> None:
    """Zero, 0/0 and the mean of all values for the same row; x-transformers has two answers, by what emptied it."""
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    masked = {text: seen_keys(text, 1, 3, mask=nothing)[0] for text in STATED}
    mean, zero, nan = [1 / 3] * 3, [0.0] * 3, [np.nan] * 3
    expected = {flash_attention: zero, torch_documentation: nan, jax_documentation: mean, x_transformers: zero}
    for text, row in expected.items():
        np.testing.assert_allclose(masked[text], row, rtol=1e-15)
    # Three queries, two keys, bottom-right: the first sees nothing.
    assert seen_keys(flash_attention, 3, 2, causal=True)[0] == [0, 0]
    assert seen_keys(x_transformers, 3, 2, causal=True)[0] == [1 / 2, 1 / 2]


def test_the_texts_group_heads_differently() -> None:
    """Four query heads on two key/value heads of values one and two."""
    one = torch.ones(1, 4, 1, 1).double()
    p = Problem(one, one[:, :2], torch.tensor([1.0, 2.0]).double().view(1, 2, 1, 1))
    got = {text: text(p).flatten().tolist() for text in STATED}
    assert got.pop(x_transformers) == [1, 2, 1, 2]
    assert all(heads == [1, 1, 2, 2] for heads in got.values())


def test_flash_attention_aligns_causal_with_the_valid_keys() -> None:
    """Two queries, two valid keys and two padded ones. CAUSAL-2 counts all keys, and the mask hides on top (CAUSAL-6)."""
    padding = torch.tensor([[True, True, False, False]])
    assert seen_keys(flash_attention, 2, 4, causal=True, mask=padding) == [[1, 0, 0, 0], [0.5, 0.5, 0, 0]]
    zero, one_hot = torch.zeros(1, 1, 4, 1).double(), torch.eye(4).double()[None, None]
    ours = solve(Problem(zero[:, :, :2], zero, one_hot, causal=True, mask=padding), CANONICAL).o[0, 0]
    assert ours.tolist() == [[0.5, 0.5, 0, 0]] * 2


def test_flash_attention_leaves_nan_where_two_reasons_empty_a_row() -> None:
    """Zero is set where causal alone hides all, or padding alone: EMPTY-2 says one answer for every such row."""
    padded_left = torch.tensor([[False, True]])
    assert np.isnan(seen_keys(flash_attention, 2, 2, causal=True, mask=padded_left)).any()
    assert np.isnan(seen_keys(flash_attention, 1, 2, bias=torch.full((1, 2), -inf).double())).all()


def test_flash_attention_gives_a_bias_the_gradient_nan_in_an_empty_row() -> None:
    """The bias is added behind the mask, and the zero is set behind the softmax. EMPTY-3 has the row absent from dbias."""
    one = torch.ones(1, 1, 1, 1).double()
    p = Problem(one, one, one, torch.tensor([[False]]), one, do=one, wrt=("q", "k", "v", "bias"))
    got, exact = answer(flash_attention, p, None), solve(p, STATED[flash_attention])
    assert np.isnan(got.pop("dbias")).all()
    assert not exact.dbias.any()
    assert not any(x.any() for x in got.values())


def test_jax_computes_float64_in_float32() -> None:
    """Its softmax is outside the bound of float64 (ACCURACY-4), and inside that of float32."""
    rng = default_rng(12)
    p = Problem(*(torch.from_numpy(rng.standard_normal((1, 2, 6, 4))) for _ in range(3)), causal=True)
    exact, got = solve(p, STATED[jax_documentation]), jax_documentation(p, inside=torch.float32).numpy()
    assert share(got, exact.o, exact.tolerance("A").bound["o"], exact.undefined["o"]) > 1e5
    assert share(got, exact.o, exact.tolerance("A", "float32").bound["o"], exact.undefined["o"]) < 1


def test_a_bias_of_minus_infinity_beats_a_finite_fill() -> None:
    """A key that the mask hides gets all the weight where the only visible one has a bias of −∞. EMPTY-1 leaves it open."""
    bias, mask = torch.tensor([[-inf, 0.0]]).double(), torch.tensor([[True, False]])
    for text in (jax_documentation, x_transformers):
        assert seen_keys(text, 1, 2, bias=bias, mask=mask) == [[0, 1]]
    zero, one_hot = torch.zeros(1, 1, 2, 1).double(), torch.eye(2).double()[None, None]
    assert solve(Problem(zero[:, :, :1], zero, one_hot, mask, bias), STATED[jax_documentation]).undefined["o"].all()


def test_torch_gives_zero_where_its_documentation_gives_nan() -> None:
    """The function follows EMPTY-1's zero, the formula 0/0; elsewhere they agree."""
    one = torch.ones(1, 1, 2, 1).double()
    p = Problem(one, one, one, torch.tensor([[True, False], [False, False]])[None, None])
    assert torch.nn.functional.scaled_dot_product_attention(p.q, p.k, p.v, p.mask).flatten().tolist() == [1, 0]
    np.testing.assert_array_equal(torch_documentation(p).flatten(), [1, np.nan])


def test_the_documentation_of_torch_takes_no_mask_of_more_than_two_dimensions() -> None:
    """It fills a tensor (i j) in place with the mask, so that a batch of masks can't be; torch itself takes them."""
    with pytest.raises(RuntimeError, match=r"[Bb]roadcast|shape|size"):
        torch.zeros(2, 3).masked_fill_(torch.ones(2, 1, 2, 3, dtype=torch.bool), -inf)
