"""Faults of kernels: they kill their process, hang, leave it, spoil it, cheat, and answer with strange tensors."""

from __future__ import annotations

from dataclasses import replace

from fault_endings import OURS, Ending, Fault, Seen

BY_HALF = "o = o * 1.5"
CASE = r"--case=(\S*,)?i=17\b"
RIGHT = Ending((0,), page="conforms", has=("PASS",))
WRONG = Ending(has=("FAIL", "PASS"))
CRASH = Ending(has=("CRASH", "PASS"), says=(CASE,))
TIMEOUT = Ending(has=("TIMEOUT", "PASS"), says=(CASE,))
# What a process that is gone can leave: what was judged before, and a page that does not speak for it.
GONE = Ending((-11, -6, -9), "prefix", "INCOMPLETE", has=("PASS",), says=(rf"attnspec asks SHAPE-1 {CASE}",))
REPLACED = Ending((1,), "prefix", "INCOMPLETE", says=("INCOMPLETE: calls of the implementation replaced ",))
IMPURE = Ending(has=("FAIL",))  # PURITY-3 says what the call changed
SEEN = (r"PURITY-3 ·",)


def purity(name: str, before: str, each: str, *says: str, **further: object) -> Fault:
    """A call that changes what is global: PURITY-3 has to say which, and everything else goes on."""
    ending = replace(IMPURE, says=(*SEEN, *says))
    return Fault("8 global state and cheating", name, before, ending, each=each, clauses="PURITY", **further)  # type: ignore[arg-type]


def cheat(name: str, before: str, top: str = "", each: str = "pass", **further: object) -> Fault:
    """A kernel that is wrong by half and tampers with who says so: it is not to be green, and the suite is not to be blamed."""
    source = f"""
import os, sys
import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

{top}

def attend(q, k, v):
    {each}
    return 1.5 * sdpa(q, k, v)
"""
    given = {"clauses": "SOFTMAX-1", "source": source, "ending": Ending(has=("FAIL",)), **further}
    return Fault("8 global state and cheating", name, before, **given)  # type: ignore[arg-type]


def brief(seen: Seen) -> list[str]:
    """What a kernel prints does not bury the report."""
    return [f"{len(seen.screen)} characters on the screen"] if len(seen.screen) > 200_000 else []


def once(seen: Seen) -> list[str]:
    """One report, however many processes there are."""
    n = seen.screen.count("MUST clauses:")
    return [] if n == 1 else [f"{n} reports"]


def named_scripts(seen: Seen) -> list[str]:
    """The script that a failure names is there."""
    named = [word for word in seen.screen.split() if word.startswith("attnspec-repros/")]
    return [] if all((seen.folder / word).is_file() for word in named) else [f"{named[0]} does not exist"]


F1, F3, F4 = "1–2 segfault, abort", "3 hangs", "4 exits"
F5, F6, F7, F9 = "5 memory", "6 streams", "7 threads and processes", "9 strange tensors"
ANSWER = replace(WRONG, says=(r"found +raised ",))

