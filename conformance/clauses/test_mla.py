"""MLA: latents, whose first channels are the values of the keys that they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.outcomes import NotApplicable, must_answer, must_be_right
from attnspec.conformance.testing.plan import once
from attnspec.conformance.testing.sequences import asked, carried, must_be_as, must_leave, must_not_see
from attnspec.spec import Problem
from attnspec.spec.ragged import Paged

WIDTHS = ((24, 16), (20, 8), (12, 10), (16, 16), (40, 33), (576, 512))  # d and e; the last ones are a model's
ASKED = 3  # of these, of who takes them
LENGTHS = ("1:21/1:4/1:8", "3:21/3:4/3:8", "1:40/1:1/1:16")


def widths(subject: Subject) -> list[tuple[int, int]]:
    """Widths of rows and of values that are taken, the model's own among them where it is."""
    taken = [(d, e) for d, e in WIDTHS if subject.adapter.widths is None or d in subject.adapter.widths]
    if not taken:
        raise NotApplicable
    return list(dict.fromkeys((*taken[:ASKED], taken[-1])))


def latents(subject: Subject, case: Case, form: str, d: int, e: int, **levels: Any) -> Problem:
    """A problem whose pages, or cache, hold latents alone. Raises NotApplicable where its levels are not offered."""
    lengths = str(levels.get("lengths", LENGTHS[1]))
    i, j = (max(int(pair.split(":")[n]) for pair in lengths.split("/")) for n in (0, 1))
    levels = {"b": len(lengths.split("/")), "i": i, "j": j, "lengths": lengths} | levels
    carrier = str(levels.pop("carrier", form))
    if carrier == "paged" and subject.offers("paged_any_size"):
        carrier = "paged+3"
    heads = "4/1" if subject.offers("mqa") else "1/1"
    found = asked(subject, replace(case, d=d), e=e if e != d else 0, heads=heads, carrier=f"{carrier}+latent", **levels)
    if (found.d, found.e) != (d, e):
        raise NotApplicable
    return found


def causals(subject: Subject) -> tuple[bool, ...]:
    """Without causal, and with it where it is offered."""
    return (False, True) if subject.offers("causal") else (False,)


def must_be_right_in(subject: Subject, case: Case, form: str) -> None:
    """All widths and lengths, without new rows and with them where they are offered."""
    for d, e in widths(subject):
        for lengths in LENGTHS if d < 100 else LENGTHS[1:2]:
            for causal in causals(subject):
                problem = latents(subject, case, form, d, e, lengths=lengths, causal=causal, scale=0.3)
                must_be_right(
                    subject, carried(problem, **dealt(problem)), f"latents of {d} channels, of which {e} are values", ("o",)
                )
    if subject.offers(f"{form}_append"):
        d, e = widths(subject)[0]
        problem = latents(subject, case, form, d, e, carrier=f"{form}+append", scale=0.3)
        must_be_right(subject, problem, "latents, of which some are new", ("o",))


def dealt(problem: Problem) -> dict[str, Any]:
    """Pages that do not lie in order, and pages that are free."""
    return {"seed": 3, "spare": 2} if isinstance(problem.carrier, Paged) else {}


@clause("MLA-1")
@once("paged_latent", "scale")
def test_values_are_the_first_channels(subject: Subject, case: Case) -> None:
    """Widths of rows and values of all kinds, with a given scale."""
    must_be_right_in(subject, case, "paged")


@clause("MLA-2")
@once("cached_latent", "scale")
def test_values_of_a_cache_are_the_first_channels(subject: Subject, case: Case) -> None:
    """Widths of rows and values of all kinds, with a given scale."""
    must_be_right_in(subject, case, "cached")


@clause("MLA-3")
@once("paged_latent")
def test_the_default_scale_is_of_whole_rows(subject: Subject, case: Case) -> None:
    """No scale is given."""
    for d, e in widths(subject):
        must_be_right(subject, latents(subject, case, "paged", d, e), f"the default scale of rows of {d} channels", ("o",))


@clause("MLA-4")
@once("paged_latent")
def test_absorbed_is_explicit(subject: Subject, case: Case) -> None:
    """The same numbers in pages of keys and in pages of values."""
    if not subject.offers("value_width"):
        raise NotApplicable
    for d, e in widths(subject)[:ASKED]:
        for causal in causals(subject):
            problem = latents(subject, case, "paged", d, e, causal=causal)
            other = carried(problem.replace(v=problem.v.clone()), latent=False)
            before, after = must_answer(subject, problem), must_answer(subject, other)
            must_be_as(subject, before, after, problem, [0, 1, 2], "keys and values lie in pages of their own", other)


@clause("MLA-5")
@once("paged_latent")
def test_the_turned_part_moves_scores_alone(subject: Subject, case: Case) -> None:
    """Twice what stands behind the values, and others' numbers, beside queries that are zero there."""
    for d, e in [(d, e) for d, e in widths(subject) if e < d]:
        problem = latents(subject, case, "paged", d, e)
        q, k = problem.q.clone(), problem.k.clone()
        q[..., e:] = 0
        first = problem.replace(q=q)
        before = must_answer(subject, first)
        for what, part in (("is twice as large", 2 * k[..., e:]), ("is another key's", k[..., e:].flip(2))):
            keys = torch.cat([k[..., :e], part], -1)
            other = first.replace(k=keys, v=keys[..., :e])
            must_be_as(subject, before, must_answer(subject, other), first, [0, 1, 2], f"k_pe {what}, and q_pe is zero", other)


@clause("MLA-6")
@once("paged_latent", "paged_append")
def test_new_latents_are_written_once(subject: Subject, case: Case) -> None:
    """Every bit of every page is compared; new rows cross the border of a page."""
    for d, e in widths(subject)[:ASKED]:
        for carrier in ("paged+append", "paged+3+append") if subject.offers("paged_any_size") else ("paged+append",):
            problem = latents(subject, case, "paged", d, e, carrier=carrier)
            must_leave(subject, problem)


@clause("MLA-7")
@once("paged_latent", "lse")
def test_the_lse_beside_latents(subject: Subject, case: Case) -> None:
    """With causal and without."""
    for d, e in widths(subject)[:ASKED]:
        for causal in causals(subject):
            problem = latents(subject, case, "paged", d, e, causal=causal, lse="returned")
            must_be_right(subject, problem, "the lse beside latents", ("lse",))


@clause("MLA-8")
@once("paged_latent")
def test_pages_of_nobody_have_no_influence_on_latents(subject: Subject, case: Case) -> None:
    """Free pages, and the rest of the last page."""
    d, e = widths(subject)[0]
    must_not_see(subject, latents(subject, case, "paged", d, e), spare=4, seed=3)


@clause("MLA-9")
@once("paged", "value_width")
def test_pages_of_other_widths(subject: Subject, case: Case) -> None:
    """Values narrower than keys, and wider; pages that are full, and a row."""
    for d, e in ((24, 16), (16, 24), (12, 8), (8, 12), (192, 128), (96, 64)):
        if subject.adapter.widths is not None and d not in subject.adapter.widths:
            continue
        for lengths in ("1:21/1:4/1:16", "3:21/3:4/3:16"):
            form = "paged+3" if subject.offers("paged_any_size") else "paged"
            problem = asked(subject, replace(case, d=d), e=e, carrier=form, lengths=lengths, i=int(lengths[0]), j=21)
            must_be_right(subject, carried(problem, seed=3), f"keys of {d} channels and values of {e}", ("o",))
