"""What somebody sees before he runs anything: the description, the version, how to cite it, and how to tell us of a fault."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from attnspec.conformance import __version__
from attnspec.conformance.commands import main
from attnspec.spec import SPEC_VERSION, index

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
SCHEMAS = {
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
    "vendor.github-actions": [ROOT / "action.yml"],
    "vendor.github-issue-forms": FORMS,
    "vendor.github-issue-config": [ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml"],
}


def test_readme_package_and_citation_describe_the_project_in_the_same_words() -> None:
    heading, first, *_ = README.split("\n\n")
    assert heading == "# attnspec"
    said = " ".join(first.split())
    described = PROJECT["project"]["description"]
    assert said.startswith(described)
    assert described.endswith(".")
    assert described.count(".") == 1
    assert PROJECT["project"]["readme"] == "README.md"
    assert CITATION["abstract"] == described


def test_the_version_is_written_in_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the module, which pyproject.toml reads; a citation can't read it."""
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "conformance.__version__"}
    assert CITATION["version"] == __version__
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"attnspec {__version__} (spec {SPEC_VERSION})\n"
    written = re.compile(rf"[\"']{re.escape(__version__)}[\"']")
    code = (path for top in ("spec", "reference", "adapters", "conformance") for path in (ROOT / top).rglob("*.py"))
    assert [path.relative_to(ROOT).as_posix() for path in code if written.search(path.read_text(encoding="utf-8"))] == [
        "conformance/__init__.py"
    ]


def test_the_counts_of_the_readme_are_those_of_the_spec() -> None:
    clauses = index().values()
    counted = (len({clause.chapter for clause in clauses}), len(clauses), sum(clause.binding for clause in clauses))
    found = re.search(r"(\d+) chapters, (\d+) clauses, (\d+) of them MUST", " ".join(README.split()))
    assert found is not None
    assert tuple(map(int, found.groups())) == counted


# What a schema objects to: a file without this key.
NEEDED = {
    "vendor.citation-file-format": "authors",
    "vendor.github-actions": "runs",
    "vendor.github-issue-forms": "body",
    "vendor.github-issue-config": "",  # it needs none, and knows all that there may be
}


def checked(schema: str, files: list[Path]) -> tuple[int, str]:
    """Exit code and words of the check of some files."""
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_for_the_host_of_the_repository_follow_its_schemas(schema: str, tmp_path: Path) -> None:
    code, said = checked(schema, SCHEMAS[schema])
    assert code == 0, said
    whole = yaml.safe_load(SCHEMAS[schema][0].read_text(encoding="utf-8"))
    wrong = {key: value for key, value in whole.items() if key != NEEDED[schema]} if NEEDED[schema] else {**whole, "unknown": 1}
    (tmp_path / "wrong.yml").write_text(yaml.safe_dump(wrong), encoding="utf-8")
    code, said = checked(schema, [tmp_path / "wrong.yml"])
    assert code == 1, said
    assert (NEEDED[schema] or "unknown") in said


def test_there_is_a_form_for_each_kind_of_fault_of_ours() -> None:
    assert {path.stem for path in FORMS} == {"false-alarm", "missed-fault", "cannot-be-plugged-in"}


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_each_form_asks_for_the_verdict_file(form: Path) -> None:
    asked = {part.get("id"): part for part in yaml.safe_load(form.read_text(encoding="utf-8"))["body"]}
    assert "--verdicts=verdicts.jsonl" in asked["verdicts"]["attributes"]["description"]
    for page in re.findall(r"docs/[\w-]+\.md|SECURITY\.md", form.read_text(encoding="utf-8")):
        assert (ROOT / page).exists()