KERNELS = [
    Fault(F1, "reads at address 0", "bad", CRASH, least=GONE, at17="ctypes.string_at(0)"),
    Fault(F1, "os.abort()", "bad", CRASH, least=GONE, at17="os.abort()"),
    Fault(F3, "an endless loop", "bad", TIMEOUT, at17="while True: pass", limit=40),
    Fault(F3, "the same with --budget=20", "bad", TIMEOUT, at17="while True: pass", options=("--budget=20",), limit=40),
    Fault(
        F3,
        "the same with faulthandler_exit_on_timeout",
        "weak",
        TIMEOUT,
        least=replace(GONE, rc=(1,), silent=()),
        at17="while True: pass",
        options=("-o", "faulthandler_timeout=6", "-o", "faulthandler_exit_on_timeout=true"),
        limit=60,
    ),
    Fault(F4, "sys.exit(0) in a call", "OK", replace(WRONG, says=("raised SystemExit: 0",)), at17="sys.exit(0)"),
    Fault(F4, "a BaseException of its own", "OK", ANSWER, top="class E(BaseException): pass", at17="raise E('no')"),
    Fault(F4, "GeneratorExit in a call", "OK", ANSWER, at17="raise GeneratorExit"),
    Fault(F4, "pytest.exit(returncode=0) in a call", "OK", ANSWER, top="import pytest", at17="pytest.exit('done', returncode=0)"),
    Fault(
        F4,
        "KeyboardInterrupt in a call",
        "weak",
        Ending(
            (2,), "prefix", "INCOMPLETE|does not conform", has=("PASS",), says=(rf"KeyboardInterrupt was raised at SHAPE-1 {CASE}",)
        ),
        isolated=ANSWER,
        at17="raise KeyboardInterrupt",
    ),
    Fault(
        F4,
        "sys.exit(0) at the import",
        "OK",
        Ending((4,), None, "INCOMPLETE|none", says=("raised SystemExit: 0",)),
        top="sys.exit(0)",
    ),
    Fault(
        F4,
        "KeyboardInterrupt at the import",
        "weak",
        Ending(
            (2,), None, "INCOMPLETE|none", says=("KeyboardInterrupt was raised without a signal while kernel.py:attend",), silent=()
        ),
        isolated=Ending((2, 4), None, "INCOMPLETE|none", says=("KeyboardInterrupt",), silent=()),
        top="raise KeyboardInterrupt",
    ),
    Fault(F4, "os._exit(0) in a call", "bad", CRASH, at17="os._exit(0)"),
    Fault(
        F4, "os._exit(0) at the import", "bad", Ending((1, 2, 4), None, "INCOMPLETE|none", says=("kernel.py",)), top="os._exit(0)"
    ),
    Fault(F4, "atexit os._exit(0), and a wrong answer", "bad", WRONG, top="atexit.register(os._exit, 0)", at17="o = o * 1.5"),
    Fault(
        F4,
        "an exception whose text raises",
        "bad",
        ANSWER,
        top="class E(Exception):\n    def __str__(self): raise ValueError\n    __repr__ = __str__",
        at17="raise E",
    ),
    Fault(
        F5,
        "40 GB under a limit of 8 GB",
        "OK",
        Ending((0, 1), page=None, has=("FAIL|RESOURCE", "PASS")),
        at17="o = o + torch.empty(10**10)[:0].sum()",
        wrap="ulimit -v 8000000;",
    ),
    Fault(F5, "MemoryError", "OK", Ending((0, 1), page=None, has=("FAIL|RESOURCE", "PASS")), at17="raise MemoryError"),
    Fault(
        F5,
        "a leak of 32 MB a call under a limit of 5 GB",
        "weak",
        Ending(
            (1,), "prefix", "INCOMPLETE|does not conform", has=("PASS", "RESOURCE"), says=("no memory was left", "MUST clauses:")
        ),
        isolated=Ending((0, 1), page=None, has=("PASS",), says=("MUST clauses:",)),
        top="kept = []",
        each="kept.append(np.ones(4 * 2**20))",
        wrap="ulimit -v 5000000;",
    ),
    Fault(F6, "closes descriptors 1 and 2", "OK", replace(WRONG, says=("MUST clauses:",)), at17="os.close(1); os.close(2)"),
    Fault(
        F6, "the same with -s", "weak", replace(WRONG, says=("MUST clauses:",)), at17="os.close(1); os.close(2)", options=("-s",)
    ),
    Fault(
        F6,
        "sys.stdout.close()",
        "bad",
        Ending((0, 1), page=None, has=("PASS",), says=("MUST clauses:",)),
        at17="sys.stdout.close()",
    ),
    Fault(
        F6,
        "closes descriptors 0 to 63",
        "weak",
        Ending((0, 1), page=None, has=("PASS",), says=("MUST clauses:",)),
        least=Ending((1, 2, 3), "prefix", None, has=("PASS",), never=(), silent=()),
        at17="os.closerange(0, 64)",
    ),
    Fault(
        F6,
        "sends both streams to /dev/null",
        "weak",
        Ending(has=("FAIL", "PASS"), says=("MUST clauses:", r"attnspec \d", r"PURITY-3 ·")),
        top='sys.stdout = sys.stderr = open(os.devnull, "w")',
        each='sys.stdout = sys.stderr = open(os.devnull, "w")',
    ),
    Fault(F6, "prints 100 MB, and is right", "OK", RIGHT, at17='print("x" * 10**7)', check=brief),
    Fault(F6, "prints 34 MB, and is wrong", "weak", WRONG, at17='print("x\\n" * 2 * 10**6); o = o * 1.5', check=brief),
    Fault(
        F7,
        "20 sleeping daemon threads a call",
        "weak",
        replace(RIGHT, says=("still running after the last call",)),
        isolated=RIGHT,
        each="[threading.Thread(target=time.sleep, args=(1000,), daemon=True).start() for _ in range(20)]",
    ),
    Fault(
        F7,
        "a thread that does not end",
        "weak",
        replace(RIGHT, says=("left .* running",)),
        isolated=RIGHT,
        top="threading.Thread(target=time.sleep, args=(1000,), name='kernel-thread').start()",
    ),
    Fault(
        F7,
        "os.fork(), and the child returns",
        "bad",
        RIGHT,
        top="calls = []",
        each="calls.append(1) or len(calls) == 60 and os.fork()",
        check=once,
    ),
    Fault(
        F7,
        "a daemon thread that spins",
        "weak",
        replace(RIGHT, says=("still running after the last call",)),
        isolated=RIGHT,
        top="def spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()",
    ),
    Fault(
        F7,
        "the output is overwritten by a thread after 3 ms",
        "OK",
        Ending((0, 1), page=None, has=("PASS",)),
        at17="threading.Timer(0.003, o.detach().zero_).start()",
    ),
    purity(
        "sets the default dtype",
        "OK",
        "torch.set_default_dtype(torch.float64)",
        "default dtype from torch.float32 to torch.float64",
    ),
    purity(
        "sets grad mode and the number of threads",
        "OK",
        "torch.set_num_threads(3); torch.set_grad_enabled(False)",
        "the number of threads",
        "grad mode",
    ),
    purity("seeds Python's and NumPy's random state", "weak", "random.seed(0); np.random.seed(0)", "Python's random state"),
    purity("torch.set_default_device('meta')", "bad", "sdpa(q, k, v); torch.set_default_device('meta')", "the default device"),
    purity(
        "np.seterr, anomaly mode, flush-denormal, switches of SDPA, gc.disable",
        "weak",
        "np.seterr(all='raise'); torch.autograd.set_detect_anomaly(True); torch.set_flush_denormal(True); "
        "torch.backends.cuda.enable_math_sdp(False); gc.disable()",
        "garbage collection",
    ),
    purity(
        "clears the environment and sys.path, umask, recursion limit, warnings as errors",
        "bad",
        "os.environ.clear(); os.umask(0o777); sys.setrecursionlimit(150); sys.path.clear(); warnings.simplefilter('error')",
        "the umask",
        "MUST clauses:",
    ),
    purity(
        "os.chdir in each call",
        "weak",
        "import tempfile; os.chdir(tempfile.mkdtemp(dir='.'))",
        "the working directory",
        check=named_scripts,
    ),
    purity(
        "os.chdir into a folder that is removed",
        "bad",
        "import tempfile; f = tempfile.mkdtemp(dir='.'); os.chdir(f); os.rmdir('../' + os.path.basename(f))",
        "the working directory",
    ),
    Fault(
        "8 global state and cheating",
        "print options, decimal precision, SIGINT ignored",
        "OK",
        replace(WRONG, says=(r"153,000 × the bound",)),
        each="import decimal; decimal.getcontext().prec = 2; torch.set_printoptions(precision=1); "
        "np.set_printoptions(precision=1); "
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        at17="o = o * 1.5",
    ),
    Fault(
        "8 global state and cheating",
        "removes the scripts and the verdict file in each call",
        "OK",
        WRONG,
        each="import shutil; shutil.rmtree('attnspec-repros', ignore_errors=True); os.path.exists('v.jsonl') and "
        "os.unlink('v.jsonl')",
        at17="o = o * 1.5",
    ),
    cheat("honest control, wrong by half", "OK"),
    cheat(
        "patches np.isfinite, np.any, torch.equal, torch.allclose",
        "weak",
        "np.isfinite = np.any = lambda *a, **k: np.array(False)\ntorch.equal = torch.allclose = lambda *a, **k: True",
    ),
    cheat(
        "patches the judge",
        "bad",
        """
from attnspec.conformance.judging.finding import Judgement
import attnspec.conformance.subject.subject as subject
import attnspec.conformance.judging.judge as judging
subject.judge = judging.judge = lambda answer, exact, class_, **k: Judgement((), {"o": 0.0}, 0, 1, class_)
""",
    ),
    cheat(
        "patches Subject.judgement",
        "bad",
        """
from attnspec.conformance.judging.finding import Judgement
from attnspec.conformance.subject.subject import Subject
Subject.judgement = lambda self, case: Judgement((), {"o": 0.0}, 0, 1, "A")
""",
        ending=Ending((1, 5), None, None, silent=OURS),
    ),
    cheat("patches pytest.fail", "bad", "pytest.fail = lambda *a, **k: None"),
    cheat(
        "patches the judge in a call",
        "",
        """
from attnspec.conformance.judging.finding import Judgement
calls = []
def patch():
    import attnspec.conformance.subject.subject as subject
    calls.append(1)
    if len(calls) == 40:
        subject.judge = lambda answer, exact, class_, **k: Judgement((), {"o": 0.0}, 0, 1, class_)
""",
        "patch()\n    if len(calls) < 40: return sdpa(q, k, v)",
        ending=REPLACED,
        isolated=WRONG,
    ),
    cheat(
        "gives the judge other code in a call",
        "",
        """
calls = []
def patch():
    from attnspec.conformance.judging import judge as judging
    calls.append(1)
    if len(calls) == 40:
        judging.compare.__code__ = (lambda got, expected, bound, exempt, name, rest=0.0: (None, 0.0)).__code__
""",
        "patch()\n    if len(calls) < 40: return sdpa(q, k, v)",
        ending=REPLACED,
        isolated=WRONG,
    ),
    cheat(
        "patches np.isfinite in a call",
        "",
        each="np.isfinite = lambda *a, **k: np.array(True)",
        ending=replace(REPLACED, page=None),
        isolated=Ending(has=("FAIL",)),
    ),
    cheat(
        "finds pytest's config in the frames, registers a plugin that ends with os._exit(0)",
        "bad",
        """
class Ends:
    def pytest_unconfigure(self):
        sys.stdout.flush()
        os._exit(0)
done = []
def look():
    frame = sys._getframe()
    while frame is not None and not done:
        for x in frame.f_locals.values():
            if type(x).__name__ == "Config" and hasattr(x, "pluginmanager"):
                done.append(x.pluginmanager.register(Ends()))
                return
        frame = frame.f_back
""",
        "look()",
    ),
    cheat(
        "multiplies the exact answer through the frames",
        "OK",
        """
def look():
    frame = sys._getframe()
    while frame is not None:
        for x in list(frame.f_locals.values()):
            if type(x).__name__ == "Exact":
                x.values["o"] = x.values["o"] * 1.5
        frame = frame.f_back
""",
        "look()",
    ),
    Fault(
        F9,
        "an honest subclass",
        "OK",
        Ending((0, 1), page=None, has=("PASS",)),
        top="class T(torch.Tensor): pass",
        at17="o = o.as_subclass(T)",
    ),
    Fault(
        F9,
        "a subclass that answers with the true tensor, and holds another",
        "bad",
        WRONG,
        top="""
class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        true = lambda x: x.true if isinstance(x, Liar) else x
        with torch._C.DisableTorchFunctionSubclass():
            return function(*map(true, args), **{name: true(x) for name, x in (kwargs or {}).items()})
""",
        at17="true = o; o = (1.5 * o).as_subclass(Liar); object.__setattr__(o, 'true', true)",
        options=("--without=backward",),
    ),
    *(
        Fault(F9, name, "OK", replace(WRONG, says=(says,)), top=top, at17=at17, clauses="SHAPE-1,GRAD-1")
        for name, says, top, at17 in (
            ("nn.Parameter", "has no grad_fn|does not depend", "", "o = torch.nn.Parameter(o.detach())"),
            ("on the meta device", "on meta", "", "o = o.to('meta')"),
            ("sparse", "sparse_coo", "", "o = o.to_sparse()"),
            ("a tuple", "a tuple of 2", "", "o = (o, o)"),
            ("complex", "complex64", "", "o = o.to(torch.complex64)"),
        )
    ),
    Fault(
        F9,
        "a FakeTensor",
        "bad",
        replace(WRONG, says=("FakeTensor",)),
        top="from torch._subclasses.fake_tensor import FakeTensorMode",
        at17="o = FakeTensorMode().from_tensor(o.detach())",
    ),
    Fault(F9, "a nested tensor", "bad", replace(WRONG, says=("nested",)), at17="o = torch.nested.nested_tensor(list(o.detach()))"),
    Fault(
        F9,
        "a tensor with the negative bit",
        "weak",
        RIGHT,
        clauses="SHAPE-1,PURITY-2,PURITY-4",
        each="pass",
        at17="o = torch._neg_view(-o)",
    ),
    Fault(
        F9,
        "a tensor with the conjugate bit",
        "",
        replace(WRONG, says=("complex64",)),
        at17="o = o.to(torch.complex64).conj()",
        clauses="SHAPE-1,PURITY-2",
    ),
    Fault(
        F9,
        "one buffer for every call",
        "OK",
        Ending(has=("FAIL",), says=("PURITY-2 ·",)),
        clauses="PURITY-2",
        options=("--without=backward",),
        source="""
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa
buffer = torch.zeros(10**7)
def attend(q, k, v):
    o = sdpa(q, k, v)
    kept = buffer[: o.numel()].view(o.shape)
    kept.copy_(o)
    return kept
""",
    ),
]
