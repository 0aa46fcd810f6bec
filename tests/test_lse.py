"""LSE: the reference in its three forms, bounds that honest kernels keep, merging, how it is asked for, and who is asked what."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import lsed
import numpy as np
import pytest
import torch
from numpy import ndarray as Array
from numpy.random import Generator, default_rng
from test_vectors import in_c

from attnspec.adapters import Adapter, Answer, resolve
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.mistakes.lse import LSE as MISTAKES
from attnspec.conformance.mistakes.power import multiple
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.factors.lse import LSE
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.shrink import as_case
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.vectors.answers import answer_of, exact_of, problem_of
from attnspec.conformance.vectors.format import ANSWER
from attnspec.conformance.vectors.write import Task, write_vector
from attnspec.reference import Part, SampledRows, merge, merge_error, merge_gradients, solve
from attnspec.reference.witnesses.autograd import attend
from attnspec.reference.witnesses.enclosure import enclose
from attnspec.spec import CANONICAL, CHOICES, Dialect, Problem
from attnspec.spec.files import Stored, write

DTYPES = LEVELS["dtype"]
HALF = ("float16", "bfloat16")
TOP_LEFT = Dialect(causal_alignment="top_left")
DIALECTS = tuple(Dialect(lse_base=base, lse_empty=empty) for base, empty in product(("e", "2"), ("minus_inf", "plus_inf")))


def same(a: Array, b: Array) -> bool:
    """Equal to float64's last digits, infinities included."""
    finite = np.isfinite(b)
    return bool(np.array_equal(a[~finite], b[~finite]) and np.allclose(a[finite], b[finite], rtol=1e-9, atol=1e-12))


def graded(case: Case, seed: int = 0) -> Problem:
    """A problem with more queries than keys under causal, so that rows are empty."""
    return build(Case(**{**vars(case), "seed": seed}))


CASES = (
    Case(b=2, heads="4/2", i=5, j=3, d=3, e=4, causal=True, bias="hij", lse="both"),
    Case(b=2, heads="2/2", i=4, j=6, d=3, mask="bhij", holes="empty_row", softcap=0.7, lse="alone"),
    Case(b=1, heads="2/shared", i=3, j=7, d=5, window="1:1", lse="both", scale=-0.5),
)


# THE REFERENCE


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("case", CASES)
def test_three_forms_agree(case: Case, dialect: Dialect) -> None:
    """Formulas, autograd row by row, and balls, for o, lse and all gradients."""
    pytest.importorskip("flint")
    problem = graded(case)
    exact, other, balls = solve(problem, dialect), attend(problem, dialect), enclose(problem, dialect)
    tolerance = exact.tolerance("A", "float64")
    for name, value in exact.values.items():
        assert same(other[name].numpy(), value), name
        error = balls.error(name, value)
        assert (error <= tolerance.bound[name] + 1e-300)[~np.isnan(error)].all(), name


@pytest.mark.parametrize("included", CHOICES["lse_includes_sink"].values)
@pytest.mark.parametrize("sinks", ["normal", "mixed", "above", "below", "inf"])
def test_three_forms_agree_beside_sinks(sinks: str, included: str) -> None:
    """The sum with the sink, and that of the keys alone, which is the lse of the call without sinks; sampled rows, too."""
    pytest.importorskip("flint")
    case = Case(heads="4/2", b=2, i=5, j=4, d=4, causal=True, sinks=sinks, lse="returned", mask="bhij", holes="empty_row")
    problem = build(case)
    plain = problem.replace(do=None, wrt=())
    for dialect in DIALECTS:
        dialect = dialect.with_choice("lse_includes_sink", included)
        exact, other, balls = solve(problem, dialect), attend(problem, dialect), enclose(problem, dialect)
        tolerance = exact.tolerance("A", "float64")
        for name, value in exact.values.items():
            assert same(other[name].numpy(), value), name
            error = balls.error(name, value)
            assert (error <= tolerance.bound[name] + 1e-300)[~np.isnan(error)].all(), name
        if included == "no":
            assert np.array_equal(solve(plain.replace(sinks=None), dialect).values["lse"], exact.values["lse"])
        for part in SampledRows(plain, dialect, range(5)).parts("A"):
            if part.output == "lse":
                assert same(part.values, exact.values["lse"][part.at])
    graded_too = problem.replace(dlse=torch.from_numpy(default_rng(8).standard_normal((2, 4, 5))).float())
    dialect = Dialect(lse_includes_sink=included)
    exact, other = solve(graded_too, dialect), attend(graded_too, dialect)
    for name, value in exact.values.items():
        assert same(other[name].numpy(), value), name
        assert exact.undefined[name].all() == (included == "no" and name in ("dq", "dk", "dv")), name


