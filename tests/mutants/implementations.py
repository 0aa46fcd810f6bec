"""Mutants by name for --impl: ``tests/mutants/implementations.py:NAME``, or ``mutants.implementations.NAME``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mutants.base import load


def __getattr__(name: str) -> Any:
    if name.startswith("__") or name not in load():
        raise AttributeError(name)
    return load()[name].make()
