"""Where the text of a clause is on the web. The address of the site is one setting; while there is none, nothing links to it."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, metadata

from attnspec.spec import index

VARIABLE = "ATTNSPEC_SITE"


def site() -> str:
    """The address of the site, with a slash at its end, or "" where it has none.

    It is "Documentation" under [project.urls] in pyproject.toml. The variable ATTNSPEC_SITE names another copy, also a folder.
    """
    try:
        urls = dict(entry.split(", ", 1) for entry in metadata("attnspec").get_all("Project-URL") or ())
    except PackageNotFoundError:
        urls = {}
    address = os.environ.get(VARIABLE) or urls.get("Documentation", "")
    return f"{address.rstrip('/')}/" if address else ""


def place(source: str) -> str:
    """The folder of the site for a chapter's file: 06-causal.md is spec/causal/. The number may change, the folder does not."""
    name = source.removesuffix(".md").split("-", 1)[1]
    return "spec/" if name == "reading" else f"spec/{name}/"


def address(clause: str) -> str:
    """The address of a clause, such as https://…/spec/causal/#CAUSAL-2; "" without a site, or for a clause that this spec lacks."""
    base = site()
    if not base or clause not in index():
        return ""
    page = "" if base.startswith(("http://", "https://")) else "index.html"  # a folder has nobody who looks for its index
    return f"{base}{place(index()[clause].source)}{page}#{clause}"
