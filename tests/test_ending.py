"""How a run ends: the exit code follows the verdicts, and what was seen is kept, whatever the kernel does to its process."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
import torch
from judging import judge

from attnspec.adapters import resolve
from attnspec.conformance import check
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.run.shapes import fewer, note_of_fallbacks, slow_on_new
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing import clause as of_clauses  # its tests_of would be collected here as a test
from attnspec.conformance.testing.telling import Telling
from attnspec.conformance.verdicts.cli import main
from attnspec.conformance.verdicts.lines import Lines, Why, read

HERE = Path(__file__).parent
KERNEL = """
import os, signal, sys, threading, time
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

calls = 0

def right(q, k, v):
    return sdpa(q, k, v)

def at(n, do):
    # right, and at the n-th call it does something beside
    def attend(q, k, v):
        global calls
        calls += 1
        if calls == n:
            do()
        return sdpa(q, k, v)
    return attend

def interrupt():
    raise KeyboardInterrupt

def in_no_line():
    # compiled functions without lines are frames, too
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(100):
        pass

in_no_line.__code__ = in_no_line.__code__.replace(co_linetable=b"")

def move():
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")

def spoil():
    sys.path.clear()
    os.environ.clear()
    sys.setrecursionlimit(200)

exits = at(60, lambda: os._exit(0))
forks = at(60, os.fork)
interrupts = at(60, interrupt)
terminates = at(60, lambda: os.kill(os.getpid(), signal.SIGTERM))
ends_in_no_line = at(60, in_no_line)
hangs_up = at(60, lambda: os.kill(os.getpid(), signal.SIGHUP))
lingers = at(60, lambda: threading.Thread(target=time.sleep, args=(200,), name="kernel-thread").start())
moves = at(60, move)
spoils = at(60, spoil)

def silent(q, k, v):
    sys.stdout = sys.stderr = open(os.devnull, "w")
    return sdpa(q, k, v)

def wrong(q, k, v):
    return 1.5 * sdpa(q, k, v)
