"""The faults that pages of docs/found show in released packages are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

FOUND = Path(__file__).parent.parent / "docs" / "found"
# Of each page: the packages in whose versions the faults were seen, as pip calls them.
NEEDS = {
    "attend": {
        "MEGABYTE-pytorch": "0.3",
        "denoising-diffusion-pytorch": "2.3",
        "gigagan-pytorch": "0.3",
        "iTransformer": "0.8",
        "magvit2-pytorch": "0.5",
        "naturalspeech2-pytorch": "0.1",
        "soundstorm-pytorch": "0.6",
        "spear-tts-pytorch": "0.4",
        "voicebox-pytorch": "0.5",
    },
    "fla": {"fla-core": "0.6"},
    "keras": {"keras": "3.15", "openvino": "2026.4", "torch": "2.13"},
    "lucidrains": {
        "x-transformers": "2.31",
        "memory-efficient-attention-pytorch": "0.1.6",
        "ring-attention-pytorch": "0.5.20",
    },
    "onnx": {"onnx": "1.23"},
    "onnxruntime": {"onnx": "1.23", "onnxruntime": "1.32"},
    "others": {"jax": "0.10", "mlx": "0.32", "flax": "0.12", "openvino": "2026.4", "tinygrad": "0.14", "triton": "3.9"},
    "torch": {"torch": "2.13"},
    "transformers": {"transformers": "5.24"},
}


def there(package: str) -> str:
    """The version of a package, '' where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def test_every_page_is_asked() -> None:
    """But for tables of what was red, which have no scripts."""
    pages = {path.stem for path in FOUND.glob("*.md") if not path.stem.startswith("reds-")}
    assert pages - {"README"} == NEEDS.keys()


@pytest.mark.parametrize("page", sorted(NEEDS))
def test_the_faults_of_a_page_are_there(page: str) -> None:
    other = [f"{package} {version}" for package, version in NEEDS[page].items() if not there(package).startswith(version)]
    if other:
        pytest.skip(f"the page is about {', '.join(other)}, not installed here")
    text = (FOUND / f"{page}.md").read_text(encoding="utf-8")
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def test_each_red_of_the_matrix_is_explained() -> None:
    """The table of the campaign has no broken MUST of which docs/found does not say that it is true, or which clause is meant."""
    said: dict[tuple[str, str], set[str]] = {}
    for table in FOUND.glob("reds-*.md"):
        for line in table.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            for clause in re.findall(r"[A-Z]+-\d+", cells[1]) if len(cells) == 5 else ():
                said.setdefault((cells[0].rstrip("*"), clause), set()).add(cells[3])
    red = []
    for line in (FOUND.parent / "matrix.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        red += [(cells[0].partition(",")[0], clause) for clause in re.findall(r"[A-Z]+-\d+", cells[3] if len(cells) > 4 else "")]
    assert len(red) > 100
    assert [one for one in red if not any(word != "**no**" and word != "no" for word in said.get(one, ()))] == []
