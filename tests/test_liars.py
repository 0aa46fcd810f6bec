"""Who cheats is named: the right clause, and words from which a reader sees what is going on."""

import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from honest import Attend, tiled
from judging import Outcome, judge
from mutants.base import MUTANTS, load
from mutants.liars import ASKED, WORDS

from attnspec.adapters.shipped.sdpa import PinnedSDPA
from attnspec.adapters.watch.state import watched
from attnspec.adapters.watch.trace import Trace
from attnspec.conformance import check
from attnspec.spec import index

UNSEEN = {"FallsBackSilently"}  # has a test of its own that says why
# Where one test is not enough.
CLAUSES = {"right_for_the_first_hundred_calls": "SOFTMAX", "cached_by_address": "PURITY-5"}
DTYPES = {"ClaimsClassA": "bfloat16"}


@pytest.fixture(autouse=True)
def _world_as_it_was():
    """Some of them change it for good. With one thread, for the problems are small."""
    with watched():
        torch.set_num_threads(1)
        yield


def judged(name: str, *options: str) -> Outcome:
    """A fresh liar, under a dotted name, in one dtype."""
    module = types.ModuleType("liar_implementations")
    setattr(module, name, MUTANTS[name].make())
    sys.modules[module.__name__] = module
    try:
        dtype = f"--impl-dtypes={DTYPES.get(name, 'float32')}"
        # pytest's watch for unraisable exceptions collects garbage at every end: longer than the run.
        return judge(f"liar_implementations.{name}", dtype, "-p", "no:unraisableexception", *options)
    finally:
        del sys.modules[module.__name__]


@pytest.mark.parametrize("name", [name for name in WORDS if name not in UNSEEN])
def test_a_liar_is_named(name: str) -> None:
    liar = MUTANTS[name]
    outcome = judged(name, f"--clauses={CLAUSES.get(name, liar.clause)}", *ASKED[name])
    assert outcome.exit == 1
    assert liar.clause in outcome.broken()
    assert "attnspec itself failed" not in outcome.screen
    for words in WORDS[name]:
        assert words in outcome.screen, outcome.screen


def test_each_clause_of_conduct_has_a_liar() -> None:
    broken = {mutant.clause for mutant in load().values()}
    assert {id_ for id_, clause in index().items() if clause.kind == "conduct"} <= broken


# WHICH KERNEL RAN


class RunsWhatItSays(Attend):
    """With flash=True it calls torch's fused kernel."""

    def forward(self, q, k, v, mask=None):
        if not self.flash:
            return super().forward(q, k, v, mask)
        dropout = self.dropout if self.training else 0.0
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, self.visible(q, k, mask), dropout)


def test_a_silent_fall_back_is_right_and_noted() -> None:
    """Which kernel ran is no part of the answer; that a switch changes nothing is worth a line."""
    outcome = judged("FallsBackSilently", "--clauses=MODE-3")
    assert outcome.exit == 0
    assert "FallsBackSilently flash=True on cpu ran no fused kernel: a plain float32 call is aten::" in outcome.screen
    assert outcome.screen.count("and no fused kernel") == 2  # in the header, of each variant
    assert "flash=False on cpu ran" not in outcome.screen


def test_a_fused_kernel_is_named_and_not_noted() -> None:
    outcome = judge("test_liars.RunsWhatItSays", "--impl-dtypes=float32", "--clauses=MODE-3")
    assert outcome.exit == 0
    assert "backend seen in a plain float32 call: aten::_scaled_dot_product_flash_attention_for_cpu" in outcome.screen
    assert outcome.screen.count("no fused kernel") == 1  # in the header, of flash=False


def test_a_kernel_that_torch_does_not_know_is_not_said_to_be_none() -> None:
    """An operator of somebody's library may be a whole attention."""
    parts = ("aten::bmm", "aten::exp")
    assert Trace(parts).unfused
    assert not Trace((*parts, "mylib::attend")).unfused
    assert not Trace((*parts, "Torch-Compiled Region: 0/0")).unfused
    assert not Trace(("aten::bmm", "aten::relu")).unfused
    assert str(Trace(("aten::empty",))) == ""


@pytest.mark.parametrize(("name", "other"), [("sdpa-flash", "MATH"), ("sdpa-math", "FLASH_ATTENTION")])
def test_a_pin_that_does_not_hold_stops_the_run(monkeypatch, capfd, name: str, other: str) -> None:
    """Every verdict would be about another kernel than the name says."""
    elsewhere = property(lambda self: getattr(torch.nn.attention.SDPBackend, other), lambda self, value: None)
    monkeypatch.setattr(PinnedSDPA, "backend", elsewhere, raising=False)
    code = pytest.main([f"--impl={name}", "--impl-device=cpu", "--impl-dtypes=float32", "--in-process", "-p", "no:cacheprovider"])
    assert code == pytest.ExitCode.USAGE_ERROR
    said = capfd.readouterr().err
    assert f"--impl={name} did not run its own backend: a plain float32 call on cpu ran aten::" in said
    assert "nothing was tested" in said


