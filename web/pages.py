"""What mkdocs does not find in docs/: the spec, the changelog, what a run prints, and files of the repository that pages link to.

A hook of mkdocs (https://www.mkdocs.org/user-guide/configuration/#hooks). The page of a file outside of docs/ keeps its path
as seen from there, ../spec/clauses/06-causal.md, so that the links of the repository lead to it as they are written.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from jinja2 import StrictUndefined, Template
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from attnspec.conformance.verdicts.site import place, site
from attnspec.spec import Clause, index
from attnspec.spec.index import HEADING

ROOT = Path(__file__).parent.parent
CLAUSES = sorted((ROOT / "spec/clauses").glob("*.md"))
OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")  # a link that climbs; most do not leave docs/
LANGUAGES = {".py": "python", ".c": "c", ".rs": "rust", ".mjs": "javascript", ".json": "json", ".toml": "toml"}


class Source(File):
    """A file that is no Markdown, shown as a page."""

    def is_documentation_page(self) -> bool:
        """It is one, whatever its name ends in."""
        return True


class ClauseLinks(InlineProcessor):
    """The id of a clause leads to its text, wherever a page names it."""

    ANCESTOR_EXCLUDES = ("a", "h1", "h2", "h3", "h4")
    here = ""  # the path of the page that is being made

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element | None, int | None, int | None]:  # noqa: N802 (its name there)
        """A link, where the spec has the clause."""
        if m[0] not in index():
            return None, None, None
        to = f"../spec/clauses/{index()[m[0]].source}"
        link = Element("a", href=f"{posixpath.relpath(to, posixpath.dirname(self.here) or '.')}#{m[0]}")
        link.text = m[0]
        return link, m.start(0), m.end(0)


class ClauseLinking(Extension):
    """Adds them to Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 (its name there)
        """After code and links of the page's own."""
        md.inlinePatterns.register(ClauseLinks(r"\b[A-Z]+-\d+\b", md), "clause", 50)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the chapters into the navigation and the address into the pages, and give each page a folder: /bounds/ is an address.

    The plugin `offline` gives each page a file, bounds.html, beside which there could be no other bounds.html.
    """
    config.use_directory_urls = True
    config.markdown_extensions = [*config.markdown_extensions, ClauseLinking()]
    config.site_url = site() if site().startswith("http") else ""
    chapters = [{chapter_of(path): f"../spec/clauses/{path.name}"} for path in CLAUSES[1:]]
    spec: list[Any] = [f"../spec/clauses/{CLAUSES[0].name}", *chapters]
    config.nav = [{"The spec": spec} if entry == {"The spec": "spec"} else entry for entry in config.nav or ()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages. Links lead to the index.html in a folder, which opens from a server and from files."""
    for path in CLAUSES:
        _add(files, config, f"../spec/clauses/{path.name}", spec_page(path), f"{place(path.name)}index.html")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    _add(files, config, "changelog.md", changelog, "changelog/index.html")
    _add(files, config, "printed.md", printed(), "printed/index.html")
    for target in sorted(outside(files)):
        if target != "../CHANGELOG.md" and (ROOT / "docs" / target).exists() and files.get_file_from_path(target) is None:
            name = posixpath.relpath(posixpath.join("docs", target), ".")
            _add(files, config, target, source(ROOT / name, name), f"source/{name}/index.html", Source)
    config.use_directory_urls = False
    for file in files:
        file.use_directory_urls = False
    for file in [file for file in files if file.src_uri.startswith("matrix") and file.src_uri.endswith(".html")]:
        files.remove(file)
        files.append(File.generated(config, file.src_uri, content=linked(file, files)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The home says what README.md says and shows a failure as it is printed; the matrix, made by a campaign, leads to its page."""
    ClauseLinks.here = page.file.src_uri
    if page.file.src_uri == "index.md":
        return Template(markdown, undefined=StrictUndefined).render(**home())
    if page.file.src_uri == "matrix.md":
        page.meta["hide"] = ["toc"]
        return markdown.replace("\n\n", "\n\n[Chapter by chapter, with a report of each](matrix.html).\n\n", 1)
    return markdown.replace("](../CHANGELOG.md)", "](changelog.md)")


def _add(files: Files, config: MkDocsConfig, src: str, content: str, dest: str, kind: type[File] = File) -> None:
    shown = InclusionLevel.NOT_IN_NAV if kind is Source else InclusionLevel.INCLUDED
    file = kind.generated(config, src, content=content, inclusion=shown)  # else a path that begins with a dot is left out
    file.dest_uri = dest
    files.append(file)


# THE SPEC


def chapter_of(path: Path) -> str:
    """The name of a chapter, from its title."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def clauses_of(path: Path) -> list[Clause]:
    """The clauses of a chapter's file, in order."""
    return [clause for clause in index().values() if clause.source == path.name]


def spec_page(path: Path) -> str:
    """A chapter with a table of its clauses, and an anchor for each; the first file has a table of the chapters."""
    text = path.read_text(encoding="utf-8")
    if path == CLAUSES[0]:
        return f"{text.rstrip()}\n\n## The chapters\n\n{table_of_chapters()}"
    before, *blocks = re.split(r"^(?=### )", text, flags=re.MULTILINE)
    return "\n".join([before, table_of_clauses(path), *map(anchored, blocks)])


def anchored(block: str) -> str:
    """A clause whose anchor is its id and nothing else, with its fields, its reason and its bugs as paragraphs of their own."""
    heading, fields, rest = block.split("\n", 2)
    match = HEADING.match(heading)
    assert match is not None
    level, _, others = fields.partition(" · ")
    rest = rest.replace("\n> Stops:", "\n>\n> Stops:").replace("> Why:", "> **Why:**").replace("> Stops:", "> **Stops:**")
    badge = f'<span class="level {level.lower()}">{level}</span>'
    return f"{heading} {{ #{match['id']} }}\n\n{badge} {others}\n{{ .fields }}\n\n{rest}"


def table_of_clauses(path: Path) -> str:
    """Id, sentence in short and level of each clause of a chapter."""
    rows = [f"| [{c.id}](#{c.id}) | {c.title} | {c.level} |" for c in clauses_of(path)]
    return "\n".join(["| clause | says | level |", "|---|---|---|", *rows, ""])


def table_of_chapters() -> str:
    """Each chapter, what it is about, and how many clauses it has."""
    rows = []
    for path in CLAUSES[1:]:
        about = path.read_text(encoding="utf-8").split("\n\n")[1].replace("\n", " ")
        first = re.split(r"(?<=[.!?]) ", about)[0]
        rows.append(f"| [{chapter_of(path)}]({path.name}) | {first} | {len(clauses_of(path))} |")
    return "\n".join(["| chapter | says | clauses |", "|---|---|--:|", *rows, ""])


# OTHER PAGES


def home() -> dict[str, str]:
    """README.md's first words and its first command, and one failure of an example."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    words = next(part for part in readme.split("\n\n") if not part.startswith(("#", "[", "!", "<")))
    command = re.search(r"^ *(pip install .*)$", readme, re.MULTILINE)
    run = (ROOT / "docs/examples/tail-dropped.txt").read_text(encoding="utf-8")
    failure = re.search(r"^_+ .* _+\n(.*?)^=+ faults", run, re.MULTILINE | re.DOTALL)
    assert command is not None, "README.md has no line that begins with pip install"
    assert failure is not None, "the example has no failure"
    return {"words": words, "command": command[1], "red": failure[1].rstrip()}


def printed() -> str:
    """What the command line prints, example by example."""
    about = "Each text is a run as it was printed; a test prints it anew. `…` stands for what differs from machine to machine."
    parts = [f"# What it prints\n\n{about}"]
    for path in sorted((ROOT / "docs/examples").glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        parts.append(f"## {path.stem.replace('-', ' ').capitalize()}\n\n{fence(text, 'text')}")
    return "\n\n".join(parts)


def outside(files: Files) -> set[str]:
    """The paths outside of docs/ that its pages link to, as seen from there."""
    found = set()
    for file in files.documentation_pages():
        for target in OUTSIDE.findall(file.content_string):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(file.src_uri), target))
            found |= {path} if path.startswith("../") else set()
    return found


def source(path: Path, name: str) -> str:
    """A file of the repository, or the names in a folder, as a page that search does not show."""
    front = f"---\ntitle: {name}\nsearch: {{ exclude: true }}\nhide: [navigation, toc]\n---\n\n# {path.name}\n\n`{name}`\n\n"
    if path.is_dir():
        return front + "\n".join(f"- `{entry.name}`" for entry in sorted(path.glob("*.py")))
    text = path.read_text(encoding="utf-8")
    return front + (text if path.suffix == ".md" else fence(text, LANGUAGES.get(path.suffix, "text")))


def fence(text: str, language: str) -> str:
    """A block of code that holds no four backticks."""
    return f"````{language}\n{text.rstrip()}\n````\n"


def linked(file: File, files: Files) -> str:
    """A page of a campaign as a part of the site: its clauses and chapters lead to the spec, what was Markdown to its page."""
    up, text = "../" * file.src_uri.count("/"), file.content_string
    chapters = {clause.chapter: clause.source for clause in index().values()}

    def spec(id_: str) -> str:
        return f"{up}{place(chapters[id_.partition('-')[0]])}index.html" + (f"#{id_}" if id_ in index() else "")

    def name(match: re.Match[str]) -> str:
        before, id_ = match.groups()
        return f'{before}<a href="{spec(id_)}">{id_}</a>' if id_ in index() or id_ in chapters else match[0]

    def link(match: re.Match[str]) -> str:
        path, anchor = match.groups()
        if path:
            target = files.get_file_from_path(posixpath.join(posixpath.dirname(file.src_uri), path))
            return f'href="{target.url_relative_to(file)}"' if target else match[0]
        return match[0] if f'id="{anchor}"' in text or anchor not in index() else f'href="{spec(anchor)}"'

    home = f'<p class="soft"><a href="{up}index.html">attnspec</a> · <a href="{up}matrix/index.html">who conforms to what</a></p>'
    shown = re.sub(r'href="(?:([^"#]+\.md)|#([^"]+))"', link, text)
    shown = re.sub(r'(<h[34]>|<p class="breaks">|<span class="id">|<tr><th>|<th class="chapter">)([A-Z]+(?:-\d+)?)\b', name, shown)
    return shown.replace("<body>\n", f"<body>\n{home}\n", 1)
