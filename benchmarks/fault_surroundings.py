"""Faults around the kernel: signals, the file system, the terminal, hostile text and files, other plugins, and repetition."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fault_endings import OURS, Ending, Fault, Seen
from fault_kernels import CRASH, KERNELS, RIGHT, TIMEOUT, WRONG, named_scripts

from attnspec.conformance.verdicts.lines import read

F10, F11, F12, F13 = "10 killed in the middle", "11 surroundings", "12 hostile text, files, options", "13 company"
F14, F15 = "14 promised versions", "15 determinism"
REPORT = (r"MUST clauses:",)
BY_HALF = "o = o * 1.5"

# 10: SIGNALS

SLOW = """
import time
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

def attend(q, k, v):
    with open("calls.txt", "a") as file:
        print(time.time(), file=file)
    time.sleep(0.05)
    return sdpa(q, k, v)
"""


def _passes(file: Path) -> int:
    try:
        return sum(cell["problems"].get("PASS", 0) for cell in read(file).cells.values())
    except ValueError:
        return 0


def after(number: int, passes: int = 60) -> Callable[[Any, Path, Seen], None]:
    """Send a signal once the file tells of so many problems, and remember what was judged more than a second before."""

    def during(process: Any, folder: Path, seen: Seen) -> None:
        end, first = time.monotonic() + 60, 0
        while _passes(folder / "v.jsonl") < passes and process.poll() is None and time.monotonic() < end:
            calls = folder / "calls.txt"
            if not _passes(folder / "v.jsonl") and calls.is_file():
                first = calls.read_text().count("\n")  # the first questions, which are no problems
            time.sleep(0.05)
        time.sleep(2.3)
        process.send_signal(number)
        sent = time.time()
        times = [float(x) for x in (folder / "calls.txt").read_text().split()] if (folder / "calls.txt").is_file() else []
        seen.notes["owed"] = sum(x < sent - 1.2 for x in times) - first - 1

    return during


def at_imports(process: Any, folder: Path, seen: Seen) -> None:
    """Interrupt before anything was asked."""
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)


def kept(seen: Seen) -> list[str]:
    """Every problem that was judged more than a second before is in the file."""
    owed = seen.notes.get("owed", 0)
    found = seen.counts.get("PASS", 0)
    return [f"{found} of {owed} verdicts"] if found < owed else []


def killed(name: str, before: str, number: int, rc: tuple[int, ...], *says: str) -> Fault:
    page = "INCOMPLETE"
    return Fault(
        F10, name, before, Ending(rc, "prefix", page, has=("PASS",), says=says), source=SLOW, during=after(number), check=kept
    )


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


# 12: TEXT

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

# 11 and 13


def mounted(kind: str) -> str:
    """A shell command that mounts something on the folder `work`, runs there, and copies what was written."""
    return (
        f"mkdir -p work; cp kernel.py work; exec unshare -rm bash -c 'shift; {kind}; cd work; "
        '"$@"; rc=$?; cp v.jsonl r.html .. 2>/dev/null; exit $rc\' bash'
    )


# A worker that is gone: which tests are lost is said, and nothing of them is kept.
LOST = Ending((1,), "prefix", "INCOMPLETE|does not conform", says=(r"INCOMPLETE: worker gw\d died", *REPORT))
READ_ONLY = mounted("mount --bind work work && mount -o remount,bind,ro work")
FULL = mounted("mount -t tmpfs -o size=24k tmpfs work && cp kernel.py work")
AWAY = ("--verdicts=../v.jsonl", "--verdict-report=../r.html")


def second(process: Any, folder: Path, seen: Seen) -> None:
    """A second run at the same time with the same files, of a kernel that is right."""
    (folder / "other.py").write_text(Fault("", "", "").kernel)
    words = [sys.executable, "-m", "pytest", "--impl=other.py:attend", "--tier=smoke", "--impl-dtypes=float32", "--clauses=SHAPE-1"]
    words += ["--verdicts=v.jsonl", "--verdict-report=r.html", "-p", "no:cacheprovider"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    seen.notes["second"] = done.returncode


def foreign(folder: Path) -> None:
    (folder / "src").mkdir()
    (folder / "src" / "test_theirs.py").write_text("def check_nothing():\n    pass\n")
    (folder / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = "-x --strict-markers --strict-config -W error --tb=no -q"\n'
        'filterwarnings = ["error"]\npython_functions = ["check_*"]\ntestpaths = ["src"]\n'
    )
    (folder / "conftest.py").write_text(
        "import os, tempfile, pytest\n\n@pytest.fixture(autouse=True)\ndef elsewhere():\n    os.chdir(tempfile.mkdtemp())\n"
        "\ndef pytest_collection_modifyitems(items):\n    items.reverse()\n"
    )


def issues(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "known.toml").write_text(text) and None  # type: ignore[return-value]


def again(*options: str, leave_out: tuple[str, ...] = ("command", "started", "versions")) -> Callable[[Seen], list[str]]:
    """The same command again writes the same lines."""

    def lines(path: Path) -> list[dict[str, Any]]:
        return [
            {name: x for name, x in json.loads(line).items() if name not in leave_out} for line in path.read_text().splitlines()
        ]

    def check(seen: Seen) -> list[str]:
        words = [sys.executable, "-m", "pytest", "--impl=kernel.py:attend", "--tier=smoke", "--impl-dtypes=float32,bfloat16"]
        words += ["--clauses=SHAPE-1", "--verdicts=w.jsonl", "-p", "no:cacheprovider", *options]
        environment = {**os.environ, "CI": "true"}
        subprocess.run(words, cwd=seen.folder, capture_output=True, env=environment)
        first, other = lines(seen.folder / "v.jsonl"), lines(seen.folder / "w.jsonl")
        differ = [a["kind"] for a, b in zip(first, other, strict=False) if a != b]
        return [f"other lines: {', '.join(dict.fromkeys(differ))}"] if differ or len(first) != len(other) else []

    return check


def interrupted(page: str) -> Ending:
    return Ending((0,), None, page, never=(), says=("is incomplete",))


SURROUNDINGS = [
    killed("SIGINT", "weak", signal.SIGINT, (2,), r"INCOMPLETE: .* at SHAPE-1 --case=\S+ by Ctrl-C", *REPORT),
    Fault(F10, "SIGINT while importing", "OK", Ending((2, -2), None, "INCOMPLETE|none", silent=()), during=at_imports),
    killed("SIGTERM", "bad", signal.SIGTERM, (2,), r"INCOMPLETE: .* at SHAPE-1 --case=\S+ by SIGTERM", *REPORT),
    killed("SIGHUP", "weak", signal.SIGHUP, (2,), r"INCOMPLETE: .* at SHAPE-1 --case=\S+ by SIGHUP", *REPORT),
    killed("SIGKILL", "bad", signal.SIGKILL, (-9,)),
    Fault(
        F10,
        "attnspec report on a file without an end",
        "OK",
        interrupted("INCOMPLETE|does not conform"),
        first=lay(lambda lines: lines[:-1]),
        commands=READERS[3:],
    ),
    Fault(
        F10,
        "attnspec diff on a file without an end",
        "OK",
        Ending((2,), None, None, never=(), says=("incomplete",)),
        first=lay(lambda lines: lines[:-1]),
        commands=READERS[1:3],
    ),
    Fault(
        F10,
        "a page of an earlier run, and os._exit(0)",
        "bad",
        CRASH,
        least=Ending((0,), "prefix", "INCOMPLETE"),
        first=lambda folder: (folder / "r.html").write_text("<title>conforms</title><h1>conforms</h1>") and None,  # type: ignore[func-returns-value,arg-type]
        at17="os._exit(0)",
    ),
    Fault(
        F11,
        "a read-only folder, and a wrong kernel",
        "bad",
        replace(WRONG, says=(*REPORT, "SHAPE-1 ·|SHAPE-2 ·")),
        at17=BY_HALF,
        wrap=READ_ONLY,
        options=AWAY,
    ),
    Fault(F11, "a read-only folder, and a right kernel", "OK", RIGHT, wrap=READ_ONLY, options=AWAY),
    Fault(
        F11,
        "the disk is full",
        "bad",
        Ending((1,), "prefix|empty", None, says=(*REPORT, "No space left on device", r"SHAPE-\d ·")),
        at17=BY_HALF,
        wrap=FULL,
    ),
    Fault(
        F11,
        "the page does not fit (ulimit -f 16)",
        "bad",
        Ending((1,), None, None, says=(*REPORT, "ERROR: the page")),
        at17=BY_HALF,
        wrap="ulimit -f 16;",
    ),
    Fault(F11, "HOME, USER, LOGNAME unset", "OK", WRONG, at17=BY_HALF, env=dict.fromkeys(("HOME", "USER", "LOGNAME"))),
    Fault(F11, "LC_ALL=C", "OK", WRONG, at17=BY_HALF, env={"LC_ALL": "C"}),
    Fault(
        F11,
        "an ASCII terminal",
        "weak",
        replace(WRONG, says=(r"\nSHAPE-\d ", r"\n *found ")),
        at17=BY_HALF,
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ),
    Fault(
        F11,
        "a path with spaces, umlauts, Japanese, quotes, $(x), <b>",
        "OK",
        Ending(file=None, page=None, says=REPORT),
        at17=BY_HALF,
        wrap='d=$\'a b ü 日本 \\\'"$(x) <b>\'; mkdir "$d"; cp kernel.py "$d"; cd "$d";',
        check=lambda seen: runs(Seen(next(x for x in seen.folder.iterdir() if x.is_dir()), seen.rc, seen.screen, 0.0)),
    ),
    Fault(F11, "40 columns", "OK", WRONG, at17=BY_HALF, env={"COLUMNS": "40"}),
    Fault(F11, "a terminal with colours", "OK", WRONG, at17=BY_HALF, options=("--color=yes",)),
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
    *(
        replace(
            fault,
            family=F13,
            name=f"-n 2, {clauses}, and {fault.name}",
            before=before,
            options=("-n", "2"),
            clauses=clauses,
            least=least,
            limit=150,
        )
        for fault, before, clauses, least in (
            (KERNELS[0], "weak", "SHAPE-1,CAUSAL", LOST),
            (KERNELS[0], "weak", "SHAPE", LOST),
            (next(x for x in KERNELS if x.name == "os._exit(0) in a call"), "weak", "SHAPE", LOST),
        )
    ),
    Fault(
        F13,
        "pytest-timeout and an endless loop",
        "bad",
        TIMEOUT,
        least=Ending((1,), "complete|prefix", None, has=("FAIL|TIMEOUT",), says=REPORT),
        at17="while True: pass",
        options=("--timeout=12",),
        limit=90,
        needs="pytest_timeout",
    ),
    Fault(F13, "randomly, rerunfailures, cov, forked installed", "OK", WRONG, at17=BY_HALF, needs="pytest_randomly"),
    Fault(F13, "the same with -p no:randomly", "OK", WRONG, at17=BY_HALF, options=("-p", "no:randomly"), needs="pytest_randomly"),
    Fault(
        F13,
        "two runs at once with the same files",
        "weak",
        Ending(file="complete|prefix", page="conforms|does not conform", says=REPORT),
        at17=BY_HALF,
        during=second,
        check=lambda seen: [] if seen.notes["second"] == 0 else [f"the other run ended with {seen.notes['second']}"],
    ),
    Fault(
        F13,
        "a foreign pyproject.toml and conftest.py",
        "weak",
        Ending((1,), "prefix|complete", None, has=("FAIL",)),
        at17=BY_HALF,
        first=foreign,
        check=named_scripts,
    ),
    Fault(F13, "--lf", "OK", Ending((1,), None, None, has=("FAIL",)), at17=BY_HALF, options=("-p", "cacheprovider", "--lf")),
    Fault(F13, "--shard=3/2", "OK", Ending((4,), None, "INCOMPLETE|none", says=("--shard",)), options=("--shard=3/2",)),
    Fault(
        F13,
        "known issues with region = 3",
        "weak",
        Ending((4,), None, "INCOMPLETE|none", says=("region",)),
        first=issues(
            'implementation = "kernel.py:attend"\n[[issue]]\nclause = "SHAPE-1"\nregion = 3\nreason = "x"\nurl = "x"\nowner = "x"\nexpiry = 2099-01-01\npinned = ["i=17"]\n'
        ),
        options=("--known-issues=known.toml",),
    ),
    Fault(
        F13,
        "a case of 298 GiB under 6 GB",
        "weak",
        Ending((0, 1, 4, 5), None, None, silent=OURS),
        options=("--case=i=200000,j=200000,d=64",),
        wrap="ulimit -v 6000000;",
    ),
    *(
        Fault(F14, name, before, elsewhere="tests/test_installs.py has the versions that the tests can install")
        for name, before in (
            ("Python 3.11, torch 2.5.0, the oldest of everything", "bad"),
            ("Python 3.12, torch 2.5.0", "bad"),
            ("the same, with torch.accelerator put there", "OK"),
            ("Python 3.13, torch 2.14", "OK"),
        )
    ),
    Fault(
        F15,
        "the same command again",
        "OK",
        WRONG,
        at17=BY_HALF,
        options=("--impl-dtypes=float32,bfloat16",),
        check=again(),
        limit=180,
    ),
    Fault(
        F15,
        "-n 2 writes the same lines",
        "weak",
        WRONG,
        at17=BY_HALF,
        options=("--impl-dtypes=float32,bfloat16",),
        check=again("-n", "2"),
        limit=180,
    ),
]
