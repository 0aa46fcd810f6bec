"""Vectors: what a file holds is judged as what was solved is, bit for bit; nothing wrong passes, nothing is lost in silence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from honest import tiled
from jsonschema import Draft202012Validator
from mutants.base import load

from attnspec.adapters import Adapter, Answer, resolve
from attnspec.conformance import check as conforms
from attnspec.conformance.commands import main
from attnspec.conformance.diagnosis.blame import blame
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.vectors.answers import exact_of, judged, problem_of
from attnspec.conformance.vectors.check import CONFORMS, DEVICE, VARIANT, Checked, check
from attnspec.conformance.vectors.format import Vector, about, read_index, stored
from attnspec.conformance.vectors.write import Task, choices_of, features, fingerprint, pack, write_vector
from attnspec.conformance.verdicts.lines import SCHEMA, read
from attnspec.conformance.verdicts.verdict import Verdict
from attnspec.reference import solve
from attnspec.spec import CANONICAL, CHOICES, Dialect, Problem, index
from attnspec.spec.files import Stored
from attnspec.spec.files import read as read_file
from attnspec.spec.files import write as write_file
from attnspec.spec.words import DTYPES, FEATURES

# A right kernel, and wrong ones of three kinds: numbers that are off, numbers that are none, gradients alone.
WRONG = ("bias_scaled", "softmax_without_maximum", "bias_gradient_averaged")
NOT_DENSE = frozenset({"strided"})


def kernel(name: str) -> Adapter:
    """The right kernel, "", or a mutant; both have the parameters of torch's function."""
    (adapter,) = resolve(load()[name].make() if name else tiled, {})
    adapter.offers = frozenset(adapter.offers) - NOT_DENSE
    return adapter


@cache
def subject() -> Subject:
    adapter = kernel("")
    return Subject(adapter, dialect=Dialect(**adapter.dialect))


def in_file(answer: Answer) -> dict[str, Stored]:
    """What a board would write."""
    return {name: stored(x) for name, x in {"o": answer.o, **answer.gradients}.items() if x is not None}


def put(folder: Path, vector: Vector, answer: Answer) -> None:
    """An answer as a board would leave it."""
    if answer.refusal is None or answer.stage == "backward":
        write_file(folder / f"{vector.id}.safetensors", in_file(answer))
    if answer.refusal is not None:
        said = ("unsupported: " if answer.unsupported is not None else "") + answer.refusal
        (folder / f"{vector.id}.error.txt").write_text(said)


def compared(vector: Vector, exact: Path, answer: Path) -> int:
    """Elements that are outside, by the three lines of the README and nothing else of ours."""
    right, got = (read_file(file)[0] for file in (exact, answer))
    outside = 0
    for name in vector.outputs:
        x, o, b = (np.asarray(some[key].array, float) for some, key in ((got, name), (right, name), (right, f"{name}.bound")))
        rest = right[f"{name}.rest"].array if f"{name}.rest" in right else 0.0
        with np.errstate(invalid="ignore", over="ignore"):
            fine = (b == np.inf) | (np.isnan(o) & np.isnan(x)) | (np.abs((x - o) - rest) <= b)
        outside += int((~fine).sum())
    return outside


# THE SAME VERDICTS


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_answer_in_a_file_is_judged_as_a_live_one_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    """Over the whole smoke array, a right kernel and three wrong ones: the same findings, shares, counts, element for element."""
    mine, kernels = subject(), {name: kernel(name) for name in ("", *WRONG)}
    class_, wrong = mine.required_class(dtype), Counter[str]()
    for case in array("pairs", mine.adapter, DTYPES):
        if case.dtype != dtype:
            continue
        problem = mine.problem(case)
        exact = mine.solve(problem, certain=dtype == "float64")
        vector = write_vector(tmp_path, 1, Task(case, problem, exact, class_, ()))
        assert Vector.parse(vector.line()) == vector
        for name, adapter in kernels.items():
            answer = adapter.run(problem)
            assert answer.refusal is None
            put(tmp_path, vector, answer)
            live, filed = judge(answer, exact, class_), judged(tmp_path, tmp_path, vector).judgement
            assert repr(filed) == repr(live), f"{name} on {case.token()}"
            outside = compared(vector, tmp_path / "0001.expected.safetensors", tmp_path / "0001.safetensors")
            assert outside == sum(finding.outside for finding in live.findings)
            wrong[name] += bool(live.findings)
    assert wrong[""] == 0
    assert all(wrong[name] > 1 for name in WRONG), wrong


