"""A function of tensors, called by its convention: parameters say what it takes, and its family what they do not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from attnspec.adapters.answer import Unsupported
from attnspec.adapters.arrays import bridged, loaded, source_of
from attnspec.adapters.contract import DEFAULT_OFFERS, Adapter, options_of
from attnspec.adapters.conventions import layout, lses
from attnspec.adapters.conventions.convention import Convention, convention_of
from attnspec.adapters.conventions.layout import AXES, Reading
from attnspec.adapters.conventions.signature import Signature, UnknownSignature
from attnspec.adapters.conventions.wording import passed
from attnspec.adapters.forms import BY_FEATURE, Form, features_of, text_of
from attnspec.adapters.within import Call
from attnspec.spec import OPTIONS, Problem
from attnspec.spec.problem import gradient_features
from attnspec.spec.words import MASKS


class OfAFamily(Adapter):
    """A function whose family has words for calls of many sequences."""

    function: Any
    convention: Convention

    def take_forms(self) -> frozenset[str]:
        """Take over the forms of the family: a method for each, and what they offer."""
        for feature, form in self.convention.forms.items():
            setattr(self, BY_FEATURE[feature].method, partial(form, self._bridged, **self.convention.fixed))
        return frozenset().union(*(features_of(feature, form) for feature, form in self.convention.forms.items()))

    @property
    def _bridged(self) -> Callable[..., Any]:
        """The function as it takes the suite's tensors."""
        return bridged(self.function, self.reading.arrays) if self.reading.arrays else self.function

    def lines_of(self, form: Form) -> tuple[str, ...]:
        """Python that defines what takes a form."""
        return self._said(self.convention.forms[next(x for x, own in BY_FEATURE.items() if own is form)], form.method)

    def _said(self, own: Any, name: str) -> tuple[str, ...]:
        """Python that defines what the family's own function makes of this one, under a name."""
        bridge = (*source_of(self.reading.arrays), "function = bridged(function)") if self.reading.arrays else ()
        fixed = "".join(f", {x}={value!r}" for x, value in self.convention.fixed.items())
        text = ("", "", *text_of(own), "", *bridge, "", f"def {name}(**given):")
        return (*self.source, "function = attend", *text, f"    return {own.__name__}(function, **given{fixed})")


