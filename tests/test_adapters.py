"""Whatever stands after --impl becomes an adapter, or one clear message; and an adapter passes on what it was given."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from honest import Attend as HonestAttend
from honest import eager
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as torch_sdpa

from attnspec.adapters import Adapter, ResolveError, Unsupported, parse_kwargs, resolve, same_bits
from attnspec.adapters.attend import AttendAdapter
from attnspec.adapters.convention import FunctionAdapter, Signature, UnknownSignature, signature_of
from attnspec.spec import Problem

OPTIONS = {"mask", "key_padding", "bias", "causal", "scale", "dropout", "gqa", "mqa", "rank3", "value_width",
           "bias_grad"}


def textbook(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


def problem(shared: bool = False, **options: object) -> Problem:
    """Two batch items, three heads, four queries, five keys; normal numbers."""
    draw = torch.Generator().manual_seed(0)
    heads = () if shared else (3,)
    q, k, v = (torch.randn(2, *h, n, 8, generator=draw) for h, n in (((3,), 4), (heads, 5), (heads, 5)))
    return Problem(q, k, v, **options)  # type: ignore[arg-type]


def padding() -> Tensor:
    return torch.tensor([[True, True, False, True, True], [True, False, False, True, False]])


class Spy:
    """A function of torch's convention that keeps what it was given."""

    def __call__(
        self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ):
        self.given = {name: x for name, x in locals().items() if name != "self"}
        return torch_sdpa(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module into an importable folder; it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text("import torch\nimport torch.nn as nn\n" + text)
        importlib.invalidate_caches()
        return path

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


KERNEL = """
def attend(q, k, v, causal=False):
    scores = q @ k.mT * q.shape[-1] ** -0.5
    i, j = scores.shape[-2:]
    if causal:
        scores = scores.masked_fill(~torch.ones(i, j, dtype=torch.bool).tril(j - i), float("-inf"))
    return torch.softmax(scores, -1) @ v

class Attend(nn.Module):
    def __init__(self, causal=False, factor=1.0):
        super().__init__()
        self.causal, self.factor = causal, factor

    def forward(self, q, k, v):
        return attend(q, k, v, self.causal) * self.factor

class Inside:
    attend = staticmethod(attend)
    Attend = Attend

module = Attend()
"""


# FINDING IT


@pytest.mark.parametrize("target", [
    "torch.nn.functional.scaled_dot_product_attention", "sdpa", "sdpa-math", "sdpa-flash", "kernel.attend",
    "kernel.Attend", "kernel.module", "kernel.Inside.attend", "kernel.Inside.Attend", "kernel.py:attend",
    "kernel.py:Attend", "kernel.py:module", "kernel.py:Inside.Attend", "folder/odd-name.py:attend",
    "folder/odd-name.py:Attend"])
def test_a_name_becomes_an_adapter_and_its_source_defines_the_same_function(target, write, tmp_path):
    write("kernel", KERNEL)
    (tmp_path / "folder").mkdir()
    write("folder/odd-name", KERNEL)
    (adapter,) = resolve(target)
    asked = problem()
    answer = adapter.run(asked)
    assert answer.refusal is None
    torch.testing.assert_close(answer.o, textbook(asked.q, asked.k, asked.v))

    call, scope = adapter.call(asked), {}
    exec("\n".join(call.source), scope)
    assert same_bits(scope["attend"](**call.arguments), answer.o)


def test_objects_are_adapted_like_names():
    class Ten(Adapter):
        def attend(self, q, k, v, **options):
            return textbook(q, k, v)

    for target in (textbook, HonestAttend, Ten, Ten(), HonestAttend(), torch_sdpa):
        asked = problem()
        for adapter in resolve(target):
            torch.testing.assert_close(adapter.run(asked).o, textbook(asked.q, asked.k, asked.v))
            assert adapter.name


def test_a_class_without_module_is_called():
    class Plain:
        def __init__(self, causal: bool = False) -> None:
            self.causal = causal

        def __call__(self, q, k, v, mask=None):
            return eager(q, k, v, None if mask is None else mask[:, None, None, :], is_causal=self.causal)

    (adapter,) = resolve(Plain)
    assert set(adapter.offers) == {"mha", "backward", "strided", "key_padding", "causal"}
    assert adapter.run(problem(mask=padding())).refusal is None
    causal = adapter.run(problem(causal=True)).o
    assert not torch.equal(causal, adapter.run(problem()).o)


@pytest.mark.parametrize("switch", ["flash", "use_flash", "use_flash_attn"])
def test_a_flash_switch_makes_two_variants(switch, write):
    write("kernel", f"""
class Attend(nn.Module):
    def __init__(self, causal=False, {switch}=False):
        super().__init__()
        self.flash = {switch}

    def forward(self, q, k, v):
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v + self.flash
""")
    plain, flash = resolve("kernel.Attend")
    assert (plain.variant, flash.variant) == (f"{switch}=False", f"{switch}=True")
    asked = problem()
    assert torch.equal(flash.run(asked).o, plain.run(asked).o + 1)
    for value, adapter in ((False, plain), (True, flash)):
        (only,) = resolve("kernel.Attend", {switch: value})
        assert only.variant == ""
        assert only.flash is value
        assert torch.equal(only.run(asked).o, adapter.run(asked).o)


def test_an_operator_is_read_from_its_schema():
    @torch.library.custom_op("attnspec_test::attend", mutates_args=())
    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None) -> Tensor:
        return eager(q, k, v, is_causal=causal, scale=scale)

    asked = problem(scale=0.5)
    overload = torch.ops.attnspec_test.attend.default
    for adapter in (*resolve("torch.ops.attnspec_test.attend"), *resolve(overload), *resolve(attend)):
        assert set(adapter.offers) == {"mha", "backward", "strided", "causal", "scale"}
        assert adapter.run(asked).refusal is None


