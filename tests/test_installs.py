"""The suite beside the tests of somebody else, in a bare clone, and from a wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QUICK = ("--impl=sdpa-math", "--tier=smoke", "--clauses=CAUSAL-1", "--impl-dtypes=float32", "-p", "no:cacheprovider")


def run(python: Path | str, *command: str, cwd: Path) -> tuple[int, str]:
    """A process that sees no attnspec but what its Python has installed, and no option of ours."""
    hidden = ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(python), *command],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


def environment(folder: Path) -> Path:
    """A Python with the packages of this one, but without attnspec, its entry point and its editable finder.

    Each package is linked, one by one, into the site-packages of a new environment.
    """
    venv.create(folder, with_pip=False)
    packages = next(folder.glob("lib*/python*/site-packages"), None) or folder / "Lib" / "site-packages"
    for place in dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")):
        for entry in Path(place).iterdir():
            ours = "attnspec" in entry.name or (entry.suffix == ".pth" and "attnspec" in entry.read_text())
            if not ours and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    return next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory) -> Path:
    """A Python of its own, without attnspec."""
    folder = tmp_path_factory.mktemp("elsewhere") / "python"
    python = environment(folder)
    code, said = run(python, "-c", "import torch, hypothesis, pytest, einops; import attnspec", cwd=folder)
    assert code == 1, said
    assert "No module named 'attnspec'" in said
    return python


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder with the archive of this source, and the wheel made from the archive. The source lies nowhere else any more."""
    folder = tmp_path_factory.mktemp("published")
    source, made = folder / "source", folder / "made"
    for name in ("spec", "reference", "conformance", "adapters"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, source / path.name)
    (source / "tests").mkdir()
    (source / "tests" / "test_rooms.py").write_text("")  # setuptools would take it, without the modules beside it
    code, said = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(source), cwd=folder)
    assert code == 0, said
    assert "is absent from" not in said, said  # a folder of data that setuptools takes for a package
    shutil.rmtree(source)
    return made


@pytest.fixture(scope="module")
def wheel(published) -> Path:
    (made,) = published.glob("attnspec-*.whl")
    return made


def test_what_is_published_is_well_formed(published):
    pytest.importorskip("twine")
    files = [str(path) for path in published.iterdir()]
    assert len(files) == 2
    code, said = run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=published)
    assert code == 0, said


def test_the_archive_of_the_source_has_no_half_of_the_tests(published):
    (archive,) = published.glob("attnspec-*.tar.gz")
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    assert {"README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "SECURITY.md", "pyproject.toml"} <= inside
    assert not [name for name in inside if name.startswith("tests")]


def test_the_wheel_works_where_the_source_is_absent(elsewhere, wheel, tmp_path):
    empty = tmp_path / "empty"
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    wanted = [
        path
        for pattern in (
            "spec/**/*.md",
            "spec/**/*.py",
            "reference/**/*.py",
            "adapters/**/*.py",
            "conformance/**/*.py",
            "conformance/**/*.csv",
            "conformance/**/*.schema.json",
            "conformance/**/*.toml",
            "conformance/**/templates/*",
            "*/py.typed",
        )
        for path in ROOT.glob(pattern)
        if path.name != "make.py"  # it makes the arrays, in a clone
    ]
    assert {path.suffix for path in wanted} == {".md", ".py", ".csv", ".json", ".toml", ".html", ".css", ".typed"}
    missing = {f"attnspec/{path.relative_to(ROOT).as_posix()}" for path in wanted} - inside
    assert not missing
    assert not [name for name in inside if name.startswith(("attnspec/tests", "tests/"))]

    target = tmp_path / "target"
    code, said = run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--target",
        str(target),
        str(wheel),
        cwd=tmp_path,
    )
    assert code == 0, said
    empty.mkdir()
    start = f"import sys; sys.path.insert(0, {str(target)!r}); import pytest; sys.exit(pytest.main())"
    code, said = run(elsewhere, "-c", start, *QUICK, "--verdicts=v.jsonl", "--verdict-report=v.html", cwd=empty)
    assert code == 0, said
    assert "CAUSAL-1" in (empty / "v.html").read_text(encoding="utf-8")
    command = (
        f"import sys; sys.path.insert(0, {str(target)!r}); from attnspec.conformance.verdicts.cli import main; sys.exit(main())"
    )
    assert run(elsewhere, "-c", command, "diff", "v.jsonl", "v.jsonl", cwd=empty)[0] == 0
    assert re.search(r"^  CAUSAL-1 +(\d+)/\1$", said, re.M)
    assert str(ROOT) not in said
    code, said = run(
        elsewhere,
        "-c",
        f"import sys; sys.path.insert(0, {str(target)!r}); import attnspec.conformance as c; print(c.__file__, c.__version__)",
        cwd=empty,
    )
    assert code == 0
    assert str(target) in said


