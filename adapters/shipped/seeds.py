"""The five `Attend` modules that the first semantics come from, as their packages publish them.

Only the file that holds the module is loaded: the packages' own imports pull in audio and text stacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from attnspec.adapters.contract import Adapter
from attnspec.adapters.conventions.attend import variants
from attnspec.adapters.conventions.signature import ResolveError
from attnspec.adapters.find import load_file

# Distribution, and the file in it that defines Attend.
FILES = {
    "mixture-of-attention": "mixture_of_attention/attend.py",
    "audiolm-pytorch": "audiolm_pytorch/attend.py",
    "recurrent-memory-transformer-pytorch": "recurrent_memory_transformer_pytorch/attend.py",
    "simple-hierarchical-transformer": "simple_hierarchical_transformer/attention.py",
    "bs-roformer": "bs_roformer/attend.py",
}


def published(name: str, kwargs: Mapping[str, Any]) -> list[Adapter]:
    """The variants of a published seed. Raises ResolveError where the package is not installed."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise ResolveError(
            f"--impl={name} needs the package {name}: pip install --no-deps {name} "
            "(requirements-seeds.txt has the versions that were studied)"
        ) from None
    path = Path(str(distribution.locate_file(FILES[name])))
    module = load_file(path, f"seed_{name.replace('-', '_')}")
    source = (
        "import importlib.util, sys; from importlib import metadata",
        f"path = metadata.distribution({name!r}).locate_file({FILES[name]!r})",
        "spec = importlib.util.spec_from_file_location('seed', path)",
        "seed = importlib.util.module_from_spec(spec)",
        "sys.modules['seed'] = seed; spec.loader.exec_module(seed); attend = seed.Attend",
    )
    adapters = variants(module.Attend, name, source, kwargs)
    for adapter in adapters:
        adapter.version = f"{distribution.name} {distribution.version}"
    return list(adapters)
