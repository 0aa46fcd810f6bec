"""What `attnspec diff` and `attnspec matrix` say of two or more verdict files, each kind seen to fail the gate and not to."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
from verdict_lines import CLAUSES, cell, failure, header, lines, verdicts

from attnspec.conformance.verdicts import diff, matrix
from attnspec.conformance.verdicts.cli import main
from attnspec.conformance.verdicts.lines import VerdictError


def subject(**changes):
    made = copy.deepcopy(header()["subjects"][0])
    return [made | changes]


def gated(old, new, **options) -> dict[str, list[str]]:
    return {kind: said for kind, said in diff.compare(old, new, **options).gated.items() if said}


BROKEN = (cell("CAUSAL-1", "float32", {"PASS": 1, "FAIL": 3}), failure("CAUSAL-1", "float32"))


def test_a_run_beside_itself_says_nothing():
    comparison = diff.compare(verdicts(), verdicts())
    assert comparison.exit == 0
    assert comparison.sections() == []


@pytest.mark.parametrize(
    ("kind", "new", "words"),
    [
        ("new failures", verdicts(*BROKEN), "CAUSAL-1 · The past · in float32"),
        ("no longer tested", verdicts(drop=("SHAPE-1",)), "SHAPE-1 · Rows · in float32, bfloat16, cpu: not tested"),
        (
            "no longer tested",
            verdicts(cell("SHAPE-1", "float32", {"NOT_RUN": 1}, None, reason="the time was up")),
            "SHAPE-1 · Rows · in float32, cpu: the time was up",
        ),
        ("no longer offered", verdicts(subjects=subject(offers=["mha", "backward"])), "causal, cpu"),
        ("no longer offered", verdicts(subjects=subject(widths=[64, 128])), "all widths but 64, 128, cpu"),
        ("no longer offered", verdicts(subjects=subject(dtypes=["float32"])), "bfloat16, cpu"),
        ("no longer offered", verdicts(subjects=subject(device="cuda")), "cpu: gone"),
        (
            "accuracy class lost",
            verdicts({"kind": "accuracy", "dtype": "bfloat16", "variant": "only", "device": "cpu", "required": "C", "held": "C"}),
            "bfloat16, cpu: held B, now C",
        ),
        (
            "accuracy class lost",
            verdicts({"kind": "accuracy", "dtype": "float32", "variant": "only", "device": "cpu", "required": "T", "held": "A"}),
            "float32, cpu: required A, now T",
        ),
        (
            "error grown",
            verdicts(cell("CAUSAL-2", "float32", {"PASS": 20}, 0.31)),
            "o in float32, cpu: 0.2 → 0.31 of the bound of class A",
        ),
        (
            "known issues grown",
            verdicts(cell("SHAPE-1", "float32", {"PASS": 18, "KNOWN_ISSUE": 2})),
            "SHAPE-1 in float32, cpu: 0 of 20 → 2 of 20 problems",
        ),
    ],
)
def test_each_kind_fails_the_gate(kind, new, words):
    found = gated(verdicts(), new)
    assert list(found) == [kind]
    assert words in found[kind][0]
    assert diff.compare(verdicts(), new).exit == 1
    assert kind not in gated(new, new)


def test_the_other_way_round_nothing_is_gated():
    comparison = diff.compare(verdicts(*BROKEN), verdicts())
    assert comparison.exit == 0
    assert comparison.mended == ["CAUSAL-1 · The past · in float32, cpu"]


def test_growth_within_the_factor_or_far_from_the_bound_is_none():
    assert not gated(verdicts(), verdicts(cell("CAUSAL-2", "float32", {"PASS": 20}, 0.29)))
    small = [cell(clause, "float32", {"PASS": 20}, 0.01) for clause in CLAUSES]
    nine_times = [cell(clause, "float32", {"PASS": 20}, 0.09) for clause in CLAUSES]
    assert not gated(verdicts(*small), verdicts(*nine_times))
    assert gated(verdicts(), verdicts(cell("CAUSAL-2", "float32", {"PASS": 20}, 0.29)), growth=1.2)


def test_a_known_issue_that_stays_as_it_is_has_not_grown():
    few, more = ({"PASS": 40 - n, "KNOWN_ISSUE": n} for n in (4, 5))
    assert not gated(verdicts(cell("SHAPE-1", "float32", few)), verdicts(cell("SHAPE-1", "float32", more)))
    assert gated(verdicts(cell("SHAPE-1", "float32", few)), verdicts(cell("SHAPE-1", "float32", {"PASS": 32, "KNOWN_ISSUE": 8})))


def test_another_fault_in_a_broken_clause_is_news_where_the_same_was_asked():
    old, new = verdicts(*BROKEN), verdicts(*BROKEN, failure("CAUSAL-1", "float32", output="dq"))
    assert "value (dq) beside what was known" in gated(old, new)["new failures"][0]
    other_seed = verdicts(*BROKEN, failure("CAUSAL-1", "float32", output="dq"), seed=1)
    assert not gated(old, other_seed)
    assert "seed: 0 → 1" in diff.compare(old, other_seed).said


def test_a_broken_should_is_no_failure_unless_it_decides():
    broken = (cell("MASK-5", "float32", {"FAIL": 2}), failure("MASK-5", "float32"))
    assert not gated(verdicts(), verdicts(*broken))
    assert gated(verdicts(), verdicts(*broken, enforce_should=True)) == {
        "new failures": ["MASK-5 · Not even NaN · in float32, cpu"]
    }


def test_runs_that_asked_differently_are_told_apart():
    dialect = {"causal_alignment": {"value": "bottom_right", "source": "--dialect"}}
    new = verdicts(
        tier="smoke",
        only=["CAUSAL"],
        versions={"python": "3.11.0", "torch": "2.6.0"},
        command="x",
        subjects=subject(dialect=dialect),
    )
    said = diff.compare(verdicts(), new).said
    assert "tier: standard → smoke" in said
    assert "only: everything → CAUSAL" in said
    assert "torch: 2.5.0 → 2.6.0" in said
    assert "causal_alignment, cpu: top_left → bottom_right (--dialect)" in said
    assert "command: pytest --impl=mine.attend → x" in said


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (verdicts(drop=("footer",)), "there is no footer"),
        (verdicts({"kind": "interrupted", "exit": 2, "reason": "Ctrl-C"}, drop=("footer",)), "Ctrl-C"),
        (verdicts(cell("SHAPE-1", "float32", {"PASS": 3, "HARNESS_ERROR": 1})), "attnspec itself failed in 1 test"),
    ],
)
def test_an_incomplete_run_is_refused(broken, why):
    for old, new in ((broken, verdicts()), (verdicts(), broken)):
        with pytest.raises(VerdictError, match="is incomplete") as refusal:
            diff.compare(old, new)
        assert why in str(refusal.value)
        assert "Run it again to its end" in str(refusal.value)


# THE COMMAND


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, made in (("old", lines()), ("new", verdicts(*BROKEN).lines()), ("cut", lines()[:-1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code"), [(("old", "old"), 0), (("old", "new"), 1), (("new", "old"), 0), (("old", "cut"), 2), (("old", "absent"), 2)]
)
def test_the_exit_code_of_diff(files, words, code, capsys):
    assert main(["diff", *(f"{word}.jsonl" for word in words)]) == code
    said = capsys.readouterr()
    if code == 1:
        assert "1 new failures, 0 no longer tested" in said.out
        assert "CAUSAL-1 · The past · in float32, cpu" in said.out
    assert ("attnspec: " in said.err) == (code == 2)


def test_diff_as_markdown(files, capsys):
    assert main(["diff", "old.jsonl", "new.jsonl", "--markdown"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("### `mine.attend`: 1 new failures")
    assert "- `CAUSAL-1 · The past · in float32, cpu`" in said


def test_matrix_in_three_forms(files, capsys):
    assert main(["matrix", "old.jsonl", "new.jsonl", "cut.jsonl", "-o", "matrix.html"]) == 0
    assert "cut.jsonl is incomplete: there is no footer" in capsys.readouterr().err
    page = (files / "matrix.html").read_text(encoding="utf-8")
    assert page.count("INCOMPLETE") == 1
    assert 'title="float32 1/4 ✗, bfloat16 20/20"' in page
    assert main(["matrix", "old.jsonl", "new.jsonl", "--markdown"]) == 0
    assert "| CAUSAL-1 | ✓ | ✗ | The past |" in capsys.readouterr().out
    assert main(["matrix", "old.jsonl", "new.jsonl"]) == 0
    assert "CAUSAL-1       ✓   ✗  The past" in capsys.readouterr().out


def test_a_column_counts_its_own_variant():
    two = subject(variant="flash=True") + subject(variant="flash=False")
    run = verdicts(cell("CAUSAL-1", "float32", {"FAIL": 1}) | {"variant": "flash=True"}, drop=tuple(CLAUSES), subjects=two)
    assert [column.headline for column in matrix.columns([run])] == [
        "MUST clauses: 0 of 3 hold, 1 broken, 0 unsupported, 2 not run",
        "MUST clauses: 0 of 3 hold, 0 broken, 0 unsupported, 3 not run",
    ]


def test_reading_needs_no_torch(files):
    for words in (("diff", "old.jsonl", "old.jsonl"), ("matrix", "old.jsonl")):
        command = f"from attnspec.conformance.verdicts.cli import main; sys.exit(main({list(words)!r}))"
        code = f"import sys; sys.modules['torch'] = None; {command}"
        done = subprocess.run([sys.executable, "-c", code], cwd=files, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
