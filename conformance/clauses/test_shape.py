"""SHAPE: what goes in decides the shape of what comes out, and no size is special."""

from dataclasses import replace

import torch

from attnspec.adapters.restrictions import forbidden
from attnspec.conformance.judging.judge import compare, form
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.meeting import WIDTHS
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.long_rows import LENGTHS, ROWS, WIDTH, free_memory, long_problem, must_be_right_in_rows
from attnspec.conformance.testing.outcomes import (
    Broken,
    NotApplicable,
    NotOffered,
    may_answer,
    must_agree,
    must_answer,
    must_be_right,
    refused,
)
from attnspec.conformance.testing.plan import agrees, on_cases, once
from attnspec.conformance.testing.relations import one_item
from attnspec.reference import to_float64
from attnspec.spec import Problem, twin
from attnspec.spec.words import OUTPUTS


@clause("SHAPE-1")
@agrees("o", form=True)
def test_output_has_a_row_for_each_query(subject: Subject, case: Case) -> None:
    """The judge asks for the shape before it looks at a value."""


@clause("SHAPE-2")
@agrees(*OUTPUTS, mask="none", bias="none", causal=False, scale=None)
def test_no_length_and_no_width_is_special(subject: Subject, case: Case) -> None:
    """Lengths and widths on both sides of every block edge."""


@clause("SHAPE-2")
@once()
def test_block_edges(subject: Subject, case: Case) -> None:
    """Long rows at the edges of the blocks that kernels use, with a needle; then with their first half hidden."""
    for j in (127, 128, 129, 255, 256, 257, 511, 513, 640, 1025):
        i = 1 if j % 2 else 3
        problem = subject.problem(fit(Case(dtype=case.dtype, heads=case.heads, i=i, j=j, d=8, values="needle"), subject.adapter))
        must_be_right(subject, problem, f"{problem.j} keys")
        if subject.offers("key_padding"):
            j = problem.j  # as many as queries, where nothing else is taken
            mask = torch.arange(j, device=subject.device)[None] >= j // 2
            must_be_right(subject, problem.replace(mask=mask), f"{j} keys, of which the first {j // 2} are hidden")


@clause("SHAPE-2")
@once()
def test_block_edges_of_queries(subject: Subject, case: Case) -> None:
    """Few keys and many queries: each row has its own answer, up to the last."""
    for i in (63, 64, 65, 127, 128, 129, 257, 513, 1025, 2049, 4096):
        problem = subject.problem(fit(Case(dtype=case.dtype, heads=case.heads, i=i, j=3, d=8, values="peaked"), subject.adapter))
        must_be_right(subject, problem, f"{i} queries")


@clause("SHAPE-2")
@once()
def test_widths(subject: Subject, case: Case) -> None:
    """Every width that is offered, of those that kernels divide into blocks, halves and vectors; then values of that width."""
    for d in WIDTHS:
        asked = Case(dtype=case.dtype, heads=case.heads, i=3, j=5, d=d, values="peaked")
        for one in (asked, replace(asked, d=8, e=d)) if subject.offers("value_width") else (asked,):
            if fit(one, subject.adapter) == one:
                must_be_right(subject, subject.problem(one), f"width {one.d}, values of width {one.width}")


@clause("SHAPE-2")
@once("scale", "value_width")
def test_a_width_of_zero_makes_all_scores_zero(subject: Subject, case: Case) -> None:
    """With a scale, since the default has none to offer: means of the values, of the visible ones under a mask or causal."""
    if subject.adapter.widths is not None and 0 not in subject.adapter.widths:
        raise NotOffered("width 0 is not one of its widths")
    plain = subject.problem(fit(Case(dtype=case.dtype, heads=case.heads, b=2, i=3, j=5, d=8, wrt="v"), subject.adapter))
    empty = plain.replace(q=plain.q[..., :0].clone(), k=plain.k[..., :0].clone(), scale=0.5)
    if refusal := refused(subject.run(empty), empty):
        raise NotOffered(f"width 0: {refusal}")
    must_be_right(subject, empty, "queries and keys of width 0")
    if subject.offers("key_padding"):
        shown = torch.ones(2, 5, dtype=torch.bool, device=subject.device)
        shown[:, 1], shown[1, 3] = False, False
        must_be_right(subject, empty.replace(mask=shown), "queries and keys of width 0, some keys hidden")
    if subject.offers("causal"):
        must_be_right(subject, empty.replace(causal=True), "queries and keys of width 0, causal")


@clause("SHAPE-3")
@agrees(*OUTPUTS, offering=("value_width",), where=lambda case: case.width != case.d)
def test_values_may_be_wider_or_narrower(subject: Subject, case: Case) -> None:
    """e ≠ d, with everything else."""


@clause("SHAPE-4")
@once(dangerous=True)
def test_nothing_in_nothing_out(subject: Subject, case: Case) -> None:
    """b, h, i and e are zero in turn; gradients keep the shapes of their inputs."""
    shared = fit(case, subject.adapter).g is None
    full = {"b": 2, "h": 2, "i": 3, "e": min(subject.adapter.widths) if subject.adapter.widths else 8}
    for empty in full if subject.offers("value_width") else ("b", "h", "i"):
        n = {**full, empty: 0}
        heads = () if shared else (n["h"],)
        like = {"dtype": getattr(torch, case.dtype), "device": subject.device}
        q = torch.ones(n["b"], n["h"], n["i"], full["e"], **like)
        k, v = torch.ones(n["b"], *heads, 4, full["e"], **like), torch.ones(n["b"], *heads, 4, n["e"], **like)
        do = torch.ones(n["b"], n["h"], n["i"], n["e"], **like) if subject.offers("backward") else None
        problem = Problem(q, k, v, do=do, wrt=("q", "k", "v") if do is not None else ())
        if not forbidden(subject.adapter.restrictions, problem):
            must_be_right(subject, problem, f"with {empty} = 0")


