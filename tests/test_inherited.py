"""What a kernel of torch does wrong is inherited by what calls it, and what the caller does wrong by itself is not."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from test_known import counted

from attnspec.adapters.conventions.function import FunctionAdapter
from attnspec.adapters.watch.trace import wholly
from attnspec.conformance import check
from attnspec.conformance.known import inherited
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.verdicts import lines as verdicts
from attnspec.conformance.verdicts.record import Failure, Record
from attnspec.conformance.verdicts.verdict import Verdict
from attnspec.spec import index

QUICK = {"clauses": "SCALE-3,ERROR-5", "dtypes": "float32", "device": "cpu"}
SCALE = {**QUICK, "clauses": "SCALE-3"}
ONE = {**SCALE, "case": "i=3,j=9,d=2,causal=True,scale=-0.5"}
ORIGINS = ("torch 2.13 flash (SCALE-3)", "torch 2.13 flash (ERROR-5)")

sdpa = F.scaled_dot_product_attention
with_known_torch = pytest.mark.skipif(not inherited.shipped(), reason="of this torch no issue is known that others inherit")


def attend(q, k, v, is_causal=False, scale=None, enable_gqa=False):
    """All that it does is to call torch."""
    return sdpa(q, k, v, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)


def expands(q, k, v, is_causal=False, scale=None, enable_gqa=False):
    """It makes copies, and gives each query head its own keys and values."""
    n = q.shape[1] // k.shape[1]
    k, v = (x[:, :, None].expand(-1, -1, n, -1, -1).reshape(x.shape[0], -1, *x.shape[2:]) for x in (k, v))
    return sdpa(q.contiguous(), k, v, is_causal=is_causal, scale=scale)


# WHAT IS INHERITED


@with_known_torch
def test_a_caller_of_torch_is_red_by_default_and_each_issue_is_shown_once():
    result = check(attend, **{**QUICK, "dtypes": "float32,bfloat16"})
    assert result.exit == 1
    assert result.broken == ("SCALE-3", "ERROR-5")
    assert [failure.inherited for failure in result.failures] == list(ORIGINS), str(result)
    for failure, origin in zip(result.failures, ORIGINS, strict=True):
        assert f"inherited from {origin}: the call runs no other kernel, and sdpa-flash gives the same numbers" in failure.text
        assert 'inherited="note" accepts it; it is printed once' in failure.text
    assert {cell["dtype"] for cell in result.verdicts if cell["counts"].get("FAIL")} == {"float32", "bfloat16"}
    assert not counted(result, Verdict.KNOWN_ISSUE)


@with_known_torch
@pytest.mark.parametrize("kernel", [attend, expands])
def test_it_is_accepted_where_that_is_asked_for_and_never_held(kernel, tmp_path):
    result = check(kernel, inherited="note", verdicts=tmp_path / "v.jsonl", **QUICK)
    assert result.exit == 0, str(result)
    assert not result.failures
    assert counted(result, Verdict.KNOWN_ISSUE).keys() == {"SCALE-3", "ERROR-5"}
    must = sum(clause.binding for clause in index().values())
    assert f"MUST clauses: 0 of {must} hold, 0 broken, 2 inherited, " in str(result)
    assert "known to be broken in the kernel that it calls (i): SCALE-3, ERROR-5" in str(result)
    assert [note.partition(", and accepted: ")[0] for note in result.notes] == [f"inherited from {origin}" for origin in ORIGINS]
    reasons = {cell["clause"]: cell["reason"] for cell in result.verdicts if cell["counts"].get("KNOWN_ISSUE")}
    assert list(reasons.values()) == [f"inherited from {origin}" for origin in ORIGINS]
    read = verdicts.read(tmp_path / "v.jsonl")
    assert (read.tally.inherited, read.tally.known, read.tally.holds) == (("SCALE-3", "ERROR-5"), (), ())
    assert read.header["inherited"] == "note"


# WHAT IS NOT


def another_first_key(q, k, v, is_causal=False, scale=None):
    """Where torch is wrong, too, and there are many keys, the first key is lost: a second fault in the region of the first."""
    if is_causal and scale is not None and scale <= 0 and k.shape[-2] > 8:
        k, v = k[..., 1:, :], v[..., 1:, :]
    return sdpa(q, k, v, is_causal=is_causal, scale=scale)


def no_sign(q, k, v, is_causal=False, scale=None):
    """Where torch is right, the sign of the scale is lost."""
    return sdpa(q, k, v, is_causal=is_causal, scale=scale if scale is None or is_causal else abs(scale))


def a_product_beside_it(q, k, v, is_causal=False, scale=None):
    """The numbers are torch's, and somebody computes with them."""
    return sdpa(q, k, v, is_causal=is_causal, scale=scale) * 1.0


def hidden_before_the_scale(q, k, v, is_causal=False, scale=None):
    """The same mistake as torch's, made by itself."""
    s = q.float() @ k.float().mT if q.dtype != torch.float64 else q @ k.mT
    if is_causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).tril().logical_not(), float("-inf"))
    return (torch.softmax(s * (q.shape[-1] ** -0.5 if scale is None else scale), -1) @ v.to(s.dtype)).to(q.dtype)


