"""The command: what it says, and the exit code it ends with. Most runs are made in this process, others apart."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from attnspec.spec import index

HERE = Path(__file__).parent
TILED = f"--impl={HERE / 'honest.py'}:tiled"
QUICK = ("--tier=smoke", "--clauses=SHAPE,DTYPE", "--impl-dtypes=float32")

KERNELS = """
import torch

def attend(q, k, v):
    return torch.softmax(q @ k.mT * max(q.shape[-1], 1) ** -0.5, -1) @ v

def raises(q, k, v):
    raise RuntimeError("not on\\nSundays")

def one_short(q, k, v):
    return attend(q, k, v)[..., :-1]

def in_float64(q, k, v):
    return attend(q, k, v).double()

def elsewhere(q, k, v):
    return attend(q, k, v).to("meta")

def pair(q, k, v):
    return attend(q, k, v), None

def nothing(q, k, v):
    attend(q, k, v)

def array(q, k, v):
    return attend(q, k, v).detach().numpy()

def number(q, k, v):
    return 1.0

def sparse(q, k, v):
    return attend(q, k, v).to_sparse()

def not_a_number(q, k, v):
    return attend(q, k, v) * float("nan")

def causal_off_by_one(q, k, v, causal=False):
    scores = q @ k.mT * q.shape[-1] ** -0.5
    i, j = scores.shape[-2:]
    if causal:
        scores = scores.masked_fill(torch.ones(i, j, dtype=torch.bool).triu(j - i + 2), float("-inf"))
    return torch.softmax(scores, -1) @ v

def without_v(q, k): ...
def with_table(q, k, v, table): ...

class NeedsHeads:
    def __init__(self, heads): ...
    def __call__(self, q, k, v): ...

class Refuses:
    def __init__(self):
        raise OSError("no licence")
    def __call__(self, q, k, v): ...

seven = 7
"""


@dataclass
class Said:
    exit: int
    screen: str

    def no_fault_of_ours(self) -> None:
        for sign in ("Traceback", "attnspec itself failed", "INTERNALERROR", "/conformance/"):
            assert sign not in self.screen, self.screen


@pytest.fixture(scope="session")
def kernels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    (folder / "command_kernels.py").write_text(KERNELS)
    (folder / "command_broken.py").write_text("raise OSError('no driver')\n")
    return folder


@pytest.fixture
def here(kernels, monkeypatch) -> Path:
    """Work in the folder of the kernels, which can then be imported."""
    monkeypatch.chdir(kernels)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return kernels


def say(*options: str) -> Said:
    """`pytest` with these options, in this process; small tensors gain nothing from threads."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()) as screen, contextlib.redirect_stderr(screen):
        code = pytest.main(["-p", "no:cacheprovider", "--rootdir", str(Path.cwd()), "-c", os.devnull, *options])
    return Said(int(code), screen.getvalue())


