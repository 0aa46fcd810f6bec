"""A fault of a call of many sequences is reduced to the fewest and shortest that show it, has its clause, and is told by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import many
import pytest
import rotated
import torch
from judging import judge
from many import Plan, Told, Wrong, each, kernel, keys, of, start
from threads import one_thread  # noqa: F401  a fixture

from attnspec.adapters import Adapter, resolve
from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.function import adapted
from attnspec.adapters.conventions.layout import AS_IT_IS
from attnspec.conformance.diagnosis import diagnose as diagnosing
from attnspec.conformance.diagnosis.explain import Explainer
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.diagnosis.names import sentence
from attnspec.conformance.diagnosis.nobodys import reads_nobodys
from attnspec.conformance.mistakes.power import multiple
from attnspec.conformance.mistakes.vocabulary import MISTAKES, OF_SEQUENCES
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.problems.shrink import shrink
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.problems.words import describe
from attnspec.conformance.report.repro import script
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.subject.subject import Subject
from attnspec.reference import solve
from attnspec.spec import Dialect, Problem

BASE = "heads=4/2,b=3,i=4,j=11,d=8,values=peaked,wrt=none,"
EVERY = (
    "carrier=packed+gaps+tail+slack+turned,lengths=mixed,alibi_slopes=bh",
    "carrier=packed+tail,lengths=zero_first,causal=True",
    "carrier=packed,lengths=crossed,window=2:0",
    "carrier=padded,lengths=mixed,causal=True,alibi_slopes=bh",
    "carrier=cached,lengths=mixed,causal=True",
    "carrier=cached+append+left+room+slots,lengths=mixed,causal=True,alibi_slopes=bh",
    "carrier=cached+append+left+room+slots,lengths=mixed",
    "carrier=paged+3+append+dealt+spare+columns,lengths=crossed,causal=True",
    "carrier=paged+3+dealt,lengths=zero_first,window=3:",
    "carrier=packed+gaps+tail,lengths=4:11/2:0/3:5",
    "carrier=paged+3+fused,lengths=zero_middle",
    "carrier=cached+fused+room,lengths=zero_middle",
)


def no_borders(plans: list[Plan], told: Told) -> None:
    rows, at = [row for plan in plans for row in plan.keys], 0
    for plan in plans:
        plan.keys, plan.start = rows, at + sum(told.j) - sum(told.i)
        at += len(plan.queries)


def stale(plan: Plan, told: Told, n: int) -> None:
    old = told.j[n] - told.new[n]
    plan.keys = plan.keys[:old] + [row + told.count for row in plan.keys[old:]] if told.new[n] else plan.keys


def own_slot(plan: Plan, told: Told, n: int) -> None:
    plan.keys = [row % told.room + n * told.room for row in plan.keys]


def in_pool_order(plans: list[Plan], told: Told) -> None:
    page = 0
    for n, plan in enumerate(plans):
        plan.keys = [(page + at // told.size) * told.size + at % told.size for at in range(told.j[n])]
        page += -(-told.j[n] // told.size)


def first_slopes(plan: Plan, told: Told, n: int) -> None:
    plan.slopes = 0


TOO_FAR = keys(lambda told, n: told.j[n] + 1)
LONGEST = keys(lambda told, n: max(told.j))
NAMED: list[tuple[str, Wrong, str, str, str]] = [  # form, what is wrong, a case, the clause, the mistake
    ("packed", keys(lambda told, n: told.j[n] - 1), "carrier=packed,lengths=mixed", "VARLEN-1", "last_key_dropped"),
    ("packed", no_borders, "carrier=packed,lengths=mixed", "VARLEN-1", "no_borders"),
    ("packed", of(lambda told, n: n + 1), "carrier=packed,lengths=crossed", "VARLEN-1", "keys_of_next"),
    (
        "packed",
        start(lambda told, n: max(told.j) - max(told.i)),
        "carrier=packed,lengths=mixed,causal=True",
        "VARLEN-2",
        "placed_by_longest",
    ),
    ("packed", start(lambda told, n: 0), "carrier=packed,lengths=mixed,causal=True", "VARLEN-2", "placed_at_zero"),
    ("padded", TOO_FAR, "carrier=padded,lengths=mixed", "VARLEN-12", "length_one_more"),
    ("padded", each(first_slopes), "carrier=padded,lengths=mixed,alibi_slopes=bh", "VARLEN-12", "slopes_of_first_sequence"),
    ("cached", LONGEST, "carrier=cached+room,lengths=mixed", "CACHE-3", "length_of_longest"),
    ("cached", each(stale), "carrier=cached+append,lengths=mixed", "CACHE-2", "new_keys_stale"),
    ("cached", each(own_slot), "carrier=cached+slots+left,lengths=mixed", "CACHE-7", "slots_ignored"),
    ("paged", in_pool_order, "carrier=paged+3+dealt,lengths=mixed", "PAGED-1", "table_ignored"),
    (
        "paged",
        keys(lambda told, n: -(-told.j[n] // told.size) * told.size),
        "carrier=paged+3,lengths=mixed",
        "PAGED-3",
        "page_read_whole",
    ),
]


def explained(wrong: type[many.Many] | str, token: str) -> tuple[Subject, Explained]:
    """What is said of a kernel that fails on a case."""
    subject = meet(resolve(wrong)[0], "cpu", {}, None, None)
    case = fit(Case.parse(BASE + token), subject.adapter)
    return subject, Explainer(subject).explain(case, subject.judgement(case).findings[0])[0].explained


@pytest.mark.parametrize(("form", "wrong", "token", "clause", "name"), NAMED, ids=[f"{x[0]}-{x[4]}" for x in NAMED])
def test_a_fault_of_a_form_has_its_clause_and_its_name(form: str, wrong: Wrong, token: str, clause: str, name: str) -> None:
    subject, found = explained(kernel(wrong, form), token)
    assert found.diagnosis is not None
    assert (found.clause, found.diagnosis.best) == (clause, (name,))
    assert "this reproduces the wrong answer on" in sentence(found.diagnosis)
    assert found.case.carrier != "none"
    assert found.problem.q.numel() <= 4
    again = Case.parse(found.case.token())
    assert any(one.likeness == found.finding.likeness for one in subject.judgement(again).findings)


def test_where_the_dense_call_is_wrong_as_well_its_clause_is_blamed() -> None:
    """A kernel that has no other call than a packed one: its dense problems are sequences of one length."""
    wrong = kernel(keys(lambda told, n: told.j[n] - 1), "packed", attend=many.Adapter.attend)
    _, found = explained(wrong, "carrier=packed,lengths=mixed")
    assert (found.clause, found.case.carrier) == ("SOFTMAX-1", "none")
    assert found.diagnosis is not None
    assert found.diagnosis.best == ("last_key_dropped",)


def test_dense_problems_that_are_sequences_are_told_by_mistakes_of_sequences() -> None:
    """Two batch items are two sequences: what is wrong between them is no fault of a dense call."""
    wrong = kernel(no_borders, "packed", attend=many.Adapter.attend)
    _, found = explained(wrong, "carrier=packed,lengths=mixed")
    assert (found.clause, found.case.b) == ("VARLEN-1", 2)
    assert found.diagnosis is not None
    assert found.diagnosis.best == ("no_borders",)


def test_a_kernel_that_reads_what_belongs_to_nobody_is_told_so() -> None:
    """Whatever it finds there; one that reads other sequences' rows alone is not."""
    for wrong, form, reads in ((TOO_FAR, "padded", True), (of(lambda told, n: 0), "packed", False), (None, "paged", False)):
        subject = meet(resolve(kernel(wrong, form))[0], "cpu", {}, None, None)
        word = {"padded": "", "packed": "+tail", "paged": "+3+spare"}[form]
        problem = subject.problem(fit(Case.parse(f"{BASE}carrier={form}{word},lengths=mixed"), subject.adapter))
        assert reads_nobodys(subject, problem, "o") == reads
        assert not reads_nobodys(subject, problem.replace(carrier=None), "o")


