"""An adapter passes on what it was given, and gives back what came."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from calling import Spy, function, padding, problem, textbook
from honest import Attend as HonestAttend
from torch import nn

from attnspec.adapters import Adapter, Unsupported, resolve, same_bits
from attnspec.adapters.conventions.function import FunctionAdapter
from attnspec.adapters.conventions.signature import Signature
from attnspec.conformance import check
from attnspec.spec import Problem

# WHAT IS PASSED ON


def test_options_go_to_the_constructor_or_to_the_call():
    made, called = [], []

    class Constructed(nn.Module):
        def __init__(self, dropout=0.0, causal=False, scale=None):
            super().__init__()
            made.append({"dropout": dropout, "causal": causal, "scale": scale})

        def forward(self, q, k, v):
            return textbook(q, k, v)

    class Called(nn.Module):
        def forward(self, q, k, v, causal=False, scale=None, dropout=0.0):
            called.append({"dropout": dropout, "causal": causal, "scale": scale})
            return textbook(q, k, v)

    options = {"causal": True, "scale": 0.5, "dropout": 0.25}
    for kind, seen in ((Constructed, made), (Called, called)):
        (adapter,) = resolve(kind)
        assert adapter.run(problem(**options, training=True)).refusal is None
        assert seen[-1] == options
    assert resolve(Called)[0].run(problem(dropout=0.25)).refusal is None
    assert called[-1]["dropout"] == 0.0  # not in training


def test_one_instance_for_each_constructor_setting():
    plain, flash = resolve(HonestAttend)

    def instance(adapter, **options):
        return adapter.call(problem(**options)).function

    assert instance(plain) is instance(plain, mask=padding())
    assert instance(plain, causal=True) is instance(plain, causal=True)
    assert instance(plain) is not instance(plain, causal=True)
    assert instance(plain, dropout=0.5) is not instance(plain, dropout=0.25)
    assert instance(plain) is not instance(flash)
    assert instance(flash).flash
    assert not instance(plain).flash


def test_the_mode_is_set_on_every_call():
    modes = []

    class Modes(nn.Module):
        def forward(self, q, k, v):
            modes.append(self.training)
            return textbook(q, k, v)

    for adapter in (*resolve(Modes), *resolve(Modes())):
        modes.clear()
        for training in (True, False, False, True):
            adapter.run(problem(training=training))
        assert modes == [True, False, False, True]
        assert adapter.call(problem(training=True)).source[-1].endswith(".train(True)")


def test_torch_convention_merges_what_it_documents_as_exclusive():
    spy = Spy()
    adapter = FunctionAdapter(spy, "spy", ())
    mask = padding()[:, None, None, :]
    bias = torch.randn(3, 4, 5)
    triangle = torch.ones(4, 5, dtype=torch.bool).tril()

    def given(**options):
        assert adapter.run(problem(**options)).refusal is None
        return spy.given["attn_mask"], spy.given["is_causal"]

    assert given() == (None, False)
    assert given(causal=True) == (None, True)
    assert torch.equal(given(mask=padding())[0], mask)
    merged, causal = given(mask=padding(), causal=True)
    assert torch.equal(merged, mask & triangle)
    assert causal is False
    assert torch.equal(given(bias=bias)[0], bias)
    hidden = float("-inf")
    assert torch.equal(given(bias=bias, causal=True)[0], bias.masked_fill(~triangle, hidden))
    merged, causal = given(bias=bias, mask=padding(), causal=True)
    assert torch.equal(merged, bias.masked_fill(~(mask & triangle), hidden))
    assert causal is False


def test_other_conventions_get_both():
    seen = {}

    def attend(q, k, v, mask=None, causal=False):
        seen.update(mask=mask, causal=causal)
        return textbook(q, k, v)

    resolve(attend)[0].run(problem(mask=padding(), causal=True))
    assert seen["causal"] is True
    assert torch.equal(seen["mask"], padding()[:, None, None, :])


def test_only_what_was_asked_for_is_passed():
    spy = Spy()
    adapter = FunctionAdapter(spy, "spy", ())
    assert set(adapter.call(problem()).arguments) == {"query", "key", "value"}
    assert set(adapter.call(problem(scale=0.5, dropout=0.1)).arguments) == {"query", "key", "value", "scale"}
    assert adapter.call(problem(dropout=0.1, training=True)).arguments["dropout_p"] == 0.1
    grouped = Problem(torch.ones(1, 4, 3, 8), torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 8))
    assert adapter.call(grouped).arguments["enable_gqa"] is True


def test_what_the_convention_can_not_say_is_unsupported():
    plain = function("q, k, v")
    for options in (
        {"mask": padding()},
        {"bias": torch.zeros(4, 5)},
        {"causal": True},
        {"scale": 0.5},
        {"dropout": 0.1, "training": True},
    ):
        answer = plain.run(problem(**options))
        assert answer.unsupported.startswith("attend has no parameter for "), options
        assert answer.error is None
    assert "one shared head" in plain.run(problem(shared=True)).unsupported
    (attend, _) = resolve(HonestAttend)
    assert "have a head axis" in attend.run(problem(shared=True)).unsupported
    for options in ({"scale": 0.5}, {"bias": torch.zeros(4, 5)}):
        assert "has no parameter for" in attend.run(problem(**options)).unsupported

    class Nothing(Adapter): ...

    assert "defines no attend()" in resolve(Nothing)[0].run(problem()).refusal


def test_layout_and_bits_are_passed_through_unchanged():
    spy = Spy()
    adapter = FunctionAdapter(spy, "spy", ())
    wide = torch.randn(2, 5, 3, 16)
    q = torch.randn(2, 4, 3, 9)[..., 1:].transpose(1, 2)
    k = wide.transpose(1, 2)[..., ::2]
    v = torch.randn(2, 1, 1, 8).expand(2, 3, 5, 8)
    bias = torch.randn(4, 1).expand(4, 5)
    for wrt in ((), ("q", "k", "v", "bias")):
        adapter.run(Problem(q, k, v, bias=bias, do=torch.ones(2, 3, 4, 8), wrt=wrt))
        for name, x in (("query", q), ("key", k), ("value", v), ("attn_mask", bias)):
            given = spy.given[name]
            assert given.stride() == x.stride()
            assert given.data_ptr() == x.data_ptr()
            assert given.dtype == x.dtype


# WHAT COMES BACK


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        SystemExit(3),
        pytest.skip.Exception("skipped"),
        pytest.fail.Exception("failed"),
        AssertionError(),
        StopIteration(),
        GeneratorExit(),
    ],
)
def test_what_an_implementation_raises_is_its_answer(error):
    def forward(q, k, v):
        raise error

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q):
            return q.clone()

        @staticmethod
        def backward(ctx, grad):
            raise error

    answer = resolve(forward)[0].run(problem())
    assert (answer.error, answer.stage, answer.o) == (error, "forward", None)
    assert type(error).__name__ in answer.refusal
    asked = problem(do=torch.ones(2, 3, 4, 8), wrt=("q",))
    answer = FunctionAdapter(lambda q, k, v: Backward.apply(q), "backward", ()).run(asked)
    assert (type(answer.error), answer.stage) == (type(error), "backward")
    assert answer.o is not None

    class Constructor(nn.Module):
        def __init__(self, causal=False):
            super().__init__()
            if causal:
                raise error

        def forward(self, q, k, v):
            return textbook(q, k, v)

    assert resolve(Constructor)[0].run(problem(causal=True)).error is error


def test_an_unsupported_raised_inside_an_adapter_is_no_error():
    class Picky(Adapter):
        offers = {"mha", "causal", "scale"}

        def attend(self, q, k, v, **options):
            raise Unsupported("only on Sundays")

    answer = resolve(Picky)[0].run(problem(causal=True, scale=0.5))
    assert (answer.unsupported, answer.error) == ("only on Sundays", None)


@pytest.mark.parametrize("result", [None, (1, 2), "text", torch.zeros(3).numpy(), torch.zeros(2, dtype=torch.cfloat)])
def test_whatever_is_returned_is_handed_on(result):
    asked = problem(do=torch.ones(2, 3, 4, 8), wrt=("q",))
    answer = FunctionAdapter(lambda q, k, v: result, "odd", ()).run(asked)
    assert answer.o is result or torch.equal(answer.o, result)
    assert answer.error is None


@pytest.mark.parametrize("name", ["q", "k", "v", "mask", "bias", "do"])
def test_a_changed_input_is_named_and_restored(name):
    def spoil(x):
        memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        memory.copy_(~memory if memory.dtype == torch.bool else memory + 1)

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q):
            return q.clone()

        @staticmethod
        def backward(ctx, grad):
            if name == "do":
                spoil(grad)
            return grad

    def attend(q, k, v, mask=None, bias=None):
        if name != "do":
            spoil(locals()[name])
        return Backward.apply(q)

    plain = problem(mask=padding(), bias=torch.randn(4, 5), do=torch.randn(2, 3, 4, 8), wrt=("q",))
    tensors = {n: getattr(plain, n) for n in ("q", "k", "v", "mask", "bias", "do")}
    expanded = {n: x[:1].expand_as(x) for n, x in tensors.items()}
    strided = {n: torch.stack([x, x], -1)[..., 0] for n, x in tensors.items()}
    for variant in (tensors, expanded, strided):
        asked = plain.replace(**variant)
        before = {n: x.clone() for n, x in variant.items()}
        answer = FunctionAdapter(attend, "spoils", ()).run(asked)
        assert answer.refusal is None
        assert answer.changed == (name,)
        for n, x in before.items():
            assert same_bits(getattr(asked, n), x), n


def test_nan_and_the_sign_of_zero_are_no_change_and_a_change():
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.double())
    assert same_bits(torch.tensor([1j]), torch.tensor([1j]))
    asked = problem()
    asked.q[0, 0, 0, 0] = float("nan")
    assert FunctionAdapter(textbook, "t", ()).run(asked).changed == ()


def test_one_tensor_given_twice_is_one_leaf():
    seen = {}

    def attend(q, k, v):
        seen["one"] = k is v
        return textbook(q, k, v)

    asked = problem(do=torch.randn(2, 3, 4, 8), wrt=("q", "k", "v"))
    apart = FunctionAdapter(attend, "a", ()).run(asked.replace(v=asked.k.clone())).gradients
    assert seen["one"] is False
    together = FunctionAdapter(attend, "a", ()).run(asked.replace(v=asked.k)).gradients
    assert seen["one"] is True
    torch.testing.assert_close(together["dq"], apart["dq"])
    torch.testing.assert_close(together["dk"], apart["dk"] + apart["dv"])
    assert torch.equal(together["dk"], together["dv"])


def test_gradients_are_of_what_was_asked_and_none_where_there_is_none():
    do = torch.randn(2, 3, 4, 8)
    adapter = FunctionAdapter(textbook, "t", ())
    assert set(adapter.run(problem(do=do, wrt=("k",))).gradients) == {"dk"}
    assert adapter.run(problem(do=do)).gradients == {}
    detached = FunctionAdapter(lambda q, k, v: textbook(q, k, v).detach(), "t", ())
    assert detached.run(problem(do=do, wrt=("q", "v"))).gradients == {"dq": None, "dv": None}
    of_v_only = FunctionAdapter(lambda q, k, v: v[:, :, :4] * 1, "t", ())
    answer = of_v_only.run(problem(do=do, wrt=("q", "v")))
    assert answer.gradients["dq"] is None
    assert answer.gradients["dv"] is not None
    asked = problem(do=do, wrt=("q",))
    adapter.run(asked)
    assert not asked.q.requires_grad  # problems are shared between tests


# SDPA


def test_the_backend_that_ran_is_named(capfd):
    assert "aten::_scaled_dot_product_attention_math" in str(resolve("sdpa-math")[0].trace(problem()))
    assert "scaled_dot_product_flash_attention" in str(resolve("sdpa-flash")[0].trace(problem()))
    assert "scaled_dot_product_flash_attention" in str(resolve("sdpa")[0].trace(problem()))
    if not torch.cuda.is_available():
        for name in ("sdpa-efficient", "sdpa-cudnn"):
            assert str(resolve(name)[0].trace(problem())).startswith("did not run: ")
    assert capfd.readouterr() == ("", "")


def test_a_pinned_backend_refuses_and_never_falls_back():
    flash = resolve("sdpa-flash")[0]
    asked = problem()
    assert flash.run(asked).refusal is None
    assert flash.run(asked.replace(v=asked.v[..., :5].contiguous())).refusal is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens on a machine without CUDA")
@pytest.mark.parametrize("name", ["sdpa-efficient", "sdpa-cudnn"])
def test_a_backend_of_another_device_is_refused_in_one_line(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", f"--impl={name}", "-p", "no:cacheprovider"], cwd=tmp_path, capture_output=True, text=True
    )
    said = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode == 4
    assert len(said) == 1
    assert f"{name} runs on cuda only" in said[0]
    assert "nothing was tested" in said[0]


def test_unknown_parameters_are_counted_apart():
    signature = Signature.of(lambda q, k, v, rotary, block_table=None, **more: ...)
    assert signature.unknown_required == ("rotary",)
    assert signature.unknown_optional == ("block_table", "**more")


@pytest.mark.parametrize("wrong", [False, True])
def test_a_backward_that_is_no_autograd_is_judged_as_one(wrong):
    class ByHand(Adapter):
        offers = {"mha", "backward"}

        def attend(self, q, k, v):
            return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1).detach() @ v.detach()

        def gradients(self, problem, answer):
            q, k, v, do = (x.detach() for x in (problem.q, problem.k, problem.v, problem.do))
            scale = q.shape[-1] ** -0.5
            p = torch.softmax(q @ k.mT * scale, -1)
            ds = p * (do @ v.mT - (do * answer.o).sum(-1, keepdim=True) * (not wrong))
            return {"dq": ds @ k * scale, "dk": ds.mT @ q * scale, "dv": p.mT @ do}

    result = check(ByHand(), clauses="SHAPE-1,GRAD-1,GRAD-2,GRAD-3", dtypes="float32", tier="smoke", search=False)
    assert {failure.clause for failure in result.failures} == ({"GRAD-1", "GRAD-2"} if wrong else set())
    assert result.exit == int(wrong)