def test_the_lse_by_hand() -> None:
    """Two keys of scores 0 and ln 3, and a row without a key."""
    q, k = torch.ones(1, 1, 2, 1).double(), torch.tensor([0.0, np.log(3)]).double().view(1, 1, 2, 1)
    mask = torch.tensor([[True, True], [False, False]]).view(1, 1, 2, 2)
    problem = Problem(q, k, k, mask, scale=1.0, lse=True, dlse=torch.tensor([[[2.0, 5.0]]]).double(), wrt=("q",))
    natural, two = solve(problem, CANONICAL), solve(problem, Dialect(lse_base="2", lse_empty="plus_inf"))
    assert natural.values["lse"][0, 0].tolist() == pytest.approx([np.log(4), -np.inf])
    assert two.values["lse"][0, 0].tolist() == pytest.approx([2.0, np.inf])
    assert natural.values["dq"].ravel().tolist() == pytest.approx([2 * 0.75 * np.log(3), 0.0])  # λ Σ P k
    assert two.values["dq"].ravel().tolist() == pytest.approx([2 * 0.75 * np.log(3) / np.log(2), 0.0])
    assert natural.zero["dq"].ravel().tolist() == [False, True]
    assert natural.zero["dv"].all()


def test_the_lse_depends_on_neither_values_nor_dropout() -> None:
    problem = graded(CASES[0]).replace(dropout=0.5, training=True)
    keep = np.random.default_rng(0).random((2, 4, 5, 3)) < 0.5
    exact, plain = solve(problem, CANONICAL, keep), solve(problem.replace(training=False), CANONICAL)
    assert np.array_equal(exact.values["lse"], plain.values["lse"])
    bad = problem.v.clone()
    bad[..., 0] = torch.nan
    assert not solve(problem.replace(v=bad), CANONICAL, keep).undefined["lse"].any()
    bad = problem.k.clone()
    bad[..., 0] = torch.nan
    assert solve(problem.replace(k=bad), CANONICAL, keep).undefined["lse"].any()


@pytest.mark.parametrize("dialect", [DIALECTS[0], DIALECTS[3]])
def test_sampled_rows_agree(dialect: Dialect) -> None:
    problem = build(Case(b=1, heads="2/2", i=5, j=300, d=4, lse="both", causal=True))
    rows = [0, 3]
    other = torch.zeros(1, 1, 5)
    other[..., rows] = 1
    assert problem.do is not None
    problem = problem.replace(do=problem.do * other[..., None], dlse=problem.dlse * other)
    exact = solve(problem, dialect)
    tolerance, seen = exact.tolerance("A"), set()
    for part in SampledRows(problem, dialect, rows).parts("A"):
        seen.add(part.output)
        assert same(part.values, exact.values[part.output][part.at]), part.output
        assert np.allclose(part.bound, tolerance.bound[part.output][part.at], rtol=0.6), part.output
    assert seen == {"o", "lse", "dq", "dk", "dv"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"lse": False}, "dlse is the cotangent of an lse that is not returned"),
        ({"dlse": torch.zeros(1, 2, 3).double()}, "dlse is float32 beside q float32; found float64"),
        ({"dlse": torch.zeros(1, 2, 4)}, "dlse has shape"),
    ],
)
def test_what_is_no_cotangent_of_an_lse_is_refused(changes: dict[str, Any], what: str) -> None:
    problem = build(Case(heads="2/2", i=3, lse="both"))
    with pytest.raises(ValueError, match=what):
        problem.replace(**changes)


def test_it_stays_what_it_is_on_its_way() -> None:
    """As bytes, to another process, and as a level."""
    from attnspec.adapters.remote.protocol import options_of, tensors_of
    from attnspec.adapters.remote.protocol import problem_of as received

    for level in LSE.levels:
        problem = build(Case(heads="2/2", i=3, lse=level))
        assert as_case(problem).lse == level
        for back in (Problem.from_bytes(problem.to_bytes()), received({"options": options_of(problem)}, tensors_of(problem))):
            assert back.lse == (level != "none")
            assert (back.dlse is None) == (level not in ("both", "alone"))
            assert back.outputs == problem.outputs


