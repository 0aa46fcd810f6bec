"""Every extension beside every other: the arrays meet all pairs, honest kernels pass them, and one fault in a pair is seen."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import complete
import pytest

from attnspec.adapters import resolve
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.extension import EXTENSIONS
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.tensors import build
from attnspec.reference import default_class, solve
from attnspec.spec import Dialect

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
