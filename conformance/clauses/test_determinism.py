"""DETERMINISM: the same call again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnspec.adapters import Answer, same_bits
from attnspec.adapters.within import FLAGGED, LOADED, OTHER_THREADS, PLAINLY, Within
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import clause
from attnspec.conformance.testing.companions import forms_of
from attnspec.conformance.testing.outcomes import NotApplicable, must_agree, must_answer, must_be_right, must_keep_bits, right
from attnspec.conformance.testing.plan import once
from attnspec.spec import Problem
from attnspec.spec.words import RETURNED

TIMES = 20  # that a call is asked


def calls(subject: Subject, case: Case, more: int, times: int = TIMES) -> list[tuple[Problem, int]]:
    """Problems of several tiles of keys, and how often each is asked: with gradients, causal, and in each form that is offered.

    more: keys, for no two tests ask the same shapes: the first call with a shape may be another.
    """
    base: dict[str, Any] = {"dtype": case.dtype, "heads": "4/2", "d": subject.width, "wrt": "all", "lse": "both"}
    cases = [Case(**base, b=2, i=5, j=300 + more), Case(**base, i=33, j=64 + more, causal=True)]
    cases += [Case(**base, b=3, i=4, j=70 + more, carrier=form, lengths="mixed") for form in forms_of(subject)]
    asked = dict.fromkeys(fit(one, subject.adapter) for one in cases)
    return [(subject.problem(one), times if n == 0 else times // 2) for n, one in enumerate(asked)]


def repeated(subject: Subject, problem: Problem, times: int, within: Within = PLAINLY) -> Iterable[tuple[str, Answer]]:
    """The answers to the same call, the first one first, and what is said of each; others are asked in between.

    The last quarter is asked while other threads compute, where nothing else surrounds the calls.
    """
    other = problem.replace(v=1 - problem.v)
    for n in range(times):
        loaded = within == PLAINLY and n >= times - times // 4
        if n % 5 == 3:
            subject.run(other)
        said = f"call {n + 1} of {times}, and the first" + (", while other threads compute" if loaded else "")
        yield said, must_answer(subject, problem, Within(LOADED) if loaded else within)


def must_repeat(
    subject: Subject, problem: Problem, times: int, outputs: Iterable[str], what: str = "", within: Within = PLAINLY
) -> None:
    """These outputs must have the same bits in each call."""
    answers = iter(repeated(subject, problem, times, within))
    _, first = next(answers)
    for said, answer in answers:
        for name in outputs:
            must_keep_bits(subject, problem, first.output(name), answer.output(name), name, f"{what}{said}", promised=True)


@clause("DETERMINISM-1")
@once()
def test_many_calls_agree(subject: Subject, case: Case) -> None:
    """Twenty calls, others in between, the last ones under load."""
    differed: dict[str, None] = {}
    asked = False
    for problem, times in calls(subject, case, 0):
        exact = right(subject, problem)
        if exact is None:
            continue  # another clause says so
        asked, answers = True, iter(repeated(subject, problem, times))
        _, first = next(answers)
        for said, answer in answers:
            for name in problem.outputs:
                x, y = first.output(name), answer.output(name)
                if x is None or y is None:
                    continue
                differed |= {} if same_bits(x, y) else {name: None}
                must_agree(subject, y, x, exact, name, said)
    if not asked:
        raise NotApplicable
    subject.repeated[case.dtype] = tuple(differed)


@clause("DETERMINISM-2")
@once("deterministic")
def test_the_output_has_the_same_bits_on_every_call(subject: Subject, case: Case) -> None:
    """Twenty calls, others in between, the last ones under load."""
    for problem, times in calls(subject, case, 1):
        must_repeat(subject, problem, times, [name for name in problem.outputs if name in RETURNED])


@clause("DETERMINISM-2")
@once("deterministic")
def test_the_output_has_the_same_bits_in_another_process(subject: Subject, case: Case) -> None:
    """Where the implementation is in a process of its own: one that begins anew, in which this is the first call."""
    adapter = subject.adapter.elsewhere()
    if adapter is None:
        raise NotApplicable
    other = subject.afresh()
    other.adapter = adapter
    try:
        for problem, _ in calls(subject, case, 2):
            before, after = must_answer(subject, problem), must_answer(other, problem)
            for name in problem.outputs:
                if name in RETURNED:
                    what = "a call in this process, and the same in one that begins anew"
                    must_keep_bits(subject, problem, before.output(name), after.output(name), name, what, promised=True)
    finally:
        adapter.close()


@clause("DETERMINISM-3")
@once("deterministic_backward", "backward")
def test_the_gradients_have_the_same_bits_on_every_call(subject: Subject, case: Case) -> None:
    """Twenty calls, others in between, the last ones under load."""
    for problem, times in calls(subject, case, 3):
        must_repeat(subject, problem, times, [name for name in problem.outputs if name not in RETURNED])


def must_be_right_within(subject: Subject, problems: Iterable[Problem], within: Within, what: str) -> None:
    """Where an answer is right, it must be right in other surroundings, too."""
    asked = False
    for problem in problems:
        exact = right(subject, problem)
        if exact is not None:
            asked = True
            must_be_right(subject, problem, what, exact=exact, within=within, alone=False)
    if not asked:
        raise NotApplicable


@clause("DETERMINISM-4")
@once()
def test_the_number_of_threads_does_not_matter(subject: Subject, case: Case) -> None:
    """One thread, or three; more numbers than torch leaves to one thread."""
    large = Case(dtype=case.dtype, heads="4/2", i=66, j=300, d=subject.width, wrt="all")
    problems = [*(problem for problem, _ in calls(subject, case, 4)), subject.problem(fit(large, subject.adapter))]
    must_be_right_within(subject, problems, Within(OTHER_THREADS), "with another number of threads")


@clause("DETERMINISM-5")
@once()
def test_a_flag_for_the_same_bits_changes_nothing_beyond_the_bound(subject: Subject, case: Case) -> None:
    """Torch's flag, and a parameter `deterministic` where there is one."""
    problems = [problem for problem, _ in calls(subject, case, 5)]
    must_be_right_within(subject, problems, Within(FLAGGED), "where the same bits are asked for")


