"""Injected faults, run by the real command: a wrong kernel is red whatever it does, and what was judged survives.

The faults are those of benchmarks/faults.py, each with the ending that it is to have; here are those that once made a wrong
kernel green, lost what was judged, or blamed the suite.
"""

from __future__ import annotations

import re
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from honest import tiled
from judging import judge

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from fault_endings import Ending, Fault, Seen, grade
from faults import FAULTS, markdown, row, run

from attnspec.conformance import check
from attnspec.conformance.plugin.process import Surroundings, threads_note
from attnspec.conformance.run.originals import Originals

BY_NAME = {fault.name: fault for fault in FAULTS}
HELD = (  # in the process that the kernel and the judge share
    "patches np.isfinite, np.any, torch.equal, torch.allclose",
    "patches the judge",
    "patches Subject.judgement",
    "patches pytest.fail",
    "patches the judge in a call",
    "gives the judge other code in a call",
    "patches np.isfinite in a call",
    "a subclass that answers with the true tensor, and holds another",
    "an exception whose text raises",
    "a FakeTensor",
    "a nested tensor",
    "a tensor with the negative bit",
    "a tensor with the conjugate bit",
    "closes descriptors 1 and 2",
    "the same with -s",
    "sends both streams to /dev/null",
    "an ASCII terminal",
    "SIGKILL",
)
APART = (  # only a process of the kernel's own can hold these
    "reads at address 0",
    "os.abort()",
    "an endless loop",
    "os._exit(0) in a call",
    "os._exit(0) at the import",
    "atexit os._exit(0), and a wrong answer",
    "finds pytest's config in the frames, registers a plugin that ends with os._exit(0)",
    "multiplies the exact answer through the frames",
    "os.fork(), and the child returns",
    "closes descriptors 0 to 63",
    "a page of an earlier run, and os._exit(0)",
)
IN_PROCESS, APART_SOON = ("--in-process",), ("--case-timeout=10",)


@pytest.mark.parametrize("name", HELD)
def test_a_fault_ends_as_it_should(name: str, tmp_path: Path) -> None:
    seen = run(BY_NAME[name], tmp_path, IN_PROCESS)
    assert grade(BY_NAME[name], seen, isolated=False) == ("OK", []), seen.screen


@pytest.mark.parametrize("name", APART)
def test_a_fault_ends_as_it_should_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    seen = run(BY_NAME[name], tmp_path, APART_SOON)
    assert grade(BY_NAME[name], seen, isolated=True) == ("OK", []), seen.screen


# GRADES


def test_a_grade_follows_from_the_ending(tmp_path: Path) -> None:
    def seen(rc: int | None = 1, screen: str = "MUST clauses: 1 of 2", page: str = "does not conform", **counts: int) -> Seen:
        verdicts = types.SimpleNamespace(cells={(): {"problems": counts}})
        return Seen(tmp_path, rc, screen, 1.0, verdicts, "complete", page)  # type: ignore[arg-type]

    fault = Fault("8 x", "x", "bad", Ending(has=("FAIL|CRASH",), says=("MUST",)), least=Ending((-9,), "complete", None))
    assert grade(fault, seen(FAIL=1), False) == ("OK", [])
    assert grade(fault, seen(FAIL=1, screen=""), False)[0] == "weak"
    assert grade(fault, seen(FAIL=1, page="none"), False)[0] == "weak"
    assert grade(fault, seen(-9, FAIL=1), False)[0] == "weak"
    for bad in (
        seen(0, FAIL=1),
        seen(PASS=1),
        seen(FAIL=1, HARNESS_ERROR=1),
        seen(None),
        seen(FAIL=1, screen="MUST INTERNALERROR"),
    ):
        assert grade(fault, bad, False)[0] == "bad"
    table = markdown([(fault, [row(fault, seen(0, FAIL=1), False), None])], ["", "--in-process"])
    assert "run then and now: 1 bad; now: 1 bad; now with --in-process: " in table
    assert "| x | bad | 0 | 1 FAIL | complete | does not conform | bad | exit code 0, not 1 |" in table


def test_every_fault_has_a_name_of_its_own_and_a_grade_of_before() -> None:
    assert len(BY_NAME) == len(FAULTS)
    assert {fault.before for fault in FAULTS} <= {"OK", "weak", "bad", ""}
    assert {*HELD, *APART} <= BY_NAME.keys()
    assert not set(HELD) & set(APART)


# WHAT VERDICTS GO THROUGH


