"""The five published Attend modules, off and on their flash path: each breaks what docs/seeds.md says, and nothing else."""

from importlib import metadata

import pytest
from judging import judge

from attnspec.spec import index

BROKEN = {
    "mixture-of-attention": (
        {"CAUSAL-1", "MODE-3"},
        {"CAUSAL-6", "ERROR-5", "MODE-3"},
    ),
    "audiolm-pytorch": (
        {"MODE-3"},
        {"CAUSAL-4", "ERROR-5", "MODE-3"},
    ),
    "recurrent-memory-transformer-pytorch": (
        {"CAUSAL-2", "EMPTY-3", "MODE-3"},
        {"CAUSAL-6", "ERROR-5", "MODE-3"},
    ),
    "simple-hierarchical-transformer": (
        {"CAUSAL-2", "EMPTY-3", "MODE-3"},
        {"CAUSAL-6", "ERROR-5", "MODE-3"},
    ),
    "bs-roformer": (set(), {"ERROR-5"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_published_module_breaks_these_clauses(name: str) -> None:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed: pip install --no-deps -r requirements-seeds.txt")
    outcome = judge(name, "--impl-dtypes=float32,bfloat16")  # the others break the same
    for subject, expected in zip(outcome.run.subjects, BROKEN[name], strict=True):
        broken = {
            clause
            for (clause, _, variant, _), counts in outcome.record.counts.items()
            if variant == subject.label and counts["FAIL"] and index()[clause].binding
        }
        assert broken == expected, subject.label
    errors = [cell for cell, counts in outcome.record.counts.items() if counts["HARNESS_ERROR"]]
    assert not errors
