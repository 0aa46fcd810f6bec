"""An implementation in a process of its own: what ends it costs one problem, and what it answers is what it would answer here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from attnspec.adapters import ResolveError, resolve, same_bits
from attnspec.adapters.answer import KEPT
from attnspec.adapters.remote.isolated import Isolated, Limits, Peer, isolated
from attnspec.adapters.remote.tensors import Receiver, Sender
from attnspec.adapters.within import SECOND, Within
from attnspec.conformance import check
from attnspec.conformance.subject.meeting import meet
from attnspec.spec import Problem
from attnspec.spec.place import Place

KERNEL = """
import ctypes, os, signal, sys, threading, time
import torch


def good(q, k, v):
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


def where(q, k, v, what={}):
    if q.shape[2] == 3:
        ctypes.string_at(0)
    if q.shape[2] == 4:
        os._exit(0)
    if q.shape[2] == 5:
        while True:
            time.sleep(1)
    if q.shape[2] == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    if q.shape[2] == 7:
        raise KeyboardInterrupt("not by anybody's hand")
    if q.shape[2] == 8:
        print("said by the kernel")
    if q.shape[2] == 9:
        os.closerange(0, 64)
    if q.shape[2] == 10 and os.fork() == 0:
        return good(q, k, v) * 2
    if q.shape[2] == 11:
        torch.empty(8 << 30, dtype=torch.uint8).fill_(1)
    if q.shape[2] == 12:
        return (good(q, k, v), 1)
    if q.shape[2] == 13:
        torch.set_num_threads(torch.get_num_threads() + 1)
    if q.shape[2] == 14:
        q.data[0, 0, 0, 0] += 1
    if q.shape[2] == 15:
        return q
    return good(q, k, v)


def exits(q, k, v):
    return good(q, k, v)


FIRST = None


def once(q, k, v):
    global FIRST
    FIRST = good(q, k, v) if FIRST is None or FIRST.shape != q.shape else FIRST.copy_(good(q, k, v))
    return FIRST
