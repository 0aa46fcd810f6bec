"""Solutions of FlashInfer-Bench: how they are found, read and called, and what their benchmark passes that the suite does not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from judging import ended, judge
from torch import Tensor

from attnspec.adapters import Adapter, ResolveError, resolve
from attnspec.adapters.restrictions import forbidden, sizes, unknown
from attnspec.adapters.solutions.records import by_name
from attnspec.conformance.problems.array import array
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit
from attnspec.conformance.subject.subject import Subject
from attnspec.spec import Dialect, Problem
from attnspec.spec.ragged import Packed, Paged

PREFILL, DECODE = "gqa_paged_prefill_causal_h4_kv2_d8_ps64", "gqa_paged_decode_h4_kv2_d8_ps1"
RAGGED, LATENT = "gqa_ragged_prefill_causal_h4_kv2_d8", "mla_paged_decode_h4_ckv8_kpe4_ps1"

# As a user would write them: right ones.
PAGED = """
import math
import torch

def run(q, k_cache, v_cache, qo_indptr, kv_indptr, kv_indices, kv_last_page_len, sm_scale):
    output = torch.zeros_like(q)
    lse = torch.full(q.shape[:2], -math.inf, dtype=torch.float32, device=q.device)
    for n in range(len(qo_indptr) - 1):
        pages = kv_indices[kv_indptr[n] : kv_indptr[n + 1]].long()
        if not len(pages):
            continue
        length = (len(pages) - 1) * 64 + int(kv_last_page_len[n])
        k, v = (x[pages].flatten(0, 1)[:length].float().repeat_interleave(2, 1) for x in (k_cache, v_cache))
        rows = slice(int(qo_indptr[n]), int(qo_indptr[n + 1]))
        i, j = rows.stop - rows.start, len(k)
        s = torch.einsum("ihd,jhd->ihj", q[rows].float(), k) * sm_scale
        hidden = torch.arange(j) > torch.arange(i)[:, None] + length - i
        s = s.masked_fill(hidden[:, None], -math.inf)
        m = s.amax(-1, keepdim=True).clamp_min(-1e38)
        p = (s - m).exp()
        total = p.sum(-1, keepdim=True)
        lse[rows] = (m + total.log())[..., 0] / math.log(2)
        output[rows] = (torch.einsum("ihj,jhd->ihd", p, v) / total.where(total > 0, 1)).to(q.dtype)
    return output, lse
"""
SINGLE = """
import math
import torch

def run(q, k_cache, v_cache, kv_indptr, kv_indices, sm_scale, output, lse):
    for n in range(len(q)):
        pages = kv_indices[kv_indptr[n] : kv_indptr[n + 1]].long()
        k, v = (x[pages, 0].float().repeat_interleave(2, 1) for x in (k_cache, v_cache))
        s = torch.einsum("hd,jhd->hj", q[n].float(), k) * sm_scale
        lse[n] = torch.logsumexp(s, -1) / math.log(2)
        output[n] = torch.einsum("hj,jhd->hd", s.softmax(-1), v).to(q.dtype)
"""
PACKED = """
import math
import torch

def run(q, k, v, qo_indptr, kv_indptr, sm_scale):
    assert len(q) == qo_indptr[-1] and len(k) == kv_indptr[-1]
    output = torch.zeros_like(q)
    lse = torch.full(q.shape[:2], -math.inf, dtype=torch.float32, device=q.device)
    for n in range(len(qo_indptr) - 1):
        rows, own = (slice(int(x[n]), int(x[n + 1])) for x in (qo_indptr, kv_indptr))
        i, j = rows.stop - rows.start, own.stop - own.start
        kk, vv = (x[own].float().repeat_interleave(2, 1) for x in (k, v))
        s = torch.einsum("ihd,jhd->ihj", q[rows].float(), kk) * sm_scale
        hidden = torch.arange(j) > torch.arange(i)[:, None] + j - i
        s = s.masked_fill(hidden[:, None], -math.inf)
        lse[rows] = torch.logsumexp(s, -1) / math.log(2)
        p = s.softmax(-1).masked_fill(hidden.all(-1)[:, None, None], 0.0)
        output[rows] = torch.einsum("ihj,jhd->ihd", p, vv).to(q.dtype)
    return output, lse
"""
TWO_PAIRS = """
import math
import torch

