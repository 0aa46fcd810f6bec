"""What shows that a mutant differs: one call whose answer is outside of its bound, or a relation between calls.

    python tests/mutants/witness.py [NAME …]      # look for witnesses, and write them to tests/mutants/witnesses.json

A witness is the token of a case, or the name of a relation below; an honest kernel has none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attnspec.adapters import Adapter, resolve
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.tensors import build
from attnspec.reference import Exact, default_class, solve
from attnspec.spec import Dialect, Problem, differentiable
from attnspec.spec.ragged import FORMS
from mutants import ragged_cases
from mutants.base import Mutant, load

FILE = Path(__file__).with_name("witnesses.json")
DTYPES = LEVELS["dtype"]

# ONE CALL


@cache
def _asked(case: Case, dialect: Dialect, gradients: tuple[str, ...]) -> tuple[Problem, Exact]:
    problem = build(case, "cpu", gradients)
    return problem, solve(problem, dialect)


def wrong(adapter: Adapter, case: Case) -> bool:
    """Whether the answer to a case, as far as it is offered, is outside of the class that its dtype must hold."""
    case = fit(case, adapter)
    problem, exact = _asked(case, Dialect(**adapter.dialect), differentiable(adapter.offers))
    return bool(judge(adapter.run(problem), exact, adapter.accuracy or default_class(case.dtype)).findings)


SPECIAL = (
    Case(i=1, j=64, heads="2/2"),
    Case(b=3, i=2, j=3, heads="3/3", mask="rank3"),
    Case(b=3, i=2, j=3, heads="3/3", bias="rank3"),
    Case(dtype="bfloat16", i=3, j=5, causal=True),
    Case(dtype="float16", i=9, j=17, d=64, mask="bhij", values="large"),
    Case(b=3, i=1, j=513, d=16, mask="j"),
    Case(i=3, j=257),
    Case(i=257, j=3, b=2),
    Case(i=65, j=16, d=1),
    Case(i=129, causal=True),
    Case(i=65, j=130, heads="2/2", causal=True, values="peaked"),
    Case(i=40, j=513, mask="bhij", wrt="all"),
    Case(i=5, j=7, d=128),
    Case(i=5, j=7, d=72),
    Case(i=3, j=5, e=72, d=40),
    Case(b=2, i=1, heads="1/1", j=5),
    Case(b=2, i=33, j=33, heads="2/2", mask="bhij", holes="random"),
    Case(b=2, i=1, j=64, heads="6/2", mask="bj", holes="suffix"),
    Case(i=17, j=129, mask="bhij", holes="suffix", wrt="all", heads="2/2"),
    Case(i=1, j=65, heads="4/2", causal=True),
    Case(i=1, j=1, values="large"),
    Case(i=8, j=8, heads="8/2", d=16),
    Case(b=3, i=8, j=129, d=64, heads="3/3"),
    Case(i=2, j=5, values="large", bias="bhij", biases="inf"),
    *(
        Case(i=3, j=5, softcap=cap, heads=heads, bias=bias)
        for cap in (0.7, 3.1)
        for heads in ("2/2", "4/2")
        for bias in ("none", "ij")
    ),
    Case(i=1, j=9, softcap=0.7, bias="bhij", heads="2/2"),
    Case(i=3, j=40, softcap=0.7, values="large"),
    *(
        Case(b=2, i=i, j=j, heads="4/2", sinks=sinks, scale=0.3, **more)
        for sinks in ("normal", "mixed")
        for i, j in ((1, 1), (1, 9), (5, 7), (20, 9), (1, 150), (3, 300))
        for more in ({}, {"mask": "bhj", "holes": "first_block"})
    ),
    *(Case(b=2, i=9, j=j, heads="2/2", causal=True, sinks=sinks) for j in (0, 4, 70) for sinks in ("normal", "inf")),
    Case(b=2, i=3, j=7, heads="2/2", bias="bhi", sinks="normal"),
    Case(b=2, i=3, j=7, heads="2/2", bias="ij", biases="shift", sinks="above"),
    Case(b=2, i=5, j=40, heads="2/2", mask="ij", holes="empty_row", sinks="mixed"),
    *(Case(i=i, j=j, heads="2/2", lse="returned") for i, j in ((1, 5), (9, 5), (3, 65), (3, 130))),
    *(Case(b=3, i=i, j=5, heads="2/2", mask="bhij", holes="empty_row", lse="both") for i in (1, 5, 40)),
    *(Case(i=i, j=5, heads="2/2", lse="both") for i in (3, 70)),
    *(Case(i=3, j=4, heads="2/2", bias="bhi", biases=kind, lse="returned") for kind in ("normal", "shift")),
    Case(i=3, j=5, lse="alone"),
    Case(dtype="bfloat16", i=3, j=65, lse="returned"),
    *(
        Case(b=3, i=i, j=j, heads=heads, alibi_slopes=form, values="peaked", causal=causal)
        for form in ("h", "bh", "mixed")
        for heads in ("2/2", "3/3", "4/2")
        for i, j in ((5, 9), (1, 9), (9, 4))
        for causal in (False, True)
    ),
    *(Case(i=3, j=j, heads="2/2", alibi_slopes="h") for j in (17, 40, 70, 140)),
    Case(i=3, j=9, heads="2/2", alibi_slopes="h", scale=0.0),
    *(Case(b=2, i=3, j=4, heads="3/3", bias=form, biases=kind) for form in LEVELS["bias"] for kind in LEVELS["biases"]),
    *(Case(b=2, i=3, j=4, heads="3/3", mask=form) for form in LEVELS["mask"]),
    *(Case(dtype=dtype, i=5, j=65, d=40, heads="4/2", values=values) for dtype in DTYPES for values in LEVELS["values"]),
    *(Case(i=17, j=33, d=16, layout=layout, heads="2/2", b=2, bias="hij") for layout in LEVELS["layout"]),
)


def cases(adapter: Adapter, name: str = "pairs") -> Iterator[Case]:
    """The fixed list, cheap ones first."""
    rows = sorted(array(name, adapter, DTYPES), key=lambda case: case.cost)
    special = SPECIAL if FORMS.keys().isdisjoint(adapter.offers) else (*ragged_cases.CASES, *SPECIAL)
    yield from (case for case in dict.fromkeys((*(fit(case, adapter) for case in special), *rows)) if case.cost < 1 << 21)


# RELATIONS BETWEEN CALLS, for functions of torch's convention

Attend = Callable[..., Tensor]
RELATIONS: dict[str, Callable[[Attend], bool]] = {}


def relation(shows: Callable[[Attend], bool]) -> Callable[[Attend], bool]:
    """Enter a relation: True where it does not hold."""
    RELATIONS[shows.__name__] = shows
    return shows


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_(grad)


def qkv(i: int = 4, j: int = 5, *, b: int = 2, h: int = 3, d: int = 8, **how: Any) -> list[Tensor]:
    return [numbers(b, h, n, d, seed=seed, **how) for seed, n in enumerate((i, j, j))]


def honest(*inputs: Tensor, **options: Any) -> Tensor:
    from honest import tiled

    return tiled(*inputs, **options)


def apart(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return True
    return not torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-3, equal_nan=True)


@relation
def an_input_is_changed(attend: Attend) -> bool:
    for options in ({}, {"attn_mask": torch.ones(4, 5, dtype=torch.bool)}, {"attn_mask": torch.zeros(4, 5)}):
        inputs = [*qkv(grad=True), *options.values()]
        before = [x.detach().clone() for x in inputs]
        cotangent = numbers(2, 3, 4, 8, seed=9)
        kept = cotangent.clone()
        attend(*inputs[:3], **options).backward(cotangent)
        if not all(torch.equal(x, y) for x, y in zip([*inputs, cotangent], [*before, kept], strict=True)):
            return True
    return False


@relation
def something_global_is_changed(attend: Attend) -> bool:
    def state() -> tuple:
        rng = tuple(torch.get_rng_state().tolist())
        return torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision(), rng

    torch.rand(1)
    before = state()
    for dtype in (torch.float32, torch.float64):
        attend(*qkv(dtype=dtype))
    return state() != before


@relation
def an_output_shares_memory(attend: Attend) -> bool:
    for j in (1, 5):
        inputs = qkv(j=j)
        first = attend(*inputs)
        second = attend(*inputs)
        owners = [x.untyped_storage().data_ptr() for x in (*inputs, second)]
        if first.untyped_storage().data_ptr() in owners:
            return True
    return False


@relation
def an_answer_depends_on_earlier_calls(attend: Attend) -> bool:
    def asked(seed: int, i: int = 4, **options: Any) -> bool:
        inputs = [x + seed for x in qkv(i)] if seed < 3 else [x * (-1) ** n for n, x in enumerate(qkv(i))]
        return apart(attend(*inputs, **options), honest(*inputs, **options))

    masks = [numbers(4, 5, seed=seed) for seed in (20, 21)]
    series = [asked(0), asked(1), asked(3), asked(0, scale=0.1), asked(0, scale=1.0), asked(0)]
    series += [asked(0, attn_mask=mask) for mask in masks] + [asked(0, attn_mask=mask > 0) for mask in masks]
    series += [asked(0, i, is_causal=True) for i in (6, 4, 9, 1, 6)]
    inputs = qkv()
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    series += [apart(attend(*transposed), honest(*inputs))]
    series += [apart(attend(*inputs), honest(*inputs))]
    for x in inputs:
        x.neg_().add_(0.5)
    series += [apart(attend(*inputs), honest(*inputs)), apart(attend(*inputs), honest(*inputs))]
    return any(series)


@relation
def a_mode_changes_the_answer(attend: Attend) -> bool:
    for dtype in (torch.float32,):
        for options in ({}, {"attn_mask": numbers(4, 5, seed=8)}):
            inputs = qkv(dtype=dtype)
            right = honest(*inputs, **options)
            with torch.no_grad():
                if not torch.allclose(attend(*inputs, **options), right, atol=1e-4):
                    return True
            with torch.inference_mode():
                if not torch.allclose(attend(*inputs, **options), right, atol=1e-4):
                    return True
    return False


@relation
def autocast_changes_the_answer(attend: Attend) -> bool:
    for options in ({}, {"attn_mask": numbers(4, 5, seed=8)}):
        inputs = qkv()
        try:
            with torch.autocast("cpu", torch.bfloat16):
                if not torch.allclose(attend(*inputs, **options).float(), honest(*inputs, **options), atol=3e-2):
                    return True
        except RuntimeError:
            return True
    return False


@relation
def compiling_changes_the_answer(attend: Attend) -> bool:
    inputs, compiling = qkv(), torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: True
    try:
        return apart(attend(*inputs), honest(*inputs))
    finally:
        torch.compiler.is_compiling = compiling


@relation
def a_gradient_depends_on_the_others(attend: Attend) -> bool:
    bias = numbers(4, 5, seed=8)
    cotangent = numbers(2, 3, 4, 8, seed=9)

    def gradients(function: Attend, wrt: tuple[int, ...]) -> list[Tensor | None]:
        inputs = [x.detach().clone().requires_grad_(n in wrt) for n, x in enumerate((*qkv(), bias))]
        out = function(*inputs[:3], attn_mask=inputs[3])
        if not out.requires_grad:
            return [None]
        return list(torch.autograd.grad(out, [inputs[n] for n in wrt], cotangent))

    subsets = ((0,), (1,), (2,), (3,), (0, 2), (1, 2), (0, 1, 2, 3))
    return any(apart(a, b) for wrt in subsets for a, b in zip(gradients(attend, wrt), gradients(honest, wrt), strict=False))


@relation
def a_cotangent_is_misread(attend: Attend) -> bool:
    plain = numbers(2, 3, 4, 8, seed=9)
    silent = plain.clone()
    silent[:, :, 1:] = 0
    forms = (plain * 4, silent, plain[:, :, :1].expand(2, 3, 4, 8), plain[..., :1].expand(2, 3, 4, 8))
    forms = (*forms, plain.transpose(1, 2).contiguous().transpose(1, 2), plain.mT.contiguous().mT)
    for cotangent in forms:
        results = []
        for function in (attend, honest):
            inputs = qkv(grad=True)
            try:
                results.append(torch.autograd.grad(function(*inputs), inputs, cotangent))
            except RuntimeError:
                return True
        if any(apart(a, b) for a, b in zip(*results, strict=True)):
            return True
    return False


@relation
def tied_inputs_lose_a_gradient(attend: Attend) -> bool:
    for tied in ((1, 2), (0, 1), (0, 1, 2)):
        results = []
        for function in (attend, honest):
            inputs = [x[:, :, :4].clone() for x in qkv(4, 4)]
            inputs = [inputs[tied[0]] if n in tied else x for n, x in enumerate(inputs)]
            inputs[tied[0]].requires_grad_()
            try:
                results.append(torch.autograd.grad(function(*inputs), inputs[tied[0]], numbers(2, 3, 4, 8, seed=9))[0])
            except RuntimeError:
                return True
        if apart(*results):
            return True
    return False


@relation
def a_second_derivative_is_wrong(attend: Attend) -> bool:
    from honest import split_k

    results = []
    for function in (attend, split_k):
        q, k, v = qkv(grad=True)
        try:
            (dq,) = torch.autograd.grad(function(q, k, v), q, numbers(2, 3, 4, 8, seed=9), create_graph=True)
            results.append(torch.autograd.grad(dq.square().sum(), k)[0])
        except RuntimeError:
            return False
    return apart(*results)


@relation
def tiny_weights_are_lost(attend: Attend) -> bool:
    """A hidden key with 10²⁰ in its value, and rows whose visible scores are very negative."""
    q, k, v = qkv(4, 5)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[:, 2] = False
    for x, y in ((k, 1e30), (v, 1e30), (v, float("nan")), (k, float("nan")), (k, 3e3), (v, 1e-30)):
        kept = x[:, :, 2].clone()
        before = attend(q, k, v, attn_mask=mask)
        x[:, :, 2] = y
        after = attend(q, k, v, attn_mask=mask)
        if not torch.equal(before, after) and not (y != y and x is v):
            return True
        x[:, :, 2] = kept
    return False


@relation
def dropout_is_wrong(attend: Attend) -> bool:
    b, h, i, j = 3, 4, 40, 48
    q, k = numbers(b, h, i, 8), torch.zeros(b, h, j, 8)
    v = torch.eye(j).expand(b, h, j, j).contiguous()
    q, k, v = q.requires_grad_(), k.requires_grad_(), v.requires_grad_()

    def kept(rate: float, seed: int, **options: Any) -> Tensor:
        torch.manual_seed(seed)
        return attend(q, k, v, dropout_p=rate, **options)

    for rate in (0.3, 0.6):
        for options in ({}, {"attn_mask": torch.ones(i, j, dtype=torch.bool)}):
            out = kept(rate, 1, **options)
            p = (out * j * (1 - rate)).detach()
            keep = p > 0.5
            sizes = ((p - p.round()).abs().max() > 1e-3) or p.max() > 1.5
            share = abs(float(keep.float().mean()) - (1 - rate)) > 0.02
            alike = keep.float().flatten(-2)
            blocks = torch.equal(keep[..., :16], keep[..., 16:32])
            pairs = torch.equal(keep[..., 0::2], keep[..., 1::2])
            rows = torch.equal(keep[..., 0, :], keep[..., 1, :]) or torch.equal(keep[..., 0], keep[..., 1])
            heads = torch.equal(alike[:, 0], alike[:, 1]) or torch.equal(alike[0], alike[1])
            again = torch.equal(kept(rate, 2, **options), out) or bool(keep[..., 0].all())
            cotangent = numbers(*out.shape, seed=3)
            out = kept(rate, 1, **options)
            dk, dv = torch.autograd.grad(out, (k, v), cotangent)
            weights = keep / (j * (1 - rate))
            dp = (cotangent @ v.mT) * keep / (1 - rate)
            ds = (dp - (dp / j).sum(-1, keepdim=True)) / j
            backward = apart(dv, weights.mT @ cotangent) or apart(dk, ds.mT @ q * 8**-0.5)
            if sizes or share or blocks or pairs or rows or heads or again or backward:
                return True
    try:
        if not torch.equal(kept(1.0, 1), torch.zeros(b, h, i, j)):
            return True
    except ValueError:
        return True
    kept(0.5, 1)
    return apart(attend(q, k, v), honest(q, k, v))


@relation
def two_options_are_not_refused_or_both_read(attend: Attend) -> bool:
    q, k, v = qkv(4, 4)
    mask = torch.ones(4, 4, dtype=torch.bool).triu(-1)
    try:
        out = attend(q, k, v, attn_mask=mask, is_causal=True)
    except RuntimeError:
        return False
    return apart(out, honest(q, k, v, attn_mask=mask.tril()))


@relation
def it_is_wrong_on_nothing(attend: Attend) -> bool:
    for b, h, i, j, e in ((0, 2, 3, 4, 8), (2, 0, 3, 4, 8), (2, 2, 0, 4, 8), (2, 2, 3, 0, 8), (2, 2, 3, 4, 0)):
        results = []
        for function in (attend, honest):
            inputs = [torch.ones(b, h, n, d, requires_grad=True) for n, d in ((i, 8), (j, 8), (j, e))]
            try:
                out = function(*inputs)
                results.append([out, *torch.autograd.grad(out, inputs, torch.ones(b, h, i, e))])
            except Exception:
                return True
        if any(apart(x, y) for x, y in zip(*results, strict=True)):
            return True
    return False


@relation
def sixteen_forms_are_misread(attend: Attend) -> bool:
    q, k, v = qkv(4, 5)
    for n in range(16):
        shape = [size if n >> axis & 1 else 1 for axis, size in enumerate((2, 3, 4, 5))]
        mask = numbers(*shape, seed=n) > 0
        mask.view(-1)[0] = ~mask.view(-1)[-1]
        bias = numbers(*shape, seed=n)
        grads = []
        for function in (attend, honest):
            given = bias.clone().requires_grad_()
            grads.append(torch.autograd.grad(function(q, k, v, attn_mask=given), given, numbers(2, 3, 4, 8, seed=9))[0])
        if apart(attend(q, k, v, attn_mask=mask), honest(q, k, v, attn_mask=mask)) or apart(*grads):
            return True
    return not torch.isfinite(attend(q, k, v, attn_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool))).all() or apart(
        attend(q, k, v, attn_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool)), torch.zeros(2, 3, 4, 8)
    )


@relation
def a_slice_is_misread(attend: Attend) -> bool:
    for cut in (slice(3, 8), slice(0, 5)):
        long = qkv(12, 12, d=16)
        parts = [x[:, :, cut, 4:12] for x in long]
        mask = numbers(7, 9, seed=5) > -0.5
        for part in (mask[2:7, 4:9], mask[2:7, 4:9].mT, mask[2:7, :1].expand(5, 5)):
            if apart(attend(*parts, attn_mask=part), honest(*parts, attn_mask=part)):
                return True
        one = [x[..., :1] for x in long]
        try:
            if apart(attend(*one), honest(*one)):
                return True
        except RuntimeError:
            return True
    q, k, v = qkv(4, 5)
    big = torch.full((2, 3, 9, 8), 0.5)
    big[:, :, :5] = v
    return apart(attend(q, k, big[:, :, :5]), honest(q, k, v))


@relation
def large_products_overflow(attend: Attend) -> bool:
    q, k, v = (torch.full((1, 1, 2, 64), 64.0, dtype=torch.float16) for _ in range(3))
    return not torch.isfinite(attend(q, k, v, scale=1e-4)).all()


@relation
def errors_lean(attend: Attend) -> bool:
    """Over thousands of numbers the errors of bfloat16 or float16 have a preferred sign, or a slope against another scale."""
    from honest import eager

    for dtype in (torch.bfloat16, torch.float16):
        leaning = []
        for function in (attend, eager):
            inputs = qkv(64, 32, b=4, h=4, d=16, dtype=dtype)
            wide = [x.double() for x in inputs]
            right = honest(*wide)
            slope = honest(*wide, scale=0.26) - honest(*wide, scale=0.25)
            error = function(*inputs).double() - right
            leaning.append(
                (float((error * slope).sum() / (slope**2).sum()), float((error * right.sign()).mean() / right.abs().mean()))
            )
        if any(abs(a - b) > limit for a, b, limit in zip(*leaning, (0.015, 5e-4), strict=True)):
            return True
    return False


# ALL TOGETHER


@contextmanager
def as_before() -> Iterator[None]:
    """What is global is what it was afterwards."""
    dtype, grad, precision = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.set_float32_matmul_precision(precision)


def shows(adapter: Adapter, mutant: Mutant | None, witness: str) -> bool:
    """Whether a witness holds for a fresh one."""
    with as_before():
        return _shows(adapter, mutant, witness)


def _shows(adapter: Adapter, mutant: Mutant | None, witness: str) -> bool:
    if witness == "its own":
        return mutant is not None and mutant.witness is not None and bool(mutant.witness(mutant.make()))
    if witness in RELATIONS:
        return RELATIONS[witness](adapter.function)  # type: ignore[attr-defined]
    return wrong(adapter, Case.parse(witness))


def adapters(thing: Any) -> list[Adapter]:
    """Its variants, with the names of modules that are defined nowhere."""
    return resolve(thing)


def search(mutant: Mutant) -> str | None:
    """The first witness, each tried on a fresh one, or None."""
    if mutant.witness is not None and mutant.witness(mutant.make()):
        return "its own"
    for n, variant in enumerate(adapters(mutant.make())):
        relations = RELATIONS if getattr(variant, "torch_convention", False) else ()
        for witness in (*(case.token() for case in cases(variant)), *relations):
            if shows(adapters(mutant.make())[n], mutant, witness):
                return witness
    return None


def main(names: list[str]) -> None:
    table = load()
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in names or [name for name, one in table.items() if one.kind != "liar" and name not in found]:
        found.pop(name, None)
        try:
            witness = search(table[name])
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}"[:300], flush=True)
            continue
        if witness is None:
            print(f"{name}: none", flush=True)
        else:
            found[name] = witness
    found = {name: witness for name, witness in sorted(found.items()) if name in table}
    FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(found)} witnesses")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
