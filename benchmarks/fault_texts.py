"""Faults of text and of files: what a kernel says of itself, and what a verdict file from elsewhere holds."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fault_endings import OURS, Ending, Fault, Seen
from fault_kernels import BY_HALF, WRONG, named_scripts

F12 = "12 hostile text, files, options"

# FILES

LOCK = threading.Lock()


@functools.cache
def _of_a_run() -> str:
    """The verdicts of a run of a wrong kernel."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        source = Fault("", "", "", at17=BY_HALF).kernel
        (Path(folder) / "kernel.py").write_text(source)
        words = [sys.executable, "-m", "pytest", "--impl=kernel.py:attend", "--tier=smoke", "--impl-dtypes=float32"]
        words += ["--clauses=SHAPE-1", "--verdicts=v.jsonl", "-p", "no:cacheprovider"]
        subprocess.run(words, cwd=folder, capture_output=True, env={**os.environ, "CI": "true"})
        return (Path(folder) / "v.jsonl").read_text(encoding="utf-8")


def a_run() -> list[dict[str, Any]]:
    """Its lines."""
    with LOCK:
        return [json.loads(line) for line in _of_a_run().splitlines()]


def lay(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    """Put two files there: one of a run (old.jsonl), and one that was changed (v.jsonl); bytes, text or lines."""

    def first(folder: Path) -> None:
        (folder / "old.jsonl").write_text("".join(json.dumps(line) + "\n" for line in a_run()), encoding="utf-8")
        changed = change(a_run())
        if isinstance(changed, list):
            changed = "".join(json.dumps(line) + "\n" for line in changed)
        (folder / "v.jsonl").write_bytes(changed if isinstance(changed, bytes) else changed.encode("utf-8", "surrogatepass"))

    return first


TOOL = ("-m", "attnspec.conformance")
READERS = (
    (*TOOL, "matrix", "v.jsonl"),
    (*TOOL, "diff", "old.jsonl", "v.jsonl"),
    (*TOOL, "diff", "v.jsonl", "old.jsonl"),
    (*TOOL, "report", "v.jsonl", "-o", "r.html"),
)
REFUSED = Ending((2,), None, None, never=(), says=(r"\Aattnspec: [^\n]*\n",))
READ = Ending((0,), None, None, never=())


def file(name: str, before: str, change: Callable[[list[dict[str, Any]]], Any], ending: Ending = REFUSED, **further: Any) -> Fault:
    """A file from elsewhere, given to everything that reads files."""
    given = {"commands": READERS, "limit": 120, **further}
    return Fault(F12, name, before, ending, first=lay(change), **given)


def changed(kind: str, **values: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """The first line of a kind with other values."""

    def change(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        next(line for line in lines if line["kind"] == kind).update(values)
        return lines

    return change


def many(kind: str, n: int) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """So many lines of a kind, each about a variant of its own."""

    def change(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        one = next(line for line in lines if line["kind"] == kind)
        end = lines.pop()
        more = [{**one, "variant": f"v{m}"} for m in range(n)]
        for line in more if kind == "cell" else ():
            for verdict, count in line["problems"].items():
                end["problems"][verdict] += count
        if kind == "failure":
            end["failures"] += n
        return [*lines, *more, end]

    return change


def as_text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def short(seen: Seen) -> list[str]:
    return ["a long message"] if len(seen.screen) > 2000 else []


# TEXT

HOSTILE = (
    "a\x1b[2J\x1b]0;title\x07 <script>alert(1)</script> <img src=x onerror=alert(1)> ]]> \x00 \u202e @everyone ```\r\n::error::gh\n"
    'FAILED ::fake C:\\Users\\me """; import os; os.system("touch PWNED"); """ '
)
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")


def hostile(text: str) -> str:
    return f"raise ValueError({text!r})"


def obeyed(name: str) -> Callable[[Seen], list[str]]:
    """Control characters in the screen or a file."""

    def check(seen: Seen) -> list[str]:
        text = seen.screen if name == "screen" else (seen.folder / name).read_bytes().decode("utf-8")
        found = [f"raw {OBEYED.search(text)[0]!a} in {name}"] if OBEYED.search(text) else []  # type: ignore[index]
        found += ["a line of its own for GitHub"] if re.search(r"^(::error|FAILED ::fake|@everyone)", text, re.M) else []
        found += [f"markup in {name}"] if name == "r.html" and re.search("<script|<img", text) else []
        if name.endswith(".xml"):
            ElementTree.parse(seen.folder / name)
        return found

    return check


def runs(seen: Seen) -> list[str]:
    """The script of the failure runs, shows the fault, and does nothing else."""
    found = named_scripts(seen)
    for script in sorted((seen.folder / "attnspec-repros").glob("*.py"))[:1]:
        done = subprocess.run([sys.executable, script], cwd=seen.folder, capture_output=True, text=True)
        found += [f"the script ends with {done.returncode}"] if done.returncode != 1 else []
        found += ["SyntaxError"] if "SyntaxError" in done.stderr else []
    return found + (["it made PWNED"] if list(seen.folder.rglob("PWNED")) else [])


NAMED = f"""
import torch
from attnspec.adapters import Adapter
from torch.nn.functional import scaled_dot_product_attention as sdpa

class Named(Adapter):
    name = version = variant = {HOSTILE!r}
    offers = {{"mha"}}
    def attend(self, q, k, v):
        return sdpa(q, k, v) * (1.5 if q.shape[-2] == 17 else 1)
"""


TEXTS = [
    *(
        Fault(
            F12, f"hostile text: {name}", before, replace(WRONG, silent=OURS), at17=hostile(HOSTILE), check=check, options=options
        )
        for name, before, check, options in (
            ("page", "OK", obeyed("r.html"), ()),
            ("Markdown", "OK", obeyed("r.md"), ()),
            ("JUnit XML", "OK", obeyed("j.xml"), ("--junitxml=j.xml",)),
            ("terminal", "bad", obeyed("screen"), ()),
            ("script", "bad", runs, ()),
        )
    ),
    Fault(F12, "hostile text: a lone surrogate", "bad", WRONG, at17=hostile("a \udcff b"), check=runs),
    Fault(F12, "hostile text: name, version, variant", "weak", WRONG, source=NAMED, impl="kernel.py:Named", check=obeyed("screen")),
    Fault(
        F12,
        "hostile text: name in a file",
        "bad",
        replace(READ, rc=(0, 1)),
        first=lay(lambda lines: [{**lines[0], "subjects": [{**lines[0]["subjects"][0], "name": HOSTILE}]}, *lines[1:]]),
        commands=READERS[:3],
        check=obeyed("screen"),
    ),
    file("200,000 nested arrays", "weak", lambda lines: "[" * 200_000 + "\n", check=short),
    file("50,000 nested objects", "weak", lambda lines: '{"a":' * 50_000 + "1" + "}" * 50_000 + "\n"),
    file("NaN as a share", "weak", changed("cell", worst={"o": {"share": float("nan"), "class": "A"}}), replace(READ, rc=(0, 2))),
    file("a word as a share", "weak", changed("cell", worst={"o": {"share": "much", "class": "A"}})),
    file("an unknown clause in a failure", "weak", changed("failure", clause="NO-1"), replace(READ, rc=(0, 2))),
    file("a lone surrogate", "weak", changed("failure", text="\udcff"), replace(READ, rc=(0, 2))),
    file("a dtype that the header lacks", "weak", changed("cell", dtype="float8"), replace(READ, rc=(0, 1, 2))),
    file("200,000 cells", "weak", many("cell", 200_000), replace(READ, rc=(0, 1))),
    file("20,000 failures", "OK", many("failure", 20_000), replace(READ, rc=(0, 1))),
    file("a negative count", "weak", changed("cell", problems={"PASS": -3})),
    file("an unknown verdict", "weak", changed("cell", problems={"FINE": 3})),
    file("an unknown class", "weak", changed("cell", worst={"o": {"share": 0.1, "class": "Z"}})),
    file("a clause that is null", "weak", changed("cell", clause=None)),
    file("format '1'", "weak", changed("header", format="1")),
    file("a byte order mark", "weak", lambda lines: b"\xef\xbb\xbf" + as_text(lines).encode(), READ),
    file(
        "U+2028 in a string",
        "weak",
        lambda lines: json.dumps(lines[0], ensure_ascii=False)[:-1] + ', "x": "\u2028"}\n' + as_text(lines[1:]),
        READ,
    ),
    file("lines that end in CRLF", "OK", lambda lines: as_text(lines).replace("\n", "\r\n"), READ),
    file("UTF-16", "OK", lambda lines: as_text(lines).encode("utf-16")),
    file("two runs in one file", "OK", lambda lines: [*lines, *lines]),
    file("an empty file", "OK", lambda lines: b""),
    file("20 MB in one line", "OK", changed("failure", text="x" * 20_000_000), READ),
]
