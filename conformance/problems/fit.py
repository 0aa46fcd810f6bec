"""A case bent to what an adapter offers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

from attnspec.adapters import Adapter
from attnspec.adapters.restrictions import sizes
from attnspec.conformance.problems.case import FACTORS, PLAIN, Case
from attnspec.conformance.problems.factors import COST
from attnspec.conformance.problems.factors.factor import Offer
from attnspec.conformance.problems.factors.ragged import DENSE_ALONE, SIZE, form_of, lengths_of
from attnspec.conformance.problems.factors.sizes import heads_of
from attnspec.spec import Dialect

SQUARE = 5 * COST  # of as many queries as keys, so that four heads of 1025 fit, and one of 2049: a gigabyte


def decodes(case: Case) -> bool:
    """Few queries against more keys, as a cache of keys asks."""
    return case.i <= 8 and case.keys > case.i


def grows(trial: Case, case: Case, most: int = COST) -> bool:
    """Whether a case costs more than the one that it was made of, and more than `most`.

    j = 0 means as many keys as queries, however many these are.
    """
    return trial.cost > max(most, case.cost)


def affordable(case: Case, adapter: Adapter, most: int = COST) -> Case:
    """The same case with widths, then lengths, halved until it costs no more than `most`. Sizes that alone are taken stay."""
    while case.cost > most and case.i * case.keys > 1:
        if case.d > 16 and adapter.widths is None:
            case = replace(case, d=case.d // 2, e=case.e // 2)
        elif case.e > 16 and "value_width" not in sizes(adapter.restrictions):
            case = replace(case, e=case.e // 2)
        elif not case.j:
            case = replace(case, i=case.i // 2)
        else:  # the shorter one, as long as there is something left of it: long rows matter
            queries = (case.i <= case.j) == (min(case.i, case.j) > 3)
            case = replace(case, i=case.i // 2) if queries else replace(case, j=case.j // 2)
    return case


def thinner(trial: Case, case: Case, adapter: Adapter) -> Case:
    """What was made of a case, with one batch item and smaller where it costs more than the case and than a large square."""
    if not grows(trial, case, SQUARE):
        return trial
    alone = trial.carrier == "none" or "heads" not in sizes(adapter.restrictions)  # several sequences are what a carrier is for
    return affordable(replace(trial, b=1) if alone else trial, adapter, SQUARE)


@cache
def _rules(features: frozenset[str]) -> list[tuple[str, Callable[[Case, Offer], Any]]]:
    """What fitting to an offer of these features may change, in the order of the factors of a case, and how."""
    rules = ((name, factor.fitting(features)) for name, factor in FACTORS.items())
    return [(name, rule) for name, rule in rules if rule is not None]


def fit(case: Case, adapter: Adapter) -> Case:
    """The nearest case that uses nothing but what is offered, and nothing that a restriction leaves out."""
    if adapter.restrictions:
        case = thinner(_restricted(sized(case, adapter.restrictions), set(adapter.restrictions)), case, adapter)
    offer = Offer(frozenset(adapter.offers), adapter.widths)
    fitted = object.__new__(Case)  # a copy that is still in the making: what a rule reads of it is fitted already
    levels = vars(fitted)
    levels.update(vars(case))
    for name, rule in _rules(offer.features):
        levels[name] = rule(fitted, offer)
    if fitted.carrier != "none":
        levels.update(_ragged(fitted, offer))
        levels.update(_lengths(fitted, adapter.restrictions))
    return case if levels == vars(case) else fitted


def _ragged(case: Case, offer: Offer) -> dict[str, Any]:
    """What gives way to a carrier: what only dense calls have, and gradients where keys are in a cache or in pages."""
    gives = dict(DENSE_ALONE) | {"holes": FACTORS["holes"].plain, "biases": FACTORS["biases"].plain}
    if case.g is None:
        gives["heads"] = heads_of(replace(case, heads=f"{case.h}/1"), offer)
    if form_of(case) in ("cached", "paged"):
        gives |= {"wrt": "none", "do": "dense"}
    elif case.wrt not in ("q", "k", "v", "qv", "none"):
        gives["wrt"] = "all"
    if gives.get("wrt") == "none" and case.lse != "none":
        gives["lse"] = "returned"
    return gives


def _lengths(case: Case, restrictions: Iterable[str]) -> dict[str, Any]:
    """The lengths of sequences that have all one number of queries, or as many queries as keys."""
    number, same = sizes(restrictions).get("queries"), "equal_lengths" in restrictions and form_of(case) in ("packed", "padded")
    if not number and not same:
        return {}
    q_lengths, k_lengths = lengths_of(case)
    wanted = tuple(number or (k if same else q) for q, k in zip(q_lengths, k_lengths, strict=True))
    return {} if wanted == q_lengths else {"lengths": "/".join(f"{q}:{k}" for q, k in zip(wanted, k_lengths, strict=True))}


def sized(case: Case, restrictions: Iterable[str]) -> Case:
    """The case with the sizes that alone are taken, and without rows behind packed sequences where none are."""
    only, changes = sizes(restrictions), dict[str, Any]()
    if "heads" in only:
        changes["heads"] = only["heads"]
    if "value_width" in only:
        changes["e"] = only["value_width"] if only["value_width"] != case.d else 0
    if "queries" in only and case.i != only["queries"]:
        changes |= {"i": only["queries"], "j": case.keys}
    form, *words = case.carrier.split("+")
    if form == "paged" and "page_size" in only:
        rows = only["page_size"]
        words = [*([str(rows)] if rows != SIZE else []), *(word for word in words if not word.isdecimal())]
    if form == "packed" and "no_tail" in restrictions:
        words = [word for word in words if word != "tail"]
    return replace(case, **changes, carrier="+".join([form, *words]))


def avoidable(case: Case, adapter: Adapter, dialect: Dialect) -> Case:
    """The case without what every case of this adapter has and nobody can blame: its only heads, and causal that hides nothing."""
    only, changes = sizes(adapter.restrictions), dict[str, Any]()
    if case.heads == only.get("heads"):
        changes["heads"] = FACTORS["heads"].plain
    if case.width == only.get("value_width"):
        changes["e"] = FACTORS["e"].plain
    if "always_causal" in adapter.restrictions and case.i == 1 and dialect.causal_alignment == "bottom_right":
        changes["causal"] = False
    return replace(case, **changes)


def _restricted(case: Case, restrictions: set[str]) -> Case:
    """The nearest case that the restrictions leave. Of two options that exclude each other the seed says which is dropped."""
    changes: dict[str, Any] = {}
    causal = "always_causal" in restrictions or ("window_with_causal" in restrictions and case.window != PLAIN["window"])
    if causal:
        changes["causal"] = True
    if restrictions & {"equal_lengths", "one_tensor"}:
        changes["j"] = 0
    if "one_tensor" in restrictions:  # large keys are made for small queries: among themselves they score beyond 10⁸
        changes |= {"heads": f"{case.h}/{case.h}", "e": 0, "values": "peaked" if case.values == "large" else case.values}
    if "padding_only" in restrictions and case.mask != "none":
        changes["mask"] = "padding"
    case = replace(case, **changes)
    if "always_append" in restrictions and form_of(case) in ("cached", "paged"):
        most = max(case.i, case.keys)
        case = replace(case, j=most if most > case.keys else case.j)
        q_lengths, k_lengths = lengths_of(case)
        q_lengths = q_lengths if form_of(case) == "paged" else (case.i,) * case.b
        if any(i > j for i, j in zip(q_lengths, k_lengths, strict=True)):
            case = replace(case, lengths="/".join(f"{i}:{max(i, j)}" for i, j in zip(q_lengths, k_lengths, strict=True)))
        form, *words = case.carrier.split("+")
        if "append" not in words:
            size = [word for word in words if word.isdecimal()]
            case = replace(case, carrier="+".join([form, *size, "append", *(word for word in words if word not in size)]))
    for n, (a, b) in enumerate((("mask", "bias"), ("mask", "causal"), ("bias", "causal"))):
        if f"{a}_or_{b}" in restrictions and getattr(case, a) != PLAIN[a] and getattr(case, b) != PLAIN[b]:
            dropped = a if case.seed >> n & 1 or (b == "causal" and causal) else b
            case = replace(case, **{dropped: PLAIN[dropped]})
    return case
