"""A failing problem as a script that runs by itself, with numpy, torch and the implementation only."""

from __future__ import annotations

import base64
import re
import textwrap
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attnspec.adapters import Unsupported
from attnspec.adapters.memory import bytes_of
from attnspec.adapters.within import PLAINLY, Within
from attnspec.conformance.diagnosis.explained import Explained
from attnspec.conformance.judging.finding import Finding
from attnspec.conformance.judging.judge import beyond, together
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.verdicts.text import quoted
from attnspec.spec import Problem, index
from attnspec.spec.words import INPUT_OF, RETURNED

FOLDER = Path("attnspec-repros")
ENDS = '''
def end(code=2):
    """0: right; 1: the fault is there; 2: anything else that ends this script, such as an import that fails."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


atexit.register(end)
'''
# How a call ends the script: where the fault is that it raises, and where to raise is right.
RAISES = """except BaseException:
    traceback.print_exc()
    end(1)"""
MAY_RAISE = """except Exception as error:
    print("refused, which is right:", error)
    end(0)"""
# What must be as it was after the call.
STATE = """
VARIABLES, PATH = list(os.environ), list(sys.path)


def state():
    return {
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "default device": torch.get_default_device(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "flush-denormal": sys.float_info.min / 2 == 0,
        "error handling of NumPy": np.geterr(),
        "garbage collection": gc.isenabled(),
        "folder": os.getcwd(),
        "recursion limit": sys.getrecursionlimit(),
        "environment": {name: value for name, value in os.environ.items() if name in VARIABLES},
        "sys.path": [x for x in PATH if x in sys.path],
        "standard streams": (sys.stdout, sys.stderr, sys.stdout.closed),
        "random state": torch.get_rng_state().numpy().tobytes(),
        "random state of Python": random.getstate(),
        "random state of NumPy": [x.tolist() if hasattr(x, "tolist") else x for x in np.random.get_state()],
    }


torch.rand(1)
before = state()
"""
STATE_AFTER = (
    "changed = [name for name, value in state().items() if value != before[name]]",
    'print("changed:", changed)',
    "end(int(bool(changed)))",
)
LONGEST = 1 << 20  # elements of inputs up to which there is a script
READABLE = 48  # elements up to which a tensor is written as numbers
TENSOR = '''
def tensor(data, dtype, shape, stride, offset):
    """Raw memory, and how the tensor lies in it."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(data)), np.uint8).copy()
    memory = torch.from_numpy(raw).view(dtype) if len(raw) else torch.empty(0, dtype=dtype)
    return memory.to(DEVICE).as_strided(shape, stride, offset)
'''
CHECK = """
error = (got.detach().cpu().double() - expected).abs()
outside = ~(error <= bound) & ~((got != got).cpu() & (expected != expected))
print(f"{name}: {int(outside.sum())} of {outside.numel()} elements are further from the expected value than the bound")
for at in outside.nonzero().tolist()[:8]:
    at = tuple(at)
    print(f"  {name}{list(at)} = {got[at].item()!r}, expected {expected[at].item()!r} ± {bound[at].item():.3g}")
end(int(outside.any()))
"""


def write(subject: Subject, explained: Explained, other: Problem | None, home: Path) -> Path | None:
    """Write the script beside the others in the folder `home`, and return its path from there. Raises OSError.

    None where the convention can't say the call, the numbers are too many for a script, or a script can't tell right from wrong.
    """
    problems = (explained.problem, *explained.earlier)
    if sum(x.numel() for problem in problems for x in problem.inputs().values()) > LONGEST:
        return None
    try:
        text = script(subject, explained, other)
    except Unsupported:
        return None
    if text is None:
        return None
    try:
        compile(text, "repro", "exec")
    except (SyntaxError, ValueError):  # the implementation's own lines are no Python
        return None
    (home / FOLDER).mkdir(exist_ok=True)
    variant = re.sub(r"\W+", "-", subject.adapter.variant)
    stem = "_".join(
        x for x in ("repro", explained.clause, str(explained.problem.dtype)[6:], explained.finding.output, variant) if x
    )
    path = FOLDER / f"{stem}.py"
    (home / path).write_text(text, encoding="utf-8")
    return path


