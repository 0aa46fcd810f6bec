"""ERROR-5: what lies in memory around the inputs changes no answer, and an answer that it changes is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from judging import ended, judge
from mutants.base import load
from test_repro import tells

from attnspec.adapters import same_bits
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.factors import LEVELS
from attnspec.conformance.problems.tensors import build, misfit, surrounded
from attnspec.spec import TENSORS, index

FOREIGN = sorted(name for name, one in load().items() if one.clause == "ERROR-5")
QUICK = ("--clauses=ERROR-5", "--impl-dtypes=float32", "--impl-device=cpu")


@pytest.mark.parametrize("name", FOREIGN)
def test_who_reads_foreign_memory_is_told_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In smoke, by ERROR-5 and by nothing else that must hold; its script tells it from an honest kernel."""
    monkeypatch.chdir(tmp_path)
    outcome = judge(f"mutants.implementations.{name}", *QUICK)
    assert outcome.broken().keys() == {"ERROR-5"}, outcome.screen
    (script, *_) = sorted((tmp_path / "attnspec-repros").glob("repro_ERROR-5*.py"))
    if load()[name].kind == "module":
        assert ended(script).returncode == 1
    else:
        tells(script.read_text(), name, script)


@pytest.mark.parametrize("impl", ["honest.tiled", "honest.split_k", "honest.eager", "honest.Attend", "sdpa-math"])
def test_honest_kernels_read_nothing_else(impl: str) -> None:
    outcome = judge(impl, *QUICK)
    assert not outcome.broken(), outcome.screen
    assert "ERROR-5" not in outcome.record.reasons


def test_sizes_that_do_not_fit_are_a_matter_of_the_caller() -> None:
    """Torch's flash kernel answers 7 keys with 6 values without reading anything else: no MUST; 6 with 7 reads behind the keys."""
    assert not index()["ERROR-2"].binding
    outcome = judge("sdpa-flash", "--clauses=ERROR-2,ERROR-5", "--impl-dtypes=float32", "--impl-device=cpu")
    assert outcome.broken() == {"ERROR-5": 1}
    assert "6 keys and 7 values: 240 of 240 elements of the output change with nan in place of 1" in outcome.screen
    assert "ERROR-2 (SHOULD) does not hold" in outcome.screen
    assert "7 keys and 6 values; 6 keys and 7 values" in outcome.screen


@pytest.mark.parametrize("layout", LEVELS["layout"])
def test_surroundings_change_and_the_problem_does_not(layout: str) -> None:
    """Values, strides and sharing stay; every place of the memory that is no element has the number."""
    problem = build(Case(b=2, heads="2/2", i=5, j=7, d=4, layout=layout, mask="bhij", bias="ij"))
    other = surrounded(problem, 123.0, True)
    for name in TENSORS:
        x, y = getattr(problem, name), getattr(other, name)
        if x is None:
            assert y is None
            continue
        assert same_bits(x, y)
        assert x.stride() == y.stride()
        memory = torch.empty(0, dtype=y.dtype).set_(y.untyped_storage())
        free = torch.ones(len(memory), dtype=torch.bool)
        free[torch.arange(len(memory)).as_strided(y.shape, y.stride(), y.storage_offset()).flatten()] = False
        assert (memory[free] == (y.dtype == torch.bool or 123.0)).all()
        assert free[: 4 * x.numel()].all()
        assert free[-4 * x.numel() :].all()


def test_what_does_not_fit_can_be_surrounded() -> None:
    problem = build(Case(i=5, j=7, wrt="none"))
    other = surrounded(misfit(problem, v=problem.v[:, :, :6], k=problem.q, q=problem.q), 0.0, False)
    assert other.v.shape[2] == 6
    assert other.q is other.k
