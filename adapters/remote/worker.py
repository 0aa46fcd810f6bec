"""The peer in Python: python -m attnspec.adapters.remote.worker. It reads requests from standard input; see docs/protocol.md."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnspec.adapters import Adapter, ResolveError, Unsupported, reading, resolve
from attnspec.adapters.reading import no_memory, text, words
from attnspec.adapters.remote.keeper import keep
from attnspec.adapters.remote.protocol import VERSION, declared, problem_of, settle, within_of
from attnspec.adapters.remote.tensors import Receiver, Sender, written
from attnspec.adapters.watch.state import SETUP, no_second_run, watched
from attnspec.spec import Problem


class Worker:
    """What is asked, and the adapters of which it is asked, by number."""

    def __init__(self) -> None:
        self.adapters: list[Adapter] = []
        self.folder = Path()
        self.memory: dict[str, Receiver] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, whatever it is."""
        ask: Callable[[dict[str, Any]], dict[str, Any]] | None = getattr(self, f"op_{request.get('op')}", None)
        if ask is None:
            return {"failed": f"this peer has no operation {request.get('op')!r}"}
        for receiver in self.memory.values():
            receiver.free(request.get("free", ()))
        return ask(request)

    # MEETING

    def op_start(self, request: dict[str, Any]) -> dict[str, Any]:
        """Import the implementation. What that changes of the global state is said, and set back."""
        if request["version"] != VERSION:
            return {"version": VERSION, "failed": f"this peer speaks version {VERSION} of the protocol, not {request['version']}"}
        self.folder = Path(request["folder"])
        if request.get("memory_limit"):
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (request["memory_limit"], request["memory_limit"]))
        path = request.get("path", [])  # a module is found where the suite would find it
        sys.path[:] = [*path, *(x for x in sys.path if x not in path)]
        with no_second_run(), watched(leave=SETUP) as changes:
            try:
                self.adapters = resolve(request["implementation"], request.get("kwargs") or {})
            except (ResolveError, ValueError) as error:
                return {"version": VERSION, "failed": str(error)}
            except BaseException as error:
                return {"version": VERSION, "failed": f"importing {request['implementation']} raised {words(error)}"}
        return {"version": VERSION, "peer": f"python {sys.version.split()[0]}, torch {torch.__version__}", "disturbed": changes}

    def op_describe(self, request: dict[str, Any]) -> dict[str, Any]:
        """What each of the implementations promises."""
        return {"implementations": [declared(n, adapter) for n, adapter in enumerate(self.adapters)]}

    def op_on(self, request: dict[str, Any]) -> dict[str, Any]:
        """The same implementation on a device."""
        return self._added(self._adapter(request).on(request["device"]))

    def op_fresh(self, request: dict[str, Any]) -> dict[str, Any]:
        """The same implementation, of which nothing was asked yet."""
        other = self._adapter(request).fresh()
        return {} if other is None else self._added(other)

    def _added(self, adapter: Adapter) -> dict[str, Any]:
        self.adapters.append(adapter)
        return {"implementations": [declared(len(self.adapters) - 1, adapter)]}

    # ASKING

    def op_run(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a problem."""
        problem, within = self._problem(request), within_of(request)
        answer = self._adapter(request).ask(problem, within)
        reply: dict[str, Any] = {"stage": answer.stage} if answer.stage != "forward" else {}
        if answer.unsupported is not None:
            reply["refusal"] = answer.unsupported
        if answer.error is not None:
            reply["error"] = {"line": words(answer.error), "memory": no_memory(answer.error), "refuses": answer.refuses}
        elif answer.refuses:
            reply["refuses"] = True
        if answer.ended and answer.error is not None:
            reply["lost"] = words(answer.error)
        for name in ("changed", "disturbed", "shares", "gave_up"):
            if getattr(answer, name):
                reply[name] = getattr(answer, name)
        if answer.refusal is None or answer.o is not None:
            lse = {"lse": answer.lse} if problem.lse else {}
            reply |= self._results({"o": answer.o, **lse, **answer.gradients}, request)
        return reply

    def op_again(self, request: dict[str, Any]) -> dict[str, Any]:
        """The output of the answer that is kept, as it is now."""
        adapter = self._adapter(request)
        kept = adapter.kept
        return {} if kept is None else self._results({"o": adapter.again(kept).o}, request)

    def op_holds(self, request: dict[str, Any]) -> dict[str, Any]:
        """Whether something holds the memory of a place."""
        return {"holds": any(receiver.holds(request["place"]) for receiver in self.memory.values())}

    def op_trace(self, request: dict[str, Any]) -> dict[str, Any]:
        """Which operators run."""
        try:
            seen = self._adapter(request).trace(self._problem(request))
        except ResolveError as error:
            return {"failed": str(error)}
        return {"trace": asdict(seen)}

    def op_wholly(self, request: dict[str, Any]) -> dict[str, Any]:
        """The kernel of torch that is all of a call."""
        return {"kernel": self._adapter(request).wholly(self._problem(request))}

    def op_presented(self, request: dict[str, Any]) -> dict[str, Any]:
        """The problem as the implementation sees it: mask, bias and causal."""
        problem = self._problem(request)
        put = self._adapter(request).presented(problem)
        kept = {name: getattr(put, name) is getattr(problem, name) for name in ("mask", "bias")}
        tensors = {name: x for name in ("mask", "bias") if not kept[name] and (x := getattr(put, name)) is not None}
        return {"causal": put.causal, "kept": kept, **self._tensors(tensors, request)}

    def op_script(self, request: dict[str, Any]) -> dict[str, Any]:
        """The call for a script: lines of Python, and the arguments, those that are the problem's own by name."""
        problem, within = self._problem(request), within_of(request)
        try:
            call = self._adapter(request).script(problem, within)
        except Unsupported as error:
            return {"refusal": text(error)}
        own = {id(x): name for name, x in problem.inputs().items()}
        arguments: dict[str, dict[str, Any]] = {}
        tensors: dict[str, Tensor] = {}
        for name, x in call.arguments.items():
            if isinstance(x, Tensor) and id(x) not in own:
                tensors[name] = x
            arguments[name] = {"input": own[id(x)]} if id(x) in own else {} if isinstance(x, Tensor) else {"says": repr(x)}
        return {"source": list(call.source), "arguments": arguments, **self._tensors(tensors, request)}

    # PARTS OF IT

    def _adapter(self, request: dict[str, Any]) -> Adapter:
        adapter = self.adapters[request["implementation"]]
        settle(adapter, request.get("settings", {}))
        return adapter

    def _problem(self, request: dict[str, Any]) -> Problem:
        device = request.get("device", "cpu")
        receiver = self.memory.setdefault(device, Receiver(device))
        return problem_of(request, receiver.read(self.folder / request["file"]))

    def _results(self, results: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        some = {name: x for name, x in results.items() if x is not None or name == "o"}
        strange = written(self.folder / request["into"], some)
        reply: dict[str, Any] = {"file": request["into"], "outputs": list(results)}
        return reply | ({"strange": strange} if strange else {})

    def _tensors(self, tensors: dict[str, Tensor], request: dict[str, Any]) -> dict[str, Any]:
        if not tensors:
            return {}
        Sender().write(self.folder / request["into"], tensors)
        return {"file": request["into"]}


def serve() -> None:
    """Answer requests until there are no more."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what is printed is the log
    with contextlib.suppress(OSError):
        os.close(0)
        os.open(os.devnull, os.O_RDONLY)
    faulthandler.enable(2)
    reading.nobody_interrupts = True
    worker, started = Worker(), False
    for line in requests:
        try:
            request = json.loads(line)
        except ValueError:
            request = {}
        started = started or request.get("op") == "start"
        if not started:  # half of it was read by one that ended
            continue
        if request.get("op") == "stop":
            break
        try:
            reply = worker.answer(request)
        except BaseException as error:
            reply = {"failed": f"{type(error).__name__}: {words(error)}"}
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        replies.write(json.dumps({"op": request.get("op"), "id": request.get("id"), **reply}).encode() + b"\n")
    os._exit(0)


def main() -> None:
    """Answer, in one process after another."""
    keep(serve)


if __name__ == "__main__":
    main()