# MISTAKES


def every_form(poison: str) -> Iterator[Problem]:
    """Problems of all forms, of calls that turn, and of latents, with what stands where nobody may read; small ones first."""
    for token in EVERY:
        case = Case.parse(BASE.replace("wrt=none", "wrt=all") + f"{token},poison={poison}")
        yield build(case if case.carrier.startswith("pa") and "paged" not in case.carrier else replace(case, wrt="none"))
    for carrier in ("paged+3", "paged+3+append"):
        problem = build(Case.parse(f"{BASE}carrier={carrier},lengths=4:11/2:9/3:10,poison={poison}"))
        changes: dict[str, Any] = {"new": (1, 2, 3)} if "append" in carrier else {"shared": 1}
        yield problem.replace(carrier=replace(problem.carrier, **changes))  # type: ignore[type-var]
    yield from rotated.turns()
    yield from rotated.latents()
    yield build(Case.parse("heads=2/1,i=2,j=70,d=128,e=80,values=peaked,wrt=none,carrier=cached+latent,lengths=2:70"))


@pytest.mark.parametrize("poison", ["nan", "lure"])
def test_each_mistake_of_sequences_can_show(poison: str) -> None:
    """None is another name of the right answer, and each gives what has the form of one."""
    left = {name for name in OF_SEQUENCES if poison == "nan" or not name.endswith("weighed_with_zero")}
    for problem in every_form(poison):
        exact = solve(problem, Dialect(rotary_query="first"))
        for name in sorted(left):
            wrong = OF_SEQUENCES[name].wrong(problem, exact.dialect, exact)
            for output, x in (wrong or {}).items():
                assert x.shape == exact.values[output].shape, (name, output)
            left -= {name} if wrong and multiple(wrong, exact, "A") > 1 else set()
    assert left == set()


