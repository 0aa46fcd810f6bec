"""Puts a problem to an implementation, and reads its answer back.

An adapter knows how to call one implementation, and what it offers. It does not know what is right or wrong.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnspec.adapters import device
from attnspec.adapters.answer import KEPT, Answer, Unsupported
from attnspec.adapters.conventions.layout import AS_IT_IS, Reading
from attnspec.adapters.forms import BY_FEATURE, Form, as_a_form, carried, features_of, offered
from attnspec.adapters.memory import address_of, changed_in, leaves_of, memories_of, same_bytes
from attnspec.adapters.otherwise import queued, second
from attnspec.adapters.reading import Elsewhere, Unreadable, handlers, interrupted, pair, plain, raised_in, text
from attnspec.adapters.restrictions import NO_BACKWARD, RESTRICTIONS, forbidden, undeclared, unknown
from attnspec.adapters.watch.compiled import given_up
from attnspec.adapters.watch.state import RANDOM, no_second_run, watched
from attnspec.adapters.watch.trace import Trace, operators, wholly
from attnspec.adapters.within import CAPTURED, COMPILED, PLAINLY, SECOND, STREAM, Call, Within, made, quiet, surrounded, with_flag
from attnspec.spec import CHOICES, OPTIONS, Problem
from attnspec.spec.place import Place
from attnspec.spec.words import CLASSES, DTYPES, FEATURES

DEFAULT_OFFERS = frozenset({"mha", "strided", "backward"})


class Adapter:
    """How the suite calls one implementation. Subclass it and write :meth:`attend`; everything else has a default.

    offers: the features that the implementation promises, of FEATURES (default: those that the parameters of `attend` show).
    restrictions: limits on the offers, of RESTRICTIONS.
    dialect: the open choices that its documentation makes, of attnspec.spec.CHOICES (causal_alignment, empty_row, head_grouping).
    accuracy: the accuracy class that it claims, of CLASSES (docs/bounds.md); None for the default of each dtype.
    dtypes: the dtypes that it promises; None for all in which it answers a plain call.
    widths: the widths d of queries and keys that it takes; None for all.
    devices: the types of device on which the suite tests it; None for the cpu and the accelerator that torch reports.
    deterministic: True if it claims the same bits on every call: short for offers of deterministic and deterministic_backward.
    source: lines of Python that define `attend`, for the script of a failure.
    docs/adapter.md explains each.
    """

    name: str = ""
    version: str = ""
    variant: str = ""
    offers: Iterable[str] = DEFAULT_OFFERS
    restrictions: Iterable[str] = ()
    dialect: Mapping[str, str] = {}
    accuracy: str | None = None
    dtypes: Iterable[str] | None = None
    widths: Iterable[int] | None = None
    deterministic: bool = False
    disturbed: Mapping[str, str] = {}  # global state that calls have changed while this was made, in words
    devices: Iterable[str] | None = None
    source: tuple[str, ...] = ()
    torch_convention: bool = False  # mask and causal exclude each other, as torch documents it of its own, and are merged
    # Of what a convention calls: how its calls are read, who says so ("" for nobody, plain calls show it), and what to try.
    reading: Reading = AS_IT_IS
    read_by: str = ""
    given: Mapping[str, Any] = {}  # what of the reading the command line says
    arrays: Iterable[str] = ()
    masks: Iterable[str] = ("shows",)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        said = any("offers" in vars(kind) and not vars(kind).get("_follows") for kind in cls.__mro__ if kind is not Adapter)
        own = ["attend", *(form.method for form in BY_FEATURE.values())]
        if said or not any(name in vars(cls) for name in own):
            return
        found = DEFAULT_OFFERS if "attend" in vars(cls) else DEFAULT_OFFERS - {"backward"}
        for method in (vars(cls)[name] for name in own if name in vars(cls)):
            takes = options_of(method)
            if takes is None:
                return
            found = found.union(*(OPTIONS[name].features for name in takes))
        for feature, form in BY_FEATURE.items():
            if form.method in vars(cls):
                found |= features_of(feature, vars(cls)[form.method]) | ({"backward"} if feature in ("packed", "padded") else set())
        cls._follows = True
        cls.offers = found

    _follows: ClassVar[bool] = False  # whether the offers were read from the parameters of attend
    # Write one of these, in the place of attend() or beside it, for calls of many sequences; :mod:`attnspec.adapters.forms` says
    # what each gets and returns.
    attend_packed: Callable[..., Any] | None = None
    attend_padded: Callable[..., Any] | None = None
    attend_cached: Callable[..., Any] | None = None
    attend_paged: Callable[..., Any] | None = None
    kept: Answer | None = None  # an answer that is read again later
    flagged: bool = False  # whether calls ask for the same bits each time
    isolated: bool = False  # whether the implementation is in a process of its own
    endings: Mapping[str, int] = {}  # how often that ended, by how
    _spoilt: list[str] = []  # each call of many sequences has its own: what it wrote that it may not

    @property
    def dense_form(self) -> str:
        """The form in which dense problems are put that have no attend() of their own; '' where they have one."""
        return "" if getattr(type(self), "attend", Adapter.attend) is not Adapter.attend else offered(self)

    @property
    def kernel(self) -> Any:
        """What the convention calls, a function or a class; None for an adapter that says itself how it is called."""
        return getattr(self, "function", getattr(self, "kind", None))

    def attend(self, *args: Any, **options: Any) -> Tensor:
        """Call the implementation with q (b h i d), k (b g j d) and v (b g j e), and return its output (b h i e).

        Asked for lse=True, it returns the output and the lse (b h i).

        With the feature shared_kv it also gets k (b j d) and v (b j e). Write attend(self, q, k, v, *, …) with a parameter for each
        option that the implementation takes, under the names and defaults of :class:`attnspec.spec.Problem`, such as mask=None and
        causal=False. The suite counts a problem that needs another option as unsupported, and does not call attend for it.
        """
        raise Unsupported(f"{type(self).__name__} defines no attend()")

    def gradients(self, problem: Problem, answer: Answer) -> Mapping[str, Tensor | None]:
        """The gradients of the inputs in `problem.wrt`, by name (dq, dk, dv, dbias, …), where they do not come from autograd.

        Write it for a backward of your own, in whatever framework: a function of the inputs, of `answer`, which is what `attend`
        gave, and of the cotangents `problem.do` (b h i e) and `problem.dlse` (b h i). Each gradient has the shape of its input.
        """
        raise NotImplementedError  # never asked: autograd is, unless a class has its own

    def call(self, problem: Problem) -> Call:
        """The call that puts this problem. Raises Unsupported if the calling convention can't express it."""
        if problem.carrier is None and self.dense_form:
            problem = as_a_form(problem, self.dense_form, self.restrictions)
        if problem.carrier is not None:
            return self.carried(problem)
        options = problem.given()
        kind, takes = type(self), options_of(self.attend)
        training, rate = options.pop("training", False), options.pop("dropout", 0.0)
        if rate and (training or takes is None or "training" in takes):  # only in training does anything drop out
            options |= {"dropout": rate, "training": training}
        if takes is not None:
            unsaid = options.keys() - takes - {"training"}
            if unsaid:
                raise Unsupported(f"{kind.__name__}.attend() has no parameter {', '.join(sorted(unsaid))}")
            options = {name: x for name, x in options.items() if name in takes}
        source = (f"from {kind.__module__} import {kind.__qualname__}", f"attend = {kind.__qualname__}().attend")
        return Call(self.attend, {"q": problem.q, "k": problem.k, "v": problem.v, **options}, self.source or source)

    def carried(self, problem: Problem) -> Call:
        """The call of a problem that has a carrier. Raises Unsupported where there is no method for its form."""
        kind, form = type(self), BY_FEATURE[problem.carrier.feature if problem.carrier else ""]
        method = getattr(self, form.method, None)
        if method is None:
            raise Unsupported(f"{kind.__name__} has no {form.method}()")
        self._spoilt = []
        return carried(method, form.method, problem, self.lines_of(form), self._spoilt)

    def lines_of(self, form: Form) -> tuple[str, ...]:
        """Python that defines what takes a form, under the name of its method."""
        kind = type(self)
        if self.source and self.source[-1].startswith("attend = ") and self.source[-1].endswith(".attend"):
            made = self.source[-1].removeprefix("attend = ").removesuffix("attend")
            return (*self.source[:-1], f"{form.method} = {made}{form.method}")
        return (f"from {kind.__module__} import {kind.__qualname__}", f"{form.method} = {kind.__qualname__}().{form.method}")

    def presented(self, problem: Problem) -> Problem:
        """The problem as the implementation sees it. It differs if the convention expresses mask, bias or causal in another way."""
        return problem

    def on(self, device: str) -> Adapter:
        """A copy of this adapter for one device, without the gradients that `no_backward:DEVICE` rules out there."""
        adapter = copy.copy(self)
        if NO_BACKWARD + device.split(":")[0] in self.restrictions:
            adapter.offers = frozenset(self.offers) - {"backward", *(own.gradient for own in OPTIONS.values())}
        return adapter

    def close(self) -> None:
        """Nothing is asked any more."""

    def fresh(self) -> Adapter | None:
        """This adapter with an implementation that was never called, or None if it can't make one."""
        return None

    def elsewhere(self) -> Adapter | None:
        """This adapter with its implementation in another process that begins anew, or None if it can't make one."""
        return None

    def trace(self, problem: Problem) -> Trace:
        """The operators that really run for a problem, as torch's dispatcher records them."""
        with watched() as changes:
            answer, seen = operators(lambda: self.run(problem))
        return Trace(seen, answer.refusal, changes)

    def wholly(self, problem: Problem) -> str:
        """The kernel of torch that is all of a call, or ''; see :func:`attnspec.adapters.watch.trace.wholly`."""
        asked = problem.replace(**leaves_of(problem)) if problem.wrt else problem
        call = self.call(asked)
        with watched(), quiet():
            return wholly(partial(call.function, **call.arguments))

    def script(self, problem: Problem, within: Within = PLAINLY) -> Call:
        """The call for a script: the lines that define `attend`, and the arguments. Raises Unsupported."""
        if problem.wrt and type(self).gradients is not Adapter.gradients:
            raise Unsupported("a script asks autograd for gradients, and this adapter has its own")
        with surrounded(within, self, problem.q.device):
            return self.call(problem)

    def begin(self, problem: Problem, within: Within = PLAINLY) -> Callable[[], Answer]:
        """Ask; what is returned gives the answer, once it is there. Until then something else can be done."""
        answer = self.ask(problem, within)
        return lambda: answer

    def ask(self, problem: Problem, within: Within = PLAINLY) -> Answer:
        """The answer to a problem that is put in some surroundings, and what the call changed of the global state.

        Where the device answers nothing any more after it, that is a crash.
        """
        try:
            return self._watched(problem, within)
        except Exception as error:
            says = text(error) if isinstance(error, device.DeviceLost) else device.lost(problem.q.device)
            if not says:
                raise
            return Answer(error=Elsewhere(f"its device answers nothing any more: {says}"), ended="CRASH")

    def _watched(self, problem: Problem, within: Within) -> Answer:
        if within.seed is not None:
            torch.manual_seed(within.seed)
        compiled = within.surroundings.startswith(COMPILED)
        state: contextlib.AbstractContextManager[dict[str, str]] = (
            contextlib.nullcontext({}) if compiled else watched(apart_from=RANDOM if problem.dropout else ())
        )
        with surrounded(within, self, problem.q.device), given_up() as functions, state as changes:
            answer = self._ask(problem, within)
            if (answer.error is not None or isinstance(answer.o, Unreadable)) and (says := device.lost(problem.q.device)):
                raise device.DeviceLost(says)
        memory = address_of(answer.o)
        shares = [name for name, x in problem.inputs().items() if x.numel() and memory and memory == address_of(x)]
        if memory and self.kept is not None and memory == address_of(self.kept.o):
            shares.append(KEPT)
        answer = replace(answer, disturbed=changes, shares=tuple(shares), refuses=self._refuses(answer), gave_up=tuple(functions))
        if within.kept:
            self.kept = answer
        return answer

    def again(self, answer: Answer) -> Answer:
        """What an answer that was kept holds now. It is kept no more."""
        self.kept = None
        return answer

    def holds(self, place: Place) -> bool:
        """Whether something holds the memory of a place in which nothing lies for the suite any more."""
        return place.taken

    def _ask(self, problem: Problem, within: Within) -> Answer:
        if within.surroundings == SECOND:
            return second(self, problem)
        if within.surroundings in (STREAM, CAPTURED):
            return queued(self, problem, within.surroundings)
        if within == PLAINLY or (within.checked and not within.surroundings.startswith(COMPILED)):
            return self.run(problem)
        with quiet(), torch.no_grad() if within.surroundings.startswith(COMPILED) else contextlib.nullcontext():
            return self._run(problem, {}, within)

    def _refuses(self, answer: Answer) -> bool:
        """Whether an implementation says by itself that it does not do this.

        An adapter has a word for it, Unsupported; a function raises in its own code. What an operator throws on its way, as where
        sizes do not match, is no refusal but a crash.
        """
        if answer.unsupported is not None or answer.error is None:
            return answer.unsupported is not None
        if self.kernel is None:
            return False
        return isinstance(answer.error, NotImplementedError) or raised_in(answer.error, self.kernel)

    def run(self, problem: Problem) -> Answer:
        """The answer to a problem: the output, the gradients of the inputs in `problem.wrt`, or what was raised.

        If a restriction leaves the problem out, the implementation is not called. If the adapter raises Unsupported for something
        that `offers` includes and no restriction limits, that is an error like any other.
        """
        restriction = forbidden(self.restrictions, problem)
        if restriction:
            return Answer(unsupported=restriction)
        leaves = leaves_of(problem)
        asked = problem.replace(**leaves)
        memories = {at: memory for at, (memory, _) in memories_of(problem).items()}
        before = {at: memory.clone() for at, memory in memories.items()}
        with quiet(), no_second_run():
            answer = self._run(asked, leaves)
        if isinstance(answer.error, Unsupported):  # in backward
            answer = Answer(unsupported=text(answer.error))
        if answer.unsupported is not None and (why_not := undeclared(self.offers, self.restrictions, problem)):
            answer = Answer(error=Unsupported(f"{answer.unsupported}; {why_not}"))
        written = [at for at, memory in memories.items() if not same_bytes(memory, before[at])]
        changed = tuple(name for at in written for name in changed_in(problem, at, before[at]))
        for at in written:  # problems are shared between tests
            memories[at].copy_(before[at])
        return replace(answer, changed=answer.changed + changed) if changed else answer

    def unchecked(self, problem: Problem) -> Answer:
        """The output for a problem whose sizes may contradict each other, or what the implementation raised."""
        with quiet():
            return self._run(problem, {})

    def _run(self, problem: Problem, leaves: dict[str, Tensor], within: Within = PLAINLY) -> Answer:
        given: list[tuple[str, Any, Any]] = []  # whole numbers that the convention made of an option, and a copy of each
        answer = self._called(problem, leaves, within, given)
        written = tuple(name for name, x, before in given if not (torch.equal(x, before) if isinstance(x, Tensor) else x == before))
        written, self._spoilt = (*written, *self._spoilt), []
        return replace(answer, changed=written) if written else answer

    def _called(self, problem: Problem, leaves: dict[str, Tensor], within: Within, given: list[tuple[str, Any, Any]]) -> Answer:
        installed = handlers()
        try:
            call = made(self.call(problem), within)
            call = with_flag(call) if self.flagged else call
            given += [(name, x, copy.deepcopy(x)) for name, x in call.arguments.items() if _of_whole_numbers(x)]
            o, lse = pair(call.function(**call.arguments)) if problem.lse else (call.function(**call.arguments), None)
            o, lse = plain(o), plain(lse)
        except Unsupported as error:
            return Answer(unsupported=text(error))
        except BaseException as error:  # pytest's skip and fail are no Exception, and an implementation may raise them
            if interrupted(error, installed):
                raise
            return Answer(error=error)
        if not isinstance(o, Tensor) or o.layout != torch.strided or not problem.differentiated or not problem.wrt:
            return Answer(o, lse=lse)
        if type(self).gradients is not Adapter.gradients:
            return self._by_itself(problem, Answer(o.detach(), lse=_detached(lse)), installed)
        pairs = [(o, problem.do)] if problem.do is not None else []
        if problem.dlse is not None and problem.wrt != ("v",):  # on values no lse depends
            pairs.append((lse, problem.dlse))
        if not all(isinstance(x, Tensor) and x.requires_grad and x.shape == do.shape for x, do in pairs):
            return Answer(o.detach(), {f"d{name}": None for name in problem.wrt}, lse=_detached(lse))
        try:
            wanted, outputs = [leaves[name] for name in problem.wrt], [x for x, _ in pairs]
            cotangents = [do.to(x.dtype) for x, do in pairs]
            if "backward_method" in self.restrictions:
                torch.autograd.backward(outputs, cotangents)
                grads = tuple(leaf.grad for leaf in wanted)
            else:
                grads = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True)
        except BaseException as error:
            if interrupted(error, installed):
                raise
            return Answer(o.detach(), error=error, stage="backward", lse=_detached(lse))
        found = {f"d{name}": plain(grad) for name, grad in zip(problem.wrt, grads, strict=True)}
        return Answer(o.detach(), found, lse=_detached(lse))

    def _by_itself(self, problem: Problem, answer: Answer, installed: frozenset[Any]) -> Answer:
        """The answer with the gradients that this adapter computes by itself."""
        try:
            found = dict(self.gradients(problem, answer))
        except Unsupported as error:
            return replace(answer, unsupported=text(error))
        except BaseException as error:
            if interrupted(error, installed):
                raise
            return replace(answer, error=error, stage="backward")
        return replace(answer, gradients={f"d{name}": plain(found.get(f"d{name}")) for name in problem.wrt})


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def options_of(attend: Callable[..., Any]) -> frozenset[str] | None:
    """The options for which an attend() has parameters; None if it takes any name, or if its signature can't be read."""
    try:
        parameters = inspect.signature(attend).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters) & OPTIONS.keys()


