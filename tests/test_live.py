"""On a terminal: the line that goes on, failures where they are found, bars; and plain text wherever there is none."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attnspec.conformance.plugin.live import ERASE, goes_on_in_a_line, pictures
from attnspec.conformance.report.bars import bar, bars
from attnspec.conformance.verdicts.lines import Share
from attnspec.conformance.verdicts.record import Record

KERNEL = """
import torch

def attend(q, k, v, *, is_causal=False, scale=None):
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        s = s.masked_fill(~torch.ones(s.shape[-2:], dtype=torch.bool).tril(1), float("-inf"))
    return torch.softmax(s, -1) @ v

def talks(q, k, v, *, is_causal=False, scale=None):
    print("words of a kernel")
    return attend(q, k, v, is_causal=is_causal, scale=scale)
"""
SENTENCE = "Where there are as many queries as keys, query i attends to key j if and only if j ≤ i."


def on_a_terminal(folder: Path, *options: str, name: str = "attend", interrupt: str = "") -> tuple[int, str]:
    """The exit code of a run that has a terminal for itself, and what it wrote there. interrupt: after these words, by Ctrl-C."""
    (folder / "kernel.py").write_text(KERNEL, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", f"--impl=kernel.py:{name}", "--tier=smoke", "--impl-dtypes=float32"]
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "PY_COLORS", "FORCE_COLOR")}
    environment = {**kept, "TERM": "xterm", "COLUMNS": "100", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background of a shell has it ignored, and so have its children
        os.execve(command[0], [*command, "-p", "no:cacheprovider", "--without=backward", *options], environment)
    said = b""
    while True:
        select.select([terminal], [], [], 60)
        try:
            said += os.read(terminal, 65536)
        except OSError:  # how Linux says that nobody has it open any more
            break
        if interrupt and interrupt.encode() in said:
            os.kill(process, signal.SIGINT)
            interrupt = ""
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, said.decode("utf-8").replace("\r\n", "\n")


def left_on(screen: str) -> str:
    """What stays on a terminal of what was written: a line that is erased does not. Colours are left out."""
    return re.sub(r"\x1b\[\d*m", "", re.sub(rf"[^\n]*{re.escape(ERASE)}", "", screen))


def test_a_failure_is_shown_where_it_is_found_and_not_again(tmp_path):
    code, said = on_a_terminal(tmp_path, "--clauses=CAUSAL", "--budget=60")
    left = left_on(said)
    assert code == 1
    assert said.count(SENTENCE) == 1
    assert re.search(r"_ CAUSAL-1 in float32, found by test_\w+ _", left)
    assert ERASE in said[said.index(SENTENCE) :], "the run goes on after the failure"
    assert "FAILURES" not in left
    assert "1. CAUSAL-1 in float32" in left[left.index(" faults ") :]
    assert not re.search(r"\d+ of \d+ tests ·", left), "nothing of the line stays"
    assert not re.search(r"\x1b\[3\dm[.sF]\x1b\[0m", said), "no letter for each test"
    drawn = re.findall(rf"{re.escape(ERASE)}(\d+ of \d+ tests · [^\n\r]*)", said)
    assert all(len(re.sub(r"\x1b\[\d*m", "", line)) < 100 for line in drawn)
    assert any("· CAUSAL-" in line and "--case=" in line for line in drawn)
    assert any("1 failure" in line for line in drawn)
    assert any(re.search(r"· \d+:\d\d · \d+ s left ·", line) for line in drawn)
    assert re.search(r"^  o +██████ +×[\d,]+$", left, re.MULTILINE)


def test_what_a_test_printed_and_what_was_shown_are_not_mixed(tmp_path):
    """In this process the kernel's own words come with the report of the test; -x and -q change nothing of the rest."""
    code, said = on_a_terminal(tmp_path, "--clauses=CAUSAL-1", "--in-process", "-x", "-q", name="talks")
    left = left_on(said)
    assert code == 1
    assert said.count(SENTENCE) == 1
    assert "its failures stand above, where they were found" in left
    assert left.index(SENTENCE) < left.index("FAILURES") < left.rindex("words of a kernel") < left.index(" faults ")
    assert "attnspec-live" not in left, "the line leaves no thread"


