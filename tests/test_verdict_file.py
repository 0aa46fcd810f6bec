"""The verdict file: valid line by line against its schema, readable after any end, and never called complete when it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from judging import judge
from verdict_lines import cell, failure, lines, verdicts

from attnspec.conformance import check
from attnspec.conformance.verdicts.cli import main
from attnspec.conformance.verdicts.lines import (
    KEY,
    SCHEMA,
    Share,
    VerdictError,
    collect,
    mark,
    read,
    standing,
    tally,
    worse,
    worst_of,
)
from attnspec.conformance.verdicts.verdict import Verdict
from attnspec.spec.words import CLASSES, DTYPES, OUTPUTS

OPTIONS = ("--impl-dtypes=float32", "--without=backward", "-p", "no:cacheprovider")
KERNELS = """
import os, signal
import torch

calls = 0

def attend(q, k, v):
    global calls
    calls += 1
    ends = os.environ.get("ENDS")
    if calls == 160 and ends == "ctrl-c":
        raise KeyboardInterrupt
    if (calls == 160 and ends == "kill") or (not q.numel() and ends == "kill at nothing"):
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.softmax(q @ k.mT * max(q.shape[-1], 1) ** -0.5, -1) @ v * (1.1 if ends == "wrong" else 1)
"""
PLUGIN = """
ended = 0

def pytest_runtest_logfinish(nodeid):
    global ended
    ended += 1
    if ended == 2:
        raise ZeroDivisionError("not of attnspec")
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "breaks_pytest.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("kernels", "breaks_pytest"):
        sys.modules.pop(module, None)
    return tmp_path


def apart(*options: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *options],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    loaded = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(loaded)
    return Draft202012Validator(loaded)