def test_what_was_replaced_is_found_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnspec.conformance.judging import judge as judging
    from attnspec.conformance.subject import subject
    from attnspec.conformance.subject.subject import Subject

    originals = Originals()
    assert originals.put_back() == []
    assert sum(len(owned.names) for owned in originals.kept.values()) > 2000
    code = judging.compare.__code__
    before = {
        name: getattr(owner, name) for owner, name in ((np, "isfinite"), (torch, "equal"), (pytest, "fail"), (Subject, "judge"))
    }
    try:
        np.isfinite = torch.equal = pytest.fail = Subject.judge = max = lambda *_: None  # type: ignore[assignment, misc]
        judging.compare.__code__ = max.__code__
        del subject.judge
        assert set(originals.put_back()) == {
            "numpy.isfinite",
            "torch.equal",
            "pytest.fail",
            "attnspec.conformance.subject.subject.Subject.judge",
            "attnspec.conformance.subject.subject.judge",
            "attnspec.conformance.judging.judge.compare",
        }
        assert originals.put_back() == []
        assert {
            name: getattr(owner, name) for owner, name in ((np, "isfinite"), (torch, "equal"), (pytest, "fail"), (Subject, "judge"))
        } == before
    finally:
        for owner, name in ((np, "isfinite"), (torch, "equal"), (pytest, "fail"), (Subject, "judge")):
            setattr(owner, name, before[name])
        judging.compare.__code__, subject.judge = code, judging.judge


def test_an_honest_run_replaces_nothing() -> None:
    """Nor does the suite itself, with a search, a failure that is explained, and a page."""
    outcome = judge("honest.tiled", "--impl-dtypes=float32", "--clauses=SHAPE-4,PURITY-4", tier="standard")
    assert outcome.run.originals is not None
    assert outcome.run.replaced == []
    assert "replaced" not in outcome.screen


# NOTES


def out_of_memory(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Says that there is no memory, where there is."""
    if q.shape[-2] == 17:
        raise MemoryError
    return tiled(q, k, v)


def test_problems_without_memory_are_told() -> None:
    outcome = judge("test_faults.out_of_memory", "--impl-dtypes=float32", "--clauses=SHAPE-1")
    (line,) = re.findall(r"not judged, for lack of memory: SHAPE-1 \d+ of \d+ problems \(raised MemoryError\)", outcome.screen)
    assert " 0 of" not in line


def twice(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Wrong everywhere."""
    return 2 * tiled(q, k, v)


def test_why_a_clause_was_not_run_is_told() -> None:
    outcome = judge("test_faults.twice", "--impl-dtypes=float32", "--clauses=BATCH-2,SHAPE-1")
    assert "not run, BATCH-2: what is asked alone is wrong already\n" in outcome.screen
    assert "not run, " not in judge("honest.tiled", "--impl-dtypes=float32", "--clauses=BATCH-2").screen


def test_threads_that_are_left_are_told() -> None:
    surroundings, done = Surroundings(), threading.Event()
    assert threads_note(surroundings.new_threads()) == ""
    threads = [threading.Thread(target=done.wait, name=f"kernel-{n}", daemon=True) for n in range(6)]
    for thread in threads:
        thread.start()
    try:
        assert "thread kernel-0, kernel-1, kernel-2, kernel-3 and 2 more" in threads_note(surroundings.new_threads())
        assert surroundings.left_running() == []
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert threads_note(surroundings.new_threads()) == ""


def test_no_memory_for_the_exact_answer_is_no_fault_of_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no verdict either: the test stopped, so the run is not complete."""
    from attnspec.conformance.subject import subject

    solve, asked = subject.solve, []

    def full(*given: object, **options: object) -> object:
        asked.append(given)
        if len(asked) > 40:
            raise MemoryError("Unable to allocate 298. GiB")
        return solve(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(subject, "solve", full)
    outcome = judge("honest.tiled", "--impl-dtypes=float32", "--clauses=SHAPE-1")
    assert outcome.exit == 1
    assert "attnspec itself failed" not in outcome.screen
    assert "INCOMPLETE: no memory was left for the exact answer in test_output_has_a_row_for_each_query" in outcome.screen
    assert "MemoryError: Unable to allocate 298. GiB" in outcome.screen
    asked.clear()
    result = check(tiled, clauses="SHAPE-1", dtypes="float32")
    assert not result.ok
    assert "attnspec itself failed" not in str(result)
    assert "INCOMPLETE: no memory was left for the exact answer in test_output_has_a_row_for_each_query[float32]" in str(result)
