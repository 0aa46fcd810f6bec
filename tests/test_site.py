"""The site: it is built strictly, each clause has its anchor, nothing is loaded from elsewhere, and reports lead to it."""

from __future__ import annotations

import re
import subprocess
import sys
from email.message import Message
from importlib.util import find_spec
from pathlib import Path

import pytest
from verdict_lines import cell, failure, verdicts

from attnspec.conformance.verdicts import page
from attnspec.conformance.verdicts.site import VARIABLE, address, documentation, place, site
from attnspec.spec import index

ROOT = Path(__file__).parent.parent
LEADS = re.compile(r'(?:<h3>|<p class="breaks">)<a href="\.\./spec/\w+/index\.html#(\w+-\d+)">\1</a>')
LOADED = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?([^\"'\s>]+)|<link[^>]*\shref=[\"']?([^\"'\s>]+)")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site."""
    if find_spec("material") is None:
        pytest.skip('mkdocs-material is not installed: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_each_clause_has_an_anchor_that_is_its_id(built: Path) -> None:
    pages = {source: (built / place(source) / "index.html").read_text("utf-8") for source in {c.source for c in index().values()}}
    for id_, clause in index().items():
        assert len(re.findall(rf'id="?{id_}\b["\s>]', pages[clause.source])) == 1, id_
        assert clause.title.split("`")[0] in pages[clause.source].replace("&#39;", "'").replace("&lt;", "<")


def test_pages_load_nothing_from_elsewhere(built: Path) -> None:
    pages = sorted(built.rglob("*.html"))
    assert len(pages) > 100
    for path in pages:
        found = {a or b for a, b in LOADED.findall(path.read_text("utf-8"))}
        assert not [to for to in found if to.startswith(("http:", "https:", "//"))], path


def test_the_home_says_what_the_readme_says_and_shows_a_red_as_it_is_printed(built: Path) -> None:
    home = (built / "index.html").read_text("utf-8")
    words = next(part for part in (ROOT / "README.md").read_text("utf-8").split("\n\n") if part[0].isalnum())
    assert " ".join(words.split()) in " ".join(re.sub(r"<[^>]+>", "", home).split())
    red = next(line for line in (ROOT / "docs/examples/tail-dropped.txt").read_text("utf-8").splitlines() if "  because" in line)
    assert red.strip() in home


def test_a_report_on_the_site_leads_to_the_spec_and_home(built: Path) -> None:
    reports = {path.name: path.read_text("utf-8") for path in (built / "matrix").glob("*.html") if path.name != "index.html"}
    assert len(reports) > 20
    assert not [name for name, text in reports.items() if "<article" in text and not LEADS.search(text)]
    assert not [name for name, text in reports.items() if 'href="../index.html"' not in text]
    overview = (built / "matrix.html").read_text("utf-8")
    assert '<th class="chapter"><a href="spec/causal/index.html">' in overview
    assert 'href="found/reds-torch/index.html"' in overview
    assert '.md"' not in overview


# REPORTS


RED = verdicts(cell("CAUSAL-2", "float32", {"FAIL": 1}), failure("CAUSAL-2", "float32"))


def test_a_failure_of_a_report_leads_to_its_clause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "https://example.org/attnspec")
    to = "https://example.org/attnspec/spec/causal/#CAUSAL-2"
    assert address("CAUSAL-2") == to
    assert re.search(rf'<(h3|p[^>]*)><a href="{re.escape(to)}">CAUSAL-2</a>', page.html(RED))
    assert f"**[CAUSAL-2]({to}) · " in page.markdown(RED)


def test_a_folder_is_a_site_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "../site/")
    assert address("LSE-15") == "../site/spec/lse/index.html#LSE-15"


def test_nothing_leads_to_a_site_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr("attnspec.conformance.verdicts.site.documentation", lambda: "")
    assert site() == address("CAUSAL-2") == ""
    assert "spec/causal" not in page.html(RED)
    assert "**CAUSAL-2 · " in page.markdown(RED)


def test_a_clause_of_another_spec_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "https://example.org")
    assert address("CAUSAL-999") == ""


@pytest.mark.parametrize(
    ("urls", "found"), [(None, ""), (["Source, https://a.org", "Documentation, https://b.org/c"], "https://b.org/c")]
)
def test_the_address_is_that_of_the_package(urls: list[str] | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Message()
    for url in urls or ():
        package["Project-URL"] = url
    monkeypatch.setattr("attnspec.conformance.verdicts.site.metadata", lambda _: package)
    assert documentation.__wrapped__() == found
