"""action.yml: its steps, run as the runner of a pull request would run them, and the same six lines in the docs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_known import write

yaml = pytest.importorskip("yaml")

HERE = Path(__file__).parent
ACTION = yaml.safe_load((HERE.parent / "action.yml").read_text())
PAGE = (HERE.parent / "docs" / "gating.md").read_text()
KERNEL = f"{HERE / 'test_known.py'}:fails_at_equal_lengths"
QUICK = "--clauses=CAUSAL-1 --impl-dtypes=float32 -k 'test_a_query_sees'"


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder for PATH: this Python by its plain name, and an `attnspec` that says what it was asked and fails."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    real = f'case "$1" in verify) exec "{sys.executable}" -m attnspec.conformance "$@";; esac'
    (folder / "attnspec").write_text(f'#!/bin/sh\n{real}\necho "asked: $*"\nexit 1\n')
    for tool in folder.iterdir():
        tool.chmod(0o755)
    return folder


def act(tools: Path, step: str, **inputs: str) -> tuple[int, str, str, str]:
    """Run one step: exit code, what it printed, its outputs and its summary."""
    (found,) = (x for x in ACTION["runs"]["steps"] if x["name"] == step)
    given = {name: str(value.get("default", "")) for name, value in ACTION["inputs"].items()} | inputs
    work = tools.parent / "work"
    work.mkdir(exist_ok=True)
    files = {"GITHUB_OUTPUT": tools.parent / "output", "GITHUB_STEP_SUMMARY": tools.parent / "summary"}
    for file in files.values():
        file.write_text("")
    env = {name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda x: given[x[1]], text) for name, text in found["env"].items()}
    script = tools.parent / "step.sh"
    script.write_text(found["run"])
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],  # as the runner does for `shell: bash`
        cwd=work,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **env, **dict.fromkeys(files)}
        | {name: str(path) for name, path in files.items()},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout, files["GITHUB_OUTPUT"].read_text(), files["GITHUB_STEP_SUMMARY"].read_text()


def test_every_input_is_used_and_no_other():
    text = (HERE.parent / "action.yml").read_text()
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == ACTION["inputs"].keys()
    for step in ACTION["runs"]["steps"]:
        # What a caller writes goes through the environment: pasted into a script it could be a script.
        assert "${{" not in step.get("run", "")
        assert ("run" in step) == ("shell" in step)
    assert ACTION["inputs"]["impl"]["required"] is True
    assert ACTION["runs"]["using"] == "composite"


def test_a_run_that_fails_fails_the_step_and_is_summed_up(tools):
    code, printed, outputs, summary = act(tools, "Run", impl=KERNEL, tier="smoke", args=QUICK)
    assert code == 1, printed
    assert outputs == "verdicts=attnspec-report/verdicts.jsonl\n"
    report = tools.parent / "work" / "attnspec-report"
    assert '"kind": "footer", "exit": 1' in (report / "verdicts.jsonl").read_text()
    assert "no search" in (report / "output.txt").read_text()
    assert f"### attnspec: {KERNEL}" in summary
    assert "broken: CAUSAL-1" in summary
    assert "MUST clauses: " in summary


def test_a_kernel_that_ends_the_process_with_0_is_red(tools):
    work = tools.parent / "work"
    work.mkdir()
    (work / "kernel.py").write_text("import os\n\ndef attend(q, k, v):\n    os._exit(0)\n")
    (work / "attnspec-report").mkdir()
    (work / "attnspec-report" / "verdicts.jsonl").write_text('{"kind": "of an earlier run"}\n')
    code, printed, *_ = act(tools, "Run", impl="kernel.py:attend", tier="smoke", args=f"{QUICK} --in-process")
    assert code == 2, printed
    assert "is empty: the run did not begin" in printed


def test_every_recipe_of_the_page_verifies_its_file():
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S):
        for line in block.splitlines():
            if "-m pytest" in line:
                (file,) = re.findall(r"--verdicts=(\S+)", line)
                assert f"attnspec verify {file}" in block


def test_known_issues_search_and_seed_are_handed_on(tools):
    known = write(tools.parent)
    inputs = {"impl": KERNEL, "known-issues": str(known), "search": "true", "seed": "20270101", "args": QUICK}
    code, printed, _, summary = act(tools, "Run", **inputs)
    assert code == 0, printed
    assert "search with seed 20270101" in printed
    assert "1 with known issues" in summary


def test_what_does_not_start_is_summed_up_too(tools):
    hostile = 'absent.attend"; touch broken; $(touch broken) `touch broken`'
    code, _, _, summary = act(tools, "Run", impl=hostile)
    assert code == 4
    assert "no module" in summary or "ERROR" in summary
    assert not (tools.parent / "work" / "broken").exists()


def test_arguments_that_can_not_be_read_do_not_vanish(tools):
    code, printed, _, _ = act(tools, "Run", impl=KERNEL, args="'--tier=smoke")
    assert code == 1
    assert "No closing quotation" in printed


def test_a_baseline_is_compared_with(tools):
    (tools.parent / "work" / "attnspec-report").mkdir(parents=True)
    code, printed, _, summary = act(tools, "Compare", baseline="main.jsonl")
    assert code == 1
    assert "asked: diff main.jsonl attnspec-report/verdicts.jsonl" in printed
    assert "asked: diff main.jsonl" in summary
    (step,) = (x for x in ACTION["runs"]["steps"] if x["name"] == "Compare")
    assert step["if"] == "${{ !cancelled() && inputs.baseline != '' }}"


def test_nothing_is_installed_where_nothing_is_named(tools):
    assert act(tools, "Install", package="")[:2] == (0, "")
    (tools / "python").write_text('#!/bin/sh\necho "asked: $*"\n')
    assert act(tools, "Install", package="attnspec==0.1")[1] == "asked: -m pip install attnspec==0.1\n"


def test_the_six_lines_of_the_page_run_as_written(tools):
    (block,) = re.findall(r"```bash\n(# any CI\n.*?)```", PAGE, re.S)
    lines = [line for line in block.splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 6
    work = tools.parent / "work"
    work.mkdir()
    write(work, "mypackage.attend").rename(work / "known-issues.toml")
    (work / "mypackage.py").write_text("from test_known import fails_at_equal_lengths as attend\n")
    (tools / "python").write_text(
        '#!/bin/sh\ncase "$*" in *"pip install"*) exit 0;; esac\n'
        f'PYTHONPATH={HERE}:$PYTHONPATH exec "{sys.executable}" "$@" {QUICK}\n'
    )
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=work,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert "1 with known issues" in done.stdout, done.stdout
    assert done.returncode == 1  # `attnspec diff` here is one that always fails
    assert "asked: diff" in done.stdout
    assert (work / "verdicts.jsonl").exists()