@pytest.mark.parametrize("name", ["scale_missing", "causal_ignored", "last_key_dropped"])
def test_a_mistake_of_a_dense_call_is_made_in_each_sequence(name: str) -> None:
    problem = build(Case.parse(BASE + "carrier=packed+gaps,lengths=zero_middle,causal=True"))
    exact = solve(problem, Dialect())
    wrong = MISTAKES[name].wrong(problem, exact.dialect, exact)
    assert wrong is not None
    for n, part in enumerate(exact.parts):  # type: ignore[attr-defined]
        one = MISTAKES[name].wrong(part.problem, exact.dialect, part)
        expected = part.values["o"] if one is None else one["o"]
        assert (wrong["o"][n, :, : part.problem.i] == expected[0]).all()
        assert not wrong["o"][n, :, part.problem.i :].any()


# AS IT IS READ


def test_a_reduced_problem_is_read_as_sequences() -> None:
    said = describe(Case.parse("b=2,i=1,j=2,d=1,carrier=paged+3+dealt,lengths=1:1/1:2"))
    assert said == (
        "float32: 2 batch items, 1 head, 1 query, 2 keys, width 1; paged, pages of 3, pages in any order; "
        "sequences of 1, 1 queries and 1, 2 keys"
    )


def test_a_sequence_without_rows_is_left_only_where_the_fault_needs_it() -> None:
    _, found = explained(kernel(keys(lambda told, n: told.j[n] + 1), "packed"), "carrier=packed,lengths=zero_middle")
    assert (found.clause, "0" in found.case.lengths) == ("VARLEN-1", False)


def test_a_ragged_problem_without_a_case_is_cut() -> None:
    """To the sequence that is wrong, with its own lengths."""
    subject = meet(resolve(kernel(None, "packed"))[0], "cpu", {}, None, None)
    problem = subject.problem(fit(Case.parse(BASE + "carrier=packed,lengths=mixed"), subject.adapter))
    small = shrink(problem, subject.adapter, lambda trial: trial.carrier is not None and max(trial.carrier.k_lengths) > 3)
    assert small.carrier is not None
    assert (small.b, max(small.carrier.k_lengths), small.i) == (1, 4, 1)


SCRIPTED = [
    ("packed", "PackedFirst", "carrier=packed+turned,lengths=mixed"),
    ("cached", "CachedStale", "carrier=cached+append+left,lengths=mixed"),
    ("paged", "PagedFar", "carrier=paged+3+dealt,lengths=mixed"),
    ("cached", "CachedSpoilt", "carrier=cached+append+room,lengths=mixed"),
]
KERNELS = """
import many


class PackedFirst(many.kernel(many.of(lambda told, n: 0), "packed")):
    pass


class CachedStale(many.kernel(many.keys(lambda told, n: told.j[n] - told.new[n]), "cached")):
    pass


class PagedFar(many.kernel(many.keys(lambda told, n: told.j[n] + 1), "paged")):
    pass


class CachedSpoilt(many.kernel(None, "cached")):
    def attend_cached(self, q, k_cache, v_cache, lengths, **options):
        found = super().attend_cached(q, k_cache, v_cache, lengths, **options)
        v_cache[:, -1:] = 0
        return found
"""