"""
QUICK = ("--tier=smoke", "--impl-dtypes=float32", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder of its own, with kernels in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernel.py").write_text(KERNEL)
    return tmp_path


def apart(*options: str, python: str = "", wrap: str = "", timeout: float = 240) -> subprocess.CompletedProcess:
    """`python -m pytest` with these options in a process of its own, in this folder. wrap: a shell command before it."""
    command = [sys.executable, "-m", "pytest", "--in-process", *QUICK, *options]
    if wrap:
        command = ["bash", "-c", f'{wrap} exec "$@"', "bash", *command]
    return subprocess.run(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
    )


# THE EXIT CODE


def test_a_broken_clause_is_exit_1_whatever_pytest_counted(here, monkeypatch):
    monkeypatch.setattr(Telling, "_end", lambda self: None)  # the test that shows the failure passes for pytest
    outcome = judge("kernel.py:wrong", "--impl-dtypes=float32", "--clauses=SHAPE-1")
    assert "1 broken" in outcome.screen
    assert "failed" not in outcome.screen.splitlines()[-1]
    assert outcome.exit == 1


def test_passes_that_nobody_judged_are_an_error(here, monkeypatch, capsys):
    from attnspec.conformance.judging.finding import Judgement
    from attnspec.conformance.subject.subject import Subject

    monkeypatch.setattr(Subject, "judgement", lambda self, case: Judgement((), {}))
    outcome = judge("kernel.py:wrong", "--impl-dtypes=float32", "--clauses=SHAPE-1")
    assert outcome.exit == 5
    assert "something replaced the judge" in capsys.readouterr().err
    result = check("kernel.py:wrong", clauses="SHAPE-1", dtypes="float32")
    assert not result.ok
    assert "something replaced the judge" in str(result)


def test_what_was_not_reached_does_not_conform(here):
    options = ("--impl-dtypes=float32", "--clauses=SHAPE-1,PURITY-4,DROPOUT-1", "--budget=1e-9", f"--verdicts={here / 'v.jsonl'}")
    outcome = judge("kernel.py:right", *options)
    assert outcome.exit == 5  # nothing was judged at all
    assert "INCOMPLETE · MUST clauses: 0 of" in outcome.screen
    assert "INCOMPLETE: 2 clauses not reached, because the time was up (--budget=1e-09): SHAPE-1, PURITY-4" in outcome.screen
    found = read(here / "v.jsonl")
    assert {key[0]: why for key, why in found.unreached.items()} == {"SHAPE-1": Why.TIME, "PURITY-4": Why.TIME}


@pytest.mark.parametrize("tier", ["smoke", "soak"])
def test_the_time_of_soak_is_its_normal_end(here, monkeypatch, tier):
    from attnspec.conformance.run.run import Run

    asked = []

    def out_of_time(run) -> bool:
        asked.append(run)
        return len(asked) > 8

    monkeypatch.setattr(Run, "out_of_time", property(out_of_time))
    options = ("--impl-dtypes=float32", "--clauses=SHAPE-1,CAUSAL-1,PURITY-4", "--no-search")
    outcome = judge("sdpa-math", *options, tier=tier)
    whys = {cell[0]: why for cell, why in outcome.record.whys.items()}
    if tier == "soak":
        assert outcome.exit == 0
        assert whys["PURITY-4"] is Why.SOAKED
        assert "INCOMPLETE" not in outcome.screen
        return
    assert outcome.exit == 1
    assert whys["PURITY-4"] is Why.TIME
    asked.clear()
    assert judge("sdpa-math", *options, "--allow-incomplete").exit == 0
    asked.clear()
    result = check("sdpa-math", clauses="SHAPE-1,CAUSAL-1,PURITY-4", dtypes="float32", search=False)
    assert not result.ok
    assert result.exit == 1
    assert "PURITY-4" in result.incomplete[0]
    with pytest.raises(AssertionError, match="not reached, because the time was up"):
        result.raise_for_failures()
    asked.clear()
    assert check("sdpa-math", clauses="SHAPE-1,CAUSAL-1,PURITY-4", dtypes="float32", search=False, allow_incomplete=True).ok


def test_what_no_case_can_show_is_no_such_reason(here):
    outcome = judge("sdpa-math", "--impl-dtypes=float32", "--clauses=SHAPE-1,ACCURACY-4", "--no-search")
    (why,) = (why for cell, why in outcome.record.whys.items() if cell[0] == "ACCURACY-4")
    assert why is Why.NO_CASE
    assert outcome.exit == 0


# WHAT A KERNEL DOES TO ITS PROCESS

FILES = ("--clauses=SHAPE-1", "--verdicts=v.jsonl", "--verdict-report=v.html")


@pytest.mark.parametrize(
    ("kernel", "who"),
    [
        ("terminates", "by SIGTERM"),
        ("ends_in_no_line", "by SIGTERM"),
        ("hangs_up", "by SIGHUP"),
        ("interrupts", "the implementation"),
    ],
)
def test_what_ends_a_run_early_leaves_everything_that_was_seen(here, kernel, who):
    if kernel == "hangs_up" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        pytest.skip("SIGHUP is ignored here, as under nohup, and a run keeps that")
    done = apart(f"--impl=kernel.py:{kernel}", *FILES)
    assert done.returncode == 2, done.stdout
    found = read("v.jsonl")
    assert found.cells["SHAPE-1", "float32", "only", "cpu"]["problems"]["PASS"] > 5
    (reason,) = found.incomplete
    assert "at SHAPE-1 --case=" in reason
    assert who in reason
    assert f"INCOMPLETE: {reason}" in done.stdout
    assert "INCOMPLETE" in Path("v.md").read_text().splitlines()[0]
    assert "INCOMPLETE" in Path("v.html").read_text()


def test_a_process_that_is_gone_leaves_no_page_of_an_earlier_run_and_no_green_gate(here):
    Path("v.html").write_text("conforms")
    Path("v.md").write_text("conforms")
    Path("v.jsonl").write_text("of another run")
    done = apart("--impl=kernel.py:exits", *FILES)
    assert done.returncode == 0
    for page in ("v.html", "v.md"):
        assert "conforms" not in Path(page).read_text()
        assert "INCOMPLETE: this run is going on, or it was killed" in Path(page).read_text()
    assert read("v.jsonl").incomplete
    assert main(["verify", "v.jsonl"]) == 2


def test_a_child_that_comes_back_does_not_run_the_suite_again(here):
    done = apart("--impl=kernel.py:forks", *FILES)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("MUST clauses:") == 1
    assert not read("v.jsonl").incomplete


def test_a_thread_that_does_not_end_does_not_keep_the_process(here):
    done = apart("--impl=kernel.py:lingers", *FILES, timeout=180)
    assert done.returncode == 0, done.stdout
    assert "attnspec: the implementation left kernel-thread running; the process ends without it" in done.stdout


@pytest.mark.parametrize("kernel", ["moves", "spoils", "silent"])
def test_folder_environment_and_streams_are_the_suites_own(here, kernel):
    done = apart(f"--impl=kernel.py:{kernel}", *FILES)
    assert "MUST clauses: 1 of" in done.stdout, done.stdout
    assert "Traceback" not in done.stdout
    assert not read("v.jsonl").incomplete
    assert "SHAPE-1" in Path("v.html").read_text()


def test_what_can_not_be_written_at_the_end_costs_a_line(here):
    """No file may grow beyond 1 KB here: neither the page nor the script of a failure fits."""
    done = apart("--impl=kernel.py:wrong", *FILES, wrap="ulimit -f 1;")
    assert done.returncode == 1, done.stdout
    assert "MUST clauses: 1 of" in done.stdout
    assert "ERROR: the page " in done.stdout
    assert "Traceback" not in done.stdout
    assert "attnspec itself failed" not in done.stdout


def test_a_full_disk_costs_a_line(here, monkeypatch):
    """From the third line on the file can't be written."""
    add = Lines.add

    def full(self, line):
        if self.path is not None and len(self.kept) > 3:
            self.path = Path("/dev/full")
        add(self, line)

    monkeypatch.setattr(Lines, "add", full)
    outcome = judge("kernel.py:wrong", "--impl-dtypes=float32", "--clauses=SHAPE-1", f"--verdicts={here / 'v.jsonl'}")
    assert outcome.exit == 1
    assert "MUST clauses: 1 of" in outcome.screen
    assert "ERROR: the verdicts can't be written to /dev/full: No space left on device; the file is incomplete" in outcome.screen
    assert read(here / "v.jsonl").incomplete