class FunctionAdapter(OfAFamily):
    """A function of tensors. What is offered follows from its parameters, and from what its family is known to take.

    With torch SDPA's parameters it promises torch's semantics: `attn_mask` is bool or float, the causal alignment is
    top-left, a row without a key is zero, and `attn_mask` and `is_causal` are exclusive, so that causal is merged into
    the mask where both are asked for, as torch's documentation tells its users to.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, source: tuple[str, ...], convention: Convention | None = None
    ) -> None:
        convention = convention or family_of(function, name)
        self.function, self.name, self.source, self.convention = function, name, source, convention
        self.signature = Signature.of(function, convention.names)
        fields = self.signature.fields
        missing = [field for field in "qkv" if field not in fields]
        required = [name for name in self.signature.unknown_required if name not in convention.fixed]
        if missing or required:
            raise UnknownSignature(
                (f"no parameter for {', '.join(missing)}" if missing else "")
                + (" and " if missing and required else "")
                + (f"required parameters that no convention knows: {', '.join(required)}" if required else "")
            )
        self.torch_convention = convention.merges
        offers = set(DEFAULT_OFFERS) | {own.feature for name, own in OPTIONS.items() if own.feature and name in fields}
        if "mask" in fields:
            offers |= {"key_padding", "rank3"}
        if "alibi_slopes" in fields:
            offers.add("alibi_batch")
        if "enable_gqa" in fields:
            offers |= {"gqa", "mqa"}
        offers |= convention.offers
        self.dialect = dict(convention.dialect)
        offers |= gradient_features(offers)
        for said in self.signature.said.values():
            offers |= said.features
            self.dialect = {**said.dialect, **self.dialect}
        self.returned = lses.Returned()
        promise(self, convention)
        self.restrictions = frozenset(self.restrictions).union(*(said.restrictions for said in self.signature.said.values()))
        self.offers = frozenset((offers | self.take_forms()) - convention.without)

    @property
    def dense_form(self) -> str:
        """None: parameters say how a dense problem is put, whatever forms the family has beside it."""
        return ""

    def merged(self, problem: Problem) -> tuple[Tensor | None, Tensor | None, bool]:
        """Mask, bias and causal: with torch's parameters causal goes into a mask beside it, and the mask into a bias."""
        mask, bias, causal = problem.mask, problem.bias, problem.causal
        if mask is not None and mask.ndim == 2 and "padding_only" not in self.restrictions:
            mask = mask[:, None, None, :]
        if self.torch_convention:
            if causal and not (mask is None and bias is None):
                mask, causal = merge_causal(mask, problem, self.dialect["causal_alignment"]), False
            if bias is not None and mask is not None:
                hidden = torch.logical_not(mask)
                mask, bias = None, bias.masked_fill(hidden, float("-inf"))
        return mask, bias, causal

    def presented(self, problem: Problem) -> Problem:
        """With mask, bias and causal merged as the call merges them."""
        mask, bias, causal = self.merged(problem)
        return problem.replace(mask=mask, bias=bias, causal=causal)

    def call(self, problem: Problem) -> Call:
        """The function's own arguments for a problem."""
        if problem.carrier is not None and not self.convention.forms:
            raise Unsupported(f"{self.name} takes no {problem.carrier.feature} call")
        if problem.carrier is not None:
            return self.carried(problem)
        if problem.shared:
            raise Unsupported("a function of (b h j d) keys has no form for one shared head (b j d)")
        fields = self.signature.fields
        arguments: dict[str, Any] = {fields["q"]: problem.q, fields["k"]: problem.k, fields["v"]: problem.v}
        mask, bias, causal = self.merged(problem)
        if mask is not None:
            mask = said_as(mask, self.reading.mask, problem.dtype)
        if self.torch_convention and bias is not None:
            mask, bias = bias, None
        options: dict[str, Any] = dict.fromkeys(OPTIONS) | problem.given()  # None where an option is not asked for
        options |= {"mask": mask, "bias": bias, "causal": causal or None}
        options["training"] = problem.training if "training" in fields else None
        if not problem.training and "training" not in fields:
            options["dropout"] = None
        options["enable_gqa"] = True if "enable_gqa" in fields and problem.g != problem.h else None
        for field, value in passed(options, self.signature.said, self.signature.off, problem):
            if field not in fields:
                raise Unsupported(f"{self.name} has no parameter for {field}")
            arguments[fields[field]] = value
        called: Callable[..., Any] = self.function
        source = self.source
        if isinstance(self.function, torch.nn.Module):
            called, mode = ready(self.function, problem)
            source = (*source, f"attend{mode}")
        arguments |= self.convention.fixed
        return read(Call(called, arguments, source), self.reading, tuple(fields[x] for x in "qkv"), self.returned, problem)


class FamilyAdapter(OfAFamily):
    """A function whose family says in functions of its own how it is called: attend(function, q, …), one a form, or both."""

    def __init__(self, function: Callable[..., Any], name: str, source: tuple[str, ...], convention: Convention) -> None:
        self.function, self.name, self.convention = function, name, convention
        self.own = convention.attend
        promise(self, convention)
        self.source = source
        said = (*filter(None, (self.own,)), *convention.forms.values())
        takes = frozenset().union(*(options_of(one) or () for one in said))
        backward = {"backward"} if self.own is None and convention.forms.keys().isdisjoint(("packed", "padded")) else set()
        offers = DEFAULT_OFFERS.union(convention.offers, *(OPTIONS[name].features for name in takes)) - backward
        self.offers, self.dialect = (offers | self.take_forms()) - convention.without, dict(convention.dialect)
        self.returned = lses.Returned()

    @property
    def dense_form(self) -> str:
        """The first form that the family has words for, where it has none for dense problems."""
        return "" if self.own is not None else next(iter(self.convention.forms))

    @property
    def attend(self) -> Callable[..., Any]:
        """What the family's own function makes of this one. Raises AttributeError where it has one for forms alone."""
        if self.own is None:
            raise AttributeError(f"{self.convention.name} has calls of many sequences alone")
        return partial(self.own, self._bridged, **self.convention.fixed)

    def call(self, problem: Problem) -> Call:
        """The call by which the family puts a problem. Raises Unsupported where it has no words for it."""
        for name in problem.given():  # its neighbours take what its own function does not
            if (feature := OPTIONS[name].feature) and not {feature, *OPTIONS[name].forms} - self.convention.without:
                raise Unsupported(f"{self.convention.name} has no words for {name}")
        plain = super().call(problem)
        if problem.carrier is None and self.own is not None:
            plain = Call(plain.function, plain.arguments, self._said(self.own, "attend"))
        called = lses.picked(plain.function, self.returned, problem.q) if problem.lse else plain.function
        return Call(called, plain.arguments, plain.source)


