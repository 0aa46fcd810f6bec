"""Whose fault it is: what a kernel returns, raises or leaves behind is its own, and never a failure of the suite."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from judging import judge
from mutants.strange import STRANGE, NoText, right

from attnspec.adapters import Answer
from attnspec.adapters.conventions.function import FunctionAdapter
from attnspec.adapters.reading import Unreadable, handlers, interrupted, plain, words
from attnspec.adapters.watch.state import STATE, watched
from attnspec.conformance.plugin.check import Result, check
from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject


@pytest.mark.parametrize("name", [name for name in STRANGE if name != "pair"])  # a right tuple gets an adapter: see test_contact
def test_a_strange_kernel_is_blamed_by_the_right_clause(name: str) -> None:
    """The whole smoke in float32: red by its clause where it breaks one, and never a failure of the suite itself."""
    clause = STRANGE[name][1]
    outcome = judge(f"mutants.strange.{name}", "--impl-dtypes=float32", "-p", "no:unraisableexception")
    lost = {cell[0]: reason for cell, reason in outcome.record.reasons.items() if outcome.record.counts[cell]["HARNESS_ERROR"]}
    assert not lost
    assert "attnspec itself failed" not in outcome.screen
    if not clause:
        assert outcome.exit == 0, outcome.screen
    else:
        assert outcome.exit == 1
        assert clause in outcome.broken()


# TENSORS


def test_a_tensor_is_read_as_what_it_is() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert plain(x) is x
    kept = plain(torch.nn.Parameter(x))
    assert type(kept) is torch.Tensor
    assert kept.data_ptr() == x.data_ptr()
    assert plain((x, None)) == (x, None)
    assert plain(None) is None


def test_what_has_no_numbers_says_what_it_is() -> None:
    for name, said in (
        ("fake", "a FakeTensor"),
        ("nested", "a nested tensor"),
        ("freed", "memory was freed"),
        ("leaked", "can't be read"),
    ):
        found = plain(STRANGE[name][0](torch.ones(2, 3)))
        assert isinstance(found, Unreadable)
        assert said in found.what


# WORDS


def test_an_exception_without_text_still_has_a_name() -> None:
    assert words(NoText()) == "NoText (whose text can't be read)"
    assert Answer(error=NoText()).refusal == "NoText (whose text can't be read)"
    assert words(ValueError("a\udcffb")) == "ValueError: a\\udcffb"
    assert words(ValueError()) == "ValueError"


# TIME LIMITS


def _limit(number, frame):
    pytest.fail("Timeout (>1.0s)")


def test_a_time_limit_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm that was set before the call ends the test; one that the kernel sets for itself is its own affair."""
    before = signal.signal(signal.SIGALRM, _limit)
    try:

        def hangs(q, k, v):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            end = time.monotonic() + 20
            while time.monotonic() < end:
                pass

        subject = Subject(FunctionAdapter(hangs, "hangs", ()))
        with pytest.raises(pytest.fail.Exception, match="Timeout"):
            subject.run(subject.problem(Case(wrt="none")))

        def own(q, k, v):
            signal.signal(signal.SIGALRM, lambda number, frame: pytest.fail("mine"))
            try:
                hangs(q, k, v)
            finally:
                signal.signal(signal.SIGALRM, _limit)

        subject = Subject(FunctionAdapter(own, "own", ()))
        answer = subject.run(subject.problem(Case(wrt="none")))
        assert answer.refusal == "Failed: mine"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _limited(attend: Callable[..., Any], clause: str) -> Result:
    """What the suite says of a kernel where a time limit, like that of pytest-timeout, may end each test."""
    before = signal.signal(signal.SIGALRM, _limit)
    try:
        return check(attend, clauses=clause, dtypes="float32")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _hang(seconds: float) -> None:
    """For ever, were it not for the time limit that is reached after some seconds."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    time.sleep(60)


def test_a_call_that_a_time_limit_ended_did_not_return() -> None:
    """It is the clause's TIMEOUT, with the problem that was asked: not a pass of what was asked before it."""

    def hangs_at_17(q, k, v):
        if q.shape[-2] == 17:
            _hang(2.0)
        return right(q, k, v)

    result = _limited(hangs_at_17, "PURITY-1")
    (failure,) = result.failures
    assert failure.names == {"no return": 0.0}, "and not that of the clause, inputs that were changed"
    assert (failure.clause, failure.data["what"], failure.data["repro"]) == ("PURITY-1", "timeout", None)
    assert "the call had not returned after 2 s" in failure.text
    assert "q (1, 4, 17, 1)" in failure.text
    assert sum(cell["counts"].get("TIMEOUT", 0) for cell in result.verdicts) == 1
    assert result.exit == 1


