"""The page: what stands on it, that foreign text is never markup, and how it looks in a real browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from judging import judge
from verdict_lines import CLAUSES, DTYPES, cell, failure, header, verdicts

from attnspec.conformance import check
from attnspec.conformance.verdicts import matrix, page, views
from attnspec.conformance.verdicts.cli import main
from attnspec.conformance.verdicts.lines import VerdictError, counts_of, read
from attnspec.conformance.verdicts.plots import accuracy_plot
from attnspec.spec import index

EVIL = (
    "</pre></dd><script>alert(1)</script><img src=x onerror=alert(2)> ```\n</details> @everyone **b** | "
    "[x](javascript:1) `` {{ 7*7 }}"
)
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Tags(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def harmless(text: str) -> Tags:
    seen = Tags(text)
    assert not set(seen.tags) & {"script", "img", "iframe", "link", "object", "form"}
    for name, value in seen.attributes:
        assert not name.startswith("on"), name
        assert name not in ("src", "srcset"), name
        assert name != "href" or (value or "").startswith("#"), value
    assert not re.search(r"url\((?!#)|@import", text)
    return seen


def outside_of_code(markdown: str) -> str:
    """Markdown without its blocks and spans of code, in which nothing is interpreted."""
    blocks = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)", "", blocks)


# WHAT STANDS ON IT


def test_the_page_says_what_broke_and_how_to_ask_again():
    run = verdicts(
        cell("CAUSAL-1", "float32", {"PASS": 2, "FAIL": 3}, 7.0),
        cell("CAUSAL-2", "float32", {"UNSUPPORTED": 1}, None, reason="it follows causal_alignment = top_left"),
        failure(
            "CAUSAL-1",
            "float32",
            hint="causal_alignment=top_left",
            repro="attnspec-repros/r.py",
            diagnosis="off by one",
            fault=0,
        ),
        failure("CAUSAL-1", "bfloat16", hint="causal_alignment=top_left", brief=True),
    )
    seen = harmless(page.html(run)).text
    for words in (
        "does not conform",
        "MUST clauses: 2 of 3 hold, 1 broken, 0 unsupported, 0 not run",
        "A sentence.",
        "float32: 1 batch item",
        "output [0, 0, 0, 0] = 1, expected 2",
        "off by one",
        "SHAPE-1",
        "this is exactly what causal_alignment=top_left gives",
        "python attnspec-repros/r.py",
        "pytest --impl=mine.attend --case=i=2",
        "What is broken: 1 fault",
        "1. off by one",
        "MUST, float32; bfloat16",
        "1 more failure of this fault",
        "CAUSAL-1 in bfloat16, cpu",
        "2/5 ✗",
        "error as a share of the bound",
        "it follows causal_alignment = top_left",
        "causal_alignment",
        "promised by its convention",
        "torch 2.5.0",
        "a note",
    ):
        assert words in seen, words
    short = page.markdown(run)
    assert "**CAUSAL-1 · The past** (MUST, float32): A sentence." in short
    assert "| CAUSAL-1 | 2/5 ✗ | 20/20 |" in short
    assert short.count("<details>") == short.count("</details>") == 1


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (verdicts(), "conforms"),
        (verdicts(drop=("footer",)), "INCOMPLETE: this says nothing yet"),
        (verdicts(cell("SHAPE-1", "float32", {"FAIL": 1}), drop=("footer",)), "does not conform, and the run is INCOMPLETE"),
        (verdicts(drop=tuple(CLAUSES)), "nothing was tested"),
        (verdicts(drop=("SHAPE-1",)), "no broken clause among those tested"),
        (verdicts(cell("MASK-5", "float32", {"FAIL": 1})), "conforms"),
        (verdicts(cell("SHAPE-1", "float32", {"PASS": 9, "KNOWN_ISSUE": 1})), "conforms, but for known issues"),
        (
            verdicts({"kind": "footer", "exit": 1, "problems": {}, "failures": 0}, drop=("footer",)),
            "no clause is broken, but the run ended with exit code 1",
        ),
        (verdicts(cell("MASK-5", "float32", {"FAIL": 1}), enforce_should=True), "does not conform"),
    ],
)
def test_the_headline_never_says_more_than_was_seen(run, word, monkeypatch):
    monkeypatch.setattr("attnspec.conformance.verdicts.plots.accuracy_plot", lambda *_: "")
    assert f"<strong>{word}</strong>" in page.html(run)
    assert page.markdown(run).splitlines()[0] == f"### `mine.attend`: {word}"


def test_what_should_be_and_is_not_is_not_called_broken():
    should = cell("MASK-5", "float32", {"PASS": 1, "FAIL": 1}), failure("MASK-5", "float32")
    must = cell("CAUSAL-1", "float32", {"PASS": 2, "FAIL": 3}), failure("CAUSAL-1", "float32")
    texts = [harmless(page.html(verdicts(*lines))).text for lines in (should, (*should, *must))]
    assert ["What it should do and does not" in text for text in texts] == [True, True]
    assert ["What is broken: 1 fault" in text for text in texts] == [False, True]
    assert "What is broken" not in texts[0]


def test_the_head_says_what_was_tested_where_and_when():
    seen = harmless(page.html(verdicts(cell("CAUSAL-1", "float32", {"FAIL": 3}), failure("CAUSAL-1", "float32")))).text
    head = " ".join(seen[: seen.index("What is broken")].split())
    for words in (
        "mine.attend 1.0 does not conform The past CAUSAL-1",
        "2024-01-01 00:00 UTC, tier standard, attnspec 0.1.0, spec 0.1",
        "cpu (x86_64, 1 threads): any",
        "torch 2.5.0, Python 3.11.0",
        "float32, bfloat16",
        "pytest --impl=mine.attend",
    ):
        assert words in head, (words, head)
    assert "Only" not in head
    part = harmless(page.html(verdicts(drop=("SHAPE-1",), only=["CAUSAL"]))).text
    assert "Only CAUSAL: that is 2 of 3 MUST clauses. The others were not tested." in part


def test_one_card_for_each_fault_and_every_clause_leads_to_its_text():
    """Three failures of one fault are one card; a clause that holds opens in its line, a broken one in the card."""
    run = verdicts(
        cell("CAUSAL-1", "float32", {"FAIL": 3}),
        cell("CAUSAL-2", "float32", {"FAIL": 3}),
        cell("MASK-5", "float32", {"FAIL": 1}),
        failure(
            "CAUSAL-1", "float32", fault=1, diagnosis="the triangle ends early; this reproduces the wrong answer on 9 problems"
        ),
        failure("CAUSAL-1", "bfloat16", fault=1),
        failure("CAUSAL-2", "float32", fault=1),
        failure("MASK-5", "float32", fault=2),
    )
    made = page.html(run)
    harmless(made)
    assert made.count("<article") == 2
    assert re.findall(r'id="(fault-\d)"', made) == ["fault-1", "fault-2"]
    assert re.search(r'<li><a href="#fault-1">the triangle ends early</a> <small>CAUSAL-1, CAUSAL-2</small>', made)
    targets, ids = set(re.findall(r'href="#([^"]+)"', made)), re.findall(r' id="([^"]+)"', made)
    assert targets <= set(ids)
    assert len(ids) == len(set(ids))
    assert "SHAPE-1" in ids
    begins = html.escape(index()["SHAPE-1"].sentence.split("`")[0])
    assert begins in made
    assert begins not in page.html(verdicts(spec="0.0")), "another spec may say something else"


@pytest.mark.parametrize(
    ("x", "said"),
    [(0.0, "0"), (0.123456, "0.12"), (4.714, "4.71"), (34.2, "×34"), (131.0, "×130"), (114551.6, "×110,000"), (1e12, "×1e+12")],
)
def test_a_large_error_reads_at_once(x, said):
    assert views.share(x) == said


def test_clauses_in_few_words():
    assert views.ranges(["GRAD-1", "GRAD-2", "GRAD-3", "GRAD-5", "MASK-1", "MASK-2"]) == "GRAD-1…3, 5; MASK-1, 2"
    assert views.ranges(["no id", "MADE-1"]) == "no id, MADE-1"


# FOREIGN TEXT


def test_foreign_text_is_text_wherever_it_stands():
    subject = header()["subjects"][0]
    subject |= {"name": EVIL, "version": EVIL, "variant": EVIL, "refused": {"float16": EVIL}}
    subject["dialect"] = {EVIL: {"value": EVIL, "source": EVIL}}
    broken = failure(
        "CAUSAL-1", "float32", **dict.fromkeys(("asked", "hint", "diagnosis", "repro", "rerun", "sentence", "variant"), EVIL)
    )
    broken |= {"found": [EVIL, EVIL], "formula": EVIL, "title": EVIL}
    run = verdicts(
        cell("CAUSAL-1", "float32", {"FAIL": 1}) | {"variant": EVIL},
        cell("SHAPE-1", "float32", {"UNSUPPORTED": 1}, None, reason=EVIL) | {"variant": EVIL},
        broken,
        {"kind": "note", "text": EVIL},
        {"kind": "interrupted", "exit": 2, "reason": EVIL},
        drop=("footer",),
        subjects=[subject],
        command=EVIL,
        versions={"torch": EVIL},
        devices=[{"device": "cpu", "name": EVIL, "model": EVIL, "driver": EVIL}],
        clauses={**CLAUSES, "SHAPE-1": {"title": EVIL, "level": "MUST"}},
    )
    assert "<script>alert(1)" in harmless(page.html(run)).text
    harmless(page.render("matrix.html", columns=matrix.columns([run]), clauses=matrix.clauses([run]), runs=[run]))
    for said in (page.markdown(run), matrix.markdown([run])):
        bare = outside_of_code(said)
        assert set(re.findall(r"<[^>]*>", bare)) <= {"<details>", "<summary>", "</summary>", "</details>"}
        assert bare.count("</details>") <= 1
        assert "@everyone" not in bare
        assert not re.search(r"(?<!\\)\]\(", bare)


def test_an_implementation_can_not_write_on_the_page(tmp_path):
    error = type("</dd><script>alert(0)</script>", (RuntimeError,), {})

    class Attend:
        def __call__(self, q, k, v):
            if q.shape[2] > 3:
                raise error(EVIL)
            return (q @ k.mT * max(q.shape[-1], 1) ** -0.5).softmax(-1) @ v

    Attend.__name__ = Attend.__qualname__ = "<b onclick=alert(3)>Attend"
    check(Attend(), clauses="SHAPE-1", dtypes="float32", without="backward", verdicts=tmp_path / "v.jsonl")
    run = read(tmp_path / "v.jsonl")
    assert any("<script>" in line for failed in run.failures for line in failed["found"])
    seen = harmless(page.html(run))
    assert "<script>alert(1)</script>" in seen.text
    assert "<script>alert(0)</script>" in seen.text
    assert "<b onclick=alert(3)>Attend" in seen.text
    bare = outside_of_code(page.markdown(run))
    assert "<script" not in bare
    assert "<b " not in bare


# HOW IT IS ASKED FOR


def test_what_a_page_needs_is_said_before_the_run(monkeypatch, capsys, tmp_path):
    real = page.find_spec
    monkeypatch.setattr(page, "find_spec", lambda name: None if name == "jinja2" else real(name))
    with pytest.raises(VerdictError, match=r"a page needs jinja2, not installed here: pip install attnspec\[report\]"):
        page.check_target(tmp_path / "v.html")
    code = pytest.main(["--impl=honest.tiled", f"--verdict-report={tmp_path / 'v.html'}", "-p", "no:cacheprovider"])
    assert code == 4
    assert "a page needs jinja2" in capsys.readouterr().err
    assert not (tmp_path / "v.html").exists()


@pytest.mark.parametrize(("target", "message"), [("v.txt", "ends in .html"), ("absent/v.html", "folder absent does not exist")])
def test_where_a_page_can_not_go(target, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VerdictError, match=message):
        page.check_target(Path(target))


def test_the_page_of_a_run_is_that_of_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--clauses=CAUSAL-1", "--impl-dtypes=float32", "--verdicts=v.jsonl", "--junitxml=junit.xml")
    judge("honest.tiled", *options, "--verdict-report=run.html")
    assert main(["report", "v.jsonl", "-o", "stored.html"]) == 0
    for ending in ("html", "md"):
        assert (tmp_path / f"run.{ending}").read_text(encoding="utf-8") == (tmp_path / f"stored.{ending}").read_text(
            encoding="utf-8"
        )
    junit = (tmp_path / "junit.xml").read_text(encoding="utf-8")
    assert '<property name="attnspec seed" value="0" />' in junit
    assert '<property name="clauses" value="CAUSAL-1' in junit


# IN A BROWSER

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
FLAGS = [
    f"--{flag}"
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "hide-scrollbars",
    )
]
MEASURE = """<!doctype html><body>
<style>iframe {{ height: 800px; border: 0 }}</style>
<iframe style="width:390px" srcdoc="{page}"></iframe>
<iframe style="width:1280px" srcdoc="{page}"></iframe>
<script>onload = () => {{ document.body.innerHTML = [...document.querySelectorAll("iframe")].map(f => {{
  let d = f.contentDocument, e = d.documentElement;
  let outside = x => !x.closest(".box, svg") && x.getBoundingClientRect().right > e.clientWidth + 1;
  let cut = [...d.querySelectorAll("body *")].filter(outside);
  return `${{e.clientWidth}}:${{e.scrollWidth}}:${{cut.length}}:${{d.querySelectorAll("svg").length}}`;
}}).join(" "); }}</script>"""


def browser(folder: Path, *options: str) -> str:
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *options],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    shutil.rmtree(folder / "profile", ignore_errors=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def drawn(tmp_path) -> Path:
    """A page with long names and long lines, and its measure."""
    long = "a" * 200
    run = verdicts(
        cell("CAUSAL-1", "float32", {"PASS": 2, "FAIL": 3}, 7.0),
        cell("CAUSAL-2", "bfloat16", {"PASS": 20}, 0.9),
        cell("SHAPE-1", "float32", {"UNSUPPORTED": 1}, None, reason=long),
        failure("CAUSAL-1", "float32", rerun=f"pytest --case={long}", found=[long], formula=long, repro=long),
        command=f"pytest --impl={long}",
    )
    (tmp_path / "page.html").write_text(page.html(run), encoding="utf-8")
    (tmp_path / "measure.html").write_text(MEASURE.format(page=html.escape(page.html(run), quote=True)), encoding="utf-8")
    return tmp_path


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is found here")
def test_nothing_is_cut_off_on_a_phone_and_on_a_desk(drawn):
    found = browser(drawn, "--dump-dom", "--virtual-time-budget=5000", f"file://{drawn / 'measure.html'}")
    widths = re.findall(r"(\d+):(\d+):(\d+):(\d+)", found)
    assert [tuple(map(int, measured)) for measured in widths] == [(390, 390, 0, 1), (1280, 1280, 0, 1)], found


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is found here")
def test_it_follows_the_dark_and_goes_on_paper(drawn):
    from matplotlib.image import imread

    options = ("--blink-settings=preferredColorScheme=0", "--window-size=1280,900", "--screenshot=dark.png")
    browser(drawn, *options, f"file://{drawn / 'page.html'}")
    picture = imread(drawn / "dark.png")
    assert picture.shape[:2] == (900, 1280)
    assert picture[..., :3].std() > 0.02, "something is drawn"
    assert picture[5, 5, :3].mean() < 0.2, "on a dark ground"
    browser(drawn, "--no-pdf-header-footer", "--print-to-pdf=page.pdf", f"file://{drawn / 'page.html'}")
    assert (drawn / "page.pdf").read_bytes().startswith(b"%PDF")


def test_the_plot_shows_each_error_once():
    """What is outside is a cross at its place or, where that is too far, at the edge; what is no number is outside."""
    from xml.etree import ElementTree

    def run(*shares):
        made = (cell(f"MADE-{n}", "float32", {"PASS": 1}, share=share) for n, share in enumerate(shares))
        return verdicts(*made, drop=tuple(CLAUSES))

    key = ("only", "cpu")
    assert accuracy_plot(run(None), *key) == ""
    drawn = ElementTree.fromstring(accuracy_plot(run(0.0, 0.5, 1.0), *key))
    circles = [float(x.get("cx")) for x in drawn.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(circles) == 3
    assert circles == sorted(circles)
    crosses = re.findall(r"M([\d.]+) [\d.]+l8 8m0 -8l-8 8", accuracy_plot(run(0.5, 4.0, "inf", "nan"), *key))
    assert len(crosses) == 2  # what is infinite and what is no number have one place
    assert "nan" not in accuracy_plot(run(0.5, "nan"), *key)


def test_without_the_extra_nothing_but_the_page_is_lost(tmp_path):
    """Verdicts, diff and the terminal's matrix are there where the extra is not."""
    blocked = (
        "import sys; sys.modules['jinja2'] = None; import attnspec.conformance.verdicts.cli, attnspec.conformance.plugin.hooks"
    )
    assert subprocess.run([sys.executable, "-c", blocked], capture_output=True, cwd=tmp_path).returncode == 0


def test_a_matrix_of_many_cells_looks_at_each_once(monkeypatch):
    cells = [cell(f"MADE-{n}", dtype, {"PASS": 1}) for n in range(300) for dtype in DTYPES]
    run = verdicts(*cells, clauses={f"MADE-{n}": {"title": "Made", "level": "MUST"} for n in range(300)})
    seen = []
    monkeypatch.setattr(matrix, "counts_of", lambda line: seen.append(line) or counts_of(line))
    (column,) = matrix.columns([run])
    assert "300 of 300 hold" in column.headline
    assert all(column.view(clause)["state"] == "holds" for clause in run.clauses)
    assert len(seen) == len(run.cells)
