"""Every command in docs/ is run as it is written, in a folder that holds the page's own files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