def run(*command: str, cwd: Path) -> Said:
    """A Python process of its own; one thread, for processes run side by side here."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return Said(done.returncode, done.stdout)


# WHAT CAN NOT BE TESTED


@pytest.mark.parametrize(
    ("impl", "message"),
    [
        ("absent_module.attend", "Python can't import a module 'absent_module' from here"),
        ("command_broken.attend", "importing command_broken raised OSError: no driver"),
        ("command_broken.py:attend", "importing command_broken.py raised OSError: no driver"),
        ("command_kernels.seven", "is not callable: it is a int, 7"),
        ("command_kernels.atend", "has no 'atend'; it has"),
        ("command_kernels.without_v", "no parameter for v"),
        ("command_kernels.with_table", "required parameters that no convention knows: table"),
        ("command_kernels.NeedsHeads", "missing 1 required positional argument: 'heads'"),
        ("command_kernels.Refuses", "raised OSError: no licence"),
        ("command_kernels.raises", "It raised RuntimeError: not on Sundays"),
    ],
)
def test_what_can_not_be_tested_is_said_once_and_ends_with_4(impl, message, here):
    said = say(f"--impl={impl}", *QUICK[:2])
    said.no_fault_of_ours()
    assert said.exit == 4
    assert said.screen.startswith("ERROR: ")
    assert said.screen.count("ERROR") == 1
    assert message in said.screen
    assert "passed" not in said.screen


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--clauses=SPEED", "--clauses SPEED: unknown chapter or clause; chapters are ACCURACY"),
        ("--clauses=CAUSAL-99", "--clauses CAUSAL-99: unknown chapter or clause"),
        ("--dialect=alignment=top_left", "choose from canonical; causal_alignment=bottom_right|top_left"),
        ("--dialect=causal_alignment=middle", "choose from canonical; causal_alignment=bottom_right|top_left"),
        ("--impl-dtypes=float8", "choose from float64, float32, float16, bfloat16"),
        ("--impl-device=abacus", "--impl-device abacus is not on this machine, which has cpu"),
        ("--without=speed", "--without: unknown speed; choose from mha"),
        ("--case=speed=3", "unknown factor 'speed'"),
        ("--case=mask=gas", "mask can't be 'gas'; it can be none"),
        ("--case=i=many", "i can't be 'many'"),
        ("--case=i=-2", "i can't be '-2'"),
        ("--case=heads=two", "heads can't be 'two'"),
        ("--case=heads=5/3", "heads can't be '5/3'"),
        ("--accuracy=E", "invalid choice: 'E'"),
        ("--tier=whole", "invalid choice: 'whole'"),
        ("--attnspec-seed=x", "argument --attnspec-seed: 'x' is no seed; write a whole number, or random"),
        ("--verdicts=absent/verdicts.jsonl", "folder absent does not exist"),
        ("--impl-kwargs=heads", "write heads=8,dim=64 or a JSON object"),
        ("--impl-kwargs=heads=8", "command_kernels.attend is not a class"),
    ],
)
def test_a_wrong_option_is_said_and_ends_with_4(option, message, here):
    said = say("--impl=command_kernels.attend", *(() if "clauses" in option else ("--clauses=SHAPE-1",)), option)
    said.no_fault_of_ours()
    assert said.exit == 4
    assert message in said.screen


def test_conformance_tests_without_impl_ask_for_it(here):
    said = say(str(HERE.parent / "conformance" / "clauses" / "test_shape.py"))
    assert said.exit != 0
    assert "say what to test with --impl=package.module.name" in said.screen


# WHAT DOES NOT CONFORM


@pytest.mark.parametrize(
    ("kernel", "clause", "message"),
    [
        ("one_short", "SHAPE-1", "the output has shape (1, 1, 1, 0), expected (1, 1, 1, 1)"),
        ("in_float64", "DTYPE-1", "the output has dtype float64, expected float32"),
        ("elsewhere", "DTYPE-3", "the output is on meta, the inputs are on cpu"),
        ("nothing", "SHAPE-1", "returned nothing (None), expected one tensor"),
        ("array", "SHAPE-1", "returned a ndarray, expected one tensor"),
        ("number", "SHAPE-1", "returned a float, expected one tensor"),
        ("sparse", "SHAPE-1", "a sparse_coo tensor, expected a dense one"),
    ],
)
def test_what_is_not_a_tensor_of_the_right_form_ends_with_1(kernel, clause, message, here):
    said = say(f"--impl=command_kernels.{kernel}", QUICK[0], QUICK[2], "--clauses=DTYPE-1")
    said.no_fault_of_ours()
    assert said.exit == 1
    assert f"{clause} · {index()[clause].title} (MUST)" in said.screen
    assert message in said.screen
    assert f"broken: {clause}" in said.screen


def test_what_a_tuple_holds_is_seen_in_plain_calls(here) -> None:
    said = say("--impl=command_kernels.pair", QUICK[0], QUICK[2], "--clauses=DTYPE-1")
    said.no_fault_of_ours()
    assert said.exit == 0
    assert "it returns (o, other) (observed in plain calls)" in said.screen
    said = say("--impl=command_kernels.pair", QUICK[0], QUICK[2], "--clauses=DTYPE-1", "--returns=lse,o")
    assert said.exit == 1
    assert "plain calls are right in no reading" in said.screen
    said = say("--impl=command_kernels.pair", "--returns=lse,x")
    assert "the output is called o there" in said.screen
    said = say("--impl=command_kernels.pair", "--layout=d h i b")
    assert "is no order of axes that can be read" in said.screen


@pytest.fixture(scope="session")
def off_by_one(kernels) -> tuple[Said, Path]:
    """A run apart that fails, with its verdicts, and what it wrote."""
    said = run(
        "-m",
        "pytest",
        "--impl=command_kernels.py:causal_off_by_one",
        "--tier=smoke",
        "--clauses=CAUSAL",
        "--impl-dtypes=float32",
        "--verdicts=verdicts.jsonl",
        "-p",
        "no:cacheprovider",
        cwd=kernels,
    )
    return said, kernels


def test_a_failure_shows_what_a_reader_needs(off_by_one):
    said, _ = off_by_one
    said.no_fault_of_ours()
    assert said.exit == 1
    clause = next(c for c in index().values() if c.chapter == "CAUSAL" and f"{c.id} · {c.title} (MUST)" in said.screen)
    assert clause.sentence.split("\n")[0] in said.screen
    assert "problem   float32: 1 batch item, 1 head," in said.screen
    assert re.search(r"output \[0, 0, \d+, 0\] = -?\d\S*, expected -?\d", said.screen)
    terms = r"\(accumulation \d+%.*\)"
    assert re.search(rf"error \S+ = \S+ × the bound \(\S+\) of class A {terms}; [\d,]+ of [\d,]+ elements are outside", said.screen)
    assert re.search(r"repro +python attnspec-repros/repro_CAUSAL-\d_float32_o\.py", said.screen)
    assert re.search(r"re-run +pytest --impl=command_kernels.py:causal_off_by_one .*--clauses=CAUSAL-\d --case=", said.screen)


def test_the_repro_runs_where_attnspec_is_absent(off_by_one):
    said, folder = off_by_one
    scripts = re.findall(r"repro +python (\S+)", said.screen)
    assert scripts
    blocked = "import runpy, sys; sys.modules['attnspec'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    again = []  # a long answer's repro shows its first elements, which need not be the worst
    for script in scripts:
        alone = run("-c", blocked, script, cwd=folder)
        assert alone.exit == 1, alone.screen
        assert "Traceback" not in alone.screen
        assert re.search(r"^o: \d+ of \d+ elements are further from the expected value than the bound$", alone.screen, re.M)
        shown, repeated = (
            [float(number) for number in re.findall(r"\] = (\S+), expected", screen)] for screen in (said.screen, alone.screen)
        )
        again.append(any(abs(a - b) <= 1e-6 * abs(a) for a in shown for b in repeated))
    assert any(again), said.screen


def test_the_command_that_is_shown_fails_in_the_same_way(off_by_one, here):
    said, _ = off_by_one
    commands = re.findall(r"re-run +pytest (.*)", said.screen)
    assert commands
    again = say(*shlex.split(commands[0]))
    again.no_fault_of_ours()
    assert again.exit == 1
    for pattern in (r"^  problem .*$", r"output \[.*$", r"error .*$"):
        first = re.search(pattern, said.screen, re.M)
        second = re.search(pattern, again.screen, re.M)
        assert first is not None
        assert second is not None
        assert first[0] == second[0]


def strictly(line: str) -> dict:
    def refuse(literal: str) -> None:
        raise ValueError(f"{literal} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_verdicts_are_strict_json_lines_from_header_to_footer(off_by_one):
    said, folder = off_by_one
    lines = [strictly(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines].count("header") == 1
    assert (lines[0]["kind"], lines[-1]["kind"]) == ("header", "footer")
    assert {line["kind"] for line in lines} == {"header", "accuracy", "cell", "failure", "footer"}
    assert lines[-1]["exit"] == said.exit == 1
    failures = [line for line in lines if line["kind"] == "failure"]
    assert lines[-1]["failures"] == len(failures)
    for failure in failures:
        assert failure["text"] in said.screen or failure["clause"] in said.screen


def test_a_verdict_on_nan_is_strict_json_too(here, tmp_path):
    said = say("--impl=command_kernels.not_a_number", *QUICK, f"--verdicts={tmp_path / 'v.jsonl'}")
    said.no_fault_of_ours()
    assert said.exit == 1
    assert "= nan, expected" in said.screen
    lines = [strictly(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert any(line["kind"] == "failure" for line in lines)


# WHAT CONFORMS


def test_what_conforms_ends_with_0_and_the_counts_have_denominators(here):
    said = say(TILED, "--tier=smoke", "--clauses=CAUSAL-1,CAUSAL-2,CAUSAL-3", "--impl-dtypes=float32")
    said.no_fault_of_ours()
    assert said.exit == 0
    must = sum(clause.binding for clause in index().values())
    line = rf"^MUST clauses: (\d+) of {must} hold, 0 broken, (\d+) unsupported, (\d+) not run$"
    headline = re.search(line, said.screen, re.M)
    assert headline is not None
    assert sum(map(int, headline.groups())) == must
    cells = re.search(r"^  CAUSAL-1 +(\d+)/(\d+)$", said.screen, re.M)
    assert cells is not None
    assert cells[1] == cells[2] != "0"


def test_a_broken_should_decides_only_if_it_is_told_to(here):
    """NaN in a masked value comes through every matmul: 0 · NaN."""
    should = next(c.id for c in index().values() if not c.binding and c.chapter == "MASK")
    options = ("--impl=sdpa-math", "--tier=smoke", f"--clauses={should}", "--impl-dtypes=float32")
    told, enforced = say(*options), say(*options, "--enforce-should")
    for said in (told, enforced):
        said.no_fault_of_ours()
        assert f"SHOULD, broken: {should}" in said.screen
    assert (told.exit, enforced.exit) == (0, 1)
    assert f"{should} (SHOULD) does not hold, first seen in" in told.screen


def test_nothing_judged_is_no_success(here):
    said = say("--impl=command_kernels.attend", *QUICK[::2], "--clauses=BIAS")
    said.no_fault_of_ours()
    assert said.exit == 5
    assert "nothing was tested" in said.screen


# OTHER WAYS TO RUN


def test_warnings_as_errors_do_not_break_a_run(kernels, tmp_path):
    (tmp_path / "warns.py").write_text(
        "import warnings\nimport torch\nwarnings.warn('import')\n"
        "def attend(q, k, v):\n    warnings.warn('call')\n"
        "    return torch.softmax(q @ k.mT * max(q.shape[-1], 1) ** -0.5, -1) @ v\n"
    )
    said = run(
        "-W",
        "error::UserWarning",
        "-m",
        "pytest",
        "-W",
        "error",
        "--impl=warns.py:attend",
        "--tier=smoke",
        "--clauses=SHAPE-1",
        "--impl-dtypes=float32",
        "-p",
        "no:cacheprovider",
        cwd=tmp_path,
    )
    said.no_fault_of_ours()
    assert said.exit == 0, said.screen


def test_workers_find_the_same_broken_clauses(here):
    options = ("--impl=command_kernels.py:causal_off_by_one", "--tier=smoke", "--clauses=CAUSAL", "--case=i=5,causal=True")
    one = say(*options)
    two = run("-m", "pytest", "-n2", *options, "-p", "no:cacheprovider", cwd=here)
    two.no_fault_of_ours()
    assert (one.exit, two.exit) == (1, 1)

    def broken(said: Said) -> set[str]:
        return set(re.findall(r"^(CAUSAL-\d) · .* \(MUST\)", said.screen, re.M))

    assert broken(one) == broken(two) != set()


def test_workers_judge_what_conforms(here):
    said = run(
        "-m",
        "pytest",
        "-n2",
        "--impl=sdpa-math",
        "--tier=smoke",
        "--clauses=CAUSAL-1,CAUSAL-3",
        "--case=i=5,causal=True",
        "-p",
        "no:cacheprovider",
        cwd=here,
    )
    assert said.exit == 0
    assert re.search(r"^  CAUSAL-3 +(\d+)/\1$", said.screen, re.M)


def test_smoke_needs_no_hypothesis() -> None:
    """A run that draws nothing imports it nowhere, and its plugin may be missing."""
    code = "import pytest, sys; print(int(pytest.main(sys.argv[1:])), 'hypothesis' in sys.modules)"
    command = [sys.executable, "-c", code, "--impl=sdpa-math", "--impl-device=cpu", "--clauses=ERROR-1", "-q"]
    for more, imported in ((["--tier=smoke"], False), (["--tier=smoke", "-p", "no:hypothesispytest"], False), ([], True)):
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
        assert done.stdout.splitlines()[-1] == f"0 {imported}", done.stdout + done.stderr


def test_the_sweep_is_asked_in_every_dtype_before_anything_else(here):
    """A kernel that is wrong in half types only waits for no other test of the first dtype."""
    said = say(TILED, "--tier=smoke", "--impl-dtypes=float32,bfloat16,float16", "--collect-only", "-q")
    names = re.findall(r"::(\w+)\[(\w+)\]$", said.screen, re.M)
    assert {test for test, _ in names[:3]} == {"test_output_has_a_row_for_each_query"}, names[:6]
    assert [dtype for _, dtype in names[:3]] == ["float32", "bfloat16", "float16"]
    assert {dtype for _, dtype in names[3:60]} == {"float32"}


def test_a_variant_waits_for_no_half_type_of_another_but_for_the_sweep(here):
    """Dropout that is wrong in every variant was asked after the sweep of all of them, in every dtype."""
    said = say(f"--impl={HERE / 'honest.py'}:Attend", "--tier=smoke", "--impl-dtypes=float32,float16", "--collect-only", "-q")
    names = re.findall(r"::(\w+)\[(.+)-(\w+)\]$", said.screen, re.M)
    first, second = dict.fromkeys(variant for _, variant, _ in names)
    sweep, asked = names[0][0], [(variant, dtype) for _, variant, dtype in names]
    assert asked[:3] == [(first, "float32"), (second, "float32"), (first, "float16")]
    assert asked.index((second, "float16")) == names.index((sweep, second, "float16"))
    assert set(asked[3 : asked.index((second, "float16"))]) == {(first, "float32")}


# TIME


def test_threads_that_wait_do_not_spin_unless_the_user_says_so_or_torch_is_there_already() -> None:
    """The problems are small: beside other processes a thread that spins takes the core from the one that it waits for."""
    names = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    code = f"import os, pytest, sys; pytest.main(sys.argv[1:]); print([os.environ.get(name) for name in {names}])"
    options = ["--impl=sdpa-math", "--impl-device=cpu", "--impl-dtypes=float32", "--tier=smoke", "--clauses=ERROR-1"]
    advice = "put this before the command: OMP_WAIT_POLICY=PASSIVE KMP_BLOCKTIME=0"
    for before, more, left, advised in (
        ("", {}, "['PASSIVE', '0']", False),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "['ACTIVE', None]", False),
        ("import torch; ", {}, "[None, None]", True),
    ):
        command = [sys.executable, "-c", before + code, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent, env=plain | more)
        assert done.stdout.splitlines()[-1] == left, done.stdout + done.stderr
        assert (advice in done.stdout) is advised
        assert re.search(r"^time: \d+ s to import and to ask the first questions, \d+ s to ask, ", done.stdout, re.M)
