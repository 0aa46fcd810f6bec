"""Verdicts as a page: one file of HTML without scripts or links to load, and short Markdown for a pull request.

Names, messages and everything else that comes from an implementation, or out of a file, is text and never markup: HTML is
escaped by jinja2, and in Markdown foreign text stands in code, where nothing is interpreted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnspec.conformance.verdicts import views
from attnspec.conformance.verdicts.lines import VerdictError, Verdicts
from attnspec.conformance.verdicts.site import address, clause_link
from attnspec.conformance.verdicts.text import visible

TEMPLATES = Path(__file__).parent / "templates"
NEEDS = ("jinja2",)


def check_target(path: Path, needs: Sequence[str] = NEEDS) -> None:
    """Whether a page can be written there. Raises VerdictError, which says what is missing, before any work is done."""
    missing = [package for package in needs if find_spec(package) is None]
    if missing:
        raise VerdictError(f"a page needs {' and '.join(missing)}, not installed here: pip install attnspec[report]")
    if path.suffix != ".html":
        raise VerdictError(f"a page is written to a file that ends in .html, and its Markdown beside it in .md; found {path}")
    if not path.absolute().parent.is_dir():
        raise VerdictError(f"{path} can't be written: folder {path.parent} does not exist")


def write(verdicts: Verdicts, path: Path) -> tuple[Path, Path]:
    """Write the page and, beside it, the Markdown; return both paths."""
    beside = path.with_suffix(".md")
    path.write_text(html(verdicts), encoding="utf-8")
    beside.write_text(markdown(verdicts), encoding="utf-8")
    return path, beside


def announce(path: Path, command: str) -> None:
    """Put in the place of an earlier page one that says that nothing is known yet; it stays where a run is killed."""
    words = "INCOMPLETE: this run is going on, or it was killed before it wrote its page"
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><title>{words}</title><h1>{words}</h1><p><code>{escape(command)}</code></p>\n',
        encoding="utf-8",
    )
    path.with_suffix(".md").write_text(f"### {words}\n\n{code(command)}\n", encoding="utf-8")


def html(verdicts: Verdicts) -> str:
    """The page."""
    from attnspec.conformance.verdicts.plots import accuracy_plot

    plots = {group["key"]: accuracy_plot(verdicts, *group["key"]) for group in views.groups(verdicts)}
    return render("verdicts.html", v=verdicts, plots=plots)


def markdown(verdicts: Verdicts) -> str:
    """The short form: headline, failures, and the table folded."""
    return re.sub(r"\n{3,}", "\n\n", render("verdicts.md", v=verdicts))


def render(template: str, **data: Any) -> str:
    """A template with data; what it prints is escaped for the language it is in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    html = template.endswith(".html")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        finalize=_seen if html else lambda x: x if isinstance(x, Markdown) else plain(x),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": code, "fence": fence, "prose": prose, "clause": clause_link if html else _clause}
    environment.globals |= {name: getattr(views, name) for name in views.VIEWS}
    return environment.get_template(template).render(**data)


def _seen(x: Any) -> Any:
    """A text with nothing hidden in it; what is markup already is the page's own."""
    return visible(x, keep="\n") if isinstance(x, str) and not hasattr(x, "__html__") else x


def prose(text: str) -> str:
    """A clause's sentence for HTML: what the text of the spec puts in backticks is code, all else is escaped."""
    from markupsafe import Markup
    from markupsafe import escape as escaped

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escaped(text))))


# MARKDOWN


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def plain(text: object) -> Markdown:
    """Text in which no sign means anything to Markdown, and no name calls anybody."""
    said = visible(" ".join(str(text).split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markdown(re.sub(r"([\\`*_\[\]|~])", r"\\\1", said).replace("@", "@\u200b"))


def code(text: object) -> Markdown:
    """A span of code, whatever the text holds."""
    said = visible(" ".join(str(text).split())) or " "
    ticks = "`" * (1 + max(map(len, re.findall("`+", said)), default=0))
    pad = " " if said.startswith("`") or said.endswith("`") else ""
    return Markdown(f"{ticks}{pad}{said}{pad}{ticks}")


def fence(lines: Sequence[str]) -> Markdown:
    """A block of code, whatever the lines hold."""
    said = "\n".join(map(visible, lines))
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", said)), default=0))
    return Markdown(f"{ticks}text\n{said}\n{ticks}")


def _clause(id_: str) -> str:
    """The id of a clause, as a link to its text where the site has an address."""
    to = address(id_)
    return Markdown(f"[{plain(id_)}]({to})") if to else id_
