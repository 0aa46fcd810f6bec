"""Modules of the `Attend` family: options in the constructor, tensors in forward, a flash switch with two paths."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from attnspec.adapters.contract import Adapter, Call, Unsupported, quiet
from attnspec.adapters.convention import Signature, UnknownSignature
from attnspec.spec import Problem

# Options that a constructor or a forward may carry.
OPTIONS = ("causal", "scale", "dropout")


class AttendAdapter(Adapter):
    """A class whose instances attend. One instance is kept for each constructor setting and used for all calls.

    The convention promises key padding `(b j)`, bottom-right causal masking, and leaves rows without a key open. Masks of
    four dimensions are not promised: they are tried, and may be refused.
    """

    def __init__(self, kind: type, name: str, source: tuple[str, ...], kwargs: Mapping[str, Any] | None = None,
                 flash: bool | None = None) -> None:
        self.kind, self.name, self.source = kind, name, source
        self.kwargs = dict(kwargs or {})
        self.module = issubclass(kind, torch.nn.Module)
        self.constructor = Signature.of(kind)
        self.forward = Signature.of(_unbound(kind, "forward" if self.module else "__call__"))
        missing = [field for field in "qkv" if field not in self.forward.fields]
        required = [p for p in self.forward.unknown_required if p != "self"]
        unset = [p for p in self.constructor.unknown_required if p not in self.kwargs]
        if missing or required:
            raise UnknownSignature(f"forward has no parameter for {', '.join(missing)}" if missing
                                   else f"forward requires {', '.join(required)}, which no convention knows")
        if unset:
            raise UnknownSignature(f"the constructor requires {', '.join(unset)}; give them with --impl-kwargs, "
                                   f"for example --impl-kwargs {unset[0]}=8")
        self.flash = flash
        if flash is not None:
            self.variant = f"{self.constructor.fields['flash']}={flash}"
        self._instances: dict[tuple, Any] = {}
        self.offers = self._offers()
        if "causal" in self.offers:
            self.dialect = {"causal_alignment": "bottom_right"}

    def _offers(self) -> frozenset[str]:
        fields = self.forward.fields.keys() | (self.constructor.fields.keys() - self.kwargs.keys())
        offers = {"backward", "strided"} | ({"causal", "scale", "dropout", "bias"} & fields)
        if "mask" in self.forward.fields:
            offers.add("key_padding")
        if "bias" in offers:
            offers.add("bias_grad")
        if self.module:
            offers.add("module")
        return frozenset(offers | {self._observed_heads()})

    def _observed_heads(self) -> str:
        """A signature does not say whether keys have a head axis. Ask with one, and if that is refused, without."""
        q, kv = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8)
        for form, x in (("mha", kv), ("shared_kv", kv[:, 0])):
            with quiet(), torch.no_grad():
                try:
                    if self._instance()(q, x, x).shape == q.shape:
                        return form
                except Exception:
                    continue
        return "mha"

    def call(self, problem: Problem) -> Call:
        """An instance with the problem's constructor settings, in its mode, and the arguments of its forward."""
        forward, constructor = self.forward.fields, self.constructor.fields
        if problem.shared != ("shared_kv" in self.offers):
            raise Unsupported("its keys have no head axis" if "shared_kv" in self.offers else "its keys have a head axis")
        arguments: dict[str, Any] = {forward["q"]: problem.q, forward["k"]: problem.k, forward["v"]: problem.v}
        for field, value in (("mask", problem.mask), ("bias", problem.bias)):
            if value is None:
                continue
            if field not in forward:
                raise Unsupported(f"{self.name} has no parameter for {field}")
            arguments[forward[field]] = value
        settings: dict[str, Any] = {}
        rate = problem.dropout if self.module or problem.training else 0.0
        for field, value in zip(OPTIONS, (problem.causal or None, problem.scale, rate or None), strict=True):
            if value is None:
                continue
            if field in forward:
                arguments[forward[field]] = value
            elif field in constructor and constructor[field] not in self.kwargs:
                settings[constructor[field]] = value
            else:
                raise Unsupported(f"{self.name} has no parameter for {field}")
        instance = self._instance(**settings)
        if self.module:
            instance.train(problem.training)
        kwargs = ", ".join(f"{key}={value!r}" for key, value in self._settings(settings).items())
        mode = f".train({problem.training})" if self.module else ""
        return Call(instance, arguments, (*self.source, f"attend = {self.kind.__qualname__}({kwargs}){mode}"))

    def _settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        flash = {} if self.flash is None else {self.constructor.fields["flash"]: self.flash}
        return {**self.kwargs, **flash, **settings}

    def _instance(self, **settings: Any) -> Any:
        key = tuple(sorted(settings.items()))
        if key not in self._instances:
            self._instances[key] = self.kind(**self._settings(settings))
        return self._instances[key]


def variants(kind: type, name: str, source: tuple[str, ...], kwargs: Mapping[str, Any]) -> list[AttendAdapter]:
    """One adapter for each setting of the flash switch, or one where there is no switch or --impl-kwargs sets it."""
    switch = Signature.of(kind).fields.get("flash")
    settings = [None] if switch is None or switch in kwargs else [False, True]
    return [AttendAdapter(kind, name, source, kwargs, flash) for flash in settings]


def _unbound(kind: type, method: str) -> Any:
    function = inspect.getattr_static(kind, method, None)
    if function is None:
        raise UnknownSignature(f"the class {kind.__qualname__} has no {method}()")
    return getattr(kind, method)
