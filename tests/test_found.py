"""The faults that pages of docs/found show in released packages are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOUND = Path(__file__).parent.parent / "docs" / "found"
NEEDS = {
    "keras": ("keras", "openvino"),
    "lucidrains": ("x_transformers", "memory_efficient_attention_pytorch", "ring_attention_pytorch"),
    "onnx": ("onnx",),
    "onnxruntime": ("onnx", "onnxruntime"),
    "others": ("mlx", "flax", "openvino", "triton"),
    "torch": ("torch",),
    "transformers": ("transformers",),
}


def test_every_page_is_asked() -> None:
    assert {path.stem for path in FOUND.glob("*.md")} - {"README"} == NEEDS.keys()


@pytest.mark.parametrize("page", sorted(NEEDS))
def test_the_faults_of_a_page_are_there(page: str) -> None:
    missing = [package for package in NEEDS[page] if find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    text = (FOUND / f"{page}.md").read_text(encoding="utf-8")
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