def test_vectors_carry_it(tmp_path: Path) -> None:
    """Written, read back and judged, in C too: a right answer, rows without a key included, and one whose lse is off."""
    problem = build(Case(dtype="bfloat16", heads="2/2", i=5, j=3, d=4, causal=True, lse="both"))
    exact = solve(problem, CANONICAL)
    vector = write_vector(tmp_path, 1, Task(Case(lse="both"), problem, exact, "C", ()))
    assert vector.outputs == ("o", "lse", "dq", "dk", "dv")
    assert {"lse", "lse_grad"} <= set(vector.needs)
    assert vector.dialect["lse_base"] == "e"
    assert problem_of(tmp_path, vector).dlse is not None
    for off, found in ((0.0, []), (0.5, ["lse"])):
        dtypes = {"lse": torch.float32}
        given = {name: torch.from_numpy(x).to(dtypes.get(name, torch.bfloat16)) for name, x in exact.values.items()}
        given["lse"] = given["lse"] + off
        from attnspec.conformance.vectors.format import stored

        write(vector.file(tmp_path, ANSWER), {name: Stored(*stored(x)) for name, x in given.items()})
        answer = answer_of(tmp_path, vector)
        assert answer is not None
        assert [x.output for x in judge(answer, exact_of(tmp_path, vector), "C").findings] == found
        (tmp_path / "index.jsonl").write_text("\n", encoding="utf-8")
        assert in_c(tmp_path, tmp_path) == (int(bool(found)), {"0001": not found})


# BOUNDS


def random_case(rng: Generator, dtype: str, values: str, adapter: Adapter) -> Case:
    """Any level of the factors that change numbers, at sizes that take milliseconds, with the lse asked for."""
    level = {name: options[int(rng.integers(len(options)))] for name, options in LEVELS.items()}
    level |= {
        "b": int(rng.integers(1, 3)),
        "i": int(rng.integers(1, 40)),
        "dtype": dtype,
        "values": values,
        "j": int(rng.choice([0, 1, 2, 17, 33, 50])),
        "d": int(rng.choice([1, 3, 8, 16, 40])),
        "lse": str(rng.choice(LSE.levels[1:])),
        "wrt": "all",
    }
    return fit(Case(**level, seed=int(rng.integers(1 << 16))), adapter)


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_kernels_stay_inside_their_class(dtype: str) -> None:
    """Ten styles. exp(s − lse) without a sum of its own is no class at the lowest number (docs/bounds.md)."""
    rng, broken, asked = default_rng([71, DTYPES.index(dtype)]), [], 0
    adapters = {name: resolve(one)[0] for name, (one, _, _) in lsed.HONEST.items()}
    for values in (*LEVELS["values"], "normal", "large"):
        case = random_case(rng, dtype, values, adapters["tiled"])
        problem = build(case)
        for name, (_, said, class_) in lsed.HONEST.items():
            if name == "two pass" and case.bias != "none" and case.biases == "lowest":
                continue
            asked += 1
            exact = solve(problem, Dialect(causal_alignment="top_left", **said))
            for x in judge(adapters[name].run(problem), exact, class_ if dtype in HALF else "A").findings:
                broken.append(f"{name}, {x.output}: {x.ratio:.3g} of the bound ({x.kind} {x.message}) {case.token()}")
    assert asked >= 100
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_faults_are_outside(dtype: str) -> None:
    """An lse off by a hundredth; a cotangent that is off by a tenth, or not there; two that are exchanged."""
    problem = build(Case(dtype=dtype, heads="2/2", i=9, j=9, d=8, lse="both", values="peaked"))
    (adapter,) = resolve(lsed.honest)
    exact, class_ = solve(problem, TOP_LEFT), "C" if dtype in HALF else "A"
    right = adapter.run(problem)
    assert not judge(right, exact, class_).findings
    assert problem.dlse is not None
    off = 0.3 if dtype in HALF else 0.01
    faults = {
        "lse": Answer(right.o, right.gradients, lse=right.lse + off),
        "dq": adapter.run(problem.replace(dlse=torch.zeros_like(problem.dlse))),
        "dk": adapter.run(problem.replace(dlse=-problem.dlse)),
    }
    for output, answer in faults.items():
        assert output in {x.output for x in judge(answer, exact, class_).findings}