def test_a_compiled_function_is_read_from_its_docstring():
    class Compiled:
        __name__ = "attend"
        __signature__ = "none"

        def __call__(self, *arguments, **named):
            return textbook(*arguments, **named)

    function = Compiled()
    function.__doc__ = "attend(q: c10::Tensor, k, v, causal: bool = False) -> Tensor\n\nAttend."
    with pytest.raises(UnknownSignature, match="which Python can't read"):
        signature_of(function)
    function.__doc__ = "attend(q: torch.Tensor, k: torch.Tensor, v: Tensor, causal: bool = False) -> torch.Tensor\n"
    assert list(signature_of(function).parameters) == ["q", "k", "v", "causal"]
    function.__doc__ = "Attend."
    with pytest.raises(UnknownSignature, match="can't show its signature"):
        signature_of(function)


@pytest.mark.parametrize(("target", "message"), [
    ("nowhere.attend", "no module 'nowhere'"),
    ("nowhere", "no module 'nowhere'"),
    ("", "was not found"),
    ("kernel", "say which of its names, kernel.NAME. It holds Attend"),
    ("kernel.py", "say which of its names, kernel.py:NAME"),
    ("kernel.atend", "kernel has no 'atend'; it has Attend, attend"),
    ("kernel.Inside.other", "Inside has no 'other'"),
    ("kernel.py:atend", "has no 'atend'"),
    ("missing.py:attend", "there is no file missing.py"),
    ("kernel.number", "not callable: it is a int, 7"),
    ("kernel.Bare", "the class has no __call__()"),
    ("kernel.Needs", "missing 1 required positional argument: 'heads'"),
    ("kernel.needs", "required parameters that no convention knows: table"),
    ("kernel.short", "no parameter for v"),
    ("kernel.by_place", "positional-only"),
    ("broken.attend", "importing broken raised SyntaxError"),
    ("broken.py:attend", "importing broken.py raised SyntaxError"),
    ("leaving.attend", "importing leaving raised SystemExit: 3"),
    ("lacking.attend", "importing lacking raised ModuleNotFoundError: No module named 'absent_package'"),
])
def test_what_can_not_be_found_or_called_is_said(target, message, write):
    write("kernel", KERNEL + """
number = 7
class Bare: ...
class Needs(nn.Module):
    def __init__(self, heads): ...
    def forward(self, q, k, v): ...
def needs(q, k, v, table): ...
def short(q, k): ...
def by_place(q, k, v, /): ...
""")
    write("broken", "def attend(:")
    write("leaving", "raise SystemExit(3)")
    write("lacking", "import absent_package")
    with pytest.raises(ResolveError, match=re.escape(message)):
        resolve(target)


def test_the_adapter_that_the_message_shows_works(write, tmp_path):
    write("kernel", """
def attend(x, y, z, is_it_causal):
    return torch.softmax(x @ y.mT * x.shape[-1] ** -0.5, -1) @ z
""")
    for target in ("kernel.attend", "kernel.py:attend", str(tmp_path / "kernel.py") + ":attend"):
        with pytest.raises(ResolveError) as raised:
            resolve(target)
        text = str(raised.value)
        assert "attend(x, y, z, is_it_causal)" in text
        lines = [line for line in text.splitlines() if line.startswith("    ") or not line]
        adapter_lines = "\n".join(line[4:] for line in lines)
        assert len(adapter_lines.strip().splitlines()) <= 10
        (tmp_path / "attn_adapter.py").write_text(adapter_lines)
        (adapter,) = resolve("attn_adapter.py:Attention")
        assert set(adapter.offers) == {"mha", "backward", "causal"}
        asked = problem()
        torch.testing.assert_close(adapter.run(asked).o, textbook(asked.q, asked.k, asked.v))


