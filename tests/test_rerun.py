"""How a failure is asked again, in a shell and in Python; both ask what the first run asked."""

import shlex

import pytest
from judging import judge

from attnspec.conformance.run.rerun import Call, Rerun, Shell

SHELL, CALL = Shell("pytest --impl=kernel.py:attend"), Call("attend", {"accuracy": None, "dialect": "", "without": {"backward"}})


def test_a_shell_reads_back_the_case_as_one_word() -> None:
    case = "i=2,scale=-0.5,numbers=v:it's 0"
    assert shlex.split(SHELL.of("CAUSAL-1", case, thorough=False))[1:] == [
        "--impl=kernel.py:attend",
        "--clauses=CAUSAL-1",
        f"--case={case}",
    ]
    assert SHELL.of("MODE-5", "i=2", thorough=True).split() == [
        "pytest",
        "--impl=kernel.py:attend",
        "--tier=thorough",
        "--clauses=MODE-5",
        "--case=i=2",
    ]


def test_a_call_says_what_was_given_and_nothing_else() -> None:
    assert (
        CALL.of("CAUSAL-1", "i='2'", thorough=False) == """check(attend, without={'backward'}, clauses='CAUSAL-1', case="i='2'")"""
    )
    thorough = "check(attend, tier='thorough', without={'backward'}, clauses='MODE-5', case='i=2')"
    assert CALL.of("MODE-5", "i=2", thorough=True) == thorough


@pytest.mark.parametrize(
    ("rerun", "choice", "accept"),
    [
        (SHELL, "--dialect empty_row=uniform", "--inherited=note"),
        (CALL, "dialect={'empty_row': 'uniform'}", 'inherited="note"'),
    ],
)
def test_options_are_said_in_its_own_words(rerun: Rerun, choice: str, accept: str) -> None:
    assert (rerun.choose("empty_row=uniform"), rerun.accept) == (choice, accept)


def test_a_failed_test_is_named_after_the_clauses_that_its_failures_break() -> None:
    screen = judge("test_check.sees_the_next", "--clauses=CAUSAL-1", "--impl-dtypes=float32").screen
    assert "_ CAUSAL-1, found by test_" in screen