def script(subject: Subject, explained: Explained, other: Problem | None) -> str | None:
    """The text of the script: imports, the tensors, the call, and what the answer should have been; None where that has no form."""
    clause, finding, of = index()[explained.clause], explained.finding, subject.adapter
    verdict = _verdict(subject, explained, other)
    if not verdict:
        return None
    lines = [
        f'"""{clause.id} · {clause.title}',
        "",
        textwrap.fill(clause.sentence, 110),
        "",
        quoted(f"Found with attnspec on {of.name} {of.variant}".rstrip() + f" ({of.version})."),
        quoted(finding.message),
        '"""',
        "",
        "import atexit",
        "import base64",
        "import contextlib",
        *(["import gc"] if clause.id == "PURITY-3" else []),
        "import os",
        *(["import random"] if clause.id == "PURITY-3" else []),
        "import sys",
        "import traceback",
        "import zlib",
        "",
        "import numpy as np",
        "import torch",
        ENDS,
        *subject.adapter.script(explained.problem).source,
        "",
        f'DEVICE = "{subject.device}"',
        TENSOR,
    ]
    ends = RAISES if finding.kind == "raised" else ""
    if finding.output == "call" and finding.kind == "relation":
        lines += [STATE] if clause.id == "PURITY-3" else []
        ends = MAY_RAISE if clause.id in ("ERROR-2", "ERROR-4", "ERROR-5") else ""
    asked = (*explained.earlier, explained.problem)
    modes = len({problem.training for problem in asked}) > 1 and subject.offers("module")
    for n, earlier in enumerate(explained.earlier):
        mode = [f"attend.train({earlier.training})"] if modes else []
        lines += ["# an earlier call, which must not matter", *mode, *_call(subject, earlier, f"_before{n}", "o"), ""]
    lines += [f"attend.train({explained.problem.training})"] if modes else []
    if finding.kind == "crash":
        lines += [f"print({finding.message!r}, flush=True)  # the call that follows ends this process, too"]
    kinds = {"missing": finding.kind == "missing", "spoilt": finding.kind == "changed" and explained.problem.carrier is not None}
    call = _call(subject, explained.problem, "", _asks_for(finding), explained.within, **kinds)
    lines += _ending(call, ends)
    if other is not None:
        second = _ending(_call(subject, other, "_2", _asks_for(finding)), ends)
        lines += ["", "# the second call, whose answer must be the same", *second]
    return "\n".join([*lines, *verdict]) + "\n"


def _ending(lines: list[str], ends: str) -> list[str]:
    return ["try:", *(f"    {line}" for line in lines), *ends.splitlines()] if ends else lines


def _asks_for(finding: Finding) -> str:
    """What a script has to ask for: the output of a call that ended before its backward, all gradients of one that ended there."""
    ends_forward = finding.output == "call" and finding.kind not in ("changed", "relation") and not finding.of_gradient
    return "o" if ends_forward else finding.output


