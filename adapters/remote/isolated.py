"""An implementation in another process, asked like any other adapter."""

from __future__ import annotations

import copy
import errno
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attnspec.adapters.answer import Answer, Unsupported
from attnspec.adapters.contract import Adapter
from attnspec.adapters.conventions.layout import Reading
from attnspec.adapters.conventions.signature import ResolveError
from attnspec.adapters.reading import Elsewhere
from attnspec.adapters.remote.process import COMMAND, Ended, Misspoken, Process, worker
from attnspec.adapters.remote.protocol import VERSION, options_of, said, same_of, settings, tensors_of
from attnspec.adapters.remote.tensors import Receiver, Sender, returned
from attnspec.adapters.remote.told import implementations, of_outputs, of_run
from attnspec.adapters.restrictions import forbidden, undeclared
from attnspec.adapters.watch.trace import Trace
from attnspec.adapters.within import COMPILED, PLAINLY, SECOND, Call, Within
from attnspec.spec import Problem
from attnspec.spec.place import Place
from attnspec.spec.words import RETURNED

LEAST = 2.0  # seconds that a call has in any case
TIMES = 20.0  # and, after one was too slow, how many times the slowest that was answered


@dataclass
class Limits:
    """What an implementation may use. case: seconds for a call. first: for the first call of a process, which may compile.

    memory: bytes, or none.
    """

    case: float = 60.0
    first: float = 600.0
    memory: int | None = None