def test_a_time_limit_is_no_fault_of_a_kernel_that_returns() -> None:
    """Many quick calls took the time: what was not asked is said, and nothing is called broken."""
    calls = []

    def quick(q, k, v):
        calls.append(q.shape)
        if len(calls) == 120:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.02)
        return right(q, k, v)

    result = _limited(quick, "SOFTMAX-1")
    assert not result.failures
    assert result.exit == 1
    assert re.fullmatch(
        r"a time limit ended test_\w+\[float32\] after [\d.]+ s, before all of its problems were tested", result.incomplete[0]
    )


def test_a_failure_is_told_although_its_reduction_is_ended() -> None:
    """What was found stays found: unreduced, and it says so."""
    wrong = []

    def wrong_and_slow(q, k, v):
        if q.shape[-2] == 17:
            wrong.append(q.shape)
        elif wrong and q.shape[-2] < 17:
            _hang(0.1)
        return right(q, k, v) * (1.5 if q.shape[-2] == 17 else 1.0)

    result = _limited(wrong_and_slow, "SOFTMAX-1")
    assert any(failure.data["what"] == "value" and "reduced   not" in failure.text for failure in result.failures)


def test_what_a_kernel_raises_like_pytest_is_its_answer() -> None:
    for error in (pytest.fail.Exception("no"), pytest.skip.Exception("no"), pytest.exit.Exception("no"), SystemExit(0)):
        assert not interrupted(error, handlers())
    assert interrupted(KeyboardInterrupt(), handlers())


# STATE


def test_the_state_is_watched_and_set_back(tmp_path) -> None:
    """Each thing that is watched: seen, said with from and to where that can be said, and set back."""
    here = os.getcwd()
    changes = {
        "the default device": (lambda: torch.set_default_device("meta"), "the default device from cpu to meta"),
        "anomaly mode": (lambda: torch.autograd.set_detect_anomaly(True), "anomaly mode: detection from False to True"),
        "flush-denormal": (lambda: torch.set_flush_denormal(True), "flush-denormal from False to True"),
        "a switch of torch": (
            lambda: torch.backends.cuda.enable_math_sdp(False),
            "a switch of torch: math SDPA from True to False",
        ),
        "cuDNN": (lambda: setattr(torch.backends.cudnn, "benchmark", True), "cuDNN: benchmark from False to True"),
        "NumPy's error handling": (
            lambda: np.seterr(over="raise"),
            f"NumPy's error handling: over from {np.geterr()['over']} to raise",
        ),
        "garbage collection": (lambda: __import__("gc").disable(), "garbage collection from on to off"),
        "the working directory": (lambda: os.chdir(tmp_path), f"the working directory from {here} to {tmp_path}"),
        "the umask": (lambda: os.umask(0o777), " to 777"),
        "the recursion limit": (lambda: __import__("sys").setrecursionlimit(997), " to 997"),
        "the environment": (lambda: os.environ.pop("HOME"), "the environment: HOME changed or gone"),
        "sys.path": (lambda: __import__("sys").path.clear(), "entries are gone"),
        "Python's random state": (random.random, "Python's random state"),
        "NumPy's random state": (np.random.rand, "NumPy's random state"),
        "sys.stdout": (lambda: __import__("sys").stdout.close(), "sys.stdout: it closed it"),
    }
    os.environ.setdefault("HOME", "/")
    for name, (change, said) in changes.items():
        state = STATE[name]
        before = state.read()
        with watched() as seen:
            change()
        assert list(seen) == [name]
        assert said in seen[name]
        assert state.read() == before or name == "sys.path"
        with watched() as seen:
            pass
        assert seen == {}
    print("standard output is still open")


def test_what_a_package_adds_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sets variables of the environment when CUDA begins, and many packages add to sys.path."""
    monkeypatch.syspath_prepend("/")
    with watched() as seen:
        os.environ["ATTNSPEC_OF_A_PACKAGE"] = "1"
        __import__("sys").path.append("/usr")
    assert seen == {}
    assert os.environ.pop("ATTNSPEC_OF_A_PACKAGE") == "1"
    __import__("sys").path.remove("/usr")


def test_an_old_torch_has_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnspec.adapters.watch.state import current_accelerator

    monkeypatch.delattr(torch, "accelerator")
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: False))
    assert current_accelerator() is None


def test_right_is_right() -> None:
    subject = Subject(FunctionAdapter(right, "right", ()))
    assert not subject.judgement(Case(i=3, j=5, wrt="none")).findings