def run(q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, sm_scale):
    output = torch.zeros_like(q_nope)
    lse = torch.full(q_nope.shape[:2], -math.inf, dtype=torch.float32)
    for n in range(len(q_nope)):
        pages = kv_indices[kv_indptr[n] : kv_indptr[n + 1]].long()
        if not len(pages):
            continue
        c, r = ckv_cache[pages, 0].float(), kpe_cache[pages, 0].float()
        s = (q_nope[n].float() @ c.T + q_pe[n].float() @ r.T) * sm_scale
        lse[n] = torch.logsumexp(s, -1) / math.log(2)
        output[n] = (s.softmax(-1) @ c).to(q_nope.dtype)
    return output, lse
"""
RIGHT = {PREFILL: PAGED, DECODE: SINGLE, RAGGED: PACKED, LATENT: TWO_PAIRS}
# What is wrong: the definition, a line of the right one, what stands there instead, and a case of the suite that shows it.
SUM = """        total = p.sum(-1, keepdim=True)
"""
SHORT_SUM = """        total = p[..., :1].half()
        for one in p[..., 1:].half().split(1, -1):
            total = total + one
        total = total.float()
"""
WRONG = {
    "it reads all rows of the last page, and hides those that are nobody's": (
        PREFILL,
        "x[pages].flatten(0, 1)[:length]",
        "x[pages].flatten(0, 1)",
        {"carrier": "paged+64+spare", "lengths": "mixed", "b": 2, "i": 3, "j": 65},
    ),
    "it leaves the last key out where that is alone in its page": (
        PREFILL,
        "* 64 + int(kv_last_page_len[n])\n",
        "* 64 + int(kv_last_page_len[n])\n        length -= length % 64 == 1 < length\n",
        {"carrier": "paged+64", "lengths": "1:65/1:64", "b": 2, "i": 1, "j": 65},
    ),
    "it computes something for a sequence without keys": (
        PREFILL,
        "        if not len(pages):\n            continue\n",
        "        pages = pages if len(pages) else kv_indices[:1].long()\n",
        {"carrier": "paged+64+dealt", "lengths": "no_keys", "b": 3, "i": 3, "j": 65},
    ),
    "it does not subtract the maximum": (
        PREFILL,
        "m = s.amax(-1, keepdim=True).clamp_min(-1e38)",
        "m = torch.zeros_like(s[..., :1])",
        {"i": 8, "j": 33, "values": "large"},
    ),
    "it sums up in half precision": (PREFILL, SUM, SHORT_SUM, {"i": 1, "j": 4096, "scale": 0.0}),
    "its queries begin with the first key": (
        RAGGED,
        "torch.arange(i)[:, None] + j - i",
        "torch.arange(i)[:, None]",
        {"carrier": "packed", "lengths": "mixed", "b": 3, "i": 3, "j": 7},
    ),
}


def written(folder: Path, solves: str, source: str, /, **changes: Any) -> Path:
    """The file of a Solution."""
    spec = {"language": "python", "target_hardware": ["cpu"], "entry_point": "main.py::run"}
    spec["destination_passing_style"] = "output, lse)" in source
    data = {"name": "mine", "definition": solves, "author": "me", "spec": spec}
    data["sources"] = [{"path": "main.py", "content": source}]
    spec |= changes.pop("spec", {})
    path = folder / "mine.json"
    path.write_text(json.dumps({name: x for name, x in (data | changes).items() if x is not None}), encoding="utf-8")
    return path


def definition(name: str, /, **changes: Any) -> dict[str, Any]:
    """A well-known Definition as it stands in a file."""
    known = by_name(name)
    assert known is not None
    axes = {axis: {"type": "var"} if size is None else {"type": "const", "value": size} for axis, size in known.axes.items()}
    tensors = {
        which: {one: {"shape": x.shape and list(x.shape), "dtype": x.dtype} for one, x in getattr(known, which).items()}
        for which in ("inputs", "outputs")
    }
    reference = "def run(*inputs):\n    return inputs\n"
    return {"name": name, "op_type": "gqa_paged", "axes": axes, **tensors, "reference": reference} | changes


def adapter_of(path: Path, **kwargs: Any) -> Adapter:
    (adapter,) = resolve(str(path), kwargs)
    return adapter


# THEIR RULE


def passes(output: Tensor, right: Tensor) -> bool:
    """The default rule of the benchmark: the same form, finite, and no element off by more than 0.01 in both ways of counting."""
    x, y = output.float(), right.float()
    error = (x - y).abs()
    beyond = (error > 1e-2) & (error / (y.abs() + 1e-8) > 1e-2)
    return output.shape == right.shape and output.dtype == right.dtype and bool(x.isfinite().all()) and not bool(beyond.any())


def normal(name: str) -> Problem:
    """Inputs as its workloads have them: normal numbers, in sequences of which none is empty."""
    draw = torch.Generator().manual_seed(0)

    def some(heads: int, rows: int, width: int = 8) -> Tensor:
        return torch.randn(3, heads, rows, width, generator=draw).bfloat16()

    if name == RAGGED:
        return Problem(some(4, 50), some(2, 50), some(2, 50), causal=True, lse=True, carrier=Packed((50, 17, 33), (50, 17, 33)))
    carrier = Paged((5, 3, 1), (200, 130, 64), "lure", size=64, spare=2, seed=3)
    return Problem(some(4, 5), some(2, 200), some(2, 200), causal=True, lse=True, carrier=carrier)


@pytest.mark.parametrize("what", WRONG)
def test_what_passes_their_rule_and_not_the_suite(what, tmp_path):
    name, line, instead, levels = WRONG[what]
    assert RIGHT[name].count(line) == 1
    right = adapter_of(written(tmp_path, name, RIGHT[name]))
    wrong = adapter_of(written(tmp_path, name, RIGHT[name].replace(line, instead)))
    theirs = normal(name)
    answer, good = wrong.run(theirs), right.run(theirs)
    assert passes(answer.o, good.o)
    assert passes(answer.lse, good.lse)
    for adapter in (right, wrong):
        subject = Subject(adapter, "cpu", dtypes=("bfloat16",), dialect=Dialect(**adapter.dialect))
        case = fit(Case(dtype="bfloat16", d=8, **levels), adapter)
        assert all(getattr(case, level) == value for level, value in levels.items())
        problem = subject.problem(case)
        assert bool(subject.judge(subject.run(problem), subject.solve(problem)).findings) == (adapter is wrong)


def test_what_both_see(tmp_path):
    """An lse in base e."""
    right = adapter_of(written(tmp_path, RAGGED, PACKED))
    wrong = adapter_of(written(tmp_path, RAGGED, PACKED.replace(" / math.log(2)", "")))
    assert not passes(wrong.run(normal(RAGGED)).lse, right.run(normal(RAGGED)).lse)


def test_a_right_answer_that_their_rule_calls_wrong():
    nothing = torch.full((1, 4), -math.inf)  # the lse of a sequence without keys, as their definitions have it
    assert not passes(nothing, nothing)


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_hold(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clauses = "VARLEN-13,VARLEN-10" if name == RAGGED else "PAGED-8,PAGED-9,PAGED-12,LSE-16"
    outcome = judge(written(tmp_path, name, RIGHT[name]).name, f"--clauses={clauses}")
    assert outcome.exit == 0, outcome.screen
    assert "lse_base = 2 (promised" in outcome.screen


def test_the_script_of_a_failure_needs_only_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, line, instead, _ = WRONG["it leaves the last key out where that is alone in its page"]
    outcome = judge(written(tmp_path, name, RIGHT[name].replace(line, instead)).name, "--clauses=PAGED-8")
    assert outcome.broken(), outcome.screen
    (script,) = tmp_path.glob("attnspec-repros/*.py")
    assert "attnspec" not in script.read_text(encoding="utf-8").partition("import")[2]
    done = ended(script)
    assert done.returncode == 1, done.stderr


# HOW IT IS CALLED


SPY = """
import torch
from . import kept

