"""Foreign text is shown and never obeyed: not by a terminal, not by a page, not by Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from honest import tiled
from judging import ended

from attnspec.adapters import ResolveError, parse_kwargs, resolve
from attnspec.adapters.conventions.function import FunctionAdapter
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.problems.case import Case
from attnspec.conformance.report import failure as report
from attnspec.conformance.report.repro import script
from attnspec.conformance.run.rerun import Shell
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.verdicts.cli import main
from attnspec.conformance.verdicts.page import code, fence, plain
from attnspec.conformance.verdicts.record import Record
from attnspec.conformance.verdicts.text import quoted, visible

HOSTILE = 'a\x1b[2J\x07\x00\u202e\u2028\udcff\r\n::error::C:\\Users\\new """; import os; os.system("touch PWNED"); """'
OBEYED = "\x1b\x07\x00\u202e\u2028\udcff\r\n"


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert visible("plain · ≤ ünïcode") == "plain · ≤ ünïcode"
    assert visible("a\x1b[2J\nb") == r"a\x1b[2J\nb"
    assert visible("a\nb", keep="\n") == "a\nb"
    assert not set(visible(HOSTILE)) & set(OBEYED)
    for text in (plain(HOSTILE), code(HOSTILE), fence([HOSTILE]).replace("\n", "")):
        assert not set(text) & set(OBEYED)


def test_notes_and_reasons_are_one_line() -> None:
    record = Record()
    record.note(HOSTILE)
    assert not set(record.notes[0]) & set(OBEYED)


def _raises(query, key, value):
    raise ValueError(HOSTILE)


def _kernel(tmp_path: Path, line: str) -> tuple[str, ...]:
    """A kernel of its own file, as a script imports it."""
    file = tmp_path / "kernel_of_text.py"
    file.write_text(f"import torch\nfrom honest import tiled\ndef attend(query, key, value):\n    {line}\n")
    return (f"import sys; sys.path.insert(0, {str(tmp_path)!r})", "from kernel_of_text import attend")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"raise ValueError({HOSTILE!r})", 1),
        ("raise SystemExit(0)", 1),
        ("return tiled(query, key, value)", 0),
    ],
)
def test_a_script_says_one_where_it_raises(line: str, code: int, tmp_path: Path) -> None:
    """Whatever the message holds, and also where the kernel would end the script as if all were well."""
    adapter = FunctionAdapter(_raises, HOSTILE, _kernel(tmp_path, line))
    adapter.variant = adapter.version = HOSTILE
    subject, case = Subject(adapter), Case(i=2, wrt="none")
    finding = Finding("raised", "call", f"raised {subject.run(subject.problem(case)).refusal}")
    text = script(subject, Explained("SHAPE-2", case, finding, subject.problem(case), None), None)
    assert text is not None
    path = tmp_path / "repro.py"
    path.write_text(text, encoding="utf-8")
    done = ended(path)
    assert done.returncode == code, done.stderr
    assert not (tmp_path / "PWNED").exists()
    assert not Path("PWNED").exists()
    assert "SyntaxError" not in done.stderr


def test_a_script_that_can_not_start_says_two(tmp_path: Path) -> None:
    adapter = FunctionAdapter(tiled, "tiled", ("from no_such_module import attend",))
    subject, case = Subject(adapter), Case(i=2, wrt="none")
    finding = Finding("raised", "call", "raised ValueError")
    text = script(subject, Explained("SHAPE-2", case, finding, subject.problem(case), None), None)
    assert text is not None
    (tmp_path / "repro.py").write_text(text, encoding="utf-8")
    done = ended(tmp_path / "repro.py")
    assert done.returncode == 2
    assert "ModuleNotFoundError" in done.stderr
    compile(f'"""{quoted(HOSTILE)}"""', "docstring", "eval")


def test_a_script_that_can_not_be_written_costs_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    def fails(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(report, "write", fails)
    subject, case = Subject(FunctionAdapter(tiled, "tiled", ())), Case(i=2, wrt="none")
    record = Record()
    tier = SimpleNamespace(slow=False)
    run = SimpleNamespace(
        repros=True, show=None, rerun=Shell("pytest"), tier=tier, home=Path(), record=record, decides=lambda clause: True
    )
    explained = Explained("SHAPE-2", case, Finding("raised", "call", f"raised {HOSTILE}"), subject.problem(case), None)
    failure = report.failure(run, subject, explained, "test")  # type: ignore[arg-type]
    assert "can't be written" in record.notes[0]
    assert "Read-only file system" in record.notes[0]
    assert not set(failure.text.replace("\n", "")) & set(OBEYED)


# WHAT USERS AND FILES SAY


def test_long_and_deep_options_are_refused_in_a_line() -> None:
    with pytest.raises(ResolveError) as refused:
        parse_kwargs('{"a":' * 20_000 + "1" + "}" * 20_000)
    assert len(str(refused.value)) < 500
    for target, said in ((".", "is a folder"), ("https://example.org/kernel.py", "is a URL"), ("a" * 100_000, "was not found")):
        with pytest.raises(ResolveError, match=said) as refused:
            resolve(target)
        assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"kind": "header", "format": "1"}',
        "\ufeff{}",
        '{"kind": "header", "format": 1, "subjects": 3}\n{"kind": "cell"}',
        *(
            '{"kind": "header", "format": 1, "subjects": []}\n{"kind": "cell", "clause": "SHAPE-1", "dtype": "float32", '
            f'"variant": "only", "device": "cpu", "problems": {{"PASS": 1}}, "worst": {worst}}}'
            for worst in ('{"o": {"share": "much", "class": "A"}}', '{"o": {"share": 0.5, "class": "Z"}}', '{"o": 3}', "[3]")
        ),
    ],
)
def test_a_file_from_elsewhere_is_refused_in_a_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "v\x1b[2J.jsonl"
    file.write_text(text + "\n", encoding="utf-8")
    for words in (["matrix", str(file)], ["diff", str(file), str(file)]):
        assert main(words) == 2
        said = capsys.readouterr()
        assert said.err.startswith("attnspec: ")
        assert said.err.count("\n") == 1
        assert not set(said.err.rstrip("\n")) & set(OBEYED)