def _of_whole_numbers(x: Any) -> bool:
    """Whether an argument is a list, or a tensor that is no input of attention and no mask."""
    return isinstance(x, list) or (isinstance(x, Tensor) and not x.is_floating_point() and x.dtype != torch.bool)


def check(adapter: Adapter) -> None:
    """Raise ValueError, with the name of the attribute, if an adapter declares an unknown word, or hides a method of Adapter."""
    name = type(adapter).__name__
    for what, given, there in (
        ("offers", set(adapter.offers) - FEATURES.keys(), FEATURES),
        ("restrictions", unknown(adapter.restrictions), RESTRICTIONS),
        ("dtypes", set(map(str, adapter.dtypes or ())) - set(DTYPES), DTYPES),
    ):
        if given:
            raise ValueError(f"{name}.{what} names unknown {', '.join(sorted(given))}; choose from {', '.join(there)}")
    takes = _taken(adapter) if type(adapter).call is Adapter.call else None
    for feature in sorted(adapter.offers):
        words_for = [name for name, option in OPTIONS.items() if feature in option.features and name != "carrier"]  # has methods
        if takes is not None and words_for and takes.isdisjoint(words_for):
            raise ValueError(
                f"{name}.offers names {feature}, but {name}.attend() has no parameter {' or '.join(words_for)} for it: "
                f"add the parameter, or remove {feature} from offers"
            )
    for method, own in vars(Adapter).items():
        if inspect.isfunction(own) and not method.startswith("__") and method != "attend":
            _must_stand_for(adapter, method, own)
    if adapter.accuracy not in (None, *CLASSES):
        raise ValueError(f"{name}.accuracy is {adapter.accuracy!r}; choose from {', '.join(CLASSES)}")
    for key, value in adapter.dialect.items():
        if key not in CHOICES or value not in CHOICES[key].values:
            raise ValueError(
                f"{name}.dialect has {key}={value}; choose from "
                + "; ".join(f"{choice.name} = {' | '.join(choice.values)}" for choice in CHOICES.values())
            )


def _taken(adapter: Adapter) -> frozenset[str] | None:
    """The options for which attend() or one of the methods of forms has parameters; None where one takes any name."""
    forms = [method for form in BY_FEATURE.values() if (method := getattr(adapter, form.method)) is not None]
    each = [options_of(method) for method in (adapter.attend, *forms)]
    known = [takes for takes in each if takes is not None]
    return frozenset({"carrier"} if forms else ()).union(*known) if len(known) == len(each) else None


def _must_stand_for(adapter: Adapter, method: str, own: Callable[..., Any]) -> None:
    """Raise ValueError where an adapter has something else under the name of a method that the suite calls, such as a helper."""
    wanted = [x for x in inspect.signature(own).parameters if x != "self"]
    found = getattr(adapter, method)
    try:
        inspect.signature(found).bind(*wanted)
    except TypeError as error:
        raise ValueError(
            f"{type(adapter).__name__}.{method} takes the place of Adapter.{method}({', '.join(wanted)}), which the suite calls, "
            f"and can't be called so: {error}. Give yours another name, say kernel_{method.strip('_')}"
        ) from None
    except ValueError:  # no signature to be seen
        return
