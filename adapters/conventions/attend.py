"""Classes of the `Attend` family: options in the constructor, tensors in forward, a flash switch with two paths."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from attnspec.adapters.answer import Unsupported
from attnspec.adapters.contract import Adapter
from attnspec.adapters.conventions import lses
from attnspec.adapters.conventions.function import read, ready
from attnspec.adapters.conventions.signature import ResolveError, Signature, UnknownSignature
from attnspec.adapters.conventions.wording import Wording, passed
from attnspec.adapters.watch.state import current_accelerator, watched
from attnspec.adapters.within import Call, quiet
from attnspec.spec import OPTIONS, SCALARS, Problem
from attnspec.spec.problem import gradient_features


class AttendAdapter(Adapter):
    """A class whose instances attend. One instance is kept for each constructor setting and used for all calls.

    The convention promises key padding, and leaves the alignment of causal masking and rows without a key open. Plain calls show
    whether keys have a head axis, and one for groups; and whether a mask is (b j) or, where that is refused, (b 1 1 j). A bias
    that its own assertion refuses, as some do with flash, is not offered. Masks of four dimensions that are no padding are not
    promised: they are tried, and may be refused.
    """

    def __init__(
        self, kind: type, name: str, source: tuple[str, ...], kwargs: Mapping[str, Any] | None = None, flash: bool | None = None
    ) -> None:
        self.kind, self.name, self.source = kind, name, source
        self.kwargs = dict(kwargs or {})
        self.module = issubclass(kind, torch.nn.Module)
        method = "forward" if self.module else "__call__"
        if not any(method in base.__dict__ for base in kind.__mro__):
            raise UnknownSignature(f"the class has no {method}()")
        self.constructor = Signature.of(kind)
        self.forward = Signature.of(getattr(kind, method))
        missing = [field for field in "qkv" if field not in self.forward.fields]
        required = [p for p in self.forward.unknown_required if p != "self"]
        if missing or required:
            raise UnknownSignature(
                f"{method} has no parameter for {', '.join(missing)}"
                if missing
                else f"{method} requires {', '.join(required)}, which no convention knows"
            )
        for field in SCALARS:
            parameter = self.constructor.fields.get(field, "")
            if self.kwargs.get(parameter):
                value, alone = self.kwargs[parameter], "None" if OPTIONS[field].default is None else "0"
                raise ResolveError(
                    f"--impl-kwargs sets {parameter}={value!r}, but the suite varies {parameter} itself; omit it, "
                    f"or pass {parameter}={alone} to keep the default"
                )
        if flash is not None:
            self.variant = f"{self.constructor.fields['flash']}={flash}"
            self.kwargs[self.constructor.fields["flash"]] = flash
        self.flash = bool(self.kwargs.get(self.constructor.fields.get("flash", "")))
        self._instances: dict[tuple[Any, ...], Any] = {}
        self.returned = lses.Returned()
        self.heads = self._observed_heads()
        self.padding_axes = 2  # of a mask that is key padding
        self.offers = self._offers() - self._refused()
        for wording in self.said.values():
            self.dialect = {**self.dialect, **wording.dialect}
            self.restrictions = frozenset(self.restrictions) | wording.restrictions

    def _offers(self) -> frozenset[str]:
        free = {field for field, parameter in self.constructor.fields.items() if parameter not in self.kwargs}
        said = {name: own.feature for name, own in OPTIONS.items() if own.feature and name != "mask"}  # of masks only key padding
        takes = self.forward.fields.keys() | {field for field in free if field in SCALARS}
        offers = {"backward", "strided"} | {feature for name, feature in said.items() if name in takes}
        if "mask" in self.forward.fields:
            offers.add("key_padding")
        if "alibi_slopes" in self.forward.fields:
            offers.add("alibi_batch")
        offers |= gradient_features(offers)
        if self.module:
            offers.add("module")
        for field, wording in self.said.items():
            if OPTIONS[field].feature in offers:
                offers |= wording.features
        return frozenset(offers | self.heads)

    @property
    def said(self) -> dict[str, Wording]:
        """How options are said, by field: in the call, or in the constructor."""
        return {field: wording.constructed for field, wording in self.constructor.said.items()} | self.forward.said

    def _observed_heads(self) -> set[str]:
        """A signature does not say whether keys have a head axis, and for how many heads. Ask with one and without."""
        places = [torch.zeros(2, 6, 4, 8)]
        accelerator = current_accelerator()
        if accelerator is not None:
            places.append(places[0].to(accelerator, torch.float16))
        seen, disturbed = set(), dict[str, str]()
        for x in places:
            for form, kv in (("mha", x), ("shared_kv", x[:, 0]), ("gqa", x[:, :2])):
                with quiet(), torch.no_grad(), watched() as changes:
                    try:
                        if self._plainly(Problem(x, kv, kv)).shape == x.shape:
                            seen.add(form)
                    except (Exception, SystemExit):
                        pass
                disturbed = changes | disturbed
        self.disturbed = disturbed
        return seen or {"mha"}

    def _refused(self) -> set[str]:
        """What the signature shows and an assertion refuses; and the axes of a mask, by what is answered at all."""
        x = torch.zeros(2, 3, 4, 8)
        kv = (x if "mha" in self.heads else x[:, 0])[..., :3, :]
        mask, refused = torch.ones(2, 3, dtype=torch.bool), set[str]()
        if self._raised(Problem(x, kv, kv)) is not None:
            return refused
        if "bias" in self.forward.fields:
            error = self._raised(Problem(x, kv, kv), bias=torch.zeros(2, 3, 4, 3))
            refused |= {"bias", "bias_grad"} if isinstance(error, AssertionError | NotImplementedError) else set()
        if "mask" in self.forward.fields and self._raised(Problem(x, kv, kv), mask=mask) is not None:
            self.padding_axes = 4 if self._raised(Problem(x, kv, kv), mask=mask[:, None, None]) is None else 2
        return refused

    def _raised(self, plain: Problem, **more: torch.Tensor) -> Exception | None:
        """What a plain call raises, with more tensors beside q, k and v; None where it answers."""
        with quiet(), torch.no_grad(), watched():
            try:
                self._plainly(plain, **more)
            except Exception as error:
                return error
        return None

    def _plainly(self, plain: Problem, **more: torch.Tensor) -> Any:
        """What an instance returns for q, k and v, and more tensors beside them, before anything is known of it."""
        given = {"q": plain.q, "k": plain.k, "v": plain.v, **more}
        instance = ready(self.instance(), plain)[0] if self.module else self.instance()
        return instance(**{self.forward.fields[field]: x for field, x in given.items()})

    def call(self, problem: Problem) -> Call:
        """An instance with the problem's constructor settings, in its mode, and the arguments of its forward."""
        forward, constructor = self.forward.fields, self.constructor.fields
        if problem.shared != ("shared_kv" in self.heads) and not {"mha", "shared_kv"} <= self.heads:
            raise Unsupported("its keys have a head axis" if problem.shared else "its keys have no head axis")
        arguments: dict[str, Any] = {forward["q"]: problem.q, forward["k"]: problem.k, forward["v"]: problem.v}
        given = problem.given()
        for field, value in given.items():
            if not OPTIONS[field].tensor:
                continue
            if field not in forward:
                raise Unsupported(f"{self.name} has no parameter for {field}")
            padding = field == "mask" and value.ndim == 2
            arguments[forward[field]] = value[:, None, None] if padding and self.padding_axes == 4 else value
        if "training" in forward:
            arguments[forward["training"]] = problem.training
        settings: dict[str, Any] = {}
        # Only a module knows of itself whether it is training.
        rate = problem.dropout if problem.training or "training" in forward or (self.module and "dropout" not in forward) else 0.0
        asked = {field: (rate or None) if field == "dropout" else given.get(field) for field in SCALARS}
        # --impl-kwargs says what nobody asks for.
        asked = {field: value for field, value in asked.items() if value is not None or constructor.get(field) not in self.kwargs}
        for field, value in passed(asked, self.said, {**self.constructor.off, **self.forward.off}, problem):
            if field in forward:
                arguments[forward[field]] = value
            elif field in constructor and constructor[field] not in self.kwargs:
                settings[constructor[field]] = value
            else:
                raise Unsupported(f"{self.name} has no parameter for {field}")
        instance, mode = self.instance(**settings), ""
        if self.module:
            instance, mode = ready(instance, problem)
        kwargs = ", ".join(f"{key}={value!r}" for key, value in {**self.kwargs, **settings}.items())
        call = Call(instance, arguments, (*self.source, f"attend = attend({kwargs}){mode}"))
        return read(call, self.reading, tuple(forward[x] for x in "qkv"), self.returned, problem)

    def fresh(self) -> AttendAdapter:
        """The same settings, other instances."""
        other = copy.copy(self)
        other._instances = {}
        return other

    def instance(self, **settings: Any) -> Any:
        """The one instance with these constructor settings."""
        key = tuple(sorted(settings.items()))
        if key not in self._instances:
            self._instances[key] = self.kind(**self.kwargs, **settings)
        return self._instances[key]


def variants(kind: type, name: str, source: tuple[str, ...], kwargs: Mapping[str, Any]) -> list[AttendAdapter]:
    """One adapter for each setting of the flash switch, or one where there is no switch or --impl-kwargs sets it."""
    switch = Signature.of(kind).fields.get("flash")
    settings = [None] if switch is None or switch in kwargs else [False, True]
    return [AttendAdapter(kind, name, source, kwargs, flash) for flash in settings]