def test_an_lse_in_half_is_a_choice_with_a_bound_of_its_own() -> None:
    problem = build(Case(dtype="bfloat16", heads="2/2", i=9, j=33, d=8, lse="returned", values="large"))
    wide, narrow = (solve(problem, Dialect(lse_dtype=kind)) for kind in ("wide", "operand"))
    (adapter,) = resolve(lsed.HONEST["stored as the queries"][0])
    answer = adapter.run(problem)
    assert not judge(answer, narrow, "C").findings
    assert [(x.output, x.kind) for x in judge(answer, wide, "C").findings] == [("lse", "dtype")]
    assert (narrow.tolerance("A").bound["lse"] > 10 * wide.tolerance("A").bound["lse"]).all()


# MERGE


def parts_of(problem: Problem, edges: list[int]) -> list[Part]:
    """The exact parts of a problem without mask or bias."""
    found = []
    for a, b in pairwise(edges):
        exact = solve(problem.replace(k=problem.k[..., a:b, :], v=problem.v[..., a:b, :]), CANONICAL)
        found.append(Part(exact.o, exact.lse))
    return found


PLAIN = build(Case(dtype="float64", b=2, heads="2/2", i=3, j=9, d=4, wrt="none", values="peaked"))


def test_parts_make_the_whole_wherever_they_are_split() -> None:
    whole = solve(PLAIN, CANONICAL)
    for n in range(10):
        merged = merge(*parts_of(PLAIN, [0, n, 9]))
        assert np.allclose(merged.o, whole.o, rtol=1e-12)
        assert np.allclose(merged.lse, whole.lse, rtol=1e-12)
    a, b, c = parts_of(PLAIN, [0, 2, 3, 9])
    for merged in (merge(a, b, c), merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, merge(b, a))):
        assert np.allclose(merged.o, whole.o, rtol=1e-12)


def test_an_empty_part_is_neutral_whatever_it_holds() -> None:
    """Exactly: not a bit changes; and of two empty parts comes the neutral one."""
    (a,) = parts_of(PLAIN, [0, 9])
    for garbage in (0.0, np.nan, np.inf, -1e300):
        empty = Part(np.full_like(a.o, garbage), np.full_like(a.lse, -np.inf))
        for merged in (merge(a, empty), merge(empty, a), merge(empty, a, empty)):
            assert np.array_equal(merged.o, a.o)
            assert np.allclose(merged.lse, a.lse, rtol=1e-15)
        nothing = merge(empty, empty)
        assert not nothing.o.any()
        assert np.isneginf(nothing.lse).all()
        of_a, of_empty = merge_gradients(np.ones_like(a.o), np.ones_like(a.lse), a, empty)
        assert np.array_equal(of_a[0], np.ones_like(a.o))
        assert np.array_equal(of_a[1], np.ones_like(a.lse))
        assert not of_empty[0].any()
        assert not of_empty[1].any()
    with pytest.raises(ValueError, match="of one shape"):
        merge(a, Part(a.o, a.lse[..., :1]))


def test_gradients_through_the_merge() -> None:
    """Against autograd of the formula, and added up they are those of the whole."""
    rng = default_rng(3)
    o = [torch.from_numpy(rng.standard_normal((1, 2, 3, 4))).requires_grad_() for _ in range(3)]
    lses = [torch.from_numpy(4 * rng.standard_normal((1, 2, 3))).requires_grad_() for _ in range(3)]
    do, dlse = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((1, 2, 3, 4), (1, 2, 3)))
    lse = torch.logsumexp(torch.stack(lses), 0)
    out = sum((l - lse).exp()[..., None] * x for l, x in zip(lses, o, strict=True))
    torch.autograd.backward([out, lse], [do, dlse])  # type: ignore[list-item]
    parts = [Part(x.detach().numpy(), l.detach().numpy()) for x, l in zip(o, lses, strict=True)]
    for (of_o, of_lse), x, l in zip(merge_gradients(do.numpy(), dlse.numpy(), *parts), o, lses, strict=True):
        assert x.grad is not None
        assert l.grad is not None
        assert np.allclose(of_o, x.grad.numpy(), rtol=1e-12)
        assert np.allclose(of_lse, l.grad.numpy(), rtol=1e-12)