"""


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    (tmp_path / "kernel.py").write_text(KERNEL)
    return f"{tmp_path / 'kernel.py'}"


@pytest.fixture
def where(kernel: str):
    (adapter,) = isolated(f"{kernel}:where", limits=Limits(case=3, first=60, memory=2 << 30))
    yield adapter
    adapter.close()


def problem(i: int, **options) -> Problem:
    rng = torch.Generator().manual_seed(i)
    q, k, v, do = (torch.randn(1, 2, n, 8, generator=rng) for n in (i, 6, 6, i))
    return Problem(q, k, v, do=do, wrt=("q", "k", "v"), **options)


def test_the_answer_is_the_same_bit_by_bit(kernel: str) -> None:
    """Output and gradients, in the half types too, of strided and of shared inputs, and what the adapter says of itself."""
    (here,), (there,) = resolve(f"{kernel}:good"), isolated(f"{kernel}:good")
    assert (there.name, there.variant, frozenset(there.offers)) == (here.name, here.variant, frozenset(here.offers))
    plain = problem(4)
    asked = [plain, plain.replace(q=plain.q.transpose(1, 2).contiguous().transpose(1, 2)), plain.replace(v=plain.k)]
    asked.append(Problem(*(x.to(torch.bfloat16) for x in (plain.q, plain.k, plain.v))))
    for one in asked:
        mine, theirs = here.ask(one), there.ask(one)
        assert theirs.refusal is None
        assert same_bits(mine.o, theirs.o)
        assert mine.gradients.keys() == theirs.gradients.keys()
        assert all(same_bits(mine.gradients[name], theirs.gradients[name]) for name in mine.gradients)
    for within in (Within("no_grad"), Within("autocast"), Within("unwatched"), Within("compiled eager")):
        assert same_bits(here.ask(plain.replace(wrt=(), do=None), within).o, there.ask(plain.replace(wrt=(), do=None), within).o)
    double = problem(3).replace(**{name: getattr(problem(3), name).double() for name in ("q", "k", "v", "do")})
    mine, theirs = here.ask(double, Within(SECOND)), there.ask(double, Within(SECOND))
    assert same_bits(mine.gradients["dq"], theirs.gradients["dq"])
    assert there.trace(plain.replace(wrt=(), do=None)).operators == here.trace(plain.replace(wrt=(), do=None)).operators
    assert there.script(plain).source == here.script(plain).source
    assert there.script(plain).arguments["q"] is plain.q
    there.close()


@pytest.mark.parametrize(
    ("i", "ended", "says"),
    [
        (3, "CRASH", "SIGSEGV ended its process"),
        (4, "CRASH", "its process ended with exit code 0"),
        (5, "TIMEOUT", "it had not answered after 3 s"),
        (6, "CRASH", "SIGKILL ended its process"),
        (9, "CRASH", "its process"),
    ],
)
def test_what_ends_the_process_ends_one_call(where: Isolated, i: int, ended: str, says: str) -> None:
    """The next call is answered by a new process."""
    assert where.ask(problem(2)).refusal is None
    answer = where.ask(problem(i))
    assert (answer.ended, says in str(answer.refusal)) == (ended, True), answer
    assert where.ask(problem(2)).refusal is None
    assert sum(where.endings.values()) == 1


def test_a_reply_that_an_interruption_left_is_nobodys(where: Isolated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes when the question is sent and nobody waits for the answer yet: what is asked then has its own answer."""
    expected = where.ask(problem(2)).o
    sent = Peer._sent

    def interrupted(*given):
        sent(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(Peer, "_sent", interrupted)
    with pytest.raises(KeyboardInterrupt):
        where.ask(problem(1))
    monkeypatch.undo()
    assert where.script(problem(2)).source
    assert same_bits(where.ask(problem(2)).o, expected)
    assert where.peer.starts == 1, "the process goes on"


def test_a_crash_shows_where_it_was(where: Isolated) -> None:
    """The log has Python's own words."""
    log = "\n".join(where.ask(problem(3)).log)
    assert "Fatal Python error: Segmentation fault" in log
    assert "in where" in log


def test_what_a_call_does_beside_is_seen(where: Isolated, capsys: pytest.CaptureFixture[str]) -> None:
    """It raises, prints, has no memory, returns a tuple or an input, changes a setting or an input; a child does not go on."""
    assert where.ask(problem(7)).refusal == "KeyboardInterrupt: not by anybody's hand"
    where.ask(problem(8))
    where.ask(problem(2))
    assert "said by the kernel" in capsys.readouterr().out
    from attnspec.conformance.judging.judge import ending, form

    assert ending(where.ask(problem(11))).kind == "memory"
    finding = form(where.ask(problem(12)).o, "output", (1, 2, 12, 8), problem(12), "call")
    assert "a tuple of 2" in finding.message
    assert "the number of threads" in where.ask(problem(13)).disturbed
    assert where.ask(problem(14)).changed == ("q",)
    assert where.ask(problem(15)).shares == ("q",)
    assert where.ask(problem(10)).refusal is None
    assert where.ask(problem(2)).refusal is None
    assert not where.endings


def test_an_answer_that_is_kept_is_read_again(kernel: str) -> None:
    """A buffer that is used for every call shows what the second call wrote, and that it is the same memory."""
    (once,) = isolated(f"{kernel}:once")
    first = once.ask(problem(2).replace(wrt=(), do=None), Within(kept=True))
    second = once.ask(problem(2).replace(v=1 - problem(2).v, wrt=(), do=None))
    assert KEPT in second.shares
    assert same_bits(once.again(first).o, second.o)
    assert not same_bits(first.o, second.o)
    once.close()


# STARTING


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import os; os._exit(0)", "its process ended with exit code 0"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV ended its process"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("attend = 3", "is not callable"),
        ("", "has no 'attend'"),
    ],
)
def test_what_does_not_start_says_so(tmp_path: Path, source: str, says: str) -> None:
    """With a usage error, whatever it does while it is imported."""
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(ResolveError, match=says):
        isolated(f"{tmp_path / 'bad.py'}:attend")


def test_it_sees_inputs_and_nothing_else(tmp_path: Path) -> None:
    """No test framework, no variable of one, no clause and no case among its arguments, files and frames."""
    (tmp_path / "looks.py").write_text(
        textwrap.dedent("""
        import gc, json, os, sys, torch

        def attend(q, k, v):
            seen = {
                "modules": [m for m in sys.modules if m.partition(".")[0] in ("pytest", "_pytest", "hypothesis", "pluggy")],
                "judge": [m for m in sys.modules if m.startswith(("attnspec.conformance", "attnspec.reference"))],
                "variables": [n for n in os.environ if n.startswith(("PYTEST_", "HYPOTHESIS_"))],
                "arguments": sys.argv,
            }
            open(os.path.join(os.path.dirname(__file__), "seen.json"), "w").write(json.dumps(seen))
            return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v
        """)
    )
    (adapter,) = isolated(f"{tmp_path / 'looks.py'}:attend")
    assert adapter.ask(problem(2)).refusal is None
    adapter.close()
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["modules"] == seen["judge"] == seen["variables"] == []
    assert not any("--" in word for word in seen["arguments"])


