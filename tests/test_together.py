"""Every extension beside every other: the arrays meet all pairs, honest kernels pass them, and one fault in a pair is seen."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import complete
import pytest

from attnspec.adapters import resolve
from attnspec.conformance import check
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.extension import EXTENSIONS
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.tensors import build
from attnspec.conformance.run.run import Run
from attnspec.conformance.run.tier import TIERS
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.testing import clause as clauses
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, NotOffered, TooLarge
from attnspec.reference import default_class, solve
from attnspec.spec import Dialect, index

DTYPES = LEVELS["dtype"]
# Whether a case has an option, by the feature of its extension.
HAS: dict[str, Callable[[Case], bool]] = {
    "softcap": lambda case: case.softcap is not None,
    "window": lambda case: case.window != "none",
    "first_tokens": lambda case: case.first_tokens > 0,
    "lse": lambda case: case.lse != "none",
    "sinks": lambda case: case.sinks != "none",
    "q_start": lambda case: case.q_start != "none",
    "alibi": lambda case: case.alibi_slopes != "none",
}


def asked(tier: str) -> list[Case]:
    """What a kernel with every option is asked by the arrays beside the core's."""
    cases = array(tier, resolve(complete.honest)[0], DTYPES)
    return [case for case in cases if any(has(case) for has in HAS.values())]


def test_each_extension_is_known_here() -> None:
    assert HAS.keys() == {one.feature for one in EXTENSIONS}


def test_every_pair_of_extensions_meets() -> None:
    """In smoke in many rows; in standard each pair also meets each third."""
    pairs, triples = asked("pairs"), asked("triples")
    for one, other in combinations(HAS, 2):
        assert sum(HAS[one](case) and HAS[other](case) for case in pairs) >= 20, (one, other)
    for some in combinations(HAS, 3):
        assert sum(all(HAS[one](case) for one in some) for case in triples) >= 30, some


@pytest.mark.parametrize("name", complete.HONEST)
def test_honest_kernels_with_every_option_are_right(name: str) -> None:
    (adapter,) = resolve(complete.HONEST[name])
    cases = asked("pairs")
    broken = []
    for case in cases:
        problem = build(case)
        for x in judge(adapter.run(problem), solve(problem, Dialect(**adapter.dialect)), "A").findings:
            broken.append(f"{x.output}: {x.ratio:.3g} of the bound ({x.kind} {x.message}) {case.token()}")
    assert len(cases) > 200
    assert not broken, "\n".join(broken)


def of_signs(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which returns the signs of its lse."""

    def called(**arguments: Any) -> Any:
        o, lse = function(**arguments)
        return o, lse.sign()

    return called


@pytest.mark.parametrize("option", [one.feature for one in EXTENSIONS])
def test_a_kernel_that_leaves_one_option_out_is_not(option: str) -> None:
    """The same arrays see each option, whatever stands beside it."""
    parameter = {
        "window": "window_size",
        "first_tokens": "sink_token_length",
        "lse": "return_lse",
        "alibi": "alibi_slopes",
    }.get(option, option)

    class Without(type(resolve(complete.honest)[0])):  # type: ignore[misc]
        def call(self, problem: Any) -> Any:
            made = super().call(problem)
            if parameter == "return_lse":
                return type(made)(of_signs(made.function), made.arguments, made.source)
            return type(made)(made.function, {key: x for key, x in made.arguments.items() if key != parameter}, made.source)

    adapter = Without(complete.honest, "without", ())
    beside = [case for case in asked("pairs") if HAS[option](case) and sum(has(case) for has in HAS.values()) > 1][:40]
    seen = 0
    for case in beside:
        problem = build(case)
        found = judge(adapter.run(problem), solve(problem, Dialect(**adapter.dialect)), default_class(case.dtype)).findings
        seen += bool(found)
    assert seen >= 5, (option, seen, len(beside))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_relation_holds_of_an_honest_kernel(dtype: str) -> None:
    """On rows of the larger array, of which smoke asks three: one wrote hidden numbers into memory that visible ones share."""
    subject = meet(resolve(complete.HONEST["in one"])[0], "cpu", {}, None, (dtype,))
    run = Run("", [subject], tier=TIERS["standard"])
    rows, broken, asked_of = array("triples", subject.adapter, subject.dtypes)[::5], [], 0
    for test in clauses.tests_of(()):
        if test.plan.comparison or test.plan.once or not index()[test.clauses[0]].binding:
            continue
        cases = list(test.plan.cases(rows, subject))
        for case in cases[:: max(1, len(cases) // 10)]:
            try:
                test.asking(run, subject, dtype).test(subject, case)
            except (NotApplicable, NotOffered, TooLarge):
                continue
            except Broken as found:
                broken.append(f"{test.__name__}: {found.finding.message} --case={case.token()}")
            asked_of += 1
    assert asked_of > 300
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("clause", "case"),
    [
        ("SOFTCAP-6", "b=2,j=2,d=1,mask=padding,softcap=3.1,layout=expanded"),  # one value of all batch items, hidden in one
        ("WINDOW-10", "i=3,j=9,d=4,window=1:0,lse=alone"),  # no cotangent reaches the values
    ],
)
def test_what_was_a_false_alarm(clause: str, case: str) -> None:
    outcome = check(complete.HONEST["in one"], clauses=clause, case=case)
    assert not outcome.failures, str(outcome)
