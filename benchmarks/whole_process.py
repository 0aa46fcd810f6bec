"""What a run costs: whole processes, wall clock and peak memory, beside the cheapest alternative on the same problems.

    python benchmarks/whole_process.py [--runs 3] [--impl sdpa-math]

The alternative is what a kernel's own test usually does: torch.autograd.gradcheck (fast mode) in float64, and assert_close of
output and gradients against an eager formula. It does so once for each problem of the covering array with at most 2^24 scores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

ALTERNATIVE = """
import torch
from attnspec.adapters import resolve
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.tensors import build
from attnspec.reference.witnesses.autograd import attend  # noqa: F401  the import that the suite pays for, too
from attnspec.spec import Dialect
adapter, = resolve({impl!r})
def eager(q, k, v, mask, bias, causal, scale):
    g = k.shape[1]
    k, v = (x.repeat_interleave(q.shape[1] // g, 1) for x in (k, v))
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None: s = s + bias
    visible = torch.ones_like(s, dtype=torch.bool)
    if mask is not None: visible = visible & (mask[:, None, None] if mask.ndim == 2 else mask)
    if causal: visible = visible & torch.ones(s.shape[-2:], dtype=torch.bool).tril()
    visible = visible & (s > float("-inf"))
    p = torch.softmax(s.masked_fill(~visible, -1e300), -1) * visible
    return p @ v
checked = large = 0
for case in array({array!r}, adapter, ("float64",)):
    if case.b * case.h * case.i * case.keys > 1 << 24:  # the graph of each takes several GiB
        large += 1
        continue
    p = build(case)
    leaves = [x.detach().clone().requires_grad_() for x in (p.q, p.k, p.v)]
    def ours(q, k, v): return adapter.call(p.replace(q=q, k=k, v=v)).function(**adapter.call(p.replace(q=q, k=k, v=v)).arguments)
    def theirs(q, k, v): return eager(q, k, v, p.mask, p.bias, p.causal, p.scale)
    try:
        torch.testing.assert_close(ours(*leaves), theirs(*leaves))
        do = torch.ones_like(ours(*leaves))
        for a, b in zip(torch.autograd.grad(ours(*leaves), leaves, do), torch.autograd.grad(theirs(*leaves), leaves, do)):
            torch.testing.assert_close(a, b)
        torch.autograd.gradcheck(ours, leaves, fast_mode=True)
        checked += 1
    except (AssertionError, RuntimeError):
        pass
print(checked, "problems agree,", large, "too large to ask")
"""


# As a user has it: what Python compiled is kept, whatever this shell says.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(command: list[str]) -> tuple[float, float, int]:
    """Seconds, peak resident MiB, and exit code of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - started, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--impl", default="sdpa-math")
    parser.add_argument("--tiers", nargs="*", default=["smoke", "standard"])
    options = parser.parse_args()
    rows = {"import torch": [sys.executable, "-c", "import torch"]}
    for tier in options.tiers:
        command = [sys.executable, "-m", "pytest", "-q", f"--impl={options.impl}", f"--tier={tier}"]
        rows[f"attnspec --tier {tier}"] = command
        rows[f"attnspec --tier {tier} --in-process"] = [*command, "--in-process"]
        array = {"smoke": "pairs"}.get(tier, "triples")
        rows[f"gradcheck + assert_close, {array}"] = [sys.executable, "-c", ALTERNATIVE.format(impl=options.impl, array=array)]
    # All of them in each round: the machine is as busy for one as for the other.
    rounds = [{name: measure(command) for name, command in rows.items()} for _ in range(options.runs)]
    unit = statistics.median(one["import torch"][0] for one in rounds)  # the figure that a reader can compare
    print(f"{'whole process':36}{'seconds (min / median / max)':>32}{'× import torch':>16}{'peak MiB':>10}{'exit':>6}")
    for name in rows:
        seconds = sorted(one[name][0] for one in rounds)
        print(
            f"{name:36}{f'{seconds[0]:.1f} / {statistics.median(seconds):.1f} / {seconds[-1]:.1f}':>32}"
            f"{statistics.median(seconds) / unit:>16.1f}{max(one[name][1] for one in rounds):>10.0f}{rounds[-1][name][2]:>6}"
        )
    for tier in options.tiers:
        own = f"attnspec --tier {tier}"
        pairs = ", ".join(f"{one[own][0] / one[f'{own} --in-process'][0]:.2f}" for one in rounds)
        print(f"{tier}: a process of its own takes {pairs} times one process, round by round")
    print("peak MiB is that of the larger process")


if __name__ == "__main__":
    main()