@clause("DETERMINISM-6")
@once("deterministic_flag")
def test_under_the_flag_the_same_bits_come_on_every_call(subject: Subject, case: Case) -> None:
    """Twenty calls, others in between."""
    for problem, times in calls(subject, case, 6):
        must_repeat(subject, problem, times, problem.outputs, "under the flag, ", Within(FLAGGED))


@clause("DETERMINISM-7")
@once("deterministic_flag")
def test_the_flag_changes_no_bit_of_the_output(subject: Subject, case: Case) -> None:
    """With and without it."""
    for problem, _ in calls(subject, case, 7):
        before, after = must_answer(subject, problem), must_answer(subject, problem, Within(FLAGGED))
        must_keep_bits(subject, problem, before.o, after.o, "o", "with a flag for the same bits, and without", promised=True)


@clause("DETERMINISM-8")
@once("same_when_asked")
def test_what_else_is_asked_for_changes_no_bit(subject: Subject, case: Case) -> None:
    """The output alone; with gradients; with the lse; with both."""
    for problem, _ in calls(subject, case, 8):
        plain = problem.replace(do=None, dlse=None, wrt=())
        alone = plain.replace(lse=False)
        asked = {"and the lse asked for": plain} if problem.lse else {}
        if problem.wrt and problem.do is not None:
            asked |= {"and gradients asked for": problem.replace(lse=False, dlse=None)}
            asked |= {"and the lse and gradients asked for": problem} if problem.lse else {}
        before = must_answer(subject, alone)
        lse = must_answer(subject, plain).lse if problem.lse else None
        for what, other in asked.items():
            after = must_answer(subject, other)
            must_keep_bits(subject, alone, before.o, after.o, "o", f"the output alone, {what}", other, promised=True)
            if lse is not None and other is problem:
                must_keep_bits(
                    subject,
                    plain,
                    lse,
                    after.lse,
                    "lse",
                    "the lse without gradients, and gradients asked for",
                    other,
                    promised=True,
                )
