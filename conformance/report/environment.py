"""Where a run takes place: the versions of what takes part in it, the devices and their drivers."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "einops", "hypothesis", "pytest", "pytest-xdist", "python-flint", "triton")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed; for torch what it was built for."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    built = {"cuda": torch.version.cuda, "hip": torch.version.hip, "cudnn": str(torch.backends.cudnn.version() or "")}
    return found | {"torch": torch.__version__} | {name: x for name, x in built.items() if x}


def device_name(device: str) -> str:
    """A device as a person would name it."""
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)" if device == "cpu" else device


def device_data(device: str) -> dict[str, str | None]:
    """A device as plain data: its name, its model, and the driver's version, None where there is none to ask."""
    if device.startswith("cuda"):
        return {"device": device, "name": device_name(device), "model": torch.cuda.get_device_name(device), "driver": _driver()}
    return {"device": device, "name": device_name(device), "model": _processor() if device == "cpu" else None, "driver": None}


def _processor() -> str:
    """The processor, and the instructions that torch uses on it."""
    model = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.is_file():
        lines = (line.partition(":") for line in described.read_text(errors="replace").splitlines())
        model = next((value.strip() for name, _, value in lines if name.strip() == "model name"), model)
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {platform.system()}"


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi") or shutil.which("rocm-smi")
    if tool is None:
        return None
    nvidia = "nvidia" in Path(tool).name
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"] if nvidia else [tool, "--showdriverversion", "--csv"]
    try:
        said = subprocess.run(command, text=True, capture_output=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0 if nvidia else -1] if said else None