@pytest.mark.parametrize(("form", "name", "token"), SCRIPTED)
def test_a_script_lays_the_call_out_and_shows_the_same(form: str, name: str, token: str, tmp_path: Path) -> None:
    """The same number, or that the call wrote where it may not."""
    (tmp_path / "scripted_kernels.py").write_text(KERNELS, encoding="utf-8")
    subject, found = explained(f"{tmp_path}/scripted_kernels.py:{name}", token)
    text = script(subject, found, None)
    assert text is not None
    (tmp_path / "repro.py").write_text(text, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "repro.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    if name == "CachedSpoilt":
        assert (found.clause, "['v_cache']" in ran.stdout) == ("CACHE-4", True)
        return
    got = subject.run(found.problem).o[found.finding.index]  # type: ignore[index]
    assert f"o{list(found.finding.index)} = {got.item()!r}" in ran.stdout


class OneTooFar(Adapter):
    """Pages alone, one query for each sequence: it reads a row behind the last key."""

    offers = ("mha", "mqa", "gqa", "scale", "paged")
    restrictions = ("queries:1",)
    dialect: ClassVar[dict[str, str]] = {"causal_alignment": "bottom_right"}

    def attend_paged(  # type: ignore[no-untyped-def]
        self, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, scale=None
    ):
        rows, group = [], q.shape[1] // k_pages.shape[2]
        for n, length in enumerate(lengths.tolist()):
            k, v = (
                x[table[n, : -(-length // x.shape[1])].long()].flatten(0, 1)[: length + 1].repeat_interleave(group, 1)
                for x in (k_pages, v_pages)
            )
            s = torch.einsum("hd,jhd->hj", q[n], k) * (q.shape[-1] ** -0.5 if scale is None else scale)
            rows.append(torch.einsum("hj,jhe->he", s.softmax(-1), v))
        return torch.stack(rows) if rows else q[..., : v_pages.shape[-1]]


def test_who_has_no_dense_call_breaks_the_clause_of_its_form() -> None:
    """A plain problem showed it, and SOFTMAX-1 was blamed. It is asked again by a test of dense calls."""
    outcome = judge("test_ragged_diagnosis.OneTooFar", "--clauses=SOFTMAX-1", "--impl-dtypes=float32")
    assert [failure.clause for failure in outcome.failures] == ["PAGED-3"]
    assert "each sequence is read one key further than its length" in outcome.screen
    assert "--clauses=SOFTMAX-1 --case=" in outcome.screen


def test_of_two_calls_that_differ_the_wrong_one_is_explained() -> None:
    """The order of the sequences changes an answer: the first of the two was right, and nothing was said."""
    outcome = judge("mutants.implementations.none_longer_than_the_first", "-x", "--clauses=VARLEN-7", "--impl-dtypes=float32")
    assert [failure.clause for failure in outcome.failures] == ["VARLEN-7"]
    assert "no sequence has more keys than the first" in outcome.screen


def test_pages_that_are_shared_are_explained() -> None:
    """With their numbers in another order they are no longer the same in all sequences."""
    outcome = judge("mutants.implementations.page_read_once", "-x", "--clauses=PAGED-9", "--impl-dtypes=float32")
    assert [failure.clause for failure in outcome.failures] == ["PAGED-9"]
    assert "pages that an earlier sequence has are skipped" in outcome.screen


def test_a_failure_says_that_the_time_for_its_name_was_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosing, "SECONDS", 0.0)
    outcome = judge("mutants.implementations.scale_missing", "-x", "--clauses=SCALE-1", "--impl-dtypes=float32")
    assert "named     not: the time to find its name was used up" in outcome.screen


def test_who_has_a_dense_call_by_parameters_has_it_blamed() -> None:
    """A function whose family has a form beside it, as JAX's, was taken for one without a dense call."""

    def attend(q, k, v, causal=False):  # type: ignore[no-untyped-def]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def in_a_form(function, q, k, v, k_lengths, *, causal=False):  # type: ignore[no-untyped-def]
        return function(q, k, v, causal)

    convention = Convention("by parameters", "", reading=AS_IT_IS, plain=True, forms={"padded": in_a_form})
    (adapter,) = adapted(attend, "attend", (), convention)
    assert "padded" in adapter.offers
    assert adapter.dense_form == ""
