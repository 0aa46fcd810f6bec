"""An environment for one implementation: its packages before those of the Python that runs the campaign."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

READY = "attnspec-ready"


class Environment(NamedTuple):
    """Its Python, and the folder in which its own packages are."""

    python: Path
    packages: Path


def environment(requires: Sequence[str], dependencies: bool, constraints: str, home: Path) -> Environment:
    """An environment that has these packages, made where it is not there yet.

    uv makes it where that is installed, else venv and pip. attnspec, torch and all that is not required come from the Python that
    runs this, so that an environment costs what its own packages cost. Raises OSError, with the last lines of the installer, where
    a package can't be had; half an environment is not left.
    """
    said = json.dumps([sys.version, sys.prefix, sorted(requires), dependencies, constraints])
    folder = home / hashlib.sha256(said.encode()).hexdigest()[:16]
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / READY).exists():
            return Environment(python, Path((folder / READY).read_text(encoding="utf-8")))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            packages = _make(folder, python, requires, dependencies, constraints)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / READY).write_text(str(packages), encoding="utf-8")
    return Environment(python, packages)


def _make(folder: Path, python: Path, requires: Sequence[str], dependencies: bool, constraints: str) -> Path:
    uv = shutil.which("uv")
    _call([uv, "venv", "--quiet", "--python", sys.executable, str(folder)] if uv else [sys.executable, "-m", "venv", str(folder)])
    limits = folder / "constraints.txt"
    limits.write_text(constraints, encoding="utf-8")
    if requires:
        install = (
            [uv, "pip", "install", "--quiet", "--python", str(python)] if uv else [str(python), "-m", "pip", "install", "--quiet"]
        )
        _call([*install, *([] if dependencies else ["--no-deps"]), "--constraint", str(limits), *requires])
    # Behind its own packages, in this order: files of paths that stand there are read, too.
    base = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in base)
    own = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
    ).stdout.strip()
    Path(own, "zz_attnspec_base.pth").write_text(lines, encoding="utf-8")
    return Path(own)


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise OSError(f"{Path(command[0]).name} could not make the environment:\n" + "\n".join(done.stdout.splitlines()[-8:]))