@with_known_torch
@pytest.mark.parametrize(
    ("kernel", "asked"), [(another_first_key, ONE), (no_sign, SCALE), (a_product_beside_it, ONE), (hidden_before_the_scale, ONE)]
)
def test_a_fault_of_its_own_stays_red(kernel, asked):
    result = check(kernel, inherited="note", **asked)
    assert result.exit == 1
    assert result.failures
    assert not any(failure.inherited for failure in result.failures)
    assert "inherited from" not in "\n".join(failure.text for failure in result.failures)


@with_known_torch
def test_a_second_fault_is_shown_where_it_is_and_does_not_hide_the_first():
    """Both are faults of SCALE-3, both inside of the region."""
    result = check(another_first_key, **SCALE)
    own, theirs = sorted(result.failures, key=lambda failure: failure.inherited)
    assert (own.inherited, theirs.inherited) == ("", ORIGINS[0])
    assert "9 keys" in own.text


@with_known_torch
@pytest.mark.parametrize("kernel", ["sdpa-flash", sdpa, torch.ops.aten.scaled_dot_product_attention.default])
def test_torch_itself_inherits_nothing(kernel):
    result = check(kernel, inherited="note", **ONE)
    assert result.broken == ("SCALE-3",)
    assert not any(failure.inherited for failure in result.failures)


def reads_behind_a_mask(q, k, v, mask=None):
    """A mask (b j) is read as if it were as long as the keys."""
    if mask is not None:
        mask = mask.as_strided((q.shape[0], 1, 1, k.shape[-2]), (mask.stride(0), 0, 0, mask.stride(1)))
    return sdpa(q, k, v, attn_mask=mask)


@with_known_torch
def test_memory_that_it_reads_by_itself_is_not_hidden_by_what_torch_reads():
    result = check(reads_behind_a_mask, inherited="note", **{**QUICK, "clauses": "ERROR-5"})
    assert result.broken == ("ERROR-5",)
    (failure,) = result.failures
    assert "6 keys and 7 values: " in failure.text
    assert "; a key padding mask of 6 for 7 keys: " in failure.text
    assert not failure.inherited


def test_of_another_torch_nothing_is_known(monkeypatch):
    monkeypatch.setattr(inherited, "VERSION", "1.0")
    assert not inherited.shipped.__wrapped__()


# PARTS


def test_what_goes_wholly_to_a_kernel():
    q, k = torch.randn(1, 4, 3, 8, requires_grad=True), torch.randn(1, 2, 5, 8)
    mask = torch.ones(3, 5, dtype=torch.bool)

    def seen(call):
        return wholly(call)

    flash, math = "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"
    assert seen(lambda: sdpa(q, q, q)) == flash
    assert seen(lambda: sdpa(q[:, :2].transpose(1, 2).contiguous().transpose(1, 2), k, k, attn_mask=mask)) == flash
    assert seen(lambda: sdpa(q, k.repeat_interleave(2, 1), k[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2))) == flash
    assert seen(lambda: sdpa(q[..., :4], q[..., :4], q)) == math
    assert seen(lambda: sdpa(q, q, q) * 1) == ""
    assert seen(lambda: sdpa(q, q, q, attn_mask=~torch.zeros(3, 3, dtype=torch.bool))) == ""
    assert seen(lambda: torch.cat([sdpa(x, x, x) for x in q.split(2, 1)], 1)) == ""
    assert seen(lambda: torch.softmax(q @ q.mT, -1) @ q) == ""
    assert seen(lambda: q.detach().numpy()) == ""


def test_what_workers_have_seen_is_put_together():
    cell, record, other = ("SCALE-3", "float32", "only", "cpu"), Record(), Record()
    for one in (record, other):
        one.excuse(cell, "inherited", inherited=True)
    record.absorb(json.loads(json.dumps(other.take())))
    assert record.weighed()[cell] == {"KNOWN_ISSUE": 2, "INHERITED": 2}


def test_the_first_in_order_is_the_one_that_is_shown():
    """Not the first that was met: workers meet them in any order. The footer counts the lines that are left."""
    record = Record()
    run = Run(command="", subjects=[Subject(FunctionAdapter(attend, "attend", ()))], record=record)
    for dtype in ("bfloat16", "float32"):
        record.fail(Failure("SCALE-3", dtype, "only", "cpu", "", "", {"inherited": ORIGINS[0]}, names={"SCALE-3": 0.0}))
    run.close(1)
    assert [failure.dtype for failure in record.failures] == ["float32"]
    assert [line.get("dtype", line.get("failures")) for line in record.lines.kept] == ["float32", 1]


@pytest.mark.parametrize(
    ("counts", "standing"),
    [
        ({"PASS": 3, "KNOWN_ISSUE": 2, "INHERITED": 2}, "inherited"),
        ({"PASS": 3, "KNOWN_ISSUE": 2, "INHERITED": 1}, "known issue"),
        ({"PASS": 3, "KNOWN_ISSUE": 2}, "known issue"),
        ({"FAIL": 1, "KNOWN_ISSUE": 2, "INHERITED": 2}, "broken"),
    ],
)
def test_a_clause_that_is_broken_by_what_is_called_is_not_held(counts, standing):
    assert verdicts.standing(counts) == standing
