"""Known issues: what is excused and what is not, and that a file that is out of date is an error."""

import contextlib
import datetime
import io
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import judge

from attnspec.adapters import ResolveError, resolve
from attnspec.conformance import check
from attnspec.conformance.known.draft import toml_comment, toml_string
from attnspec.conformance.known.entry import KEYS, table
from attnspec.conformance.known.file import read
from attnspec.conformance.known.issues import Issue
from attnspec.conformance.known.region import Region
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.testing import pinned
from attnspec.conformance.verdicts.verdict import Verdict
from attnspec.spec.words import DTYPES

HERE = Path(__file__).parent
TORCH = HERE.parent / "conformance" / "known-issues-torch.toml"
QUICK = {"clauses": "CAUSAL-1,CAUSAL-2,SCALE-2", "dtypes": "float32,bfloat16"}


def attend(q, k, v, causal=False, scale=None, off=lambda scores, causal, scale: 0):
    """Attention, wrong by what `off` says."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    i, j = scores.shape[-2:]
    if causal:
        scores = scores.masked_fill(torch.ones(i, j, dtype=torch.bool).triu(j - i + 1), float("-inf"))
    return torch.nan_to_num(torch.softmax(scores, -1)) @ v + off(scores, causal, scale)


def fails_at_equal_lengths(q, k, v, causal=False, scale=None):
    """The known issue: causal with as many queries as keys, 3 to 5 of them."""
    return attend(q, k, v, causal, scale, lambda s, causal, _: 1.0 if causal and s.shape[-1] == s.shape[-2] in (3, 4, 5) else 0.0)


def wrong_in_every_causal_call(q, k, v, causal=False, scale=None):
    return attend(q, k, v, causal, scale, lambda s, causal, _: 1.0 if causal and s.shape[-1] == s.shape[-2] else 0.0)


def fails_elsewhere_too(q, k, v, causal=False, scale=None):
    """The known issue, and a second fault of the same clause: causal in bfloat16 with two queries and two keys."""
    second = q.dtype == torch.bfloat16 and causal and k.shape[-2] == q.shape[-2] == 2
    return fails_at_equal_lengths(q, k, v, causal, scale) + (1.0 if second else 0.0)


def right(q, k, v, causal=False, scale=None):
    return attend(q, k, v, causal, scale)


ENTRY = {
    "clause": '"CAUSAL-1"',
    "region": '"causal and 2 < i == j < 6"',
    "pinned": '["i=3,causal=True"]',
    "reason": '"one too much"',
    "url": '"https://tracker.example/7"',
    "owner": '"somebody"',
    "expiry": "2999-01-01",
}


def write(folder: Path, name: str = "fails_at_equal_lengths", entries: int = 1, top: str = "", **changes: str | None) -> Path:
    """A file of known issues whose entry is ENTRY, changed."""
    path = folder / "known.toml"
    entry = {key: value for key, value in {**ENTRY, **changes}.items() if value is not None}
    lines = ["[[issue]]", *(f"{key} = {value}" for key, value in entry.items())]
    path.write_text("\n".join([f'implementation = "{name}"', top, *lines * entries]))
    return path


def counted(result, verdict: Verdict) -> dict[str, int]:
    seen: dict[str, int] = {}
    for cell in result.verdicts:
        if cell["counts"].get(verdict):
            seen[cell["clause"]] = seen.get(cell["clause"], 0) + cell["counts"][verdict]
    return seen


# WHAT IS EXCUSED


def test_a_known_failure_is_no_failure_and_no_pass(tmp_path):
    plain = check(fails_at_equal_lengths, **QUICK)
    assert not plain.ok
    assert plain.broken == ("CAUSAL-1",)
    result = check(fails_at_equal_lengths, known_issues=write(tmp_path), **QUICK)
    assert result.ok, str(result)
    assert not counted(result, Verdict.FAIL)
    assert counted(result, Verdict.KNOWN_ISSUE).keys() == {"CAUSAL-1"}
    text = str(result)
    assert "0 broken, 1 with known issues" in text
    assert re.search(r"CAUSAL-1 +\d+/\d+ k", text)
    wide = r"its region holds \d+ of 2267 problems that a test of CAUSAL-1 asks, 16\.0%: a wide region, more than 10%\n"
    assert re.search(wide, text)
    assert re.search(r"float32: hides (\d+) of \d+ problems asked, \d+\.\d%; \1 of them fail\n", text)
    assert "pinned i=3,causal=True: fails, as expected" in text
    assert "one too much https://tracker.example/7 · somebody, until 2999-01-01" in text


def test_a_second_fault_outside_of_the_region_is_found_and_shown_outside(tmp_path):
    path = write(tmp_path, "fails_elsewhere_too")
    result = check(fails_elsewhere_too, known_issues=path, **QUICK)
    assert not result.ok
    assert {failure.dtype for failure in result.failures} == {"bfloat16"}
    assert result.broken == ("CAUSAL-1",)
    for failure in result.failures:
        assert Case.parse(failure.case).i == 2, failure.text


def test_a_region_that_is_too_narrow_does_not_excuse_what_lies_beside_it(tmp_path):
    result = check(fails_at_equal_lengths, known_issues=write(tmp_path, region='"causal and i == j and i in (3, 5)"'), **QUICK)
    assert result.broken == ("CAUSAL-1",)
    assert all(Case.parse(failure.case).i not in (3, 5) for failure in result.failures)


def test_another_clause_is_not_excused(tmp_path):
    result = check(fails_at_equal_lengths, known_issues=write(tmp_path, clause='"CAUSAL-2"'), **QUICK)
    assert result.broken == ("CAUSAL-1",)
    assert any("fails in another way, or outside of the region once reduced: CAUSAL-1" in error for error in result.errors)


def test_what_a_test_says_of_its_own_problem_is_quoted(tmp_path):
    said = "6 keys and 7 values: 240 of 240 elements of the output change with nan in place of 1 in the memory around the inputs"
    found = f'"{said}"'
    changes = {"clause": '"ERROR-5"', "region": None, "found": found, "pinned": '"heads=2/2"'}
    options = {"clauses": "ERROR-5", "dtypes": "float32", "device": "cpu"}
    path = write(tmp_path, "sdpa-flash", **changes)
    assert check("sdpa-flash", known_issues=path, **options).ok
    path.write_text(path.read_text().replace("240 of 240 ", ""))
    result = check("sdpa-flash", known_issues=path, **options)
    assert result.broken == ("ERROR-5",)
    assert "says something other than `found`" in result.errors[0]


# WHAT IS OUT OF DATE


@pytest.mark.parametrize(
    ("kernel", "changes", "message"),
    [
        (right, {}, "the pinned problem i=3,causal=True passes (XPASS). The issue is fixed: delete the entry"),
        (fails_at_equal_lengths, {"expiry": "2020-01-01"}, "known issue 1 (CAUSAL-1): it expired on 2020-01-01"),
        (fails_at_equal_lengths, {"pinned": '["i=3,causal=True,mask=ij"]'}, "is not offered: it can't take this mask"),
        (fails_at_equal_lengths, {"variant": '"flash"'}, "unknown variant 'flash'; choose from only"),
        (fails_at_equal_lengths, {"region": '"i >= 1"'}, "hide 2267 of 2267 problems that one of its tests asks, more than 50%"),
        # Two rows of the array, and all that CAUSAL-1 asks: every problem of its test has neither mask nor bias.
        (
            wrong_in_every_causal_call,
            {"region": '\'causal and mask == "none" and bias == "none" and i == j\''},
            "the known issues of CAUSAL-1 hide 2267 of 2267 problems that one of its tests asks, more than 50%",
        ),
        (
            fails_at_equal_lengths,
            {"clause": '"SHAPE-5"', "pinned": '["causal=True"]', "region": '"causal and i == j == 1"'},
            "does not test SHAPE-5 (no case of this tier can show it); pin the problem that a failure prints",
        ),
    ],
)
def test_what_is_out_of_date_is_an_error(kernel, changes, message, tmp_path):
    options = {"clauses": f"CAUSAL-1,{changes.get('clause', 'CAUSAL-1').strip(chr(34))}", "dtypes": "float32"}
    result = check(kernel, known_issues=write(tmp_path, kernel.__name__, **changes), **options)
    assert not result.ok
    assert any(message in error for error in result.errors), result.errors
    assert f"ERROR: {next(error for error in result.errors if message in error)}" in str(result)


def test_a_wide_region_is_said_loudly(tmp_path):
    text = str(check(fails_at_equal_lengths, known_issues=write(tmp_path, region='"causal and 2 < i < 8"'), **QUICK))
    assert re.search(r"problems that a test of CAUSAL-1 asks, \d+\.\d%: a wide region, more than 10%", text)
    text = str(check(fails_at_equal_lengths, known_issues=write(tmp_path, region='"causal and i == j == 3"'), **QUICK))
    assert re.search(r"its region holds \d+ of 2267 problems that a test of CAUSAL-1 asks, \d\.\d%\n", text)


def test_a_region_is_measured_on_the_problems_of_its_clause(tmp_path):
    def attend(q, k, v, mask=None):
        return q

    (adapter,) = resolve(attend, {})
    subject = meet(adapter.on("cpu"), "cpu", {}, None, None)
    issue = Issue(1, "MASK-2", (), "", "", "", datetime.date.max, Region.parse('mask == "padding"'))
    assert pinned.share([issue], [subject]) == (2267, 2267)
    of_the_array = sum(case.mask == "padding" for case in array("triples", subject.adapter, DTYPES))
    assert of_the_array < 0.2 * 2267


def test_the_issues_of_torch_are_narrow_among_what_their_clauses_ask():
    (adapter,) = resolve("sdpa-flash", {})
    subject = meet(adapter.on("cpu"), "cpu", {}, None, None)
    for issue in read(TORCH, {"sdpa-flash"}).issues:
        if issue.region is not None:
            hidden, asked = pinned.share([issue], [subject])
            assert 0 < hidden < 0.1 * asked, (issue.name, hidden, asked)


def test_what_a_run_leaves_out_is_said_and_no_error(tmp_path):
    path = write(tmp_path, device='"cuda"')
    result = check(
        right, known_issues=write(tmp_path, "right", device='"cuda"'), clauses="CAUSAL-1", dtypes="float32", device="cpu"
    )
    assert result.ok
    assert "not tested: this run is not on cuda" in str(result)
    for options, reason in (
        ({"clauses": "SCALE-2"}, "--clauses leaves it out"),
        ({"dtypes": "bfloat16"}, "--impl-dtypes leaves it"),
    ):
        result = check(right, known_issues=write(tmp_path, "right"), **{**QUICK, **options})
        assert result.ok, result.errors
        assert f"not tested, {reason}" in str(result)
    assert path.exists()


# WHAT IS REFUSED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reason": None}, "entry 1 (CAUSAL-1): reason is missing; write it"),
        ({"reason": '"TODO"'}, "reason is missing"),
        ({"owner": '" "'}, "owner is missing"),
        ({"url": None}, 'url is missing; write it, because nobody else can (or url = "none known")'),
        ({"expiry": None}, "expiry is missing; write a date, expiry = 2027-06-30"),
        ({"expiry": '"2999-01-01"'}, "expiry is missing"),
        ({"clause": '"CAUSAL-99"'}, "unknown clause 'CAUSAL-99'"),
        ({"clause": "7"}, "clause: write text in quotes"),
        ({"clause": None}, "entry 1: clause is missing; write it as a failure names it"),
        ({"region": "7"}, "region: write text in quotes"),
        ({"reason": "7"}, "reason: write text in quotes"),
        ({"torch": '"2.13"'}, 'torch: write the versions in which it was seen, torch = ["2.13"]'),
        ({"expiry": "2999-01-01T00:00:00"}, "expiry is missing; write a date"),
        ({"pinned": "[]"}, "pinned is missing; copy what a failure prints after --case"),
        ({"pinned": "[3]"}, "pinned is missing; copy what a failure prints after --case"),
        ({"region": None}, "region is missing"),
        ({"region": '"causal and i >> j"'}, "region: not a condition"),
        ({"region": "3"}, "region: write text in quotes"),
        ({"region": '"causal and i > j"'}, "its pinned problem i=3,causal=True is not in its own region, causal and i > j"),
        ({"pinned": None}, "pinned is missing"),
        ({"pinned": '"speed=3"'}, "unknown factor 'speed'"),
        ({"device": '"abacus"'}, "unknown device 'abacus': torch has no device of that name"),
        ({"since": '"today"'}, "unknown key since; choose from clause, region"),
        ({"top": "colour = 3"}, "unknown key colour; write implementation and [[issue]]"),
        ({"clause": '"CAUSAL-1'}, "not valid TOML"),
        ({"name": "other"}, "is for other, but this run tests right"),
    ],
)
def test_a_file_that_says_too_little_is_refused(changes, message, tmp_path):
    with pytest.raises(ResolveError, match="--known-issues ") as error:
        check(right, known_issues=write(tmp_path, **{"name": "right", **changes}), **QUICK)
    assert message in str(error.value)


def test_the_keys_of_the_page_are_those_that_are_read():
    page = (HERE.parent / "docs" / "known-issues.md").read_text(encoding="utf-8")
    assert f"\n\n{table()}\n\n" in page
    assert {field.name for field in fields(Issue)} - {"number"} == KEYS.keys()


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ResolveError, match="No such file"):
        check(right, known_issues=tmp_path / "none.toml")
    (tmp_path / "none.toml").write_text("")
    with pytest.raises(ResolveError, match="name the implementation in its first line, implementation ="):
        check(right, known_issues=tmp_path / "none.toml")


# THE COMMAND


def test_a_draft_is_refused_until_it_is_written_and_then_holds(tmp_path, capsys):
    options = ("--clauses=CAUSAL-1,CAUSAL-2", "--impl-dtypes=float32")
    kernel, draft = f"{HERE / 'test_known.py'}:fails_at_equal_lengths", tmp_path / "draft.toml"
    assert judge(kernel, *options, f"--write-known-issues={draft}").exit == 1
    (issue,) = tomllib.loads(draft.read_text())["issue"]
    assert issue["clause"] == "CAUSAL-1"
    assert all(part in issue["region"] for part in ("causal", "i == j"))
    assert len(issue["pinned"]) == 1
    with pytest.raises(AssertionError, match="exit 4"):
        judge(kernel, *options, f"--known-issues={draft}")
    assert "entry 1 (CAUSAL-1): reason is missing; write it" in capsys.readouterr().err
    draft.write_text(draft.read_text().replace("TODO", "written"))
    outcome = judge(kernel, *options, f"--known-issues={draft}")
    assert outcome.exit == 0, outcome.screen
    assert "xfailed" in outcome.screen
    with pytest.raises(AssertionError, match="exit 4"):
        judge(kernel, *options, f"--write-known-issues={draft}")
    assert "the file exists, and may be somebody's work" in capsys.readouterr().err


@pytest.mark.parametrize("impl", ["sdpa", "sdpa-flash"])
def test_torch_conforms_on_a_cpu_with_its_known_issues_and_not_without(impl):
    options = ("--clauses=CAUSAL-1,SCALE-3,ERROR-5", "--impl-device=cpu", "--impl-dtypes=float32")
    assert judge(impl, *options).exit == 1
    outcome = judge(impl, *options, f"--known-issues={TORCH}")
    assert outcome.exit == 0, outcome.screen
    assert {c[0] for c, counts in outcome.record.counts.items() if counts[Verdict.KNOWN_ISSUE]} == {"SCALE-3", "ERROR-5"}


def test_pyproject_names_the_file_of_its_own_implementation_only(tmp_path, monkeypatch):
    write(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.attnspec]\nknown-issues = "known.toml"\n')
    monkeypatch.chdir(tmp_path)
    source = HERE / "test_known.py"

    def said(name: str, *options: str) -> tuple[int, str]:
        with contextlib.redirect_stdout(io.StringIO()) as screen, contextlib.redirect_stderr(screen):
            place = ("-p", "no:cacheprovider", f"--rootdir={tmp_path}", "-c", str(tmp_path / "pyproject.toml"))
            code = pytest.main(
                [f"--impl={source}:{name}", "--tier=smoke", "--clauses=CAUSAL-1", "--impl-dtypes=float32", *options, *place]
            )
        return int(code), screen.getvalue()

    code, screen = said("fails_at_equal_lengths")
    assert code == 0, screen
    assert f"known issues: 1, from {tmp_path / 'known.toml'}" in screen
    assert said("fails_at_equal_lengths", "--known-issues=")[0] == 1
    assert "known issues" not in said("right")[1]


def test_a_draft_is_toml_whatever_stands_in_it(tmp_path):
    from types import SimpleNamespace

    from attnspec.conformance.known.draft import Draft, Failed

    found = "raised \x1b[31mError\x1b[0m: \"it's\" 'so'\t\x7f \\ \ud800 \U0001f600"
    draft = Draft(tmp_path / "draft.toml")
    draft.bad.append(Failed("test", "only", "cpu", "dtype=float32", "ERROR-1", "dtype=float32", ("ERROR-1",), found))
    adapter = SimpleNamespace(name='C:\\kernels\\new "fast".py:attend')
    draft.write("pytest \x1b\n x", adapter.name, decides=lambda clause: True, several=False)
    read = tomllib.loads((tmp_path / "draft.toml").read_text(encoding="utf-8"))
    assert read["implementation"] == adapter.name
    assert read["issue"][0]["found"] == found.replace("\ud800", "\ufffd")


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(
    st.text(
        st.sampled_from("\"'\\\n\r\t\x00\x1b\x7f\x85\u2028#=\ud800\udfff\uffff \U0001f600a") | st.characters(exclude_categories=())
    )
)
def test_every_string_comes_back_from_toml(text):
    written = f"{toml_comment(text)}\nx = {toml_string(text)}  {toml_comment(text)}\n".encode().decode()
    assert tomllib.loads(written) == {"x": re.sub("[\ud800-\udfff]", "\ufffd", text)}


def test_what_is_asked_again_leaves_nothing_in_the_run(tmp_path):
    """A pinned problem that fails otherwise: its failure is no failure of the run, is not drafted and not diagnosed at the end."""
    from attnspec.conformance.known.draft import Draft
    from attnspec.conformance.run.run import Run
    from attnspec.conformance.run.tier import TIERS

    (adapter,) = resolve(fails_at_equal_lengths, {})
    subject = meet(adapter.on("cpu"), "cpu", {}, None, ("float32",))
    issues = read(write(tmp_path, clause='"CAUSAL-2"'), {adapter.name})
    run = Run("pytest", [subject], TIERS["smoke"], known=issues, draft=Draft(tmp_path / "draft.toml"), repros=False)
    pinned.ask_pinned(run)
    assert any("fails in another way" in error for error in issues.errors), issues.errors
    assert not run.explained
    assert not run.draft.bad
    assert not run.record.failures
    assert not subject.held
