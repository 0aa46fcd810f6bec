"""What the two sides say to each other, as plain data: docs/protocol.md says it in words, protocol.schema.json checks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attnspec.adapters.contract import Adapter
from attnspec.adapters.conventions.layout import Reading
from attnspec.adapters.within import Within
from attnspec.spec import OPTIONS, Problem
from attnspec.spec.problem import TENSORS, options_from, plain_options

VERSION = 1
# What a peer may do beside answering, by name; what it does not, it is not asked.
ABILITIES = ("memory", "on", "fresh", "again", "holds", "trace", "wholly", "presented", "script", "surroundings")


def tensors_of(problem: Problem) -> dict[str, Tensor]:
    """The tensors of a problem by name, the cotangent among them."""
    return {name: x for name in TENSORS if (x := getattr(problem, name)) is not None}


def same_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Of each tensor that was given under an earlier name already, that name."""
    first: dict[int, str] = {}
    return {name: first[id(x)] for name, x in tensors.items() if first.setdefault(id(x), name) != name}


def options_of(problem: Problem) -> dict[str, Any]:
    """The options that are no tensors, all of them, and the inputs whose gradients are asked for."""
    scalars = {name: getattr(problem, name) for name, own in OPTIONS.items() if not own.tensor}
    return plain_options(scalars) | {"wrt": list(problem.wrt)}


def problem_of(request: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Problem:
    """The problem of a request, as who asks has made it: nothing is checked, for its sizes may contradict each other."""
    fields: dict[str, Any] = {name: tensors.get(name) for name in TENSORS} | options_from(request["options"])
    problem = object.__new__(Problem)
    for name, value in fields.items():
        object.__setattr__(problem, name, value)
    return problem


def said(within: Within) -> dict[str, Any]:
    """What surrounds a call, without what is as ever."""
    return {name: x for name, x in within._asdict().items() if x != Within._field_defaults[name]}


def within_of(request: Mapping[str, Any]) -> Within:
    """What surrounds the call of a request."""
    return Within(**request.get("within", {}))


def settings(adapter: Adapter) -> dict[str, Any]:
    """What was settled about an adapter."""
    return {
        "offers": sorted(adapter.offers),
        "restrictions": sorted(adapter.restrictions),
        "widths": None if adapter.widths is None else list(adapter.widths),
        "dialect": dict(adapter.dialect),
        **({} if adapter.kernel is None else {"reading": adapter.reading.plain()}),
    }


def settle(adapter: Adapter, told: Mapping[str, Any]) -> None:
    """Settle the same about an adapter here."""
    for name, value in told.items():
        setattr(adapter, name, Reading.of(value) if name == "reading" else tuple(value) if isinstance(value, list) else value)


def declared(number: int, adapter: Adapter) -> dict[str, Any]:
    """What an implementation says of itself."""
    return {
        "implementation": number,
        **{name: getattr(adapter, name) for name in ("name", "version", "variant", "accuracy", "deterministic")},
        "dtypes": None if adapter.dtypes is None else list(adapter.dtypes),
        "devices": None if adapter.devices is None else list(adapter.devices),
        "flash": bool(getattr(adapter, "flash", False)),
        "torch_convention": bool(adapter.torch_convention),
        "disturbed": dict(adapter.disturbed),
        "kernel": None if adapter.kernel is None else str(getattr(adapter.kernel, "__module__", "")),
        "read_by": adapter.read_by,
        "arrays": list(adapter.arrays),
        "masks": list(adapter.masks),
        "dense_form": adapter.dense_form,
        "presents": type(adapter).presented is not Adapter.presented,
        "does": [x for x in ABILITIES if x != "fresh" or type(adapter).fresh is not Adapter.fresh],
        **settings(adapter),
    }