@clause("SHAPE-5")
@on_cases(where=lambda case: case.b > 1 and case.layout != "expanded")
def test_batch_items_do_not_see_each_other(subject: Subject, case: Case) -> None:
    """Each batch item, asked alone, gets the rows that it got among the others."""
    problem = subject.problem(case).replace(do=None, wrt=())
    together = may_answer(subject, problem)
    for n in range(problem.b):
        alone = one_item(problem, n)
        exact = subject.solve(alone)
        answer = must_be_right(subject, alone, f"batch item {n} by itself", ("o",), exact)
        must_agree(subject, together.o[n : n + 1], answer.o, exact, "o", f"batch item {n} among others and by itself")


@clause("SHAPE-5")
@on_cases(
    where=lambda case: case.h > 1 and case.sharing == "mha" and case.mask in ("none", "padding", "ij") and case.bias == "none"
)
def test_heads_do_not_see_each_other(subject: Subject, case: Case) -> None:
    """Other heads get other numbers: this one does not notice."""
    problem = subject.problem(case).replace(do=None, wrt=())
    if problem.k.stride(1) == 0:
        raise NotApplicable
    q, k, v = (twin(x) for x in (problem.q, problem.k, problem.v))
    for x in (q, k, v):
        x[:, 1:] = x[:, 1:].flip(-2) * 2 - 1
    other = problem.replace(q=q, k=k, v=v)
    before, after = may_answer(subject, problem), must_answer(subject, other)
    must_agree(
        subject,
        after.o,
        before.o,
        subject.solve(problem),
        "o",
        "head 0, when the numbers of other heads change",
        other,
        (slice(None), slice(0, 1)),
    )


@clause("SHAPE-2")
@once()
def test_rows_of_up_to_a_million_keys_are_summed_whole(subject: Subject, case: Case) -> None:
    """Sixteen rows against ever more keys: the output, and dk and dv of every key."""
    if not subject.slow:
        raise NotApplicable
    for keys in LENGTHS:
        must_be_right_in_rows(subject, long_problem(subject, case.dtype, keys, ROWS, range(ROWS)), range(ROWS), f"{keys} keys")


@clause("SHAPE-2")
@once("backward")
def test_rows_of_a_long_self_attention_are_right(subject: Subject, case: Case) -> None:
    """As many queries as keys, a few rows of them at the edges of blocks; the others ask for nothing."""
    if not subject.generic:  # from tier standard on
        raise NotApplicable
    length, causal = LENGTHS[0] if subject.slow else 1100, subject.offers("causal")
    rows = sorted({0, 1, 15, 16, 63, 64, 127, 128, length // 2, length - 2, length - 1})
    width = WIDTH if subject.slow else case.d
    problem = long_problem(subject, case.dtype, length, length, rows, width=width).replace(causal=causal)
    must_be_right_in_rows(subject, problem, rows, f"{length} queries and keys{', causal' if causal else ''}")


@clause("SHAPE-2")
@once()
def test_no_index_overflows(subject: Subject, case: Case) -> None:
    """More than 2³¹ scores, and more than 2³¹ elements in k and v, where there is memory for a kernel that keeps them."""
    if not subject.slow or case.dtype not in ("bfloat16", "float16"):
        raise NotApplicable
    free, asked = free_memory(subject.device), 0
    length = 46_342  # its square is the first beyond 2³¹
    if free > 24 * length**2:  # six times the scores in float32
        rows = [0, 1, length // 2, length - 2, length - 1]
        problem = long_problem(subject, case.dtype, length, length, rows, width=8)
        must_be_right_in_rows(subject, problem, rows, f"{length} queries and keys, more than 2³¹ scores")
        asked += 1
    heads, keys = 32, 2**31 // (32 * WIDTH) + 1
    if free > 24 * heads * keys * WIDTH:  # twelve times the keys in a half type
        problem = long_problem(subject, case.dtype, keys, 1, [0], heads=heads)
        must_be_right_in_rows(subject, problem, [0], f"{heads} heads of {keys} keys, more than 2³¹ elements")
        asked += 1
    if not asked:
        raise NotApplicable


@clause("SHAPE-2")
@once()
def test_no_batch_is_too_large(subject: Subject, case: Case) -> None:
    """More batch items than 2¹⁶, seven different ones again and again."""
    if not subject.slow:
        raise NotApplicable
    seven = subject.problem(fit(Case(dtype=case.dtype, heads=case.heads, b=7, i=2, j=3, d=8, wrt="none"), subject.adapter))
    item = torch.arange(2**16 + 5, device=subject.device) % 7
    many = seven.replace(q=seven.q[item], k=seven.k[item], v=seven.v[item])
    what = f"{many.b} batch items"
    answer = must_answer(subject, many)
    wrong = form(answer.o, "output", (many.b, many.h, many.i, many.e), many, "call")
    if wrong is not None:
        raise Broken(replace(wrong, message=f"{what}: {wrong.message}"), many)
    exact = subject.solve(seven)
    tolerance = exact.tolerance(subject.required_class(case.dtype))
    at = item.cpu().numpy()
    values, bound, exempt = (x[at] for x in (exact.values["o"], tolerance.bound["o"], tolerance.exempt["o"]))
    finding, _ = compare(to_float64(answer.o), values, bound, exempt, "o")
    if finding is not None:
        raise Broken(replace(finding, message=f"{what}: {finding.message}" if finding.message else what), many)
