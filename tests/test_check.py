"""The suite as a function: what it returns, what it says, and that it leaves nothing behind."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import honest
import numpy as np
import pytest
import torch
from judging import judge
from mutants.base import load
from torch import nn

from attnspec.adapters import Adapter, ResolveError
from attnspec.conformance import check
from attnspec.conformance.plugin.check import Result
from attnspec.conformance.testing.plan import Plan

QUICK = {"clauses": "CAUSAL-1", "dtypes": "float32"}


def textbook(q, k, v, causal=False):
    scores = q @ k.mT * max(q.shape[-1], 1) ** -0.5
    if causal:
        i, j = scores.shape[-2:]
        scores = scores.masked_fill(torch.ones(i, j, dtype=torch.bool).triu(j - i + 1), float("-inf"))
    return torch.softmax(scores, -1).nan_to_num(0.0) @ v


def sees_the_next(q, k, v, causal=False):
    return textbook(q, k, v) if q.shape[2] > 1 else textbook(q, k, v, causal)


# WHAT IT SAYS


def test_what_conforms_is_ok() -> None:
    result = check(honest.tiled, clauses="CAUSAL", dtypes=("float32",))
    assert isinstance(result, Result)
    assert result.ok
    assert result.raise_for_failures() is result
    assert not result.failures
    assert result.held == ({"variant": "only", "device": "cpu", "dtype": "float32", "class": "A"},)
    assert {v["clause"].partition("-")[0] for v in result.verdicts} == {"CAUSAL"}
    (one,) = (v for v in result.verdicts if v["clause"] == "CAUSAL-1")
    assert one["counts"]["PASS"] > 10
    assert "FAIL" not in one["counts"]
    assert result.judged >= one["counts"]["PASS"]


def test_what_does_not_conform_says_how() -> None:
    result = check(sees_the_next, clauses="CAUSAL-1", dtypes="float32")
    assert not result.ok
    assert "CAUSAL-1" in result.broken
    failure = result.failures[0]
    assert (failure.clause, failure.dtype, failure.variant, failure.device) == ("CAUSAL-1", "float32", "only", "cpu")
    assert "CAUSAL-1 · A query sees itself" in failure.text
    with pytest.raises(AssertionError, match=r"(?s)sees_the_next does not conform.*CAUSAL-1 · .*MUST clauses: "):
        result.raise_for_failures()


def test_shown_is_what_the_command_line_shows() -> None:
    shown = str(check(sees_the_next, **QUICK))
    for part in (
        "attnspec ",
        "sees_the_next",
        "tier smoke",
        "FAILURES",
        "CAUSAL-1 · ",
        "attention conformance",
        "class held",
        "MUST clauses",
    ):
        assert part in shown
    screen = judge("test_check.sees_the_next", "--clauses=CAUSAL-1", "--impl-dtypes=float32").screen
    screen = screen.replace(" --in-process", "")  # that is how judge asks, and the re-run says so
    ours = str(check("test_check.sees_the_next", **QUICK))
    assert not [line for line in ours.splitlines() if line not in screen and "==" not in line]


def test_the_rerun_of_an_object_is_a_call() -> None:
    result = check(sees_the_next, without={"backward"}, **QUICK)
    line = next(line for line in result.failures[0].text.splitlines() if "re-run" in line)
    assert line.startswith("  re-run    check(sees_the_next, without={'backward'}, clauses='CAUSAL-1', case='")
    again = eval(line.removeprefix("  re-run    "), {"check": check, "sees_the_next": sees_the_next})
    assert again.broken == ("CAUSAL-1",)
    named = check(f"{__file__}:sees_the_next", **QUICK).failures[0].text
    assert f"re-run    pytest --impl={__file__}:sees_the_next --clauses=CAUSAL-1 --case=" in named


def test_nothing_judged_is_not_ok() -> None:
    result = check(honest.tiled, clauses="GRAD-1,GRAD-2", dtypes="float32", without={"backward"})
    assert not result.ok
    assert result.judged == 0
    with pytest.raises(AssertionError, match="nothing was tested"):
        result.raise_for_failures()
    assert "nothing was tested" in str(result)


def test_an_error_of_ours_is_not_the_implementations(monkeypatch) -> None:
    from attnspec.conformance.clauses import test_causal

    def test_broken(run, subject, dtype):
        raise ZeroDivisionError("ours")

    test_broken.clauses, test_broken.plan, test_broken.since = ("CAUSAL-1",), Plan(), None
    monkeypatch.setattr(test_causal, "test_broken", test_broken, raising=False)
    result = check(honest.tiled, **QUICK)
    assert not result.ok
    assert not result.failures
    assert "attnspec itself failed in test_broken" in result.errors[0]
    assert "attnspec itself failed" in str(result)


# WHAT IT TAKES


def test_functions_classes_instances_adapters_and_names() -> None:
    class Kernel(nn.Module):
        def forward(self, q, k, v, causal=False):
            return textbook(q, k, v, causal)

    class Ours(Adapter):
        offers = {"mha", "causal", "backward"}
        dialect = {"causal_alignment": "bottom_right"}

        def attend(self, q, k, v, *, causal=False, **rest):
            return textbook(q, k, v, causal)

    for impl in (textbook, lambda q, k, v, causal=False: textbook(q, k, v, causal), Kernel, Kernel(), Ours, Ours()):
        assert check(impl, **QUICK).ok
    assert check("sdpa-math", **QUICK).ok
    assert check("honest.tiled", **QUICK).ok
    assert check(f"{honest.__file__}:tiled", **QUICK).ok


def test_a_flash_switch_is_two_variants() -> None:
    result = check(honest.Attend, clauses=["CAUSAL-1"], dtypes=[torch.float32])
    assert {v["variant"] for v in result.verdicts} == {"flash=False", "flash=True"}
    assert len({x["variant"] for x in result.held}) == 2


def test_options_are_those_of_the_command_line(tmp_path) -> None:
    shifted = {"clauses": "CAUSAL-2,CAUSAL-3", "dtypes": "float32"}
    refused = check(textbook, dialect={"causal_alignment": "top_left"}, **shifted)
    assert "dialect={'causal_alignment': 'bottom_right'}" in refused.failures[0].text
    assert check(textbook, dialect={"causal_alignment": "bottom_right"}, **shifted).ok
    assert not check(honest.eager, accuracy="B", clauses="ACCURACY", dtypes=("bfloat16",)).ok
    assert "not run" in str(check(textbook, budget=0.0001, **QUICK))
    file = tmp_path / "verdicts.jsonl"
    assert check(textbook, verdicts=file, seed=3, device="cpu", **QUICK).ok
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert (lines[0]["kind"], lines[0]["seed"], lines[-1]["kind"], lines[-1]["exit"]) == ("header", 3, "footer", 0)

    class NeedsHeads:
        def __init__(self, heads):
            self.heads = heads

        def __call__(self, q, k, v):
            assert self.heads == 8
            return textbook(q, k, v)

    assert check(NeedsHeads, kwargs={"heads": 8}, clauses="SHAPE-1", dtypes="float32").ok


def test_a_broken_should_decides_where_it_is_asked_to() -> None:
    nan = {"clauses": "MASK-5", "dtypes": "float32"}
    lax, strict = (check(honest.eager, enforce_should=x, **nan) for x in (False, True))
    assert not lax.failures
    assert any("MASK-5 (SHOULD)" in note for note in lax.notes)
    assert strict.broken == ("MASK-5",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tier": "quick"}, "tier 'quick': choose from smoke"),
        ({"accuracy": "E"}, "accuracy 'E': choose from A"),
        ({"clauses": "CASUAL"}, "unknown chapter"),
        ({"dtypes": "float31"}, "float31"),
        ({"dialect": {"causal_alignment": "left"}}, "causal_alignment=left"),
        ({"without": "dropuot"}, "dropuot"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_what_can_not_be_asked_raises(options, message) -> None:
    with pytest.raises((ResolveError, ValueError), match=message):
        check(textbook, **options)
    with pytest.raises(ResolveError, match="not callable"):
        check(7)


# WHAT IT LEAVES BEHIND


def test_state_is_as_it_was(tmp_path, monkeypatch, capfd) -> None:
    (tmp_path / "honest_copy.py").write_text(Path(honest.__file__).read_text() + "\nprint('loud')\n")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)

    def state():
        return (
            torch.get_rng_state().tolist(),
            repr(np.random.get_state()),
            random.getstate(),
            os.getcwd(),
            list(sys.path),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            "honest_copy" in sys.modules,
        )

    before = state()
    assert check("honest_copy.py:tiled", **QUICK).ok
    assert not check(sees_the_next, **QUICK).ok
    with pytest.raises(ResolveError):
        check("honest_copy.py:absent", **QUICK)
    assert state() == before
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"honest_copy.py"}  # Python may write the former


def test_a_module_and_an_adapter_stay_their_owners() -> None:
    class Kernel(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, q, k, v, causal=False):
            self.calls += 1
            return textbook(q, k, v, causal)

    class Ours(Adapter):
        offers = frozenset({"mha", "causal", "backward"})

        def attend(self, q, k, v, *, causal=False, **rest):
            return textbook(q, k, v, causal)

    module, adapter = Kernel().train(), Ours()
    assert check(module, **QUICK).ok
    assert (module.training, module.calls) == (True, 0)
    assert check(adapter, without={"backward"}, **QUICK).ok
    assert (adapter.offers, adapter.name) == (Ours.offers, "")


def test_the_surroundings_do_not_matter() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            result = check(textbook, clauses="GRAD-1,CAUSAL-1", dtypes="float32")
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.ok
    assert any(v["clause"] == "GRAD-1" and v["counts"].get("PASS") for v in result.verdicts)
    with torch.inference_mode():
        assert check(textbook, clauses="GRAD-1", dtypes="float32").ok


def test_again_is_the_same() -> None:
    first, other, second = check(sees_the_next, **QUICK), check(textbook, **QUICK), check(sees_the_next, **QUICK)
    assert other.ok
    assert first == second
    assert str(first) == str(second)


def test_it_comes_with_the_package_and_costs_nothing_until_it_is_asked_for() -> None:
    script = """
import sys
import attnspec.conformance
assert not {"torch", "numpy", "pytest", "hypothesis"} & sys.modules.keys()
from attnspec.conformance import check
assert callable(check) and check.__name__ == "check"
assert attnspec.conformance.check is check
"""
    other = """
import attnspec.conformance.plugin.check
from attnspec.conformance import check
assert check(lambda q, k, v: (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v, clauses="SHAPE-1", dtypes="float32").ok
"""
    for text in (script, other):
        done = subprocess.run([sys.executable, "-c", text], text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stdout


def test_what_was_compiled_before_hides_nothing() -> None:
    """Of one code object torch compiles eight, and runs what comes after as it is: those before must be forgotten."""
    before = [name for name, mutant in load().items() if mutant.kind == "function"][:9]
    for name in [*before, "compiled_without_scale"]:
        result = check(
            f"mutants.implementations.{name}", clauses="MODE-5", tier="standard", dtypes=("float32",), enforce_should=True
        )
    assert not result.ok