# ARGUMENTS OF CONSTRUCTORS


@pytest.mark.parametrize(("text", "values"), [
    ("", {}), ("heads=8,dim=64", {"heads": 8, "dim": 64}), ("scale=-0.5, name='a,b'", {"scale": -0.5, "name": "a,b"}),
    ('{"heads": 8, "flash": true}', {"heads": 8, "flash": True}), ("flash=True,x=None", {"flash": True, "x": None})])
def test_constructor_arguments_are_read(text, values):
    assert parse_kwargs(text) == values


@pytest.mark.parametrize("text", [
    "heads", "8", "heads=8 dim=64", "heads=eight", "heads=8,heads=9", "{heads: 8}", "**x", "**{1: 2}",
    "heads=8)+f(dim=9", ")(", "heads=f()"])
def test_constructor_arguments_that_can_not_be_read_are_said(text):
    with pytest.raises(ResolveError, match="write heads=8,dim=64 or a JSON object"):
        parse_kwargs(text)


def test_constructor_arguments_reach_the_constructor_and_nothing_else(write):
    write("kernel", KERNEL)
    asked = problem()
    (once,), (twice,) = resolve("kernel.Attend"), resolve("kernel.Attend", {"factor": 2.0})
    assert torch.equal(twice.run(asked).o, 2 * once.run(asked).o)
    for target in ("kernel.attend", "kernel.module", "sdpa", "sdpa-math"):
        with pytest.raises(ResolveError, match="is no class"):
            resolve(target, {"factor": 2.0})
    with pytest.raises(ResolveError, match=r"with other=1 raised TypeError.*unexpected keyword argument 'other'"):
        resolve("kernel.Attend", {"other": 1})


def test_an_option_that_is_fixed_is_no_longer_offered(write):
    write("kernel", KERNEL)
    (adapter,) = resolve("kernel.Attend", {"causal": False})
    assert "causal" not in adapter.offers
    assert "causal_alignment" not in adapter.dialect
    assert "no parameter for causal" in adapter.run(problem(causal=True)).unsupported
    with pytest.raises(ResolveError, match="sets causal=True, which the suite varies by itself"):
        resolve("kernel.Attend", {"causal": True})


def test_a_declaration_with_an_unknown_word_is_refused():
    class Offers(Adapter):
        offers = ("mha", "speed")

    class Follows(Adapter):
        dialect = {"causal_alignment": "middle"}

    class Claims(Adapter):
        accuracy = "Z"

    for kind, message in ((Offers, "offers names speed"), (Follows, "alignment=middle"), (Claims, "accuracy is 'Z'")):
        with pytest.raises(ResolveError, match=message):
            resolve(kind)


# WHAT IS OFFERED


def function(signature: str) -> FunctionAdapter:
    scope: dict = {}
    exec(f"def attend({signature}): ...", scope)
    return FunctionAdapter(scope["attend"], "attend", ())


@pytest.mark.parametrize(("signature", "offered"), [
    ("q, k, v", set()),
    ("query, key, value, causal=False", {"causal"}),
    ("queries, keys, values, softmax_scale=None, other=3", {"scale"}),
    ("q, k, v, sm_scale, is_causal", {"scale", "causal"}),
    ("q, k, v, mask=None", {"mask", "key_padding", "rank3"}),
    ("q, k, v, attention_mask=None, attn_bias=None", {"mask", "key_padding", "rank3", "bias", "bias_grad"}),
    ("q, k, v, dropout_p=0.0, *, enable_gqa=False, **more", {"dropout", "gqa", "mqa"}),
    ("query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False", OPTIONS),
])
def test_what_a_function_offers_follows_from_its_parameters(signature, offered):
    assert set(function(signature).offers) & OPTIONS == offered


def test_what_a_function_promises_follows_from_its_convention():
    assert function("query, key, value, attn_mask=None, is_causal=False").dialect == {
        "causal_alignment": "top_left", "empty_row": "zero", "head_grouping": "blocked"}
    assert function("q, k, v, mask=None, causal=False").dialect == {}
    for adapter in resolve(HonestAttend):
        assert adapter.dialect == {"causal_alignment": "bottom_right"}