@dataclass
class Peer:
    """The process of an implementation, started again where it ended, and what is on its way to it."""

    implementation: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    starts: int = 0  # of the process; a start forgets what the one before knew
    disturbed: dict[str, str] = field(default_factory=dict)  # what importing it changed of the global state, in words
    slowest: float = 0.0  # call that was answered, in seconds
    endings: Counter[str] = field(default_factory=Counter)  # how often the process ended, by how
    process: Process | None = None  # one that was started, and may know nothing yet
    _knows: bool = False  # whether the process that answers knows the implementation
    _sender: Sender = field(default_factory=Sender)
    _settled: dict[int, dict[str, Any]] = field(default_factory=dict)  # by implementation, as the process knows it
    _requests: int = 0
    _unanswered: set[int] = field(default_factory=set)  # requests that were sent, and whose reply nobody has read
    _outstanding: Callable[[], Any] | None = None
    _late: bool = False  # whether a call was too slow: others then have less time, or a hang costs the run
    _answered: bool = False  # whether this process has answered a call

    @property
    def command(self) -> list[str]:
        """What starts it."""
        own = self.implementation.startswith(COMMAND)
        return shlex.split(self.implementation.removeprefix(COMMAND)) if own else worker()

    # STARTING AND ENDING

    def start(self) -> list[dict[str, Any]]:
        """Start the process, and return what its implementations say of themselves. Raises ResolveError where it does not start."""
        try:
            self.process = self.process or Process(self.command)
        except OSError as error:
            raise ResolveError(f"--impl={self.implementation}: {error.strerror}: {error.filename}") from None
        if self.limits.memory is not None and self.implementation.startswith(COMMAND):
            self.process.limit_memory(self.limits.memory)  # ours in Python sets it once torch is imported
        self.starts, self._answered, self._knows = self.starts + 1, False, True
        self._settled.clear()
        self._unanswered.clear()
        try:
            reply = self._talk(
                "start",
                self.limits.first,
                version=VERSION,
                implementation=self.implementation,
                kwargs=dict(self.kwargs),
                folder=str(self.process.folder),
                path=[x for x in sys.path if x],
                memory_limit=self.limits.memory,
            )
            if reply.get("version") != VERSION:
                raise ResolveError(
                    f"--impl={self.implementation} speaks version {reply.get('version')!r} of the protocol, and this attnspec "
                    f"version {VERSION}: see docs/protocol.md"
                )
            self.disturbed = reply.get("disturbed", {})
            described = implementations(self._talk("describe", self.limits.first))
        except Ended as ended:
            self.close()
            log = "".join(f"\n  {line}" for line in ended.log[-12:])
            hint = "; it must flush each line that it writes" if ended.timeout else ""
            raise ResolveError(f"--impl={self.implementation} did not start: {ended.how}{hint}{log}") from None
        except Misspoken as error:
            self.close()
            raise ResolveError(
                f"--impl={self.implementation} does not keep to the protocol: {error}; see docs/protocol.md"
            ) from None
        except ResolveError:
            self.close()
            raise
        does = {ability for one in described for ability in one.get("does", ())}
        self._sender = Sender(contiguous="memory" not in does)
        return described

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.close()
        self.process, self._knows, self._outstanding = None, False, None

    # TALKING

    def _talk(self, op: str, seconds: float, **message: Any) -> dict[str, Any]:
        process, number = self._sent(op, message)
        return self._received(process, op, number, seconds)

    def _sent(self, op: str, message: dict[str, Any]) -> tuple[Process, int]:
        assert self.process is not None
        self._requests += 1
        self._unanswered.add(self._requests)
        self.process.send({"op": op, "id": self._requests, **message})
        return self.process, self._requests

    def _received(self, process: Process, op: str, number: int, seconds: float) -> dict[str, Any]:
        reply = process.receive(seconds)
        while reply.get("id") != number and reply.get("id") in self._unanswered:  # Ctrl-C came before anybody waited for it
            self._unanswered.discard(reply["id"])
            reply = process.receive(seconds)
        self._unanswered.clear()
        if (reply.get("op"), reply.get("id")) != (op, number):
            raise Misspoken(f"it answered {reply.get('op')!r} {reply.get('id')!r} where {op!r} {number} was asked")
        if "failed" in reply:
            raise ResolveError(str(reply["failed"])) if op in ("start", "trace") else Misspoken(str(reply["failed"]))
        return reply

    def limit(self) -> float:
        """Seconds that the next call may take."""
        expected = TIMES * self.slowest
        if self._late:
            return min(self.limits.case, max(LEAST, expected))
        if self._answered:
            return self.limits.case
        # A process that was started again may have to compile again: that is known to take no longer than it did.
        return min(self.limits.first, max(self.limits.case, expected)) if self.slowest else self.limits.first

    def ask(
        self, op: str, adapter: Isolated, message: dict[str, Any], tensors: Mapping[str, Any] | None = None
    ) -> Callable[[], dict[str, Any]]:
        """Send a request; what is returned waits for the reply. Raises Ended, there or here, where the process ended."""
        if self._outstanding is not None:  # nobody waited for it
            self._outstanding()
        if not self._knows:
            self.start()
        assert self.process is not None
        number = adapter.here()
        message["into"] = str(self.process.folder / "out.safetensors")
        if tensors is not None:
            message["file"] = str(self.process.folder / "in.safetensors")
            freed = self._sender.write(Path(message["file"]), tensors)
            if self._sender.contiguous:
                message |= {"same": same} if (same := same_of(tensors)) else {}
            else:
                message["free"] = freed
        known = settings(adapter)
        if self._settled.get(number) != known:
            message["settings"] = self._settled[number] = known
        began, seconds, starts = time.monotonic(), self.limit(), self.starts
        try:
            process, request = self._sent(op, {"implementation": number, **message})
        except Ended as ended:
            self._gone(ended)
            raise
        found: dict[str, Any] | None = None

        def reply() -> dict[str, Any]:
            nonlocal found
            if found is not None:
                return found
            self._outstanding = None
            if self.starts != starts or self.process is not process:
                raise Ended("it was started again meanwhile", "started again")
            try:
                found = self._received(process, op, request, seconds)
            except Ended as ended:
                self._gone(ended)
                raise
            except BaseException:  # Ctrl-C, a time limit of whoever runs the tests: what is on its way is nobody's
                self.close()
                raise
            self.slowest, self._answered = max(self.slowest, time.monotonic() - began), True
            return found

        self._outstanding = reply
        return reply

    def freed(self) -> list[int]:
        """The names of storages that were freed since the last time."""
        return self._sender.freed()

    def path(self, reply: Mapping[str, Any]) -> Any:
        """Of the file that a reply names."""
        assert self.process is not None
        return self.process.folder / str(reply["file"])

    def taken(self) -> list[str]:
        """What the process logged since the last call."""
        return self.process.taken() if self.process is not None else []

    def lost(self, why: str) -> Ended:
        """End the process, which can't be asked any more although it goes on. Returns what is then said of it."""
        ended = Ended(why, "lost its device", self.process.cut() if self.process is not None else ())
        self._gone(ended)
        return ended

    def _gone(self, ended: Ended) -> None:
        if self.process is not None and not self.process.kept:
            self.process.close()
            self.process = None
        self._knows, self._outstanding = False, None
        self.endings[ended.brief] += 1
        if ended.timeout:
            self._late = True