def test_after_an_interruption_the_line_is_gone(tmp_path):
    code, said = on_a_terminal(tmp_path, "--clauses=SHAPE,CAUSAL", interrupt=ERASE)
    left = left_on(said)
    assert code == 2
    assert not re.search(r"\d+ of \d+ tests ·", left)
    assert "INCOMPLETE · MUST clauses" in left


@pytest.mark.parametrize("options", [("-p", "no:logging"), ("--log-cli-level=DEBUG",), ()])
def test_what_tests_log_is_looked_for_where_somebody_asks(tmp_path, options):
    """Without pytest's plugin for logs nobody can."""
    (tmp_path / "kernel.py").write_text(KERNEL, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "--impl=kernel.py:attend", "--tier=smoke", "--impl-dtypes=float32"]
    command += ["--clauses=SHAPE-4", "--without=backward", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


# WHERE


def config(encoding: str = "utf-8", tty: bool = True, markup: bool = True, worker: bool = False, **options: Any) -> Any:
    file = SimpleNamespace(encoding=encoding, isatty=lambda: tty)
    reporter = SimpleNamespace(_tw=SimpleNamespace(_file=file, hasmarkup=markup), _show_progress_info="progress")
    given = {"capture": "fd", "verbose": 0, "collectonly": False, **options}
    more = {"workerinput": {}} if worker else {}
    return SimpleNamespace(
        pluginmanager=SimpleNamespace(get_plugin=lambda name: reporter),
        getoption=lambda name, *default: given.get(name, *default),
        getini=lambda name: False,
        **more,
    )


@pytest.mark.parametrize(
    ("given", "drawn", "goes_on"),
    [
        ({}, True, True),
        ({"verbose": -1}, True, True),
        ({"capture": "sys"}, True, True),
        ({"markup": False}, False, False),  # NO_COLOR, --color=no, TERM=dumb
        ({"tty": False}, False, False),  # a pipe with FORCE_COLOR
        ({"encoding": "ascii"}, False, False),
        ({"encoding": "latin-1"}, False, False),
        ({"verbose": 1}, True, False),
        ({"capture": "no"}, True, False),
        ({"capture": "tee-sys"}, True, False),
        ({"dist": "load"}, True, False),
        ({"worker": True}, True, False),
        ({"collectonly": True}, True, False),
        ({"usepdb": True}, True, False),
        ({"trace": True}, True, False),
        ({"setupshow": True}, True, False),
        ({"log_cli_level": "INFO"}, True, False),
        ({"--in-process": True, "--budget": 9.0}, True, False),
        ({"--in-process": True}, True, True),
    ],
)
def test_where_a_line_goes_on_and_where_bars_are_drawn(given, drawn, goes_on, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    assert (pictures(config(**given)), goes_on_in_a_line(config(**given))) == (drawn, goes_on)
    monkeypatch.setenv("CI", "true")
    assert not pictures(config(**given))
    assert not goes_on_in_a_line(config(**given))


# BARS


@pytest.mark.parametrize(
    ("x", "drawn"),
    [
        (0.0, "······"),
        (1e-9, "▏·····"),
        (0.4, "██▍···"),
        (1.0, "██████"),
        (1.5, "██████"),
        (float("inf"), "██████"),
        (float("nan"), "██████"),
    ],
)
def test_a_bar_is_a_share_of_the_bound(x, drawn):
    assert bar(x) == drawn


def test_a_line_for_each_output_and_a_bar_for_each_dtype():
    record, subject = Record(), SimpleNamespace(label="only", device="cpu")
    for clause, dtype, output, x in (
        ("A-1", "float32", "dq", 0.5),
        ("A-2", "float32", "dq", 0.25),
        ("A-1", "bfloat16", "o", 131.0),
    ):
        record.measure((clause, dtype, "only", "cpu"), {output: Share(x, "A")})
    record.measure(("A-1", "float32", "other", "cpu"), {"dv": Share(9.0, "A")})
    painted = bars(record, subject, ["float32", "bfloat16"], lambda text, **colours: f"{text}{'!' * colours['red']}")  # type: ignore[arg-type]
    assert painted[1:] == [
        f"  {'o':12}{'':18}{'':5}██████!   ×130",
        f"  {'dq':12}{'':5}███···   0.50{'':18}",
    ]
    assert bars(Record(), subject, ["float32"], str) == []  # type: ignore[arg-type]
