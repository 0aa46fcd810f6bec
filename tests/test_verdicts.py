"""Honest kernels pass, and what does not hold or was not asked is said in the right words."""

import pytest
from judging import judge


@pytest.mark.parametrize("name", ["tiled", "split_k", "eager", "Attend"])
def test_honest_kernels_pass_in_all_dtypes(name: str) -> None:
    outcome = judge(f"honest.{name}")
    assert outcome.exit == 0, "\n\n".join(failure.text for failure in outcome.failures)
    assert not outcome.broken()
    assert [subject.dtypes for subject in outcome.run.subjects] == [("float32", "float64", "bfloat16", "float16")] * len(
        outcome.run.subjects
    )


def test_classes_that_honest_kernels_hold() -> None:
    """split_k rounds nothing but its outputs, tiled rounds probabilities, eager everything."""
    held = {name: judge(f"honest.{name}", "--clauses=ACCURACY").run.subjects[0].held for name in ("split_k", "tiled", "eager")}
    assert [held[name]["bfloat16"] for name in held] == ["A", "B", "C"]
    assert [held[name]["float32"] for name in held] == ["A", "A", "A"]


def test_a_claim_that_does_not_hold_is_a_failure() -> None:
    """eager is honest in class C; claiming B is not."""
    outcome = judge("honest.eager", "--accuracy=B", "--clauses=ACCURACY")
    assert outcome.exit == 1
    assert set(outcome.broken()) <= {"ACCURACY-1", "ACCURACY-2"}


def test_a_broken_promise_names_the_choice_that_is_followed() -> None:
    outcome = judge("mutants.implementations.causal_bottom_right", "--clauses=CAUSAL")
    assert "causal_alignment=bottom_right" in outcome.failures[0].text
    assert (
        judge("mutants.implementations.causal_bottom_right", "--clauses=CAUSAL", "--dialect=causal_alignment=bottom_right").exit
        == 0
    )


def test_what_is_not_offered_is_counted_and_not_passed() -> None:
    outcome = judge("honest.tiled", "--clauses=GRAD-1,GRAD-2", "--without=backward")
    assert "unsupported" in outcome.screen
    assert all(not counts["PASS"] for cell, counts in outcome.record.counts.items() if cell[0].startswith("GRAD"))
    assert outcome.exit != 0, "nothing was judged, so nothing conforms"


def test_a_spent_budget_is_not_a_pass() -> None:
    outcome = judge("honest.tiled", "--clauses=CAUSAL", "--budget=0")
    assert outcome.exit != 0
    assert "not run" in outcome.screen