class Isolated(Adapter):
    """An adapter whose implementation is in another process."""

    isolated = True

    def __init__(self, peer: Peer, told: Mapping[str, Any]) -> None:
        self.peer, self._starts = peer, peer.starts
        self._made: tuple[Any, ...] = ("described", told["implementation"])  # how this one comes to be in a new process
        self._number: int = told["implementation"]
        self.does = frozenset(told.get("does", ()))
        self.name, self.version, self.variant = (str(told.get(name, "")) for name in ("name", "version", "variant"))
        self.offers, self.restrictions = frozenset(told.get("offers", ())), frozenset(told.get("restrictions", ()))
        self.dialect, self.disturbed = dict(told.get("dialect", {})), dict(told.get("disturbed", {}))
        self.dtypes = None if told.get("dtypes") is None else tuple(told["dtypes"])
        self.widths = None if told.get("widths") is None else tuple(told["widths"])
        everywhere = None if "on" in self.does else ("cpu",)  # where it runs is then its own affair
        self.devices = everywhere if told.get("devices") is None else tuple(told["devices"])
        self.accuracy, self.deterministic = told.get("accuracy"), bool(told.get("deterministic"))
        self.flash, self.torch_convention = bool(told.get("flash")), bool(told.get("torch_convention"))
        self.reading, self.read_by = Reading.of(told.get("reading", {})), str(told.get("read_by", ""))
        self.arrays, self.masks = tuple(told.get("arrays", ())), tuple(told.get("masks", ("shows",)))
        self._kernel, self._presents = told.get("kernel"), bool(told.get("presents"))
        self._dense_form = str(told.get("dense_form", ""))

    @property
    def dense_form(self) -> str:
        """The form in which the implementation's own process puts dense problems."""
        return self._dense_form

    @property
    def endings(self) -> Mapping[str, int]:  # type: ignore[override]
        """How often the process ended, by how."""
        return self.peer.endings

    def close(self) -> None:
        """End the process."""
        self.peer.close()

    def here(self) -> int:
        """Its number in the process that runs now."""
        if self._starts != self.peer.starts:
            how, *rest = self._made
            if how == "described":
                (self._number,) = rest
            else:
                base, more = rest
                reply = self.peer._talk(how, self.peer.limits.first, implementation=base.here(), **more)
                self._number = reply["implementations"][0]["implementation"]
            self._starts = self.peer.starts
        return self._number

    @property
    def kernel(self) -> Any:
        """A stand-in for what the convention calls: whether there is something, and of which module."""
        return None if self._kernel is None else SimpleNamespace(__module__=self._kernel)

    def _derived(self, op: str, **more: Any) -> Isolated | None:
        reply = self._told(op, {"settings": settings(self), **more}) or {}
        if not reply.get("implementations"):
            return None
        other = Isolated(self.peer, reply["implementations"][0])
        other._made = (op, self, more)
        return other

    def on(self, device: str) -> Adapter:
        """The same for one device."""
        return (self._derived("on", device=device) or self) if "on" in self.does else super().on(device)

    def fresh(self) -> Adapter | None:
        """The same, of which nothing was asked yet."""
        return self._derived("fresh") if "fresh" in self.does else None

    def elsewhere(self) -> Adapter | None:
        """The same in a further process, which knows nothing of what this one was asked."""
        return self._of(Peer(self.peer.implementation, self.peer.kwargs, self.peer.limits))

    def _of(self, peer: Peer) -> Isolated:
        other = copy.copy(self)
        other.peer, other._starts = peer, -1
        how, *rest = self._made
        if how != "described":
            other._made = (how, rest[0]._of(peer), *rest[1:])
        return other

    # ASKING

    def begin(self, problem: Problem, within: Within = PLAINLY) -> Callable[[], Answer]:
        """Send the problem; what is returned waits for the answer."""
        told = said(within)
        if _as_promised(within) and (restriction := forbidden(self.restrictions, problem)):
            left_out = Answer(unsupported=restriction)
            return lambda: left_out
        if told.keys() - {"checked"} and "surroundings" not in self.does:
            what = within.surroundings or "this"
            answer = Answer(unsupported=f"the peer has no words for a call like {what}")
            return lambda: answer
        try:
            reply = self._asked("run", problem, within)
        except Ended as ended:
            gone = _ended(ended)
            return lambda: gone
        except OSError as error:
            no_room = Answer(error=Elsewhere(f"the tensors can't be written: {error}", memory=error.errno == errno.ENOSPC))
            return lambda: no_room
        except ResolveError as error:  # it started before, and now it does not
            stays_down = Answer(error=Elsewhere(str(error)), ended="CRASH")
            return lambda: stays_down
        return lambda: self._answer(problem, within, reply)

    def ask(self, problem: Problem, within: Within = PLAINLY) -> Answer:
        """Send the problem, and wait for the answer."""
        return self.begin(problem, within)()

    def run(self, problem: Problem) -> Answer:
        """The same, with nothing around it."""
        return self.ask(problem)

    def unchecked(self, problem: Problem) -> Answer:
        """The same for a problem that may be none."""
        return self.ask(problem, Within(checked=False))

    def _asked(self, op: str, problem: Problem, within: Within = PLAINLY, **more: Any) -> Callable[[], dict[str, Any]]:
        message: dict[str, Any] = {"options": options_of(problem), **more}
        if problem.q.device.type != "cpu":
            message["device"] = str(problem.q.device)
        told = said(within)
        if told:
            message["within"] = told
        return self.peer.ask(op, self, message, tensors_of(problem))

    def _answer(self, problem: Problem, within: Within, waiting: Callable[[], dict[str, Any]]) -> Answer:
        try:
            reply = waiting()
            of_run(reply)
            if "lost" in reply:
                raise self.peer.lost(reply["lost"])
            answer = self._read(problem, reply)
            if answer.unsupported is not None and _as_promised(within):
                why_not = undeclared(self.offers, self.restrictions, problem)
                if why_not:
                    return Answer(error=Elsewhere(f"Unsupported: {answer.unsupported}; {why_not}"))
            return answer
        except Ended as ended:
            return _ended(ended)
        except (Misspoken, ValueError, KeyError, TypeError, OSError) as error:
            return Answer(error=Elsewhere(f"the peer does not keep to the protocol: {error}"))
        finally:
            for line in self.peer.taken():
                print(line)

    def _read(self, problem: Problem, reply: Mapping[str, Any]) -> Answer:
        error, found = None, {}
        if reply.get("error") is not None:
            error = Elsewhere(str(reply["error"]["line"]), memory=bool(reply["error"].get("memory")))
        if "file" in reply:
            found = returned(self.peer.path(reply), reply.get("strange", {}), str(problem.q.device))
            if error is None:
                of_outputs(found)
        names = list(problem.outputs) if error is None else []
        names = [name for name in reply.get("outputs", names) if name not in RETURNED]
        return Answer(
            found.get("o"),
            {name: found.get(name) for name in names},
            error,
            str(reply.get("stage", "forward")),
            reply.get("refusal"),
            tuple(reply.get("changed", ())),
            dict(reply.get("disturbed", {})),
            tuple(reply.get("shares", ())),
            "refusal" in reply or bool(reply.get("error", reply).get("refuses")),
            tuple(reply.get("gave_up", ())),
            lse=found.get("lse"),
        )

    # WHAT ELSE THE SUITE WANTS TO KNOW

    def _told(self, op: str, message: dict[str, Any] | None = None, problem: Problem | None = None, **more: Any) -> Any:
        """What the peer says; None where it does not do that, or its process ended."""
        if op not in self.does:
            return None
        try:
            return (self.peer.ask(op, self, message or {}) if problem is None else self._asked(op, problem, **more))()
        except Ended:
            return None

    def _tensors(self, reply: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
        return Receiver(str(device)).read(self.peer.path(reply)) if "file" in reply else {}

    def again(self, answer: Answer) -> Answer:
        """What an answer that was kept holds now; as it came, where the peer keeps none."""
        reply = self._told("again") or {}
        return Answer(returned(self.peer.path(reply), reply.get("strange", {}), "cpu").get("o")) if "file" in reply else answer

    def holds(self, place: Place) -> bool:
        """Whether the process holds the memory of a place in which nothing lies for the suite any more."""
        reply = self._told("holds", {"place": place.number, "free": self.peer.freed()})
        return reply is None or bool(reply["holds"])

    def trace(self, problem: Problem) -> Trace:
        """Which operators run, as the process tells it."""
        told = (self._told("trace", problem=problem) or {}).get("trace")
        return Trace(()) if told is None else Trace(tuple(told["operators"]), told["refusal"], told["disturbed"])

    def wholly(self, problem: Problem) -> str:
        """The kernel of torch that is all of a call, as the process tells it."""
        return str((self._told("wholly", problem=problem) or {}).get("kernel", ""))

    def presented(self, problem: Problem) -> Problem:
        """The problem as the implementation sees it."""
        reply = self._told("presented", problem=problem) if self._presents else None
        if reply is None:
            return problem
        found = self._tensors(reply, problem.q.device)
        other = {name: getattr(problem, name) if kept else found.get(name) for name, kept in reply["kept"].items()}
        return problem.replace(causal=bool(reply["causal"]), **other)

    def script(self, problem: Problem, within: Within = PLAINLY) -> Call:
        """The call for a script. Raises Unsupported where the peer has no words for it, or is not written in Python."""
        reply = self._told("script", problem=problem, within=within) or {"refusal": "the peer can't say its call in Python"}
        if "refusal" in reply:
            raise Unsupported(reply["refusal"])
        found = self._tensors(reply, problem.q.device)
        arguments = {
            name: getattr(problem, how["input"]) if "input" in how else _Says(how["says"]) if "says" in how else found[name]
            for name, how in reply["arguments"].items()
        }
        return Call(_elsewhere, arguments, tuple(reply["source"]))


class _Says:
    """A value of the other process, of which only its repr is known here."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _elsewhere(**arguments: Any) -> Any:
    raise RuntimeError("this function is in another process")


def _as_promised(within: Within) -> bool:
    """Whether a call is one of those of which an implementation promises something: as it is written, and nothing around it."""
    return within.checked and not within.surroundings.startswith((COMPILED, SECOND))


def _ended(ended: Ended) -> Answer:
    kind = "TIMEOUT" if ended.timeout else "CRASH"
    return Answer(error=Elsewhere(ended.how), ended=kind, log=ended.log)


def isolated(
    implementation: str, kwargs: Mapping[str, Any] | None = None, limits: Limits | None = None, process: Process | None = None
) -> list[Isolated]:
    """The adapters of an implementation in a process of its own, one for each variant. Raises ResolveError.

    process: a worker that was started already.
    """
    peer = Peer(implementation, kwargs or {}, limits or Limits(), process=process)
    return [Isolated(peer, told) for told in peer.start()]