def test_a_script_that_can_not_be_written_costs_no_verdict(here):
    (here / "attnspec-repros").write_text("a file where the folder should be")
    outcome = judge("kernel.py:wrong", "--impl-dtypes=float32", "--clauses=SHAPE-1")
    assert outcome.exit == 1
    assert "attnspec itself failed" not in outcome.screen
    assert "the scripts of failures can't be written to" in outcome.screen


# THE BUDGET


def test_each_test_asks_its_first_problems_before_any_goes_on(here):
    """Calls that take their time: with a budget for a fraction of them, no clause is left out."""
    (here / "kernel.py").write_text(KERNEL + "def slow(q, k, v):\n    time.sleep(0.2)\n    return sdpa(q, k, v)\n")
    clauses = "--clauses=SHAPE-1,SOFTMAX-1,GRAD-1,PURITY-1,ACCURACY-1,ACCURACY-2"
    outcome = judge("kernel.py:slow", "--impl-dtypes=float32", clauses, "--budget=6")
    assert outcome.exit == 0, outcome.screen
    assert "MUST clauses: 6 of" in outcome.screen
    assert outcome.run.subjects[0].judged < 45


def test_a_budget_that_suffices_asks_all(here):
    options = ("--impl-dtypes=float32", "--clauses=SHAPE-1,SCALE-1,SHAPE-4")
    with_budget, without = judge("sdpa-math", *options, "--budget=1000"), judge("sdpa-math", *options)
    assert with_budget.record.counts == without.record.counts


def test_the_most_dangerous_sizes_come_last():
    names = [test.__name__ for test in of_clauses.tests_of(())]
    assert set(names[-2:]) == {"test_nothing_in_nothing_out", "test_no_keys_at_all"}


# FEW SHAPES


def test_few_shapes_keep_all_pairs_of_options():
    """Every combination of two options that the array holds is still there, in a tenth of its shapes."""
    (adapter,) = resolve("sdpa-math", {})
    subject = Subject(adapter)
    rows = [case for case in array("pairs", adapter, ("float32",)) if case.dtype == "float32"]
    small = fewer(rows, subject)
    assert len({shape(case) for case in rows}) > 60
    assert len({shape(case) for case in small}) <= 8
    assert {sign(case) for case in small} == {-1, 0, 1}
    assert {case.sharing for case in small} == {case.sharing for case in rows}
    options = ("mask", "holes", "bias", "biases", "causal", "scale", "layout", "values", "wrt", "do")
    for one, other in combinations(options, 2):
        kept = {(getattr(case, one), getattr(case, other)) for case in small}
        assert {(getattr(case, one), getattr(case, other)) for case in rows} <= kept


def test_what_is_slow_on_new_shapes_is_found(here):
    """A kernel that sleeps where a shape is new, and one that always sleeps."""
    seen = set()

    def compiles(q, k, v):
        if (q.shape, k.shape) not in seen:
            seen.add((q.shape, k.shape))
            time.sleep(0.6)
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v

    def slow(q, k, v):
        time.sleep(0.6)
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v

    assert "for a call in a new shape" in slow_on_new(Subject(resolve(compiles)[0]))
    assert not slow_on_new(Subject(resolve(slow)[0]))


def test_compiled_code_that_falls_back_is_told():
    def compiles(q, k, v):
        logging.getLogger("torch._dynamo.convert_frame").warning(
            "torch._dynamo hit config.%s (%s)\n   function: %s", "recompile_limit", 8, "'attend' (kernel.py:7)"
        )
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v

    subject = Subject(resolve(compiles)[0], calls=8)
    assert not note_of_fallbacks([subject])
    subject.run(subject.problem(Case(wrt="none")))
    subject.run(subject.problem(Case(wrt="none")))
    subject.calls = 100
    note = note_of_fallbacks([subject])
    assert "gave up on 'attend' (kernel.py:7) after 9 of 100 calls" in note
    assert "the other 91 ran uncompiled" in note


def shape(case) -> tuple:
    return case.heads, case.b, case.i, case.keys, case.d, case.width


def sign(case) -> int:
    return (case.i > case.keys) - (case.i < case.keys)