def test_the_bound_of_a_merge_holds_and_is_needed() -> None:
    """Parts that are off by their bounds stay inside; the bound of a single pass does not hold for them."""
    rng, beyond = default_rng(4), 0
    parts = parts_of(PLAIN, [0, 4, 9])
    merged = merge(*parts)
    for size in (1e-6, 1e-3, 0.1):
        bounds = tuple((np.full_like(part.o, size), np.full_like(part.lse, size)) for part in parts)
        of_o, of_lse = merge_error(merged, bounds, tuple(parts))
        for _ in range(50):
            moved = [
                Part(part.o + size * rng.choice([-1, 1], part.o.shape), part.lse + size * rng.choice([-1, 1], part.lse.shape))
                for part in parts
            ]
            other = merge(*moved)
            assert (np.abs(other.o - merged.o) <= of_o * (1 + 1e-9)).all()
            assert (np.abs(other.lse - merged.lse) <= of_lse * (1 + 1e-9)).all()
            beyond += int((np.abs(other.o - merged.o) > size).any())
    assert beyond > 100


# HOW IT IS ASKED FOR


def of_signature(parameters: str, returns: str) -> Any:
    scope: dict[str, Any] = {"both": lambda q, k, v: lsed.honest(q, k, v, return_lse=True), "torch": torch, "__name__": __name__}
    exec(f"def attend(q, k, v, {parameters}):\n    o, lse = both(q, k, v)\n    return {returns}", scope)
    return scope["attend"]


@pytest.mark.parametrize(
    ("parameters", "returns", "graded"),
    [
        ("return_lse=False", "(o, lse) if return_lse else o", True),
        ("return_attn_probs=False", "(o, lse, q @ k.mT) if return_attn_probs else o", False),  # flash-attention
        ("return_softmax_lse=False", "(o, lse) if return_softmax_lse else o", False),
        ("return_residual=False", "(o, lse.transpose(1, 2)) if return_residual else o", False),  # JAX: (b i h)
        ("return_lse=False", "(o, lse.transpose(1, 2)) if return_lse else o", True),
        ("return_lse=False", "(o, torch.zeros(2), lse) if return_lse else o", True),
        ("return_lse=False", "(o, lse.detach()) if return_lse else o", False),
    ],
)
def test_which_of_several_tensors_it_is(parameters: str, returns: str, graded: bool) -> None:
    (adapter,) = resolve(of_signature(parameters, returns))
    assert "lse" in adapter.offers
    subject = meet(adapter, "cpu", {}, None, ("float32",))
    assert subject.offers("lse_grad") == graded
    problem = build(Case(heads="2/2", i=3, j=5, d=8, lse="returned", wrt="none"))
    assert not judge(adapter.run(problem), solve(problem, subject.dialect), "A").findings


def test_an_lse_that_is_on_by_default_is_turned_off() -> None:
    (adapter,) = resolve(of_signature("return_lse=True", "(o, lse) if return_lse else o"))
    call = adapter.call(build(Case(heads="2/2", wrt="none")))
    assert call.arguments["return_lse"] is False


def test_an_adapter_returns_both() -> None:
    class Both(Adapter):
        def attend(self, q, k, v, *, lse=False):
            o, own = lsed.honest(q, k, v, return_lse=True)
            return (o, own) if lse else o

    assert {"lse", "lse_grad"} <= set(Both.offers)
    problem = build(Case(heads="2/2", i=3, j=5, d=8, lse="both"))
    assert not judge(Both().run(problem), solve(problem, CANONICAL), "A").findings


def test_an_adapter_that_returns_no_lse_is_told() -> None:
    class Forgetful(Adapter):
        def attend(self, q, k, v, *, lse=False):
            return lsed.honest(q, k, v)

    problem = build(Case(heads="2/2", i=3, j=5, d=8, lse="returned", wrt="none"))
    (found,) = judge(Forgetful().run(problem), solve(problem, CANONICAL), "A").findings
    assert (found.output, found.kind) == ("lse", "missing")
    assert "(o, lse)" in found.message


@pytest.mark.parametrize("name", lsed.HONEST)
def test_the_choices_are_seen(name: str) -> None:
    kernel, said, _ = lsed.HONEST[name]
    subject = meet(resolve(kernel)[0], "cpu", {}, None, ("float32", "bfloat16"))
    for choice in ("lse_base", "lse_empty", "lse_dtype"):
        assert getattr(subject.dialect, choice) == {**vars(CANONICAL), **said}[choice]
        assert subject.sources[choice].startswith("observed")


