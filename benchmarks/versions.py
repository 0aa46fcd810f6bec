"""Runs the suite, from a wheel, on the lowest versions that pyproject.toml allows and on the newest ones.

    python benchmarks/versions.py lowest=python3.11 newest=python3.13 --markdown docs/versions.md
    python benchmarks/versions.py beside=python3.11              # the lowest of all but torch, beside this Python's torch

For each argument the script makes a virtual environment under --into with the Python that is named, and installs the wheel of
this clone into it. `lowest` takes exactly the lowest versions of pyproject.toml, `newest` the newest that are available. `beside`
takes the lowest numpy, pytest, hypothesis and einops, and links the torch of the Python that runs this, so that nobody installs
torch again. Then, in an empty folder, `pytest --impl=sdpa-math --tier=smoke` must end with 0. A kernel that ignores causal must end
with 1, by a failure of the CAUSAL chapter whose script ends with 1, too. `beside` asks in float32 only. The exit code is 1 if
anything else happened. On Linux a default torch brings gigabytes of CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "einops", "hypothesis", "pytest")
OF_TORCH = ("torch", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "typing_extensions", "setuptools")
WRONG = """
import torch

def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    function = torch.nn.functional.scaled_dot_product_attention
    return function(query, key, value, attn_mask, dropout_p, False, scale=scale, enable_gqa=enable_gqa)
"""


def lowest() -> dict[str, str]:
    """The lowest version of each package that pyproject.toml allows."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return dict(requirement.split(">=") for requirement in declared)


def run(*command: str | Path, cwd: Path | None = None) -> tuple[int, str]:
    """Exit code, and what was said. Of the environment only what pip and threads go by, and nothing of ours."""
    hidden = ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout


def must(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command says that must end with 0."""
    code, said = run(*command, cwd=cwd)
    if code:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {code}:\n{said[-3000:]}")
    return said


def packages(python: Path) -> Path:
    """Where an environment keeps what is installed."""
    return Path(must(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def link_torch(python: Path) -> None:
    """Torch and what it imports, from the Python that runs this, without a copy."""
    for name in OF_TORCH:
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            there = packages(python) / top
            if not there.exists():
                there.symlink_to(Path(str(distribution(name).locate_file(top))).resolve())


def environment(kind: str, command: str, into: Path, wheel: Path) -> Path:
    """The Python of a new environment, or of one that an earlier call has left."""
    python = into / kind / "bin" / "python"
    if not python.exists():
        must(command, "-m", "venv", into / kind)
    floors = {name: version for name, version in lowest().items() if kind == "lowest" or name != "torch"}
    wanted = [] if kind == "newest" else [f"{name}=={version}" for name, version in floors.items()]
    if kind == "beside":
        link_torch(python)
    must(python, "-m", "pip", "install", "--quiet", *(["--upgrade"] if kind == "newest" else []), *(wanted or PACKAGES))
    must(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    must(python, "-m", "pip", "check") if kind != "beside" else None
    return python


def tried(kind: str, python: Path) -> dict[str, str]:
    """What the suite says there, in a row of the table."""
    code = "import json, platform; from importlib.metadata import version as v; "
    code += f"print(json.dumps({{'python': platform.python_version()}} | {{n: v(n) for n in {PACKAGES}}}))"
    row = {"": kind} | json.loads(must(python, "-c", code))
    few = ["--impl-dtypes=float32"] if kind == "beside" else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "wrong.py").write_text(WRONG, encoding="utf-8")
        suite = (python, "-m", "pytest", "-p", "no:cacheprovider", "--impl-device=cpu", "--tier=smoke", *few)
        ended, said = run(*suite, "--impl=sdpa-math", cwd=folder)
        held = re.search(r"^MUST clauses: .*$", said, re.M)
        row["smoke of sdpa-math"] = f"exit {ended}; {held[0] if held else said[-1500:]}"
        red, told = run(*suite, "--impl=wrong.py:attend", "--clauses=CAUSAL", cwd=folder)
        heading = re.search(r"^(CAUSAL-\d+) · .*$", told, re.M)
        script = next(iter(sorted(folder.glob("attnspec-repros/repro_CAUSAL-*.py"))), None)
        again = run(python, script, cwd=folder)[0] if script else None
        row["a kernel that ignores causal"] = f"exit {red}; {heading[0] if heading else told[-1500:]}; its script: exit {again}"
        row["right"] = "yes" if (ended, red, bool(heading), again) == (0, 1, True, 1) else "NO"
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="+", metavar="KIND=PYTHON", help="KIND is lowest, newest or beside")
    parser.add_argument("--into", type=Path, help="a folder that keeps the environments (default: a new one, removed at the end)")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    asked = [one.partition("=")[::2] for one in options.environments]
    if {kind for kind, _ in asked} - {"lowest", "newest", "beside"} or not all(python for _, python in asked):
        parser.error("each environment is lowest=PYTHON, newest=PYTHON or beside=PYTHON")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        into, wheels = options.into or Path(temporary), Path(temporary) / "wheels"
        must(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, ROOT)
        (wheel,) = wheels.glob("*.whl")
        for kind, command in asked:
            rows.append(tried(kind, environment(kind, command, into, wheel)))
            for name, value in rows[-1].items():
                print(f"{name:30}{value}", flush=True)
    if options.markdown:
        columns = list(rows[0])
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row.values())} |" for row in rows)]
        options.markdown.write_text(page("\n".join(lines)), encoding="utf-8")
    return 0 if all(row["right"] == "yes" for row in rows) else 1


def page(table: str) -> str:
    """The document."""
    return (
        "# Versions\n\n"
        "`benchmarks/versions.py` runs the suite with the lowest versions that `pyproject.toml` allows, and with the newest that\n"
        "were available, from a wheel in an empty folder. In tier smoke torch's math backend must conform. A kernel that ignores\n"
        "causal must break a clause of the CAUSAL chapter, and the script of that failure must fail outside the suite, too. CI\n"
        "runs the lowest numpy, pytest, hypothesis and einops beside the pinned torch each time.\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, Linux, CPU:\n\n{table}\n\n"
        "    python benchmarks/versions.py lowest=python3.11 newest=python3.13 --markdown docs/versions.md\n"
    )


if __name__ == "__main__":
    sys.exit(main())