# MEMORY


def test_memory_is_mirrored(tmp_path: Path) -> None:
    """A storage that comes again lies where it lay, with what it holds now; views and one tensor given twice stay what they are."""
    sender, receiver, path = Sender(), Receiver(), tmp_path / "x.safetensors"
    fused = torch.arange(24.0).reshape(2, 3, 4)
    q, k = fused[:, 0], fused[:, 1, ::2]
    sender.write(path, {"q": q, "k": k, "v": k})
    got = receiver.read(path)
    assert got["v"] is got["k"]
    assert got["q"].tolist() == q.tolist()
    assert got["k"].stride() == k.stride()
    assert got["q"].untyped_storage().data_ptr() == got["k"].untyped_storage().data_ptr()
    address = got["q"].data_ptr()
    fused *= 2
    sender.write(path, {"q": q})
    again = receiver.read(path)["q"]
    assert (again.data_ptr(), again.tolist()) == (address, q.tolist())
    del fused, q, k
    other = torch.zeros(2)
    freed = sender.write(path, {"q": other})
    assert freed == [0]
    receiver.free(freed)
    assert receiver.read(path)["q"].tolist() == [0.0, 0.0]


def test_a_place_is_mirrored(tmp_path: Path) -> None:
    """A new tensor that lies where an earlier one lay does so there, too; who keeps the earlier one is seen."""
    sender, receiver, path, place = Sender(), Receiver(), tmp_path / "x.safetensors", Place(64)
    mask = place.lay(torch.tensor([True, False]))
    sender.write(path, {"mask": mask})
    got = receiver.read(path)["mask"]
    address = got.data_ptr()
    del mask
    assert not place.taken
    receiver.free(sender.freed())
    assert receiver.holds(place.number)
    del got
    assert not receiver.holds(place.number)
    second = place.lay(torch.tensor([False, False]))
    sender.write(path, {"mask": second})
    assert receiver.read(path)["mask"].data_ptr() == address


@pytest.mark.parametrize("offset", range(0, 64, 8))
def test_alignment_is_mirrored(tmp_path: Path, offset: int) -> None:
    """A kernel may take another path for it."""
    place = Place(256)
    x = place.lay(torch.arange(4.0), offset)
    path, receiver = tmp_path / "x.safetensors", Receiver()
    Sender().write(path, {"q": x})
    assert receiver.read(path)["q"].data_ptr() % 64 == x.data_ptr() % 64