def test_the_clauses_of_a_set_are_those_that_a_live_run_says(tmp_path: Path) -> None:
    """The same problems pass for each clause, and the same clauses are broken. SCALE-3 is asked by a comparison alone."""
    for name, broken in (("", set()), ("scale_absolute", {"SCALE-3"})):
        adapter = kernel(name)
        live = conforms(adapter, clauses="SCALE-3", dtypes="float32", device="cpu", few_shapes=True)
        there = {verdict["clause"]: verdict["counts"] for verdict in live.verdicts}
        folder, answers = tmp_path / f"set {name}", tmp_path / f"answers {name}"
        dialect = [f"--dialect={key}={value}" for key, value in adapter.dialect.items()]
        offers = ",".join(adapter.offers)
        options = [f"--offers={offers}", *dialect, "--clauses=SCALE-3", "--dtypes=float32", "--few-shapes"]
        assert main(["vectors", "write", str(folder), *options]) == 0
        ask(folder, answers, adapter)
        here = checked(folder, answers).record
        found = {clause: dict(counts) for (clause, *_), counts in here.counts.items()}
        assert found["SCALE-3"].get(Verdict.PASS) == there["SCALE-3"].get(Verdict.PASS)
        assert {clause for clause, counts in found.items() if counts.get(Verdict.FAIL)} == broken
        assert bool(live.broken) == bool(broken)
        if not broken:
            assert found == there


