"""A bare clone, with nothing installed but the five packages, works as it is."""

import importlib.util
import sys
import types
from pathlib import Path

if importlib.util.find_spec("attnspec") is None:
    package = types.ModuleType("attnspec")
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules["attnspec"] = package
    pytest_plugins = ["attnspec.conformance.plugin"]
