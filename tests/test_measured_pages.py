"""A page in docs/ that a benchmark wrote has the words that the benchmark would write today; only numbers may be older."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from mutants.base import load

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
NUMBER = re.compile(r"\d[\d,. ]*\d(?:\+cpu)?|\d")
STALE = "These tables were measured with earlier arrays."  # said by hand, until they are measured again
# What is there only if it was found, or names what was: it may differ from page to page.
FOUND = (
    (re.compile(r"# at #(?: at #)*"), "#"),  # problems by bits
    (re.compile(r" \w+ ends with -?#\."), ""),  # scripts that do not show their fault
    (re.compile(r"\*\*Incomplete: .*?\*\* ?"), ""),
    (re.compile(r"\*\*Void: .*?\*\*"), "All # controls are stopped."),
    (re.compile(r"(?<=honest kernels): [^ ]+(?:, [^ ]+)*\."), "."),
    (re.compile(r"(?<=public bugs\. ).*(?= only gives right answers)"), ""),
    (re.compile(r"^- \w[\w-]*: `.*` ?"), ""),  # problems that show nothing
)


def script(name: str) -> ModuleType:
    """A benchmark as a module; not under its own name, for `coverage` is a package, too."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))  # they import one another
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def certificate(_: pytest.MonkeyPatch) -> str:
    pytest.importorskip("flint")
    report = script("certificate").Report()
    report.bits.update((128, 256, 2048))
    return report.markdown("python benchmarks/certificate.py --problems 1 --seed 0 --markdown docs/certificate.md")


def corridor(_: pytest.MonkeyPatch) -> str:
    module = script("corridor_report")
    header = {"torch": "2.13.0", "seed": 0, "code": "bd8f0573d411842e"}
    command = "python benchmarks/corridor.py --problems 1 --workers 2 --seed 0"
    return "\n".join(module.table(module.Tally(), header, command, "corridor.svg"))


def coverage(monkeypatch: pytest.MonkeyPatch) -> str:
    """Without its tables but one: they take minutes."""
    module = script("coverage")
    monkeypatch.setattr(module, "array", lambda *_: [])
    for name in ("by_adapter", "by_run", "by_situation"):
        monkeypatch.setattr(module, name, lambda *_: [])
    return module.page("sdpa-math", 200)


def diagnosis(_: pytest.MonkeyPatch) -> str:
    return script("diagnosis").markdown({}, {})


def kill_matrix(_: pytest.MonkeyPatch) -> str:
    first = {"clause": "MASK-1", "seconds": 2.0, "cpu": 1.0, "test": "test_it", "judged": 3}
    stopped = {
        name: {"name": name, "verdict": "own", "first": first, "family": one.family} for name, one in load().items() if one.clause
    }
    return script("kill_matrix").markdown({"smoke": stopped, "standard": stopped}, [1.0])


def resolving(monkeypatch: pytest.MonkeyPatch) -> str:
    module = script("resolving")
    monkeypatch.setattr(module, "array", lambda *_: [])
    return "\n".join(module.report("triples", 1))


def versions(_: pytest.MonkeyPatch) -> str:
    return script("versions").page("| lowest |\n|---|")


PAGES: dict[str, Callable[[pytest.MonkeyPatch], str]] = {
    "certificate": certificate,
    "corridor": corridor,
    "coverage": coverage,
    "diagnosis": diagnosis,
    "kill-matrix": kill_matrix,
    "resolving": resolving,
    "versions": versions,
}


def prose(page: str) -> set[str]:
    """Its paragraphs, headings and lists, with # for each number; no tables."""
    blocks = {" ".join(block.split()) for block in re.split(r"\n\s*\n", page) if not block.lstrip().startswith("|")}
    return {told for block in blocks if not block.startswith(STALE) and (told := _without_findings(NUMBER.sub("#", block)))}


def _without_findings(block: str) -> str:
    for pattern, instead in FOUND:
        block = pattern.sub(instead, block)
    return block


def heads(page: str) -> set[str]:
    """The header of each table."""
    return set(re.findall(r"^(\|.*\|)\n\|[ -]+\|", page, re.MULTILINE))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_its_script_would_write(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page, written = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"), PAGES[name](monkeypatch)
    assert prose(page) == prose(written)
    if name not in ("coverage", "versions"):  # of which no table is made here
        assert heads(page) == heads(written)


def test_what_a_page_found_is_not_compared() -> None:
    """A page that is measured anew may say what none says now, and is not wrong for it."""
    module = script("kill_matrix")
    name, one = next((name, one) for name, one in load().items() if one.clause and one.family == "control")
    results = {name: {"name": name, "verdict": "survived", "family": one.family}}
    results["x.wrong"] = {"name": "x.wrong", "kind": "honest", "verdict": "false alarm"}
    written = module.markdown({"smoke": results}, [])
    assert all(word in written for word in ("**Void: ", "**Incomplete: ", "honest kernels: x.wrong"))
    stopped = module.markdown({"smoke": {name: {**results[name], "verdict": "own"}}}, [])
    assert prose(written) == prose(stopped)
    assert prose("1 show it. a ends with 2. b_c ends with -11.") == prose("3 show it.")
    assert prose("Problems by bits: 5 at 128.") == prose("Problems by bits: 5 at 128, 1 at 256.")
    assert prose("- padding: `i=1`\n\n- sdpa-math: `j=2`") == set()