def test_what_an_attend_class_offers_follows_from_both_signatures():
    class Constructed(nn.Module):
        def __init__(self, dropout=0.0, causal=False, scale=None): ...

        def forward(self, q, k, v, mask=None, attn_bias=None): ...

    class Called(nn.Module):
        def forward(self, q, k, v, causal=False, scale=None, dropout=0.0): ...

    common = {"mha", "backward", "strided", "module", "causal", "scale", "dropout"}
    assert AttendAdapter(Constructed, "c", ()).offers == common | {"key_padding", "bias", "bias_grad"}
    assert AttendAdapter(Called, "c", ()).offers == common


@pytest.mark.parametrize(("equation", "heads"), [("b h i d, b h j d", {"mha"}), ("b h i d, b j d", {"shared_kv"}),
                                                 ("b h i d, b ... j d", {"mha", "shared_kv"})])
def test_whether_keys_have_heads_is_observed(equation, heads):
    class Einsum(nn.Module):
        def forward(self, q, k, v):
            if "..." in equation:
                k, v = (x if x.ndim == 4 else x[:, None] for x in (k, v))
                return textbook(q, k, v)
            keys = equation.split(", ")[1].replace(" ", "")
            scores = torch.einsum(f"bhid,{keys}->bhij", q, k) * q.shape[-1] ** -0.5
            return torch.einsum(f"bhij,{keys}->bhid", torch.softmax(scores, -1), v)

    (adapter,) = resolve(Einsum)
    assert set(adapter.offers) & {"mha", "shared_kv", "gqa", "mqa"} == heads
    for shared, form in ((False, "mha"), (True, "shared_kv")):
        assert (adapter.run(problem(shared)).refusal is None) == (form in heads)


def test_what_broadcasting_answers_by_accident_is_not_offered():
    class Matmul(nn.Module):
        def forward(self, q, k, v):
            return textbook(q, k, v)

    assert "shared_kv" not in resolve(Matmul)[0].offers


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
    for options in ({"mask": padding()}, {"bias": torch.zeros(4, 5)}, {"causal": True}, {"scale": 0.5},
                    {"dropout": 0.1, "training": True}):
        answer = plain.run(problem(**options))
        assert answer.unsupported.startswith("attend has no parameter for "), options
        assert answer.error is None
    assert "one shared head" in plain.run(problem(shared=True)).unsupported
    (attend, _) = resolve(HonestAttend)
    assert "have a head axis" in attend.run(problem(shared=True)).unsupported
    for options in ({"scale": 0.5}, {"bias": torch.zeros(4, 5)}):
        assert "has no parameter for" in attend.run(problem(**options)).unsupported

    class Nothing(Adapter): ...

    assert "defines no attend()" in resolve(Nothing)[0].run(problem()).unsupported


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


@pytest.mark.parametrize("error", [
    ValueError("no"), SystemExit(3), pytest.skip.Exception("skipped"), pytest.fail.Exception("failed"), AssertionError(),
    StopIteration(), GeneratorExit()])
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
        def attend(self, q, k, v, **options):
            raise Unsupported("only on Sundays")

    answer = resolve(Picky)[0].run(problem())
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
    assert "_safe_softmax" in resolve("sdpa-math")[0].trace()
    assert "scaled_dot_product_flash_attention" in resolve("sdpa-flash")[0].trace()
    if not torch.cuda.is_available():
        for name in ("sdpa-efficient", "sdpa-cudnn"):
            assert resolve(name)[0].trace().startswith("did not run: ")
    assert capfd.readouterr() == ("", "")


def test_a_pinned_backend_refuses_and_never_falls_back():
    flash = resolve("sdpa-flash")[0]
    asked = problem()
    assert flash.run(asked).refusal is None
    assert flash.run(asked.replace(v=asked.v[..., :5].contiguous())).refusal is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens on a machine without CUDA")
@pytest.mark.parametrize("name", ["sdpa-efficient", "sdpa-cudnn"])
def test_a_backend_of_another_device_is_refused_in_one_line(name, tmp_path):
    done = subprocess.run([sys.executable, "-m", "pytest", f"--impl={name}", "-p", "no:cacheprovider"],
                          cwd=tmp_path, capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode == 4
    assert len(said) == 1
    assert f"{name} runs on cuda only" in said[0]
    assert "nothing was tested" in said[0]


def test_unknown_parameters_are_counted_apart():
    signature = Signature.of(lambda q, k, v, window, sinks=None, **more: ...)
    assert signature.unknown_required == ("window",)
    assert signature.unknown_optional == ("sinks", "**more")