def _call(
    subject: Subject,
    problem: Problem,
    suffix: str,
    output: str,
    within: Within = PLAINLY,
    *,
    missing: bool = False,
    spoilt: bool = False,
) -> list[str]:
    """The tensors, the call and, where one is asked for, the gradient; that may be `missing`. Raises Unsupported.

    spoilt: the call says in a list of this name what it changed that it may not.
    """
    call = subject.adapter.script(problem, within)
    lines, names = [], {}
    by_id: dict[int, str] = {}
    for parameter, value in call.arguments.items():
        if isinstance(value, Tensor):
            if id(value) not in by_id:
                by_id[id(value)] = parameter + suffix
                lines.append(f"{parameter}{suffix} = {literal(value)}")
            names[parameter] = by_id[id(value)]
        else:
            names[parameter] = repr(value)
    if spoilt:
        lines.append("spoilt = []")
        names["spoilt"] = "spoilt"
    leaves = {name: by_id.get(id(getattr(problem, name))) for name in problem.wrt}
    joined = problem.bias is not None and "bias" in leaves and leaves["bias"] is None
    if joined:  # with a mask, into an argument that has the gradient of the bias, repeated
        own = {id(x) for x in problem.inputs().values()}
        floating = {p for p, x in call.arguments.items() if isinstance(x, Tensor) and x.is_floating_point() and id(x) not in own}
        if INPUT_OF.get(output) == "bias" and len(floating) != 1:
            raise Unsupported("a script can't tell which argument the bias became a part of")
        leaves["bias"] = floating.pop() + suffix if len(floating) == 1 else None
    wanted = [x for x in leaves.values() if x]
    needs = output not in RETURNED and problem.differentiated and wanted
    if problem.differentiated:  # also where the output is wrong: a kernel may take another path for it
        lines += [f"{x}.requires_grad_()" for x in dict.fromkeys(wanted)]
    returned = f"o{suffix}, lse{suffix}" if problem.lse else f"o{suffix}"
    picked = "[:2]" if problem.lse else ""  # what else a convention returns comes behind them
    made = f"{returned} = attend({', '.join(f'{p}={v}' for p, v in names.items())}){picked}"
    lines += within.source(made, subject.device).splitlines()
    if needs:
        lines += [f"{name}{suffix} = {literal(x)}" for name, x in problem.cotangents().items()]
        of = {name.removeprefix("d"): name + suffix for name in problem.cotangents()}
        graded, given = (f"[{', '.join(x)}]" if len(of) > 1 else x[0] for x in ([f"{x}{suffix}" for x in of], [*of.values()]))
        target = leaves.get(INPUT_OF.get(output, "")) or (wanted[0] if output != "call" else ", ".join(dict.fromkeys(wanted)))
        result = f"{output}{suffix}," if output != "call" else f"gradients{suffix}"
        instead = f" if o{suffix}.requires_grad else (None,)" if missing else ""
        lines.append(f"{result} = torch.autograd.grad({graded}, [{target}], {given}, allow_unused=True){instead}")
        if joined and INPUT_OF.get(output) == "bias":
            assert problem.bias is not None
            name, shape = output + suffix, tuple(problem.bias.shape)
            lines.append(f"{name} = {name} if {name} is None else {name}.sum_to_size({shape})")
    return lines


def literal(x: Tensor) -> str:
    """A tensor as Python source that gives back its bits and its strides."""
    dtype, plain = str(x.dtype), x.storage_offset() == 0 and x.stride() == torch.empty(x.shape).stride()
    if x.numel() <= READABLE and plain and bool(torch.isfinite(x).all()):
        return (
            f"torch.tensor({x.detach().cpu().tolist()!r}, dtype={dtype}, device=DEVICE)"
            if x.numel()
            else f"torch.empty({tuple(x.shape)}, dtype={dtype}, device=DEVICE)"
        )
    # All of its memory: what lies behind the last element may be what a kernel reads.
    whole = bytes_of(x)
    data = base64.b64encode(zlib.compress(whole.cpu().numpy().tobytes())).decode()
    return f"tensor({data!r}, {dtype}, {tuple(x.shape)}, {tuple(x.stride())}, {x.storage_offset()})"