def run(*given):
    kept.GIVEN.append(given)
    q = given[0]
    return {"lse": torch.zeros(q.shape[:2]), "output": torch.zeros_like(q)}
"""


def test_what_it_is_given(tmp_path):
    sources = [{"path": "deep/main.py", "content": SPY}, {"path": "deep/kept.py", "content": "GIVEN = []\n"}]
    path = written(tmp_path, PREFILL, SPY, sources=sources, spec={"entry_point": "deep/main.py::run"})
    adapter = adapter_of(path)
    given_to = adapter.attend_paged.args[0].__globals__["kept"].GIVEN  # type: ignore[union-attr]
    q, k, v = (torch.randn(2, n, j, 8).bfloat16() for n, j in ((4, 3), (2, 130), (2, 130)))
    carrier = Paged((3, 1), (130, 0), size=64, seed=2, columns=2, unused=-1)
    answer = adapter.run(Problem(q, k, v, causal=True, lse=True, carrier=carrier))
    assert answer.error is None
    assert answer.lse.shape == (2, 4, 3)
    rows, k_cache, _, starts, begins, pages, ends, scale = given_to[0]
    assert rows.shape == (4, 4, 8)
    assert k_cache.shape == (3, 64, 2, 8)
    assert starts.tolist() == [0, 3, 4]
    assert begins.tolist() == [0, 3, 3]
    assert sorted(pages.tolist()) == [0, 1, 2]
    assert ends.tolist() == [2, 0]
    assert {x.dtype for x in (starts, begins, pages, ends)} == {torch.int32}
    assert torch.equal(k_cache[pages.long()].flatten(0, 1)[:130], k[0].transpose(0, 1))
    assert isinstance(scale, float)
    assert scale == 8**-0.5


def test_rows_that_it_does_not_write_are_seen(tmp_path):
    adapter = adapter_of(written(tmp_path, DECODE, SINGLE.replace("range(len(q))", "range(1, len(q))")))
    q, k = torch.ones(2, 4, 1, 8).bfloat16(), torch.ones(2, 2, 3, 8).bfloat16()
    answer = adapter.run(Problem(q, k, k.clone()))
    assert answer.o[0].isnan().all()
    assert (answer.o[1] == 1).all()


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_asked_has_the_sizes_of_the_definition(name, tmp_path):
    adapter = adapter_of(written(tmp_path, name, RIGHT[name]))
    subject = Subject(adapter, "cpu", dtypes=("bfloat16",))
    cases = array("pairs", adapter, ("bfloat16",))
    assert {case.heads for case in cases} == {"4/1" if name == LATENT else "4/2"}
    for case in cases:
        assert fit(case, adapter) == case
        assert not forbidden(adapter.restrictions, subject.problem(case)), case
    carried = [case for case in cases if case.carrier != "none"]
    assert len({case.lengths for case in carried}) > 5


# WHAT A RESTRICTION TO ONE SIZE MEANS


def test_a_size_that_alone_is_taken():
    adapter = Adapter()
    adapter.offers = frozenset({"gqa", "value_width", "packed", "causal"})
    adapter.restrictions = frozenset({"heads:8/2", "value_width:5", "no_tail", "equal_lengths"})
    found = fit(Case(heads="2/2", i=7, j=3, d=8, carrier="packed+tail+slack", lengths="crossed"), adapter)
    assert (found.heads, found.e, found.carrier) == ("8/2", 5, "packed+slack")
    assert sizes(adapter.restrictions) == {"heads": "8/2", "value_width": 5}
    problem = Subject(adapter, "cpu").problem(found)
    assert problem.carrier is not None
    assert problem.carrier.q_lengths == problem.carrier.k_lengths
    assert not forbidden(adapter.restrictions, problem)
    assert forbidden({"heads:8/4"}, problem) == "heads:8/4: this number of query heads and of key heads alone"
    assert forbidden({"queries:1"}, problem).startswith("queries:1: ")
    assert forbidden({"latent_values"}, problem)
    assert unknown({"heads:8/2", "heads:0/2", "heads", "queries:-1", "page_size:64", "page_size:x"}) == [
        "heads",
        "heads:0/2",
        "page_size:x",
        "queries:-1",
    ]


# WHERE THE DEFINITION IS


def test_a_definition_beside_it_or_above_it_or_given(tmp_path):
    inside = tmp_path / "solutions" / "me" / "own"
    inside.mkdir(parents=True)
    path = written(inside, "own", PAGED)
    with pytest.raises(ResolveError, match=r"own\.json and definitions/\*\*/own\.json in the folders above.*gqa_paged_decode_hH"):
        adapter_of(path)
    own = definition(PREFILL, name="own")
    own["inputs"]["q"]["dtype"] = own["inputs"]["k_cache"]["dtype"] = own["inputs"]["v_cache"]["dtype"] = "float32"
    above = tmp_path / "definitions" / "paged" / "own.json"
    above.parent.mkdir(parents=True)
    above.write_text(json.dumps(own), encoding="utf-8")
    assert adapter_of(path).dtypes == ("float32",)
    assert "causal" not in adapter_of(path).offers  # nothing in this name says so
    assert "always_causal" in adapter_of(path, causal=True).restrictions
    own["axes"]["num_qo_heads"]["value"] = 6
    (inside / "own.json").write_text(json.dumps(own), encoding="utf-8")
    assert "heads:6/2" in adapter_of(path).restrictions
    given = tmp_path / "other.json"
    given.write_text(json.dumps(own | {"name": "another"}), encoding="utf-8")
    with pytest.raises(ResolveError, match=r"solves 'own', and .*other\.json defines 'another'"):
        adapter_of(path, definition=str(given))
    with pytest.raises(ResolveError, match="found heads"):
        adapter_of(path, heads=3)


def test_what_names_say():
    found = by_name("gqa_paged_decode_h32_kv8_d128_ps1")
    assert found is not None
    assert list(found.inputs) == ["q", "k_cache", "v_cache", "kv_indptr", "kv_indices", "sm_scale"]
    assert found.size("k_cache", 1) == 1
    found = by_name("mla_paged_prefill_causal_h16_ckv512_kpe64_ps64")
    assert found is not None
    assert list(found.inputs)[4:] == ["qo_indptr", "kv_indptr", "kv_indices", "kv_last_page_len", "sm_scale"]
    found = by_name("mla_ragged_prefill_causal_h16_qk192_vo128")
    assert found is not None
    assert [found.size(name, -1) for name in "qkv"] == [192, 192, 128]
    assert found.constraints == ("total_q == total_kv",)
    assert by_name("gqa_paged_decode_h32") is None


# WHAT IS WRONG WITH IT


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sources": None}, "holds no Solution of FlashInfer-Bench"),
        ({"name": 3}, "name is 3, and must be a text"),
        ({"definition": None}, "definition is missing, and must be a text"),
        ({"spec": {"language": "cuda"}}, "is written in cuda: attnspec builds nothing"),
        ({"spec": {"entry_point": "main.py:run"}}, "is the file and the function, such as main.py::run"),
        ({"spec": {"entry_point": "other.py::run"}}, "names other.py, and sources has main.py"),
        ({"spec": {"entry_point": "main.py::walk"}}, "importing the sources of .* raised .*walk"),
        ({"spec": {"destination_passing_style": 1}}, "destination_passing_style is 1, and must be true or false"),
        ({"sources": [{"path": "../main.py", "content": "x"}]}, "leaves the folder of the sources"),
        ({"sources": ["main.py"]}, "must be an object with path and content"),
        ({"sources": [{"path": "main.py", "content": "import nowhere_to_be_found"}]}, "raised .*nowhere_to_be_found"),
        ({"sources": [{"path": "main.py", "content": "run = 3"}]}, "names a int, which can't be called"),
    ],
)
def test_a_solution_that_is_wrong(changes, says, tmp_path):
    with pytest.raises(ResolveError, match=says):
        adapter_of(written(tmp_path, PREFILL, PAGED, **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"axes": {"total_q": {"type": "const"}}}, "axes.total_q is .*const"),
        ({"axes": {"total_q": {"type": "var"}}}, "inputs.q has the axis 'num_qo_heads', and axes has total_q"),
        ({"inputs": {"q": {"shape": "total_q", "dtype": "bfloat16"}}}, "must have a shape, the names of its axes or null"),
        ({"inputs": {"q": {"shape": ["total_q"]}}}, "inputs.q.dtype is missing"),
        ({"inputs": {"q": {"shape": ["total_q"], "dtype": "bfloat16"}}}, "has the inputs q. attnspec calls Definitions of"),
        ({"outputs": {}}, "has the outputs ; attnspec knows output and lse"),
    ],
)
def test_a_definition_that_is_wrong(changes, says, tmp_path):
    path = written(tmp_path, PREFILL, PAGED)
    (tmp_path / f"{PREFILL}.json").write_text(json.dumps(definition(PREFILL, **changes)), encoding="utf-8")
    with pytest.raises(ResolveError, match=says):
        adapter_of(path)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (PREFILL, lambda own: own["inputs"].pop("kv_last_page_len"), "no kv_last_page_len says where a sequence ends"),
        (PREFILL, lambda own: own["inputs"].update(mask=own["inputs"]["sm_scale"]), "nothing is known of mask"),
        (PREFILL, lambda own: own["inputs"]["k_cache"].update(dtype="float8_e4m3fn"), "in bfloat16, float8_e4m3fn"),
        (RAGGED, lambda own: own["inputs"].pop("kv_indptr"), "has the inputs q, k, v, qo_indptr, sm_scale"),
    ],
)
def test_a_definition_that_is_not_known(name, change, says, tmp_path):
    path, own = written(tmp_path, name, RIGHT[name]), definition(name)
    change(own)
    (tmp_path / f"{name}.json").write_text(json.dumps(own), encoding="utf-8")
    with pytest.raises(ResolveError, match=says):
        adapter_of(path)


def test_a_file_that_holds_no_json(tmp_path):
    (tmp_path / "mine.json").write_text("{", encoding="utf-8")
    with pytest.raises(ResolveError, match="can't be read as JSON"):
        resolve(str(tmp_path / "mine.json"))
    with pytest.raises(ResolveError, match="does not exist"):
        resolve(str(tmp_path / "yours.json"))
