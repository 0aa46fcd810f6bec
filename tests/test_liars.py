"""Who cheats is named: the right clause, and words from which a reader sees what is going on."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from judging import Outcome, judge
from mutants.base import MUTANTS
from mutants.liars import WORDS

from attnspec.adapters.sdpa import PinnedSDPA
from attnspec.conformance.test_purity import STATE

# Liars that the suite does not name, or not in these words, and why; docs of the tests below say more.
UNSEEN = {"behaves_under_pytest", "FallsBackSilently"}
NOT_YET = {
    "default_dtype_changed": "changed before the first reading, so PURITY-3 reads the same before and after",
    "grad_mode_changed": "changed before the first reading; GRAD-1 sees the gradients missing",
    "right_on_the_second_call": "what is not repeatable is shown with the reduced problem, which its index may not fit",
}
# Else the chapter of the clause.
CLAUSES = {"cached_by_address": "PURITY-5", "nan_with_any_mask": "MASK", "threads_changed": "PURITY-3"}
DTYPES = {"ClaimsClassA": "bfloat16"}


@pytest.fixture(autouse=True)
def _world_as_it_was():
    """Some of them change it for good."""
    before = [(write, read()) for read, write in STATE.values()]
    yield
    for write, value in before:
        write(value)


def judged(name: str, *options: str) -> Outcome:
    """A fresh liar, under a dotted name, in one dtype."""
    module = types.ModuleType("liar_implementations")
    setattr(module, name, MUTANTS[name].make())
    sys.modules[module.__name__] = module
    try:
        return judge(f"liar_implementations.{name}", f"--impl-dtypes={DTYPES.get(name, 'float32')}", *options)
    finally:
        del sys.modules[module.__name__]


@pytest.mark.parametrize("name", [name for name in WORDS if name not in UNSEEN])
def test_a_liar_is_named(name: str, request) -> None:
    if name in NOT_YET:
        request.applymarker(pytest.mark.xfail(reason=NOT_YET[name], strict=True))
    liar = MUTANTS[name]
    outcome = judged(name, f"--clauses={CLAUSES.get(name, liar.clause.partition('-')[0])}")
    assert outcome.exit == 1
    assert liar.clause in outcome.broken()
    assert "attnspec itself failed" not in outcome.screen
    for words in WORDS[name]:
        assert words in outcome.screen, outcome.screen


def test_who_looks_for_pytest_is_seen_by_the_repro_alone() -> None:
    """The suite imports pytest, and so does `check`: while it runs, this one is right. A script like a repro sees zeros."""
    assert judged("behaves_under_pytest", "--clauses=SHAPE-1,SOFTMAX-1").exit == 0
    script = """
import sys; sys.path[:0] = [sys.argv[1]]
import torch
from mutants.liars import behaves_under_pytest
from mutants.base import Call
x = torch.ones(1, 1, 2, 4)
assert "pytest" not in sys.modules
assert not behaves_under_pytest(Call(x, x, x)).any()
"""
    done = subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_silent_fall_back_of_ones_own_is_right_and_so_not_seen() -> None:
    """Which kernel ran is no part of the answer. A module or a function has no trace() that would tell."""
    outcome = judged("FallsBackSilently", "--clauses=MODE-3,CAUSAL-1")
    assert outcome.exit == 0
    assert "backend seen" not in outcome.screen


def test_a_pinned_name_says_which_backend_ran(monkeypatch) -> None:
    """A pin that does not hold stands in the header; it is not a failure, for the answer is right."""
    made = PinnedSDPA.__init__

    def elsewhere(self: PinnedSDPA, name: str) -> None:
        made(self, name)
        self.backend = torch.nn.attention.SDPBackend.MATH

    monkeypatch.setattr(PinnedSDPA, "__init__", elsewhere)
    outcome = judge("sdpa-flash", "--impl-device=cpu", "--impl-dtypes=float32", "--clauses=CAUSAL-1")
    assert "backend seen in torch's dispatcher: math, as" in outcome.screen
    assert outcome.exit == 0


@pytest.mark.parametrize("name", [name for name, liar in MUTANTS.items() if liar.kind == "liar"])
def test_a_liar_has_a_clause_or_a_reason(name: str) -> None:
    liar = MUTANTS[name]
    assert liar.what.endswith(".")
    assert (liar.clause == "") == (name in UNSEEN)