ADAPTER = """
from torch import Tensor

from attnspec.adapters import Adapter, Call, Unsupported
from attnspec.reference import solve
from attnspec.spec import Dialect, Problem


class Attention(Adapter):
    offers = frozenset({"mha", "causal"})

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None) -> Tensor:
        if causal and scale:
            raise Unsupported("causal beside a scale")
        return (q @ k.mT * (scale or q.shape[-1] ** -0.5)).softmax(-1) @ v


def error(problem: Problem, call: Call) -> float:
    reveal_type(solve(problem, Dialect()).values)
    return call.nonsense
"""


def test_an_adapter_of_a_user_is_checked_against_the_types_of_the_wheel(wheel, tmp_path):
    """Without py.typed a type checker takes everything of ours for Any, and says nothing."""
    python = str(environment(tmp_path / "python"))
    installed = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", str(wheel))
    code, said = run(*installed, cwd=tmp_path)
    assert code == 0, said
    (tmp_path / "adapter.py").write_text(ADAPTER)
    checked = (sys.executable, "-m", "mypy", "--python-executable", python, "--ignore-missing-imports", "adapter.py")
    code, said = run(*checked, cwd=tmp_path)
    assert code == 1, said
    assert said.count("error:") == 1, said
    assert '"Call" has no attribute "nonsense"' in said
    assert "Revealed type" in said
    assert "Any" not in re.findall("Revealed type.*", said)[0].split("ndarray")[0]


def test_a_bare_clone_works_where_nothing_is_installed(elsewhere, tmp_path):
    clone = tmp_path / "any-name"
    for name in ("spec", "reference", "adapters", "conformance"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, clone / name)
    code, said = run(elsewhere, "-m", "pytest", *QUICK[:2], "--clauses=CAUSAL", *QUICK[3:], cwd=clone)
    assert code == 0, said
    assert re.search(r"^  CAUSAL-1 +(\d+)/\1$", said, re.M)
    assert str(ROOT) not in said


# BESIDE THE TESTS OF SOMEBODY ELSE


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A project with patterns, markers and fixtures of its own."""
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers --strict-config\npython_functions = check_*\npython_files = check_*.py\n"
        "markers =\n    ours: a marker of the project\n"
    )
    (tmp_path / "conftest.py").write_text(
        "import pytest\n\n@pytest.fixture\ndef run():\n    return 'the fixture of the project'\n\n"
        "@pytest.fixture(autouse=True)\ndef everywhere():\n    print('always')\n"
    )
    (tmp_path / "check_own.py").write_text(
        "import pytest\n\n@pytest.mark.ours\ndef check_run(run):\n    assert run == 'the fixture of the project'\n\n"
        "def test_is_no_test_here():\n    raise AssertionError\n"
    )
    (tmp_path / "test_not_collected.py").write_text("raise AssertionError('not a test file here')\n")
    return tmp_path


def test_impl_runs_the_suite_and_nothing_else(foreign):
    code, said = run(sys.executable, "-m", "pytest", *QUICK, cwd=foreign)
    assert code == 0, said
    assert "check_own" not in said
    assert re.search(r"^  CAUSAL-1 +(\d+)/\1$", said, re.M)


def test_without_impl_the_project_runs_its_own_tests(foreign):
    code, said = run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", cwd=foreign)
    assert code == 0, said
    assert "1 passed" in said
    assert "CAUSAL" not in said
    assert "attention conformance" not in said


def test_what_is_named_is_run(foreign):
    code, said = run(sys.executable, "-m", "pytest", *QUICK[:2], *QUICK[3:], "check_own.py", cwd=foreign)
    assert "check_own.py" in said
    assert "1 passed" in said, said
    assert "CAUSAL-1 " not in said
    assert code == 5
    assert "nothing was tested" in said
