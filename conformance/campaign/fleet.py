"""The runs of a campaign on Dask's workers: on this machine, or wherever a scheduler has them."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attnspec.conformance import __version__
from attnspec.conformance.campaign import task
from attnspec.conformance.campaign.file import Campaign, Entry

RETRIES = 2  # of a run whose worker was lost; one that ends by itself has its result, whatever that is


def go(
    campaign: Campaign,
    into: Path,
    *,
    scheduler: str = "",
    workers: int = 1,
    again: bool = False,
    run: Callable[..., dict[str, Any]] = task.run,
    say: Callable[[str], None] = print,
) -> None:
    """Ask every implementation that has no result yet, and write each result as it comes.

    A result is NAME.json and NAME.jsonl (verdicts) in the folder `into`. A campaign that was stopped goes on with what
    is missing; `again` asks all. scheduler: tcp://… of a fleet; else this machine has so many workers.
    """
    into.mkdir(parents=True, exist_ok=True)
    tasks = {one.name: one.task(campaign.options, campaign.constraints) for one in campaign.entries}
    stamps = {one.name: one.stamp(tasks[one.name], __version__) for one in campaign.entries}
    todo = [one for one in campaign.entries if again or not _has(stored(into, one.name), stamps[one.name])]
    done = len(campaign.entries) - len(todo)
    if done:
        say(f"{done} of {len(campaign.entries)} have their result already")
    began = time.monotonic()
    for result in _asked(todo, tasks, scheduler, workers, run) if todo else ():
        done += 1
        _store(into, result | {"stamp": stamps[result["name"]]})
        outcome = result["trouble"].splitlines()[-1] if result["trouble"] else f"exit {result['exit']}"
        spent = time.monotonic() - began
        say(
            f"{done:3} of {len(campaign.entries)}  {result['name']:40} {outcome} · {result['seconds']:.0f} s · {spent:.0f} s in all"
        )


def _asked(
    todo: list[Entry], tasks: dict[str, dict[str, Any]], scheduler: str, workers: int, run: Callable[..., Any]
) -> Iterator[dict[str, Any]]:
    """The results of these, as they come."""
    from distributed import Client, LocalCluster, as_completed

    with ExitStack() as open_:
        if scheduler:
            client = open_.enter_context(Client(scheduler))
        else:
            needed = {name: max(other.resources.get(name, 0.0) for other in todo) for one in todo for name in one.resources}
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, resources=needed or None)
            client = open_.enter_context(Client(open_.enter_context(cluster)))
        waiting, runs = deque(todo), as_completed()
        asked: dict[Any, Entry] = {}

        def ask() -> None:
            """Give Dask as many as there are workers, of those that need the same: more than that it may leave to a busy one."""
            room = Counter({kind: max(1, sum(client.nthreads().values())) for kind in {_kind(one) for one in todo}})
            room.subtract(_kind(one) for one in asked.values())
            for one in [*waiting]:
                if room[_kind(one)] > 0:
                    room[_kind(one)] -= 1
                    waiting.remove(one)
                    future = client.submit(
                        run, tasks[one.name], key=one.name, pure=False, retries=RETRIES, resources=dict(one.resources)
                    )
                    asked[future] = one
                    runs.add(future)

        ask()
        for future in runs:
            one, error = asked.pop(future), future.exception()
            ask()
            lost: dict[str, Any] = {"name": one.name, "exit": None, "verdicts": "", "printed": [], "seconds": 0.0}
            yield future.result() if error is None else lost | {"trouble": f"its worker was lost: {type(error).__name__}: {error}"}


def _kind(one: Entry) -> tuple[Any, ...]:
    """What a worker must have for it."""
    return tuple(sorted(one.resources.items()))


def _has(result: dict[str, Any], stamp: str) -> bool:
    """Whether this is a result of the same run; one that could not be asked has none."""
    return result.get("stamp") == stamp and (result["exit"] is not None or result["judged"])


def _store(into: Path, result: dict[str, Any]) -> None:
    """Write a result; NAME.json comes last, so that what is there is whole."""
    name = result["name"]
    path = into / f"{name}.jsonl"
    path.write_text(result["verdicts"], encoding="utf-8") if result["verdicts"] else path.unlink(missing_ok=True)
    kept = {key: x for key, x in result.items() if key != "verdicts"} | {"judged": bool(result["verdicts"])}
    (into / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def stored(into: Path, name: str) -> dict[str, Any]:
    """The result of one, without its files; nothing where there is none."""
    try:
        found: dict[str, Any] = json.loads((into / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
