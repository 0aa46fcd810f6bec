"""Campaigns: what the file says, workers that are lost, results that are there already, and the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="a campaign needs distributed: pip install attnspec[fleet]")

from attnspec.conformance.campaign import fleet, overview
from attnspec.conformance.campaign.environment import READY, environment
from attnspec.conformance.campaign.file import read
from attnspec.conformance.commands import main
from attnspec.conformance.verdicts.lines import VerdictError

KERNELS = """
from torch.nn.functional import scaled_dot_product_attention as sdpa
def right(query, key, value, attn_mask=None, is_causal=False):
    return sdpa(query, key, value, attn_mask, is_causal=is_causal)
def wrong(query, key, value, attn_mask=None, is_causal=False):
    return sdpa(query, key, value, None, is_causal=is_causal)
"""
FILE = """
title = "Two <kernels>"
options = ["--tier=smoke", "--clauses=MASK-1", "--impl-dtypes=float32", "--no-search", "--explain-budget=2", "--in-process"]
[[implementation]]
name = "right"
impl = "{0}/kernels.py:right"
[[implementation]]
name = "wrong"
impl = "{0}/kernels.py:wrong"
remark = "It reads no mask."
[[implementation]]
name = "none"
impl = "{0}/kernels.py:nothing"
"""


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    (tmp_path / "kernels.py").write_text(KERNELS)
    path = tmp_path / "some.toml"
    path.write_text(FILE.format(tmp_path))
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title = 'x'", "names no implementation"),
        ("name = 1", "means nothing"),
        ("[[implementation]]\nname = 'a b'\nimpl = 'x'", "needs a name"),
        ("[[implementation]]\nname = 'a'\nimpl = 'x'\nneeds = 3", "needs, which means nothing"),
        ("[[implementation]]\nname = 'a'\nimpl = 'x'\nrequires = 'jax'", "must be a list of texts"),
        ("[[implementation]]\nname = 'a'\nimpl = 'x'\n" * 2, "names a twice"),
        ("constraints = 'nowhere.txt'\n[[implementation]]\nname = 'a'\nimpl = 'x'", "nowhere.txt can't be read"),
        ("[", "is no TOML"),
    ],
)
def test_a_file_that_can_not_be_read_says_why(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(VerdictError, match=words):
        read(path)


def test_a_campaign_asks_each_writes_the_table_and_goes_on_where_it_was(campaign, tmp_path, capsys) -> None:
    page = tmp_path / "page.html"
    assert main(["campaign", str(campaign), "-o", str(page)]) == 0
    results = {name: json.loads((tmp_path / "some" / f"{name}.json").read_text()) for name in ("right", "wrong", "none")}
    assert {name: one["exit"] for name, one in results.items()} == {"right": 0, "wrong": 1, "none": 4}
    markdown = page.with_suffix(".md").read_text()
    assert "| wrong | " in markdown
    assert "does not conform | MASK-1" in markdown
    assert "kernels has no 'nothing'" in markdown
    html = page.read_text()
    assert "Two &lt;kernels&gt;" in html
    assert "It reads no mask." in html
    assert 'href="page/wrong.html"' in html
    assert "MASK-1" in (tmp_path / "page" / "wrong.html").read_text()
    assert not (tmp_path / "some" / "none.html").exists()
    capsys.readouterr()
    asked = []
    fleet.go(read(campaign), tmp_path / "some", run=asked.append, say=asked.append)
    assert asked == ["3 of 3 have their result already"]
    campaign.write_text(campaign.read_text().replace('"--no-search", ', ""))  # what decides has changed
    stamps = {one.name: one.stamp(one.task(read(campaign).options, ""), "x") for one in read(campaign).entries}
    assert all(results[name]["stamp"] != stamp for name, stamp in stamps.items())


def lose_the_first_worker(task: dict[str, Any]) -> dict[str, Any]:
    """Ends its own worker the first time, and answers the second time."""
    marker = Path(task["impl"])
    if not marker.exists():
        marker.write_text("here")
        os.kill(os.getpid(), signal.SIGKILL)
    return {"name": task["name"], "exit": 0, "verdicts": "", "page": "", "printed": [], "trouble": "", "seconds": 0.0}


def test_the_task_of_a_lost_worker_is_given_to_another(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'[[implementation]]\nname = "a"\nimpl = "{tmp_path}/marker"\n')
    fleet.go(read(path), tmp_path / "c", workers=2, run=lose_the_first_worker, say=lambda line: None)
    assert (tmp_path / "marker").exists()
    assert fleet.stored(tmp_path / "c", "a")["exit"] == 0


def test_an_environment_sees_its_own_packages_before_ours(tmp_path: Path) -> None:
    package = tmp_path / "einops-99-py3-none-any"
    (package / "einops").mkdir(parents=True)
    (package / "einops" / "__init__.py").write_text("own = True\n")
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "einops"\nversion = "99"\n[tool.setuptools]\npackages = ["einops"]\n'
    )
    found = environment([str(package)], False, "", tmp_path / "home")
    assert (found.packages / "einops" / "__init__.py").exists()
    code = "import einops, attnspec.spec, torch; print(einops.own)"
    done = subprocess.run([str(found.python), "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
    assert environment([str(package)], False, "", tmp_path / "home") == found
    with pytest.raises(OSError, match="could not make the environment"):
        environment([str(tmp_path / "nothing")], False, "", tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir() if path.is_dir() and not (path / READY).exists()] == []


def test_a_run_that_takes_too_long_leaves_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef attend(q, k, v):\n    time.sleep(0.2); return v.mean(2, True) + q * 0\n")
    task = {
        "name": "slow",
        "impl": f"{tmp_path}/slow.py:attend",
        "requires": [],
        "dependencies": False,
        "constraints": "",
        "environment": {},
        "options": ["--tier=smoke", "--impl-dtypes=float32"],
        "seconds": 25.0,
    }
    from attnspec.conformance.campaign.task import run

    result = run(task, str(tmp_path / "home"))
    assert result["exit"] is None
    assert "was interrupted" in result["trouble"]
    assert '"kind": "header"' in result["verdicts"]


def test_an_implementation_without_a_result_has_a_row(campaign, tmp_path) -> None:
    one = read(campaign)
    (tmp_path / "into").mkdir()
    rows = overview.rows(one, [{} for _ in one.entries], tmp_path / "into")
    assert [row.outcome for row in rows] == [("open", "not asked yet")] * 3