def promise(adapter: Adapter, convention: Convention) -> None:
    """Take over what the documentation of a family says, and how its calls are to be read; or how they may be."""
    adapter.restrictions, adapter.accuracy = convention.restrictions, convention.accuracy
    adapter.dtypes, adapter.widths, adapter.devices = convention.dtypes, convention.widths, convention.devices
    if convention.reading is not None:
        adapter.reading, adapter.read_by = convention.reading, convention.name
    elif convention.attend is None and not convention.forms:
        adapter.arrays, adapter.masks = loaded(), tuple(MASKS)


def read(call: Call, reading: Reading, tensors: tuple[str, ...], returned: lses.Returned, problem: Problem) -> Call:
    """A call of tensors as the suite has them, of one of a function's own."""
    function, source = call.function, call.source
    if (reading.layout, reading.output, reading.returns, reading.arrays) != (AXES, "", (), ""):
        function = layout.read(function, reading, tensors, problem.lse)
        source = (*source, *layout.source(reading, tensors, problem.lse))
    return Call(lses.picked(function, returned, problem.q) if problem.lse else function, call.arguments, source)


def said_as(mask: Tensor, how: str, dtype: torch.dtype) -> Tensor:
    """A mask that is True where a query may attend, as a function takes it."""
    if how == "hides":
        return torch.logical_not(mask)
    if how == "adds":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(torch.logical_not(mask), float("-inf"))
    return mask


def adapted(
    function: Callable[..., Any],
    name: str,
    source: tuple[str, ...],
    family: Convention,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> list[Adapter]:
    """The adapters of a function, one for each variant of its family's call. Raises UnknownSignature.

    given: arguments that are settled already.
    """
    adapters: list[Adapter] = []
    for label, convention in family.each(given).items():
        by_parameters = convention.plain or (convention.attend is None and not convention.forms)
        kind = FunctionAdapter if by_parameters else FamilyAdapter
        adapters.append(kind(function, name, source, convention))
        adapters[-1].variant = label
    return adapters


def family_of(function: Callable[..., Any], name: str) -> Convention:
    """The convention of a function that was asked for under a name."""
    try:  # the parameters of a class are those of its constructor, which show no family
        parameters = frozenset() if inspect.isclass(function) else Signature.of(function).parameters
    except UnknownSignature:
        parameters = frozenset()
    return convention_of(function, name, parameters)


def ready(module: torch.nn.Module, problem: Problem) -> tuple[torch.nn.Module, str]:
    """A module in the problem's mode and on its device, and what says the same in Python."""
    device = problem.q.device
    moved = "" if device.type == "cpu" else f".to({str(device)!r})"
    return module.train(problem.training).to(device), f".train({problem.training}){moved}"


def merge_causal(mask: Tensor | None, problem: Problem, alignment: str) -> Tensor:
    """A bool mask that also holds the triangle, as torch's documentation writes it for its own, top-left, alignment."""
    offset = problem.j - problem.i if alignment == "bottom_right" else 0
    if problem.q_start is None:
        triangle = torch.ones((problem.i, problem.j), dtype=torch.bool, device=problem.q.device).tril(offset)
    else:  # (1 1 i j), or (b 1 i j)
        first = torch.tensor(problem.q_start, device=problem.q.device).view(-1, 1, 1, 1)
        places = torch.arange(max(problem.i, problem.j), device=problem.q.device)
        triangle = places[: problem.j] <= places[: problem.i, None] + first
    return triangle if mask is None else mask & triangle