def test_a_sentinel_is_seen() -> None:
    def attend(q, k, v, attn_mask=None, is_causal=False, return_lse=False):
        o, lse = lsed.honest(q, k, v, attn_mask, 0.0, is_causal, return_lse=True)
        return (o, lse.clamp(min=-1e30)) if return_lse else o

    assert meet(resolve(attend)[0], "cpu", {}, None, ("float32",)).dialect.lse_empty == "sentinel"


# WHO IS ASKED WHAT


def test_who_offers_no_lse_is_asked_what_it_was() -> None:
    class Without(Adapter):
        offers = frozenset({"mha", "causal", "backward", "mask", "key_padding"})

    assert all(case.lse == "none" for case in array("pairs", Without(), DTYPES))
    subject = meet(resolve(torch.nn.functional.scaled_dot_product_attention)[0], "cpu", {}, None, ("float32",))
    assert not {name for name in subject.sources if name.startswith("lse")}
    assert build(Case()).outputs == ("o", "dq", "dk", "dv")


def test_levels_are_read_as_they_are_written() -> None:
    for level in LSE.levels:
        case = Case(lse=level)
        assert Case.parse(case.token()) == case
    with pytest.raises(ValueError, match="lse"):
        Case.parse("lse=some")


# MISTAKES


@pytest.mark.parametrize("dialect", [TOP_LEFT, Dialect("top_left", lse_base="2", lse_empty="plus_inf")])
def test_each_mistake_of_the_lse_can_show(dialect: Dialect) -> None:
    """None of them is another name of the right answer, and each gives what has the form of one."""
    left = set(MISTAKES.mistakes) - {"lse_without_softcap"}
    beside_sinks = Case(heads="2/2", i=3, j=5, sinks="normal", lse="returned", wrt="none")
    for case in (*array("pairs", resolve(lsed.honest)[0], ("float32",)), beside_sinks):
        if case.lse == "none":
            continue
        problem = build(case)
        exact = solve(problem, dialect)
        for name in sorted(left):
            wrong = MISTAKES.mistakes[name].wrong(problem, dialect, exact)
            assert wrong is None or all(x.shape == exact.values[output].shape for output, x in wrong.items()), name
            left -= {name} if wrong is not None and multiple(wrong, exact, "A") > 1 else set()
    of_halves, own = {"lse_rounded"}, {f"lse_empty_{dialect.lse_empty}"}
    assert left <= of_halves | own | ({"lse_times_ln2"} if dialect.lse_base == "2" else set())


# OTHER PEOPLE'S


class TorchFlash(Adapter):
    """The kernel of torch's CPU that returns a logsumexp."""

    offers = frozenset({"mha", "strided", "backward", "scale", "causal", "lse", "bias"})
    dialect = {"causal_alignment": "top_left"}

    def attend(self, q, k, v, *, bias=None, causal=False, scale=None, lse=False):
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        o, own = kernel(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
        return (o, own) if lse else o


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_lse_of_torchs_flash_kernel_agrees(dtype: str) -> None:
    """Its lse is natural, and has no gradient."""
    seen = 0
    for n, (i, j, causal, scale) in enumerate(product((1, 5, 33), (1, 7, 40, 130), (False, True), (None, 0.3))):
        case = Case(dtype=dtype, heads="2/2", i=i, j=j, d=16, causal=causal, scale=scale, lse="returned", wrt="none", seed=n)
        problem = build(case)
        answer = TorchFlash().run(problem)
        assert answer.refusal is None
        exact = solve(problem, TOP_LEFT)
        class_ = "C" if dtype in HALF else "A"
        if not judge(Answer(answer.o), solve(problem.replace(lse=False), TOP_LEFT), class_).findings:
            findings = judge(answer, exact, class_).findings
            assert not findings, (case.token(), findings)
            seen += 1
    assert seen > 20


def test_torchs_flex_attention_agrees() -> None:
    """return_lse, eager: recognised by its parameters, natural; on a CPU it has no backward."""
    from torch.nn.attention.flex_attention import flex_attention

    (adapter,) = resolve(flex_attention)
    assert "lse" in adapter.offers
    for n, (i, j) in enumerate(product((1, 5, 20, 130), (5, 33, 200))):
        problem = build(Case(heads="2/2", i=i, j=j, d=16, lse="returned", wrt="none", seed=n))
        findings = judge(adapter.run(problem), solve(problem, CANONICAL), "A").findings
        assert not findings, (i, j, findings)
