"""Calls of many sequences: the same problem in other tensors, one module a form. They hold no mathematics.

Each lays out what a call gets, puts poison where nothing may be read, calls, looks at what may not have been written, and reads the
answer back. A form, and each of its parts, is a function without annotations and with its imports inside: scripts of failures hold
their text.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

from attnspec.adapters.answer import Unsupported
from attnspec.adapters.forms.cached import cached
from attnspec.adapters.forms.packed import packed
from attnspec.adapters.forms.padded import padded
from attnspec.adapters.forms.paged import paged
from attnspec.adapters.forms.parts import apart, filling, look_at, nobodys, side_by_side
from attnspec.adapters.restrictions import sizes
from attnspec.adapters.within import Call
from attnspec.spec import Problem
from attnspec.spec.ragged import FORMS, Carrier, Kept, Paged
from attnspec.spec.turns import cos_and_sin, turned


class Form(NamedTuple):
    """A form: the method of an adapter that takes it, what lays it out, and the features that parameters of the method show.

    parts: functions that what lays it out calls, in the order of a script that holds their text.
    """

    method: str
    puts: Callable[..., Any]
    shown: dict[str, str]
    parts: tuple[Callable[..., Any], ...]


BY_FEATURE = {
    "packed": Form("attend_packed", packed, {"used_q": "packed_gaps"}, (filling, side_by_side, look_at, apart)),
    "padded": Form("attend_padded", padded, {"q_lengths": "padded_queries"}, (filling, look_at)),
    "cached": Form(
        "attend_cached",
        cached,
        {
            "k_new": "cached_append",
            "left": "cached_left",
            "slots": "cached_slots",
            "cos": "cached_rotary",
            "value_width": "cached_latent",
            "interleaved": "rotary_told",
        },
        (filling, nobodys, side_by_side, look_at),
    ),
    "paged": Form(
        "attend_paged",
        paged,
        {"k_new": "paged_append", "cos": "paged_rotary", "value_width": "paged_latent", "interleaved": "rotary_told"},
        (filling, nobodys, side_by_side, look_at, apart),
    ),
}
ALWAYS = {"packed": ("packed_long",), "paged": ("paged_queries", "paged_any_size", "paged_any_entry")}


@cache
def text_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The lines of a function, which scripts of failures hold."""
    return tuple(inspect.getsource(function).splitlines())


def features_of(feature: str, method: Callable[..., Any]) -> frozenset[str]:
    """What an adapter offers that has this method for a form, as its parameters show."""
    form, takes = BY_FEATURE[feature], inspect.signature(method).parameters
    shown = {own for parameter, own in form.shown.items() if parameter in takes}
    shown |= {"rotary", "rotary_any_width"} if "cos" in takes else set()
    return frozenset({feature, *ALWAYS.get(feature, ()), *shown})


def carried(attend: Callable[..., Any], name: str, problem: Problem, source: tuple[str, ...], spoilt: list[str]) -> Call:
    """The call of a problem in the form of its carrier, by the method `attend` of an adapter, which is called `name`.

    source: lines of Python that define a function attend_FORM. spoilt: what the call wrote that it may not is put there.
    Raises Unsupported where the method has no parameter for an option.
    """
    carrier = problem.carrier
    assert carrier is not None
    options = {x: value for x, value in problem.given().items() if x not in ("carrier", "training", "dropout", "q_start")}
    if problem.q_start is not None:
        raise Unsupported(f"{name}() has no parameter for q_start")
    takes = inspect.signature(attend).parameters
    if problem.dropout and (problem.training or "training" in takes):  # only in training does anything drop out
        options |= {"dropout": problem.dropout, "training": problem.training}
    unsaid = options.keys() - takes.keys() if not any(p.kind is p.VAR_KEYWORD for p in takes.values()) else set()
    if unsaid:
        raise Unsupported(f"{name}() has no parameter {', '.join(sorted(unsaid))}")
    form = BY_FEATURE[carrier.feature]
    given = {x: value for x, value in carrier.data().items() if x != "form"}
    function = partial(form.puts, attend, spoilt=spoilt)
    turns = (cos_and_sin, turned) if getattr(carrier, "rotary", 0) else ()
    used = (*form.parts, *turns, form.puts)
    text = (*(line for part in used for line in ("", "", *text_of(part))), "", "", "def attend(**given):")
    return Call(
        function,
        {"q": problem.q, "k": problem.k, "v": problem.v, **given, **options},
        (*source, *text, f"    return {form.puts.__name__}({form.method}, **given)"),
    )


def offered(adapter: Any) -> str:
    """The form in which an adapter puts dense problems that has no attend() of its own; '' where it has one, or no form."""
    for feature, form in BY_FEATURE.items():
        if getattr(adapter, form.method, None) is not None:
            return feature
    return ""


def as_a_form(problem: Problem, feature: str, restrictions: Iterable[str] = ()) -> Problem:
    """A dense problem in a form, whose batch items are sequences of one length. Raises Unsupported where it can't be one.

    Where it has rows that are nobody's, they hold finite numbers: what those do is for problems that have a carrier to show. Who
    always appends gets a new key for each query.
    """
    if problem.mask is not None or problem.bias is not None or problem.shared:
        what = "one shared head" if problem.shared else "a mask" if problem.mask is not None else "a bias"
        raise Unsupported(f"a {feature} call has no {what}")
    carrier: Carrier = FORMS[feature]((problem.i,) * problem.b, (problem.j,) * len(problem.k))
    if isinstance(carrier, Paged):
        carrier = replace(carrier, poison="lure", size=sizes(restrictions).get("page_size", carrier.size))
    if isinstance(carrier, Kept) and "always_append" in restrictions:
        if problem.i > problem.j:
            raise Unsupported(f"a {feature} call that appends a key for each query has no fewer keys than queries")
        carrier = replace(carrier, new=carrier.q_lengths)
    found = copy.copy(problem)  # and not checked: sizes that do not fit are for the implementation to refuse
    object.__setattr__(found, "carrier", carrier)
    return found


__all__ = ["BY_FEATURE", "Form", "as_a_form", "carried", "features_of", "offered", "text_of"]
