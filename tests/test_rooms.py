"""The house: each room imports only rooms below it, and two of them need no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("plugin",),
    ("clauses",),
    ("testing",),
    ("report",),
    ("run",),
    ("known",),
    ("diagnosis",),
    ("mistakes", "subject", "vectors"),
    ("campaign", "judging", "problems"),
    ("reference", "adapters", "verdicts"),
    ("spec",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Doors of the house: what is promised at these places, and comes from a room.
DOORS = {f"conformance/{name}.py" for name in ("__init__", "__main__", "commands", "shard", "strategies")}


def room_of(module: str) -> str:
    """The room of a module attnspec.X.Y: a folder of conformance, or one of the other three packages."""
    parts = module.split(".")
    return parts[2] if parts[1] == "conformance" and len(parts) > 2 else parts[1]


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attnspec."):
            deeper = [f"{node.module}.{name.name}" for name in node.names]
            yield from deeper if node.module == "attnspec.conformance" else [str(node.module)]
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("attnspec."))


def files() -> list[Path]:
    return [path for top in ("spec", "reference", "adapters", "conformance") for path in sorted((ROOT / top).rglob("*.py"))]


def test_each_room_imports_rooms_below_it_only() -> None:
    wrong = []
    for path in files():
        relative = path.relative_to(ROOT)
        if relative.as_posix() in DOORS:
            continue
        room = room_of("attnspec." + ".".join(relative.with_suffix("").parts))
        for module in imports(path):
            other = room_of(module)
            if module == "attnspec.conformance.__version__":
                continue
            if other != room and FLOOR[room] >= FLOOR[other]:
                wrong.append(f"{relative} ({room}) imports {module} ({other})")
    assert not wrong


def test_every_folder_is_a_room() -> None:
    rooms = {path.name for path in (ROOT / "conformance").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms | {"reference", "adapters", "spec"} == FLOOR.keys()


NO_TORCH = (
    "import attnspec.conformance.commands",
    "import attnspec.conformance.verdicts.cli",
    "from attnspec.spec import index; index()",
)


@pytest.mark.parametrize("statement", NO_TORCH)
def test_verdicts_and_the_index_of_the_spec_need_no_torch(statement: str) -> None:
    code = f"import sys; sys.modules['torch'] = sys.modules['numpy'] = None; {statement}"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