def _verdict(subject: Subject, explained: Explained, other: Problem | None) -> list[str]:
    """The end of the script: exit 1 while the fault is there, 0 without it; nothing where no script can tell."""
    finding, output, clause = explained.finding, explained.finding.output, explained.clause
    if finding.kind == "timeout":
        return []  # it would not end
    if clause == "PURITY-5" and finding.kind != "relation" and not explained.earlier:
        return []  # which calls it takes is not known
    compared = _compares(subject, explained, other)
    if compared:
        return compared
    of_kind = {"type": _form, "shape": _form, "dtype": _form, "missing": _missing, "changed": _changed}
    of_kind |= {"raised": _raised, "crash": _raised}
    if finding.kind in of_kind and not ((finding.of_gradient or output == "lse") and of_kind[finding.kind] is _form):
        return ["", *of_kind[finding.kind](explained)]
    if clause in ("ERROR-2", "ERROR-4"):
        return ["", f"print({finding.message!r})", "end(1)"]
    if clause == "PURITY-3":
        return ["", *STATE_AFTER]
    if clause == "PURITY-2" and output == "call":
        return ["", *_shares_memory(subject, explained.problem)]
    return []  # counts of what was drawn


def _compares(subject: Subject, explained: Explained, other: Problem | None) -> list[str]:
    """Compare numbers: with the exact answer, or with that of a second call. Nothing where the failure is not one of numbers."""
    finding, output, exact = explained.finding, explained.finding.output, explained.exact
    if finding.of_numbers and exact is not None and output in exact.values:
        tolerance = exact.tolerance(subject.required_class(str(explained.problem.dtype)[6:]))
        expected, bound, exempt = together(exact, tolerance.bound, tolerance.exempt, output)
        bound = np.where(exempt, np.inf, bound + np.abs(beyond(exact, output))) if explained.margin is None else explained.margin
        return ["", f'name, got = "{output}", {output}', f"expected = {_float(expected)}", f"bound = {_float(bound)}", CHECK]
    if other is not None and explained.margin is not None and (output != "call" or explained.clause == "ERROR-5"):
        shown = "o" if output == "call" else output
        names = f'name, got, expected = "{shown}", {shown}_2, {shown}.detach().cpu().double()'
        return ["", names, f"bound = {_float(explained.margin)}", CHECK]
    return []


def _form(explained: Explained) -> list[str]:
    problem = explained.problem
    shape, dtype = (problem.b, problem.h, problem.i, problem.e), problem.dtype
    return [
        'print("output", type(o), getattr(o, "shape", ""), getattr(o, "dtype", ""))',
        f"end(int(not (isinstance(o, torch.Tensor) and o.shape == {shape} and o.dtype == {dtype})))",
    ]


def _missing(explained: Explained) -> list[str]:
    return [f"print({explained.finding.message!r})", f"end(int({explained.finding.output} is None))"]


def _changed(explained: Explained) -> list[str]:
    message = explained.finding.message
    if explained.problem.carrier is not None:
        return [f"print({message!r}, spoilt)", "end(int(bool(spoilt)))"]
    names = [name for name in explained.problem.inputs() if name in message.split()]
    return [f"print({message!r})", f"# compare {', '.join(names)} before and after the call", "end(1)"]


def _raised(explained: Explained) -> list[str]:
    return ['print("answered", getattr(o, "shape", o))', "end(0)"]


def _shares_memory(subject: Subject, problem: Problem) -> list[str]:
    first: dict[int, str] = {}
    arguments = subject.adapter.script(problem).arguments
    given = {p: first.setdefault(id(x), p) if isinstance(x, Tensor) else repr(x) for p, x in arguments.items()}
    again, tensors = ", ".join(f"{p}={x}" for p, x in given.items()), ", ".join(first.values())
    return [
        f"again = attend({again})",
        "memory = o.untyped_storage().data_ptr()",
        f"shared = [x.untyped_storage().data_ptr() == memory for x in ({tensors}, again)]",
        f'print("the output shares its memory with {tensors}, or the next output:", shared)',
        "end(int(any(shared)))",
    ]


def _float(x: np.ndarray) -> str:
    return (
        literal(torch.from_numpy(np.ascontiguousarray(x))).replace(", device=DEVICE", "")
        if x.size <= READABLE and bool(np.isfinite(x).all())
        else literal(torch.from_numpy(np.ascontiguousarray(x))) + ".cpu()"
    )