# A SET


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest problems of smoke, in all dtypes."""
    folder = tmp_path_factory.mktemp("vectors") / "small"
    assert main(["vectors", "write", str(folder), "--largest=12000"]) == 0
    return folder


@pytest.fixture(scope="module")
def right(small: Path) -> Path:
    """Right answers to it; the kernel follows the canonical choices."""
    return ask(small, small.parent / "right", canonical())


def canonical(name: str = "") -> Adapter:
    """The kernel with causal aligned bottom-right, as a set has it that says nothing else."""
    adapter = kernel(name)
    ask = adapter.run

    def run(problem: Problem) -> Answer:
        if not problem.causal:
            return ask(problem)
        seen = torch.ones(problem.i, problem.j, dtype=torch.bool).tril(problem.j - problem.i)
        mask = problem.mask if problem.mask is None or problem.mask.ndim != 2 else problem.mask[:, None, None]
        return ask(problem.replace(causal=False, mask=seen[None, None] if mask is None else mask & seen))

    adapter.run = run  # type: ignore[method-assign]
    return adapter


def ask(folder: Path, answers: Path, adapter: Adapter) -> Path:
    """Let a kernel answer all problems of a set."""
    answers.mkdir()
    for vector in read_index(folder):
        put(answers, vector, adapter.run(problem_of(folder, vector)))
    return answers


def checked(folder: Path, answers: Path, **options: object) -> Checked:
    def blamed(case: Case, finding: object, dialect: Dialect, has_empty: bool) -> str:
        return blame(case, finding, dialect, frozenset(), has_empty)  # type: ignore[arg-type]

    return check(folder, answers, blamed, **options)  # type: ignore[arg-type]


def test_right_answers_pass(small: Path, right: Path) -> None:
    done = checked(small, right)
    assert (done.exit, done.missing, done.faults) == (CONFORMS, 0, ())
    counts = sum((counts for counts in done.record.counts.values()), Counter())
    assert counts.keys() == {Verdict.PASS, Verdict.UNSUPPORTED}
    assert "MUST clauses: " in "\n".join(done.lines)


def test_what_is_wrong_is_filed_under_what_the_failing_problems_share(small: Path, tmp_path: Path) -> None:
    """A choice that is another one is named."""
    for name, clause, shared in (("scale_on_top", "SCALE-2", "scale"), ("bias_scaled", "BIAS-1", "bias")):
        done = checked(small, ask(small, tmp_path / name, canonical(name)))
        assert done.exit == 1
        fault = max(done.faults, key=lambda fault: len(fault.failing))
        assert (fault.clause, shared in fault.shared) == (clause, True)
        assert f"{len(fault.failing)} of {len(done.judged)} problems fail like this" in "\n".join(done.lines)
    done = checked(small, ask(small, tmp_path / "top left", kernel("")))
    assert [(fault.clause, fault.finding.hint) for fault in done.faults] == [("CAUSAL-2", "causal_alignment=top_left")]
    assert "causal=True" in done.faults[0].shared
    assert "write the set with --dialect causal_alignment=top_left" in "\n".join(done.lines)


def changed(right: Path, folder: Path, id_: str, **outputs: Stored | None) -> Path:
    """The right answers but for one of them."""
    shutil.copytree(right, folder)
    found, metadata = read_file(folder / f"{id_}.safetensors")
    write_file(folder / f"{id_}.safetensors", {name: x for name, x in {**found, **outputs}.items() if x is not None}, metadata)
    return folder


def answered(right: Path, small: Path, *wanted: str, dtype: str = "float32") -> Vector:
    """A vector that has a right answer with these outputs."""
    return next(
        vector
        for vector in read_index(small)
        if vector.dtype == dtype and set(wanted) <= set(vector.outputs) and (right / f"{vector.id}.safetensors").exists()
    )


@pytest.mark.parametrize(
    "what", ["nan", "infinity", "shape", "dtype", "no output", "no gradient", "just outside", "cut off", "error"]
)
def test_one_wrong_answer_is_seen(what: str, small: Path, right: Path, tmp_path: Path) -> None:
    """Among all the others that are right, whatever is wrong with it; the reader in C sees it, too."""
    vector = answered(right, small, "o", "dk")
    answer, exact = read_file(right / f"{vector.id}.safetensors")[0], exact_of(small, vector)
    o, at = answer["o"].array.copy(), np.unravel_index(int(np.argmax(exact.bound["o"])), exact.bound["o"].shape)
    answers = tmp_path / "answers"
    if what in ("nan", "infinity", "just outside"):
        by = {"nan": np.nan, "infinity": np.inf, "just outside": exact.values["o"][at] + 1.001 * exact.bound["o"][at]}[what]
        o[at] = np.nextafter(np.float32(by), np.float32(np.inf))
        changed(right, answers, vector.id, o=Stored.of(o))
    elif what in ("shape", "dtype"):
        changed(right, answers, vector.id, o=Stored.of(o.swapaxes(2, 3) if what == "shape" else o.astype(np.float64)))
    elif what in ("no output", "no gradient"):
        changed(right, answers, vector.id, **{"o" if what == "no output" else "dk": None})
    else:
        shutil.copytree(right, answers)
        if what == "error":
            (answers / f"{vector.id}.error.txt").write_text("ran past its time")
        else:
            file = answers / f"{vector.id}.safetensors"
            file.write_bytes(file.read_bytes()[:-3])
    done = checked(small, answers)
    assert done.exit == 1
    assert [one.vector.id for one in done.judged if one.finding is not None] == [vector.id]
    assert in_c(small, answers) == (1, verdicts_of(done))


def test_what_is_not_answered_is_counted_and_never_a_pass(small: Path, right: Path, tmp_path: Path) -> None:
    answers, vector = tmp_path / "answers", answered(right, small)
    shutil.copytree(right, answers)
    (answers / f"{vector.id}.safetensors").unlink()
    done = checked(small, answers)
    assert (done.exit, done.missing) == (1, 1)
    assert any(line.startswith("INCOMPLETE: 1 of ") for line in done.lines)
    cell = (vector.clauses[0], vector.dtype, VARIANT, DEVICE)
    assert done.record.counts[cell][Verdict.NOT_RUN] == 1
    assert checked(small, answers, allow_incomplete=True).exit == CONFORMS
    (answers / f"{vector.id}.error.txt").write_text("unsupported: no such width")
    done = checked(small, answers)
    assert (done.exit, done.missing) == (CONFORMS, 0)
    assert "no such width" in done.record.reasons.values()
    (tmp_path / "none").mkdir()
    assert checked(small, tmp_path / "none", allow_incomplete=True).exit == 5


def test_no_memory_for_an_answer_says_nothing_about_it(small: Path, right: Path, tmp_path: Path) -> None:
    answers, vector = tmp_path / "answers", answered(right, small)
    shutil.copytree(right, answers)
    (answers / f"{vector.id}.safetensors").unlink()
    (answers / f"{vector.id}.error.txt").write_text("out of memory")
    done = checked(small, answers)
    assert done.record.counts[vector.clauses[0], vector.dtype, VARIANT, DEVICE][Verdict.RESOURCE] == 1
    assert not done.faults


# THE COMMAND


def test_the_verdict_file_is_one(small: Path, right: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Valid against the schema, with a footer where all was judged and none where something was not."""
    wrong = changed(right, tmp_path / "wrong", answered(right, small).id, o=None)
    less = tmp_path / "less"
    shutil.copytree(right, less)
    next(less.glob("*.safetensors")).unlink()
    for answers, code, ended in ((right, 0, 0), (wrong, 1, 1), (less, 1, 2)):
        file = tmp_path / "verdicts.jsonl"
        assert main(["vectors", "check", str(small), str(answers), "--verdicts", str(file)]) == code
        validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
        for line in file.read_text().splitlines():
            validator.validate(json.loads(line))
        assert (read(file).footer is None) == (ended == 2)
        capsys.readouterr()
        assert main(["verify", str(file)]) == ended


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check", "{tmp}", "{right}"], "is no set of vectors"),
        (["check", "{small}", "{tmp}/none"], "is no folder"),
        (["check", "{small}", "{strange}"], "the set has no such problem"),
        (["check", "{small}", "{right}", "--verdicts={tmp}/none/x"], "does not exist"),
        (["check", "{newer}", "{right}"], "does not know; install a newer one"),
        (["check", "{other}", "{right}"], "is not of format 1"),
        (["write", "{small}"], "is there already"),
        (["write", "{tmp}/x", "--offers=flash"], "unknown flash"),
        (["write", "{tmp}/x", "--dtypes=float8"], "--dtypes float8"),
        (["write", "{tmp}/x", "--dialect=a=b"], "is unknown"),
        (["write", "{tmp}/x", "--class=Z"], "choose from R, A"),
        (["write", "{tmp}/x", "--clauses=FOO"], "unknown chapter"),
        (["write", "{tmp}/x", "--largest=1", "--clauses=SCALE-3"], "no problem is left"),
    ],
)
def test_what_can_not_be_done_is_said(
    words: list[str], says: str, small: Path, right: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, changes in (("newer", {"spec": "99.0"}), ("other", {"format": 99})):
        shutil.copytree(small, tmp_path / name)
        (tmp_path / name / "set.json").write_text(json.dumps({**about(small), **changes}))
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "9999.safetensors").write_bytes(b"")
    folders = {name: tmp_path / name for name in ("strange", "newer", "other")}
    given = [word.format(tmp=tmp_path, small=small, right=right, **folders) for word in words]
    assert main(["vectors", *given]) == 2
    assert says in capsys.readouterr().err