# THE WHOLE COMMAND


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    promised = [] if any(option.startswith("--impl-dtypes") for option in options) else ["--impl-dtypes=float32"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tier=smoke", *promised, *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "CI": "true"}, check=False)


def cells(folder: Path) -> dict[str, dict[str, int]]:
    lines = [json.loads(line) for line in (folder / "v.jsonl").read_text().splitlines()]
    return {line["clause"]: line["problems"] for line in lines if line["kind"] == "cell"}


def test_a_crash_is_a_verdict_and_its_script_crashes(tmp_path: Path) -> None:
    """CRASH of the clause, everything else judged, a note, and the script of the failure ends by the same signal."""
    (tmp_path / "kernel.py").write_text(
        "import ctypes, torch\n\n\ndef attend(q, k, v):\n    if q.shape[2] == 17:\n        ctypes.string_at(0)\n"
        "    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v\n"
    )
    done = run(tmp_path, "--impl=kernel.py:attend", "--isolate", "--clauses=CAUSAL,PURITY", "--verdicts=v.jsonl")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "found     crashed: SIGSEGV ended its process" in done.stdout
    assert "Fatal Python error: Segmentation fault" in done.stdout
    assert "in attend" in done.stdout
    assert "the process of the implementation was started again" in done.stdout
    found = cells(tmp_path)
    assert found["SHAPE-2"]["CRASH"] > 0
    assert found["PURITY-1"]["PASS"] > 20
    (script,) = (tmp_path / "attnspec-repros").glob("*.py")
    again = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert again.returncode == -11
    assert "crashed: SIGSEGV" in again.stdout


def test_three_endings_end_a_test(tmp_path: Path) -> None:
    """What is left is counted as not run, with the reason."""
    source = "import os\n\n\ndef attend(q, k, v):\n    if q.shape[2] > 4:\n        os._exit(3)\n    return q @ k.mT @ v\n"
    (tmp_path / "kernel.py").write_text(source)
    done = run(tmp_path, "--impl=kernel.py:attend", "--isolate", "--clauses=DROPOUT-3", "--explain-budget=4", "--verdicts=v.jsonl")
    assert done.returncode == 1
    assert "3 problems ended the process or had no answer in time" in (tmp_path / "v.jsonl").read_text(), done.stdout


def test_options_that_contradict_each_other() -> None:
    """Are refused, with what to write."""
    here = Path.cwd()
    assert "exclude each other" in run(here, "--impl=sdpa-math", "--isolate", "--in-process").stderr
    assert "write 8GiB" in run(here, "--impl=sdpa-math", "--isolate", "--memory-limit=8 gigabytes").stderr
    assert "No such file or directory: ./nothing" in run(here, "--impl=cmd:./nothing").stderr


def test_what_a_killed_run_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder of tensors lies in memory; that of a run that goes on stays."""
    from attnspec.adapters.remote import process

    gone, going = tmp_path / "attnspec-999999999-x", tmp_path / f"attnspec-{os.getpid()}-y"
    gone.mkdir()
    going.mkdir()
    monkeypatch.setattr(process, "MEMORY", str(tmp_path))
    process._memory_file_system()
    assert (gone.exists(), going.exists()) == (False, True)


def test_check_isolates_what_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(
        "import os\n\n\ndef attend(q, k, v):\n    os._exit(0) if q.shape[2] == 4 else None\n    return v * q.sum()\n"
    )
    found = check(f"{tmp_path / 'ends.py'}:attend", isolate=True, dtypes="float32", clauses="SHAPE-2", explain_budget=1)
    assert any(v["counts"].get("CRASH") for v in found.verdicts)
    with pytest.raises(ValueError, match="needs a name"):
        check(lambda q, k, v: q, isolate=True)


def test_a_crash_at_width_zero_is_no_refusal(tmp_path: Path) -> None:
    """It once was counted as not offered (onnxruntime's MultiHeadAttention ends there by SIGFPE)."""
    (tmp_path / "ends.py").write_text(
        "import os\nfrom torch.nn.functional import scaled_dot_product_attention as sdpa\n\n\n"
        "def attend(query, key, value, attn_mask=None, is_causal=False, scale=None):\n"
        "    os._exit(0) if query.shape[-1] == 0 else None\n"
        "    return sdpa(query, key, value, attn_mask, is_causal=is_causal, scale=scale)\n"
    )
    options = {"isolate": True, "dtypes": "float32", "clauses": "SHAPE-2", "tier": "smoke", "explain_budget": 1}
    found = check(f"{tmp_path / 'ends.py'}:attend", **options)
    assert [v["counts"].get("CRASH") for v in found.verdicts if v["counts"].get("CRASH")] == [1]


def test_what_ends_the_process_refuses_nothing(tmp_path: Path) -> None:
    """A dtype and a width that crash are asked, as others are; a kernel that always crashes is said to, with its last words."""
    source = (
        "import os, sys, torch\n\n\ndef attend(q, k, v):\n    if {}:\n        print('no', file=sys.stderr)\n        os._exit(3)\n"
    )
    source += "    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v\n"
    (tmp_path / "kernel.py").write_text(source.format("q.dtype == torch.bfloat16 or q.shape[-1] == 59 or q.requires_grad"))
    done = run(
        tmp_path,
        "--impl=kernel.py:attend",
        "--clauses=SHAPE-2,GRAD-1",
        "--verdicts=v.jsonl",
        "--explain-budget=2",
        "--impl-dtypes=",
    )
    assert "float32, float64, bfloat16, float16; class" in done.stdout
    assert "widths refused" not in done.stdout
    assert "3 problems ended the process" in (tmp_path / "v.jsonl").read_text()
    assert "GRAD-1" in cells(tmp_path)
    (tmp_path / "kernel.py").write_text(source.format("True"))
    done = run(tmp_path, "--impl=kernel.py:attend", "--impl-dtypes=")
    assert done.returncode == 4
    assert "answers no plain call" in done.stderr
    assert "its process ended with exit code 3\n  no\n" in done.stderr


def test_a_keeper_that_is_killed_is_started_again(kernel: str) -> None:
    """And one whose process died while nobody asked is told of at the next call."""
    (adapter,) = isolated(f"{kernel}:good")
    assert adapter.ask(problem(1)).refusal is None
    process = adapter.peer.process
    assert process is not None
    assert process._child is not None
    os.kill(process._child, signal.SIGKILL)
    assert adapter.ask(problem(1)).ended == "CRASH"
    assert adapter.ask(problem(1)).refusal is None
    assert adapter.peer.process is process
    child = process._child
    process.process.kill()
    process.process.wait()
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():  # it dies with its keeper
        time.sleep(0.01)
    assert adapter.ask(problem(1)).ended == "CRASH"
    assert adapter.ask(problem(1)).refusal is None
    assert adapter.peer.process is not process
    adapter.close()


@pytest.mark.parametrize("by", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_a_run_that_is_ended_leaves_its_file_and_no_process(by: str, tmp_path: Path) -> None:
    """What was judged is in the file; with a signal that can be caught its end says what came."""
    source = "import time, torch\n\n\ndef attend(q, k, v):\n    time.sleep(0.02)\n"
    source += "    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v\n"
    (tmp_path / "kernel.py").write_text(source)
    # Who starts us in the background or with nohup lets us ignore two of these, and what we start would ignore them, too.
    start = "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "signal.signal(signal.SIGHUP, signal.SIG_DFL); sys.exit(pytest.main())"
    command = [
        sys.executable,
        "-c",
        start,
        "-p",
        "no:cacheprovider",
        "--tier=smoke",
        "--impl=kernel.py:attend",
        "--verdicts=v.jsonl",
    ]
    file = tmp_path / "v.jsonl"
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "CI": "true"}
    ) as run:
        try:
            while not file.exists() or '"kind": "cell"' not in file.read_text():
                assert run.poll() is None
                time.sleep(0.05)
            of_it = below(run.pid)
            run.send_signal(getattr(signal, by))
            assert run.wait(30) != 0
        finally:
            run.kill()
    assert len(of_it) == 2  # the keeper, and what it keeps
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    if by != "SIGKILL":
        assert lines[-1]["kind"] == "interrupted"
        assert ("Ctrl-C" if by == "SIGINT" else by) in lines[-1]["reason"]
    for _ in range(200):  # they die with it, which takes a moment
        if not any(alive(process) for process in of_it):
            return
        time.sleep(0.05)
    pytest.fail("a process goes on")


def below(process: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    found = [int(x) for task in Path(f"/proc/{process}/task").iterdir() for x in (task / "children").read_text().split()]
    return [*found, *(other for one in found for other in below(one))]


def alive(process: int) -> bool:
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


def test_a_dtype_that_ends_the_process_in_the_only_width_is_asked(tmp_path: Path) -> None:
    (tmp_path / "narrow.py").write_text(
        "import os, torch\nfrom attnspec.adapters import Adapter\n\n\nclass Narrow(Adapter):\n    widths = (16,)\n\n"
        "    def attend(self, q, k, v):\n        os._exit(3) if q.dtype == torch.bfloat16 else None\n"
        "        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v\n"
    )
    (adapter,) = isolated(f"{tmp_path / 'narrow.py'}:Narrow")
    assert "bfloat16" in meet(adapter, "cpu", {}, None, None).dtypes
    adapter.close()


def test_a_process_that_was_started_again_has_the_time_that_its_compiler_was_seen_to_need() -> None:
    peer = Peer("sdpa-math")
    assert peer.limit() == peer.limits.first
    peer.slowest = 0.1
    assert peer.limit() == peer.limits.case
    peer.slowest = 10.0
    assert peer.limits.case < peer.limit() == 200.0 < peer.limits.first


def test_a_module_is_found_where_the_suite_would_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two with one name, the first on our path."""
    for folder, factor in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twins.py").write_text(
            f"def attend(q, k, v):\n    return q.new_full((*q.shape[:3], v.shape[-1]), {factor})\n"
        )
    monkeypatch.setattr(sys, "path", [str(tmp_path / "b"), str(tmp_path / "a"), *sys.path])
    (adapter,) = isolated("twins.attend")
    assert (adapter.ask(problem(1)).o == 2).all()
    adapter.close()