# NO ANSWER AT ALL


def ended(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The command line on a liar that ends the process."""
    command = [sys.executable, "-m", "pytest", f"--impl={Path(__file__).parent / 'mutants' / 'endings.py'}:{name}"]
    options = ("--impl-dtypes=float32", "--clauses=CAUSAL-1", "--in-process", "-p", "no:cacheprovider", *options)
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=60)


def test_a_crash_says_what_was_asked() -> None:
    done = ended("crashes")
    assert done.returncode == -signal.SIGSEGV
    (asked,) = re.findall(r'File "<attnspec asks (.*)>"', done.stderr)
    assert re.match(r"CAUSAL-1 --case=\S*causal=True\S*: float32: q \(\d+, \d+, \d+, \d+\), .*; causal$", asked)


def test_a_crash_on_the_first_call_says_so() -> None:
    done = ended("crashes_at_once")
    assert done.returncode == -signal.SIGSEGV
    assert "<attnspec asks the first questions: float32: q (" in done.stderr


def test_a_hang_says_what_was_asked_and_ends() -> None:
    done = ended("hangs", "-o", "faulthandler_timeout=2", "-o", "faulthandler_exit_on_timeout=true")
    assert done.returncode == 1
    assert "Timeout (0:00:02)!" in done.stderr
    assert "<attnspec asks CAUSAL-1 --case=" in done.stderr


# WORDS


def test_what_importing_changes_is_noted(tmp_path) -> None:
    """A package that sets threads for itself is within its rights; what would change the suite is set back."""
    (tmp_path / "sets.py").write_text(
        "import torch\ntorch.set_default_dtype(torch.float16)\ntorch.set_float32_matmul_precision('high')\n"
        "from honest import tiled as attend\n"
    )
    outcome = judge(f"{tmp_path / 'sets.py'}:attend", "--impl-dtypes=float32", "--clauses=PURITY-3")
    assert outcome.exit == 0
    assert (
        "importing it changed the default dtype from torch.float32 to torch.float16, before anything was called" in outcome.screen
    )
    assert "importing it changed the matmul precision from highest to high" in outcome.screen
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_default_dtype() is torch.float32


def test_check_sees_the_first_call() -> None:
    result = check(MUTANTS["default_dtype_changed_once"].make(), clauses="CAUSAL-1", dtypes="float32")
    assert result.broken == ("PURITY-3",)
    assert "the first call changed the default dtype from torch.float32 to torch.float16" in str(result)


def test_what_dropout_does_to_the_random_state_is_its_own() -> None:
    """No false alarm: dropout must draw."""
    result = check(tiled, clauses="DROPOUT", dtypes="float32")
    assert result.ok, str(result)


def test_a_class_that_was_not_held_is_not_said_to_be_held() -> None:
    outcome = judged("ClaimsClassA", "--clauses=ACCURACY-1")
    assert re.search(r"class held +not A$", outcome.screen, re.MULTILINE)
    assert check(tiled, clauses="ACCURACY-1", dtypes="float32").held[0]["class"] == "A"


def bottom_right(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """With torch's parameters, and not its alignment."""
    if is_causal:
        attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    return tiled(query, key, value, attn_mask, dropout_p, False, scale, enable_gqa)


def test_an_alignment_is_not_blamed_for_no_causal_masking_at_all() -> None:
    """On one query and two keys bottom-right is no mask at all: another problem tells them apart."""
    words = "this is exactly what causal_alignment=bottom_right gives"
    assert words not in judged("causal_ignored", "--clauses=CAUSAL-3").screen
    assert words in judge("test_liars.bottom_right", "--impl-dtypes=float32", "--clauses=CAUSAL-3").screen


def test_a_row_without_a_key_is_not_blamed_on_the_alignment() -> None:
    """With two queries and one key top-left shows what the mean of all values is."""
    outcome = judge(
        "mutants.implementations.EmptyRowUniformWhenCausal",
        "--impl-dtypes=float32",
        "--clauses=CAUSAL-2",
        "--case=i=6,j=3,causal=True",
    )
    assert set(outcome.broken()) == {"EMPTY-2"}
    assert "empty_row=uniform" in outcome.screen


@pytest.mark.parametrize("name", [name for name, liar in MUTANTS.items() if liar.kind == "liar"])
def test_a_liar_has_a_clause_or_a_reason(name: str) -> None:
    liar = MUTANTS[name]
    assert liar.what.endswith(".")
    assert (liar.clause == "") == (name in UNSEEN)
