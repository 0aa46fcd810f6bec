"""A run on several machines is the same run; what is pinned is the same whatever the seed."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from judging import judge
from test_known import write
from verdict_lines import cell, verdicts

from attnspec.conformance import check
from attnspec.conformance.verdicts.lines import collect
from attnspec.conformance.verdicts.merge import MergeError, Shard, merge, together
from attnspec.spec import index

HERE = Path(__file__).parent
KERNEL = f"{HERE / 'test_known.py'}:fails_at_equal_lengths"
OPTIONS = ("--clauses=SHAPE,SCALE,CAUSAL,ERROR", "--impl-dtypes=float32")


def cells(lines: list[dict]) -> dict[tuple, int]:
    seen: dict[tuple, int] = {}
    for line in lines:
        if line["kind"] == "cell":
            for verdict, n in line["problems"].items():
                cell = (*(line[name] for name in ("clause", "dtype", "variant", "device")), verdict)
                assert cell not in seen
                seen[cell] = n
    return seen


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> tuple[Path, list[Path]]:
    """The verdict file of one run, and those of its three shards."""
    folder = tmp_path_factory.mktemp("shards")
    whole, parts = folder / "whole.jsonl", [folder / f"{n}.jsonl" for n in (1, 2, 3)]
    judge(KERNEL, *OPTIONS, f"--verdicts={whole}")
    for n, part in enumerate(parts, 1):
        outcome = judge(KERNEL, *OPTIONS, f"--shard={n}/3", f"--verdicts={part}")
        assert f"shard {n}/3 · MUST clauses: " in outcome.screen
        assert f", shard {n}/3" in outcome.screen
        assert " deselected" in outcome.screen
    return whole, parts


def test_the_shards_together_are_the_run(shards, tmp_path):
    whole, parts = shards
    merge(reversed(parts), tmp_path / "merged.jsonl")
    merged, single = read(tmp_path / "merged.jsonl"), read(whole)
    assert cells(merged) == cells(single)
    assert len({cell[0] for cell in cells(merged)}) > 10
    failed = [sorted((x["clause"], x["case"]) for x in lines if x["kind"] == "failure") for lines in (merged, single)]
    assert set(failed[0]) == set(failed[1]) != set()
    footer = merged[-1]
    assert (footer["kind"], footer["exit"], footer["problems"]) == ("footer", 1, single[-1]["problems"])
    assert merged[0]["shards"] == 3
    assert "shard" not in merged[0]
    for name in ("suite", "spec", "seed", "subjects", "versions"):
        assert merged[0][name] == single[0][name]


def test_a_test_belongs_to_one_shard():
    for clauses in (("CAUSAL-2", "CAUSAL-3"), *((id_,) for id_ in index())):
        for of in (1, 2, 7):
            assert sum(Shard(n, of).owns(clauses) for n in range(1, of + 1)) == 1
    assert Shard(1, 2).owns(("SHAPE-1", "CAUSAL-3"), ("CAUSAL-3",))
    assert not Shard(1, 2).owns(("SHAPE-1",), ("CAUSAL",))


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4", ""])
def test_a_shard_is_one_of_several(text):
    with pytest.raises(ValueError, match="write 1/4 for the first of four"):
        Shard.parse(text)


def test_more_shards_than_clauses_are_refused(capsys):
    assert judge(KERNEL, "--clauses=CAUSAL-1", "--impl-dtypes=float32", "--shard=2/2").exit == 4
    assert "--shard 2/2: it has no clause, because there are more shards than clauses; use fewer" in capsys.readouterr().err


def test_what_is_not_all_of_one_run_is_not_merged(shards, tmp_path):
    whole, (one, two, three) = shards
    out = tmp_path / "out.jsonl"

    def changed(path: Path, **header) -> Path:
        lines = path.read_text().splitlines()
        (tmp_path / path.name).write_text("\n".join([json.dumps({**json.loads(lines[0]), **header}), *lines[1:]]) + "\n")
        return tmp_path / path.name

    cut = tmp_path / "cut.jsonl"
    cut.write_text("\n".join(three.read_text().splitlines()[:-1]) + "\n")
    torn = tmp_path / "torn.jsonl"
    torn.write_text(three.read_text()[:-20])
    for paths, message in (
        ([one, three], "shard 2/3 is missing: its tests are not in the other files"),
        ([one, one, two], "shard 1/3 is there already"),
        ([one, two, whole], "this is the verdict file of a whole run, not of a shard"),
        ([one, two, cut], "it has no footer, so its run did not end"),
        ([one, two, torn], "it has no footer, so its run did not end"),
        ([one, two, tmp_path / "absent.jsonl"], "not a verdict file"),
        ([one, two, HERE / "judging.py"], "not a verdict file"),
        ([], "there is no verdict file to merge"),
        ([one, changed(two, seed=5), three], "are of different runs: seed differ"),
        ([one, two, changed(three, shard="3/4")], "it is shard 3/4, and"),
    ):
        with pytest.raises(MergeError) as error:
            merge(paths, out)
        assert message in str(error.value)
        assert not out.exists()


def test_two_workers_see_what_one_process_sees(tmp_path):
    """-n 2 and a known issue: the same cells, and the same shares."""
    known = write(tmp_path)
    options = ("--clauses=CAUSAL-1,SCALE-2", "--impl-dtypes=float32", f"--known-issues={known}")
    one, two = judge(KERNEL, *options), judge(KERNEL, *options, "-n2")
    assert (one.exit, two.exit) == (0, 0), two.screen
    assert one.record.counts == two.record.counts
    assert one.run.known.lines == two.run.known.lines


# THE SEED


def fingerprints(seed: int, **options) -> list[str]:
    """What an implementation is given, bit by bit."""
    seen = []

    def attend(q, k, v, causal=False, scale=None):
        numbers = b"".join(x.detach().contiguous().view(torch.uint8).numpy().tobytes() for x in (q, k, v))
        seen.append(hashlib.sha256(numbers + repr((q.shape, k.shape, v.shape, causal, scale)).encode()).hexdigest())
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        if causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(k.shape[-2] - q.shape[-2] + 1)
            scores = scores.masked_fill(hidden, float("-inf"))
        return torch.nan_to_num(torch.softmax(scores, -1)) @ v

    check(attend, "standard", seed=seed, clauses="CAUSAL-1,CAUSAL-5", dtypes="float32", **options)
    return seen


def test_without_the_search_nothing_depends_on_the_seed():
    pinned = fingerprints(0, search=False)
    assert pinned == fingerprints(99, search=False)
    searched, other = fingerprints(0), fingerprints(99)
    assert searched == fingerprints(0)
    assert searched != other
    assert set(pinned) <= set(searched) & set(other)


def test_the_header_says_what_decides():
    options = ("--clauses=CAUSAL-1", "--impl-dtypes=float32", "--attnspec-seed=7")
    assert "tier standard, search with seed 7, clauses CAUSAL-1" in judge(KERNEL, *options, tier="standard").screen
    outcome = judge(KERNEL, *options, "--no-search", tier="standard")
    assert "tier standard, no search, clauses CAUSAL-1" in outcome.screen


def test_what_fails_by_another_clause_is_added_up() -> None:
    one = cell("CAUSAL-1", "float32", {"PASS": 3, "NOT_RUN": 2}) | {"fails_by": {"MASK-5": 2}, "unclear": 1}
    other = cell("CAUSAL-1", "float32", {"PASS": 4, "NOT_RUN": 3}) | {"fails_by": {"MASK-5": 1, "SHAPE-1": 2}, "unclear": 3}
    for changes in ({}, {"inherited": 2}):
        merged = collect(together([verdicts(one | changes), verdicts(other)]))
        made = merged.cells["CAUSAL-1", "float32", "only", "cpu"]
        assert made["problems"] == {"PASS": 7, "NOT_RUN": 5}
        assert made["fails_by"] == {"MASK-5": 3, "SHAPE-1": 2}
        assert (made["unclear"], made.get("inherited", 0)) == (4, changes.get("inherited", 0))
