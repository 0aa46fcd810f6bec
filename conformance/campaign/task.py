"""One run of a campaign, on whatever worker has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attnspec.adapters.remote.keeper import die_with_parent
from attnspec.conformance.campaign.environment import environment

GRACE = 60.0  # seconds in which a run that is interrupted writes what it has
PACKAGES = "{packages}"  # in impl: the folder of the environment's own packages, for a file in one that is not imported whole
TAIL = 60  # lines of what it printed


def run(task: Mapping[str, Any], home: str = "") -> dict[str, Any]:
    """Judge one implementation, and return what came of it as plain data.

    home: where environments are kept on this machine. verdicts: the text of its file, "" where there is none. exit: of the run;
    None where it was interrupted, for it took longer than it may. printed: the last lines.
    """
    began = time.monotonic()
    result: dict[str, Any] = {"name": task["name"], "exit": None, "verdicts": "", "printed": [], "trouble": ""}
    kept = Path(home or Path(tempfile.gettempdir()) / "attnspec-environments")
    try:
        python, packages = environment(task["requires"], task["dependencies"], task["constraints"], kept)
    except (OSError, subprocess.SubprocessError) as error:
        return result | {"trouble": str(error), "seconds": time.monotonic() - began}
    with tempfile.TemporaryDirectory(prefix="attnspec-campaign-") as folder:
        verdicts = Path(folder, "verdicts.jsonl")
        command = [
            str(python),
            "-m",
            "pytest",
            f"--impl={task['impl'].replace(PACKAGES, str(packages))}",
            *task["options"],
            "-q",
            "-p",
            "no:cacheprovider",
            f"--verdicts={verdicts}",
        ]
        set_up, asked = time.monotonic() - began, time.monotonic()
        with Path(folder, "printed.txt").open("w+", encoding="utf-8", errors="replace") as printed:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env={**os.environ, "CI": "true", **task["environment"]},
                start_new_session=True,
                preexec_fn=die_with_parent,  # a campaign that is killed leaves no run behind
            )
            try:
                result["exit"] = process.wait(task["seconds"])
            except subprocess.TimeoutExpired:
                result["trouble"] = f"it took longer than {task['seconds']:g} s and was interrupted"
            finally:
                _end(process)
            printed.seek(0)
            result["printed"] = _nowhere(printed.read(), packages, folder).splitlines()[-TAIL:]
        if verdicts.exists():
            result["verdicts"] = _nowhere(verdicts.read_text(encoding="utf-8"), packages, folder)
    return result | {"environment_seconds": set_up, "seconds": time.monotonic() - asked}


def _nowhere(said: str, packages: Path, folder: str) -> str:
    """A text without the folders of this machine: another one has others, and who reads it has neither."""
    for path in (str(packages), *(sysconfig.get_path(name) for name in ("purelib", "platlib"))):
        said = said.replace(path, PACKAGES)
    return said.replace(str(Path(__file__).parents[2]), "attnspec").replace(folder + os.sep, "")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a run and all that it started; it may write what it has."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
