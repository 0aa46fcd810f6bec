"""Where the text of a clause is on the web. The address of the site is one setting; while there is none, nothing links to it."""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

from attnspec.spec import index

VARIABLE = "ATTNSPEC_SITE"


def site() -> str:
    """The address of the site, with a slash at its end, or "" where it has none.

    The variable ATTNSPEC_SITE names another copy than the public one, also a folder.
    """
    base = os.environ.get(VARIABLE) or documentation()
    return f"{base.rstrip('/')}/" if base else ""


@cache
def documentation() -> str:
    """The public address: "Documentation" under [project.urls] in pyproject.toml, as it was installed. "" where it has none."""
    try:
        urls = metadata("attnspec").get_all("Project-URL") or ()
    except PackageNotFoundError:
        return ""
    return dict(entry.split(", ", 1) for entry in urls).get("Documentation", "")


def place(source: str) -> str:
    """The folder of the site for a chapter's file: 06-causal.md is spec/causal/. The number may change, the folder does not."""
    name = source.removesuffix(".md").split("-", 1)[1]
    return "spec/" if name == "reading" else f"spec/{name}/"


def address(id_: str) -> str:
    """The address of a clause, such as https://…/spec/causal/#CAUSAL-2; "" without a site, or for a clause that this spec lacks."""
    base = site()
    if not base or id_ not in index():
        return ""
    page = "" if base.startswith(("http://", "https://")) else "index.html"  # a folder has nobody who looks for its index
    return f"{base}{place(index()[id_].source)}{page}#{id_}"


def clause_link(id_: str) -> Any:
    """The id of a clause for HTML, as a link to its text where the site has an address."""
    from markupsafe import Markup

    to = address(id_)
    return Markup('<a href="{}">{}</a>').format(to, id_) if to else id_
