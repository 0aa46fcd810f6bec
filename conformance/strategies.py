"""Hypothesis strategies that draw attention problems, for a library's own tests (docs/strategies.md).

from attnspec.conformance import strategies

@given(strategies.problems(offers=("mha", "causal"), dtype="bfloat16"))
"""

from attnspec.conformance.problems.strategies import problems

__all__ = ["problems"]
