"""Faults around the kernel: signals, the file system, the terminal, hostile text and files, other plugins, and repetition."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fault_endings import OURS, Ending, Fault, Seen
from fault_kernels import BY_HALF, CRASH, KERNELS, RIGHT, TIMEOUT, WRONG, named_scripts
from fault_texts import READERS, lay, runs

from attnspec.conformance.verdicts.lines import read

F10, F11, F13 = "10 killed in the middle", "11 surroundings", "13 company"
F14, F15 = "14 promised versions", "15 determinism"
REPORT = (r"MUST clauses:",)

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


# 11: FOLDERS, AND 13: COMPANY


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
            'implementation = "kernel.py:attend"\n[[issue]]\nclause = "SHAPE-1"\nregion = 3\nreason = "x"\nurl = "x"\nowner = "x"\n'
            'expiry = 2099-01-01\npinned = ["i=17"]\n'
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