# WHAT IS WRITTEN


def test_the_same_command_writes_the_same_bytes(small: Path, tmp_path: Path) -> None:
    assert main(["vectors", "write", str(tmp_path / "small"), "--largest=12000", f"--zip={tmp_path / 'a.zip'}"]) == 0
    assert fingerprint(tmp_path / "small") == fingerprint(small)
    pack(small, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_problem_comes_back_as_it_was(small: Path) -> None:
    """Bit by bit; and the index says of it what it is."""
    kinds = set()
    for vector in (vector for vector in read_index(small) if not vector.made):
        mine, read_back = written_for().problem(Case.parse(vector.case)), problem_of(small, vector)
        for name in (*mine.inputs(), "do"):
            a, b = getattr(mine, name), getattr(read_back, name)
            assert (a is None) == (b is None)
            if a is not None:
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                assert torch.equal(a.contiguous().view(torch.uint8), b.view(torch.uint8))
                assert b.is_contiguous()
        assert mine.given().keys() == read_back.given().keys()
        assert (mine.wrt, mine.scale, mine.causal) == (read_back.wrt, read_back.scale, read_back.causal)
        assert {"causal", "scale"} <= vector.options.keys()
        assert set(vector.needs) == features(mine) <= set(about(small)["offers"])
        assert vector.shapes == {name: tuple(x.shape) for name, x in mine.inputs().items()}
        kinds.add(vector.dtype)
    assert kinds == set(DTYPES)


@cache
def written_for() -> Subject:
    """What stands for the kernel in the small set."""
    adapter = Adapter()
    adapter.offers = frozenset(FEATURES) - {"strided", "module", "dropout"}
    return Subject(adapter)


def test_a_choice_that_is_not_named_does_not_matter(small: Path) -> None:
    """The answer is the same under each of its values."""
    named = Counter[str]()
    for vector in read_index(small):
        problem = problem_of(small, vector)
        exact = solve(problem, CANONICAL)
        assert vector.dialect == choices_of(problem, exact)
        named.update(list(vector.dialect))
        for name, choice in CHOICES.items():
            for value in choice.values if name not in vector.dialect else ():
                other = solve(problem, CANONICAL.with_choice(name, value))
                assert all(np.array_equal(x, other.values[output], equal_nan=True) for output, x in exact.values.items())
    assert named.keys() == {name for name, choice in CHOICES.items() if choice.of != "rotary"}  # no file holds a cache


def test_files_promise_nothing_that_they_do_not_show(small: Path) -> None:
    asked = {id_ for vector in read_index(small) for id_ in vector.clauses}
    assert not any(index()[id_].kind == "conduct" or index()[id_].chapter in ("LAYOUT", "PURITY") for id_ in asked)
    assert not asked & {"DTYPE-3", "GRAD-6", "DROPOUT-3"}


def test_the_page_of_a_set_names_what_is_in_it(small: Path) -> None:
    page = (small / "README.md").read_text()
    said, found = about(small), read_index(small)
    assert f"{len(found)} problems" in page
    assert "{" not in page
    values = [value for choice in CHOICES.values() for value in choice.values]
    words = [*said["offers"], *CHOICES, *values, "set.json", "index.jsonl", "NNNN.inputs.safetensors"]
    assert [word for word in words if word not in page] == []
    assert f"{said['left_out'][next(iter(said['left_out']))]} problems of the tier" in page


# THE READER IN C


COMPILER = shutil.which("gcc") or shutil.which("cc")
SOURCE = Path(__file__).parent.parent / "examples" / "vectors" / "check.c"


@cache
def reader() -> Path:
    """It, compiled; warnings are errors."""
    if COMPILER is None:
        pytest.skip("there is no C compiler")
    folder = Path(tempfile.mkdtemp(prefix="attnspec-"))
    options = ["-std=c99", "-O2", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    subprocess.run([COMPILER, *options, str(SOURCE), "-lm", "-o", str(folder / "check")], check=True)
    return folder / "check"


def in_c(folder: Path, answers: Path) -> tuple[int, dict[str, bool]]:
    """Its exit code, and for each problem whether it says right."""
    done = subprocess.run([reader(), folder, answers], capture_output=True, text=True, check=False)
    lines = [line.split() for line in done.stdout.splitlines()[:-1]]
    return done.returncode, {id_: said == "right" for id_, said, _ in lines}


def verdicts_of(done: Checked) -> dict[str, bool]:
    """Those of the judge, for each problem that it judged."""
    return {one.vector.id: one.finding is None for one in done.judged if one.judgement is not None}


def test_the_reader_in_c_is_short() -> None:
    lines = SOURCE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 132


def test_the_reader_in_c_says_what_the_judge_says(small: Path, right: Path, tmp_path: Path) -> None:
    assert in_c(small, right) == (0, verdicts_of(checked(small, right)))
    for name in WRONG:
        answers = ask(small, tmp_path / name, canonical(name))
        done = checked(small, answers)
        assert in_c(small, answers) == (int(bool(done.faults)), verdicts_of(done)), name
        if name == "bias_scaled":
            assert done.faults
    assert in_c(tmp_path, right)[0] == 2
    assert in_c(small, tmp_path)[0] == 1


def test_both_read_what_float64_leaves_of_the_exact_value(small: Path, right: Path, tmp_path: Path) -> None:
    """In float64 a right answer is wrong to who reads an exact one that is two bounds away in its rest alone."""
    vector = answered(right, small, dtype="float64")
    shutil.copytree(small, tmp_path / "set")
    file = vector.file(tmp_path / "set", "expected.safetensors")
    found, metadata = read_file(file)
    if "o.rest" not in found:
        pytest.skip("python-flint is not installed: the set has no rest")
    write_file(file, {**found, "o.rest": Stored.of(2 * found["o.bound"].array)}, metadata)
    done = checked(tmp_path / "set", right)
    assert [one.vector.id for one in done.judged if one.finding is not None] == [vector.id]
    assert in_c(tmp_path / "set", right) == (1, verdicts_of(done))


def test_the_inputs_of_a_part_are_those_that_the_page_states(tmp_path: Path) -> None:
    """Half types, whose inputs depend on no last bit of a logarithm, and features of the core, whose arrays never move."""
    page = (Path(__file__).parent.parent / "docs" / "vectors.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^attnspec (vectors write part .*)$", page, re.MULTILINE)
    words = command.split()
    words[2] = str(tmp_path / "part")
    assert main(words) == 0
    found = re.search(r"It has (\d+) problems, and the sha256 of its inputs is `(\w+)`", page)
    assert found is not None
    said = (str(len(read_index(tmp_path / "part"))), fingerprint(tmp_path / "part", ".inputs.safetensors"))
    assert found.groups() == said


def test_what_tests_make_themselves_is_in_a_set_too(tmp_path: Path) -> None:
    """All forms of a mask, and subsets of gradients, with the clause of their test; what is wrong in one form alone is found."""
    folder = tmp_path / "set"
    assert main(["vectors", "write", str(folder), "--clauses=MASK-3,GRAD-5", "--dtypes=float32", "--largest=20000"]) == 0
    found = [vector for vector in read_index(folder) if vector.made]
    assert {vector.made for vector in found} == {"test_all_sixteen_forms", "test_every_subset_of_inputs"}
    forms = [vector for vector in found if vector.made == "test_all_sixteen_forms"]
    assert len({vector.shapes["mask"] for vector in forms}) >= 16
    assert {vector.clauses for vector in forms} == {("MASK-3",)}
    assert len({vector.outputs for vector in found}) >= 8
    for vector in found:
        case = Case.parse(vector.case)
        assert (case.dtype, case.i, case.keys) == (vector.dtype, vector.shapes["q"][2], vector.shapes["k"][-2])
    done = checked(folder, ask(folder, tmp_path / "answers", canonical("mask_over_bh_misread")))
    wrong = [one.vector for one in done.judged if one.finding is not None]
    assert wrong
    assert {vector.made for vector in wrong} == {"test_all_sixteen_forms"}
    assert "of test_all_sixteen_forms" in "\n".join(done.lines)