def valid(path: Path, schema: Draft202012Validator) -> list[dict]:
    """The lines of a file, each checked."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in found:
        (kind,) = [sub for sub in schema.schema["oneOf"] if sub["$ref"].endswith("/" + line["kind"])]
        errors = [
            f"{list(e.path)}: {e.message[:300]}" for e in schema.evolve(schema={**schema.schema, "oneOf": [kind]}).iter_errors(line)
        ]
        assert not errors, (line["kind"], errors, [e.message for e in schema.descend(line, kind)][:3])
    return found


# WHAT IS WRITTEN


def test_a_run_with_failures_is_valid_and_says_what_the_screen_says(here, schema):
    outcome = judge("honest.tiled", "--clauses=MASK-5,ACCURACY-1,MODE-3", "--impl-dtypes=float32,bfloat16", "--verdicts=v.jsonl")
    found = valid(here / "v.jsonl", schema)
    assert {line["kind"] for line in found} == {"header", "cell", "accuracy", "failure", "note", "footer"}
    run = read(here / "v.jsonl")
    assert run.incomplete == []
    assert {key: cell["problems"] for key, cell in run.cells.items()} == {k: dict(c) for k, c in outcome.record.counts.items()}
    assert run.tally.headline in outcome.screen
    assert run.footer is not None
    assert run.footer["exit"] == outcome.exit == 0
    keys = [tuple(line[name] for name in KEY) for line in found if line["kind"] == "cell"]
    assert len(keys) == len(set(keys)), "each cell has one line once the run has ended"
    header = found[0]
    assert header["command"].startswith("pytest --impl=honest.tiled --tier=smoke")
    assert header["subjects"][0]["dialect"]["causal_alignment"]["source"]
    assert header["devices"][0]["model"]
    # The worst error is that of the answers: in a class of its own for each tensor, and never above the bound in what holds.
    held = {strand[0]: line["held"] for strand, line in run.strands.items()}
    assert held == {"float32": "A", "bfloat16": "B"}
    for dtype in held:
        worst = run.cells["ACCURACY-1", dtype, "only", "cpu"]["worst"]
        assert worst.keys() >= {"o", "dq", "dk", "dv"}
        assert all(0 < share["share"] <= 1 for share in worst.values())
    broken = run.cells["MASK-5", "float32", "only", "cpu"]
    assert "inf" in {share["share"] for share in broken["worst"].values()}


def test_check_writes_the_same_format(here, schema):
    def attend(q, k, v):
        return v[..., :1, :].expand(*q.shape[:-1], v.shape[-1]) * 2

    result = check(attend, clauses="SOFTMAX-1", dtypes="float32", without="backward", verdicts=here / "v.jsonl")
    assert not result.ok
    found = valid(here / "v.jsonl", schema)
    assert found[0]["command"].startswith("check(")
    assert next(line["rerun"] for line in found if line["kind"] == "failure").startswith("check(")


def test_the_schema_refuses_what_is_none(schema):
    assert all(schema.is_valid(line) for line in lines())
    assert schema.is_valid(failure("SHAPE-1", "float32", diagnosis="top-left", fault=2))
    assert schema.is_valid(cell("SHAPE-1", "float32", {"PASS": 2, "KNOWN_ISSUE": 3, "XPASS": 1}))
    for wrong in (
        cell("SHAPE-1", "float32", {"PERHAPS": 1}),
        cell("SHAPE-1", "float8", {"PASS": 1}, None),
        cell("SHAPE-1", "float32", {"PASS": 0}),
        failure("SHAPE-1", "float32", ratio=None),
        {"kind": "verdict"},
        lines()[0] | {"format": 2},
    ):
        assert not schema.is_valid(wrong), wrong


def test_the_words_of_the_schema_are_those_of_the_spec(schema):
    defined = schema.schema["$defs"]
    assert set(defined["dtype"]["enum"]) == set(DTYPES)
    assert defined["class"]["enum"] == list(CLASSES)
    assert defined["tensor"]["enum"] == list(OUTPUTS)
    assert set(defined["problems"]["propertyNames"]["enum"]) == set(Verdict)


# HOW A RUN ENDS


def test_a_killed_run_leaves_a_valid_prefix(here, schema):
    options = ("--impl=kernels.py:attend", "--in-process", "--tier=smoke", "--clauses=SHAPE", "--verdicts=v.jsonl")
    done = apart(*options, cwd=here, ENDS="kill")
    assert done.returncode == -9, done.stdout
    found = valid(here / "v.jsonl", schema)
    assert {line["kind"] for line in found} >= {"header", "cell"}
    assert read(here / "v.jsonl").incomplete == ["there is no footer: the run was killed, or is still going on"]


@pytest.mark.parametrize(
    ("ends", "options", "why"),
    [
        ("ctrl-c", (), "KeyboardInterrupt was raised at SHAPE-"),
        ("wrong", ("-x",), "stopping after 1 failures"),
        ("", ("-p", "breaks_pytest"), "an internal error"),
    ],
)
def test_an_interrupted_run_still_leaves_its_report(here, schema, monkeypatch, ends, options, why):
    monkeypatch.setenv("ENDS", ends)
    outcome = judge("kernels.py:attend", *OPTIONS, "--clauses=SHAPE", "--verdicts=v.jsonl", "--verdict-report=v.html", *options)
    assert valid(here / "v.jsonl", schema)[-1]["kind"] == "interrupted"
    (reason,) = read(here / "v.jsonl").incomplete
    assert why in reason
    assert f"INCOMPLETE: {reason}" in outcome.screen or "INTERNALERROR" in outcome.screen  # after which pytest shows no summary
    page = (here / "v.html").read_text(encoding="utf-8")
    banner = page[page.index('<div class="banner') : page.index("</header>")]
    assert "INCOMPLETE" in banner
    assert why in banner
    assert "INCOMPLETE" in (here / "v.md").read_text(encoding="utf-8").splitlines()[0]


def test_a_failure_of_the_suite_itself_makes_a_run_incomplete(here, schema, monkeypatch):
    def fails(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("attnspec.conformance.testing.engine.Asking._comparison", fails)
    judge("kernels.py:attend", *OPTIONS, "--clauses=SHAPE-1", "--verdicts=v.jsonl", "--verdict-report=v.html")
    assert "HARNESS_ERROR" in json.dumps(valid(here / "v.jsonl", schema))
    assert read(here / "v.jsonl").incomplete == ["attnspec itself failed in 1 test, which then stopped"]
    assert "INCOMPLETE" in (here / "v.html").read_text(encoding="utf-8")


def test_workers_write_what_one_process_writes(here, schema):
    options = ("--impl=kernels.py:attend", "--tier=smoke", "--clauses=SHAPE-1,SHAPE-4")
    assert judge(options[0].removeprefix("--impl="), *OPTIONS, *options[2:], "--verdicts=one.jsonl").exit == 0
    done = apart(*options, "--verdicts=two.jsonl", "-n2", cwd=here)
    assert done.returncode == 0, done.stdout
    one, two = valid(here / "one.jsonl", schema), valid(here / "two.jsonl", schema)
    for line in (*one, *two):
        line.pop("reason", None)  # of several, that which came first
    assert [line for line in one if line["kind"] == "cell"] == [line for line in two if line["kind"] == "cell"]
    assert main(["diff", "one.jsonl", "two.jsonl"]) == 0


def test_a_worker_that_dies_leaves_an_incomplete_file(here, schema):
    options = ("--impl=kernels.py:attend", "--tier=smoke", "--clauses=SHAPE", "--verdicts=v.jsonl")
    options += ("--in-process", "-n1", "--max-worker-restart=0")
    done = apart(*options, cwd=here, ENDS="kill at nothing")
    assert done.returncode == 1
    found = valid(here / "v.jsonl", schema)
    assert "died during a test" in found[-1]["reason"]
    assert any(line["kind"] == "cell" for line in found), "what its earlier tests saw is there"


# READING


def test_any_prefix_can_be_read(tmp_path):
    whole = "".join(json.dumps(line) + "\n" for line in lines())
    first = whole.index("\n") + 1
    path = tmp_path / "v.jsonl"
    for end in range(first, len(whole), 37):
        path.write_text(whole[:end])
        assert read(path).incomplete
    path.write_text(whole)
    assert not read(path).incomplete


def changed(**changes: object) -> str:
    """The file of a run, of which the first cell says something else."""
    made = lines()
    first = next(n for n, line in enumerate(made) if line["kind"] == "cell")
    made[first] |= changes
    return "".join(json.dumps(line) + "\n" for line in made)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: the run did not begin"),
        ('{"kind": "he', "is empty: the run did not begin"),
        ("nothing\nof it\n", "line 1: not valid JSON"),
        ('{"kind": "cell"}\n', "does not begin with a header"),
        ('{"kind": "header", "suite": "0.1"}\n', "is of format 0, and this attnspec reads format 1"),
        (json.dumps(lines()[0]) + '\n{"kind": "verdict"}\n', "line 2: unknown kind 'verdict'; choose from header, cell"),
        ("".join(json.dumps(line) + "\n" for line in [*lines(), *lines()]), "a line after the end"),
        (changed(problems={"PASS": -1}), "line 4: PASS is '-1'; expected a number of problems, 0 or more"),
        (changed(problems={"PASS": True}), "line 4: PASS is 'True'; expected a number of problems"),
        (changed(problems={"PASSED": 20}), "line 4: unknown verdict 'PASSED'; choose from CRASH, FAIL"),
        (changed(problems=20), "line 4: problems is '20'; expected counts by verdict"),
        (changed(fails_by=["MASK-2"]), "line 4: fails_by is \"['MASK-2']\"; expected counts by clause"),
        (changed(unclear=0.5), "line 4: unclear is '0.5'; expected a number"),
        (changed(dtype=None), "line 4: dtype of the cell is not text"),
        (changed(problems={"PASS": 19}), "its footer counts 160 PASS, and its lines 159"),
    ],
)
def test_what_is_no_verdict_file_is_said(text, message, tmp_path, capsys):
    path = tmp_path / "v.jsonl"
    path.write_text(text)
    with pytest.raises(VerdictError) as error:
        read(path)
    assert message in str(error.value)
    assert main(["report", str(path), "-o", str(tmp_path / "v.html")]) == 2
    assert message in capsys.readouterr().err


def test_the_last_line_of_a_cell_holds():
    run = verdicts(cell("SHAPE-1", "float32", {"PASS": 20, "FAIL": 1}))
    assert run.tally.broken == ("SHAPE-1",)
    assert collect(run.lines()).cells == run.cells


@pytest.mark.parametrize(
    ("counts", "state", "sign"),
    [
        ({"PASS": 3}, "holds", "3/3"),
        ({"PASS": 3, "FAIL": 1}, "broken", "3/4 ✗"),
        ({"PASS": 3, "XPASS": 1}, "broken", "3/4 ✗"),
        ({"PASS": 3, "CRASH": 1}, "broken", "3/4 ✗"),
        ({"PASS": 3, "KNOWN_ISSUE": 1}, "known issue", "3/4 k"),
        ({"UNSUPPORTED": 1, "NOT_RUN": 1}, "unsupported", "unsupported"),
        ({"NOT_RUN": 1}, "not run", "not run"),
        ({"RESOURCE": 2}, "not run", "·"),
        ({"HARNESS_ERROR": 1, "UNSUPPORTED": 1}, "not run", "·"),
        ({}, "not run", "·"),
    ],
)
def test_what_counts_as_what(counts, state, sign):
    assert standing(counts) == state
    assert mark(counts) == sign


def test_the_headline_has_denominators():
    levels = {"A-1": "MUST", "A-2": "MUST", "A-3": "MUST", "A-4": "MUST", "A-5": "SHOULD"}
    counts = {("A-1", d, "only", "cpu"): {"PASS": 1} for d in "ab"} | {
        ("A-2", "a", "only", "cpu"): {"FAIL": 1},
        ("A-2", "b", "only", "cpu"): {"PASS": 9},
        ("A-3", "a", "only", "cpu"): {"UNSUPPORTED": 1},
        ("A-5", "a", "only", "cpu"): {"FAIL": 1},
    }
    counted = tally(counts, levels)
    assert counted.headline == "MUST clauses: 1 of 4 hold, 1 broken, 1 unsupported, 1 not run"
    assert (counted.broken, counted.should_broken) == (("A-2",), ("A-5",))


def test_the_class_that_was_needed_counts_before_the_share():
    assert worse(Share(0.9, "A"), Share(0.1, "B")) == Share(0.1, "B")
    assert worse(Share(0.9, "A"), Share(0.95, "A")).of_bound == 0.95
    assert worst_of([{"worst": {"o": {"share": "inf", "class": "A"}}}])["o"].of_bound == float("inf")
