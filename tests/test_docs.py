"""Every command in docs/ is run as it is written, in a folder that holds the page's own files; numbers are counted anew."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from attnspec.conformance.plugin.options import OPTIONS
from attnspec.spec import CHOICES, index

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w./-]+\.\w+)\n")
EXPECTED = re.compile(r"^(?P<command>.*?)(?:  # exit (?P<exit>\d+))?$")


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def pages() -> list[Path]:
    """Those with a command to run."""
    return [page for page in sorted(DOCS.glob("*.md")) if any(language == "sh" for language, _ in blocks(page))]


def test_there_are_pages_to_try() -> None:
    """gating.md and known-issues.md are tried in test_action.py and test_known.py."""
    assert {"read-a-red.md", "adapter.md", "dialect.md", "vendor.md"} <= {page.name for page in pages()}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_commands_of_a_page_do_what_they_say(page: Path, tmp_path: Path) -> None:
    """``# name.py`` in the first line of a block makes it a file; ``# exit 1`` behind a command is what it must give."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert shutil.which("pytest", path=environment["PATH"])
    for language, text in blocks(page):
        named = NAMED.match(text)
        if named:
            (tmp_path / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / named[1]).write_text(text, encoding="utf-8")
        elif language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                wanted = EXPECTED.match(line)
                assert wanted is not None
                done = subprocess.run(
                    ["bash", "-c", wanted["command"]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
                )
                said = f"{line}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
                assert done.returncode == int(wanted["exit"] or 0), said


# NUMBERS AND NAMES


def text(name: str) -> str:
    """A document as one line, so that a number is found wherever a line ends."""
    return " ".join((DOCS.parent / name).read_text(encoding="utf-8").split())


def numbers(name: str, pattern: str) -> list[int]:
    """Those that a document states in the words of the pattern, which must be there."""
    found = re.search(pattern, text(name))
    assert found is not None, f"{name} does not say {pattern!r}"
    return [int(x) for x in found.groups()]


def test_the_changelog_counts_what_there_is() -> None:
    clauses = index().values()
    must = sum(clause.binding for clause in clauses)
    counted = [len({clause.chapter for clause in clauses}), len(clauses), must, len(clauses) - must]
    assert numbers("CHANGELOG.md", r"Spec: (\d+) chapters, (\d+) clauses \((\d+) MUST, (\d+) SHOULD\)") == counted


def test_the_headline_that_is_explained_counts_all_clauses() -> None:
    must = sum(clause.binding for clause in index().values())
    hold, of, *others = numbers(
        "docs/read-a-red.md", r"MUST clauses: (\d+) of (\d+) hold, (\d+) broken, (\d+) unsupported, (\d+) not run"
    )
    assert of == must == hold + sum(others)


def test_the_corridor_is_cited_with_its_own_numbers() -> None:
    problems, kernels = re.search(r"([\d,]+) problems on (\d+) correct kernels", text("docs/read-a-red.md")).groups()  # type: ignore[union-attr]
    assert re.search(rf"\b{problems}\b", text("docs/corridor.md"))
    assert re.search(rf"\b{kernels}\b", text("docs/corridor.md"))


def test_the_options_of_the_readme_are_those_of_the_command() -> None:
    rows = "\n".join(re.findall(r"^\| `--.*", (DOCS.parent / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`(--[\w-]+)", rows)) - {"--without"} == {name for name, _ in OPTIONS} - {"--impl", "--without"}


def test_the_choices_of_the_page_are_those_of_the_spec() -> None:
    page = (DOCS / "dialect.md").read_text(encoding="utf-8")
    for name, choice in CHOICES.items():
        row = re.search(rf"^\| `{name}` \| (.*?) \|", page, re.MULTILINE)
        assert row is not None
        places = [row[1].index(f"`{value}`") for value in choice.values]
        assert places == sorted(places), f"the first value of {name} is the canonical one"


def test_versions_that_are_promised_were_run() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = (DOCS / "versions.md").read_text(encoding="utf-8").splitlines()
    lowest = next(row for row in rows if row.startswith("| lowest |"))
    for name, version in (requirement.split(">=") for requirement in project["dependencies"]):
        assert re.search(rf"\| {re.escape(version)}[.\d]* \|", lowest), f"{name} {version} is promised and was not run"
    assert lowest.endswith("| yes |")
