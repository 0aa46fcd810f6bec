"""Whatever stands after --impl becomes an adapter, or one clear message; what is offered follows from it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from calling import OPTIONS, function, padding, problem, textbook
from honest import Attend as HonestAttend
from honest import eager
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as torch_sdpa

from attnspec.adapters import Adapter, ResolveError, parse_kwargs, resolve, same_bits
from attnspec.adapters.conventions.attend import AttendAdapter
from attnspec.adapters.conventions.signature import UnknownSignature, signature_of


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module into an importable folder; it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("kernel", None)  # another test's
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


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.functional.scaled_dot_product_attention",
        "sdpa",
        "sdpa-math",
        "sdpa-flash",
        "kernel.attend",
        "kernel.Attend",
        "kernel.module",
        "kernel.Inside.attend",
        "kernel.Inside.Attend",
        "kernel.py:attend",
        "kernel.py:Attend",
        "kernel.py:module",
        "kernel.py:Inside.Attend",
        "folder/odd-name.py:attend",
        "folder/odd-name.py:Attend",
    ],
)
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
    write(
        "kernel",
        f"""
class Attend(nn.Module):
    def __init__(self, causal=False, {switch}=False):
        super().__init__()
        self.flash = {switch}

    def forward(self, q, k, v):
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v + self.flash
""",
    )
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


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.attend", "a module 'nowhere'"),
        ("nowhere", "a module 'nowhere'"),
        ("", "was not found"),
        ("kernel", "add the name to test, kernel.NAME. It has Attend"),
        ("kernel.py", "add the name to test, kernel.py:NAME"),
        ("kernel.atend", "kernel has no 'atend'; it has attend, Attend"),
        ("kernel.Inside.other", "Inside has no 'other'"),
        ("kernel.py:atend", "has no 'atend'"),
        ("missing.py:attend", "file missing.py does not exist"),
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
    ],
)
def test_what_can_not_be_found_or_called_is_said(target, message, write):
    write(
        "kernel",
        KERNEL
        + """
number = 7
class Bare: ...
class Needs(nn.Module):
    def __init__(self, heads): ...
    def forward(self, q, k, v): ...
def needs(q, k, v, table): ...
def short(q, k): ...
def by_place(q, k, v, /): ...
""",
    )
    write("broken", "def attend(:")
    write("leaving", "raise SystemExit(3)")
    write("lacking", "import absent_package")
    with pytest.raises(ResolveError, match=re.escape(message)):
        resolve(target)


def test_the_adapter_that_the_message_shows_works(write, tmp_path):
    write(
        "kernel",
        """
def attend(x, y, z, is_it_causal):
    return torch.softmax(x @ y.mT * x.shape[-1] ** -0.5, -1) @ z
""",
    )
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


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("heads=8,dim=64", {"heads": 8, "dim": 64}),
        ("scale=-0.5, name='a,b'", {"scale": -0.5, "name": "a,b"}),
        ('{"heads": 8, "flash": true}', {"heads": 8, "flash": True}),
        ("flash=True,x=None", {"flash": True, "x": None}),
    ],
)
def test_constructor_arguments_are_read(text, values):
    assert parse_kwargs(text) == values


@pytest.mark.parametrize(
    "text",
    [
        "heads",
        "8",
        "heads=8 dim=64",
        "heads=eight",
        "heads=8,heads=9",
        "{heads: 8}",
        "**x",
        "**{1: 2}",
        "heads=8)+f(dim=9",
        ")(",
        "heads=f()",
    ],
)
def test_constructor_arguments_that_can_not_be_read_are_said(text):
    with pytest.raises(ResolveError, match="write heads=8,dim=64 or a JSON object"):
        parse_kwargs(text)


def test_constructor_arguments_reach_the_constructor_and_nothing_else(write):
    write("kernel", KERNEL)
    asked = problem()
    (once,), (twice,) = resolve("kernel.Attend"), resolve("kernel.Attend", {"factor": 2.0})
    assert torch.equal(twice.run(asked).o, 2 * once.run(asked).o)
    for target in ("kernel.attend", "kernel.module", "sdpa", "sdpa-math"):
        with pytest.raises(ResolveError, match="is not a class"):
            resolve(target, {"factor": 2.0})
    with pytest.raises(ResolveError, match=r"with other=1 raised TypeError.*unexpected keyword argument 'other'"):
        resolve("kernel.Attend", {"other": 1})


def test_an_option_that_is_fixed_is_no_longer_offered(write):
    write("kernel", KERNEL)
    (adapter,) = resolve("kernel.Attend", {"causal": False})
    assert "causal" not in adapter.offers
    assert "causal_alignment" not in adapter.dialect
    assert "no parameter for causal" in adapter.run(problem(causal=True)).unsupported
    with pytest.raises(ResolveError, match="sets causal=True, but the suite varies causal itself"):
        resolve("kernel.Attend", {"causal": True})


def test_a_declaration_with_an_unknown_word_is_refused():
    class Offers(Adapter):
        offers = ("mha", "speed")

    class Follows(Adapter):
        dialect = {"causal_alignment": "middle"}

    class Claims(Adapter):
        accuracy = "Z"

    for kind, message in ((Offers, "offers names unknown speed"), (Follows, "alignment=middle"), (Claims, "accuracy is 'Z'")):
        with pytest.raises(ResolveError, match=message):
            resolve(kind)


# WHAT IS OFFERED


@pytest.mark.parametrize(
    ("parameters", "offered"),
    [
        ("", set()),
        ("*, causal=False", {"causal"}),
        ("*, causal=False, mask=None", {"causal", "mask", "key_padding", "rank3"}),
        ("*, bias=None, scale=None, dropout=0.0, training=False", {"bias", "bias_grad", "rank3", "scale", "dropout"}),
        ("**options", set()),
    ],
)
def test_an_adapter_offers_what_its_parameters_say(parameters, offered):
    scope = {"Adapter": Adapter}
    exec(f"class Ours(Adapter):\n    def attend(self, q, k, v{parameters and ', ' + parameters}): return v", scope)
    assert set(scope["Ours"].offers) == {"mha", "strided", "backward"} | offered

    class Narrower(scope["Ours"]):
        offers = frozenset({"mha"})

        def attend(self, q, k, v, *, causal=False):
            return v

    assert Narrower.offers == {"mha"}


def test_an_option_without_a_parameter_never_arrives():
    class Plain(Adapter):
        def attend(self, q, k, v, *, causal=False):
            return textbook(q, k, v, causal) if causal else textbook(q, k, v)

    assert Plain().run(problem()).refusal is None
    assert Plain().run(problem(dropout=0.5)).refusal is None  # not in training: nothing is dropped
    for option, told in (({"mask": padding()}, "mask"), ({"scale": 0.3}, "scale"), ({"dropout": 0.5, "training": True}, "dropout")):
        assert Plain().run(problem(**option)).unsupported == f"Plain.attend() has no parameter {told}"


def test_an_offer_needs_a_parameter_to_say_it_with():
    class Promises(Adapter):
        offers = frozenset({"mha", "scale"})

        def attend(self, q, k, v, *, causal=False):
            return textbook(q, k, v)

    with pytest.raises(ResolveError, match=r"offers names scale, but Promises.attend\(\) has no parameter scale for it"):
        resolve(Promises)


@pytest.mark.parametrize(
    ("signature", "offered"),
    [
        ("q, k, v", set()),
        ("query, key, value, causal=False", {"causal"}),
        ("queries, keys, values, softmax_scale=None, other=3", {"scale"}),
        ("q, k, v, sm_scale, is_causal", {"scale", "causal"}),
        ("q, k, v, mask=None", {"mask", "key_padding", "rank3"}),
        ("q, k, v, attention_mask=None, attn_bias=None", {"mask", "key_padding", "rank3", "bias", "bias_grad"}),
        ("q, k, v, dropout_p=0.0, *, enable_gqa=False, **more", {"dropout", "gqa", "mqa"}),
        ("query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False", OPTIONS),
    ],
)
def test_what_a_function_offers_follows_from_its_parameters(signature, offered):
    assert set(function(signature).offers) & OPTIONS == offered


def test_what_a_function_promises_follows_from_its_convention():
    assert function("query, key, value, attn_mask=None, is_causal=False").dialect == {
        "causal_alignment": "top_left",
        "empty_row": "zero",
        "head_grouping": "blocked",
    }
    assert function("q, k, v, mask=None, causal=False").dialect == {}
    for adapter in resolve(HonestAttend):
        assert adapter.dialect == {}


def test_what_an_attend_class_offers_follows_from_both_signatures():
    class Constructed(nn.Module):
        def __init__(self, dropout=0.0, causal=False, scale=None): ...

        def forward(self, q, k, v, mask=None, attn_bias=None): ...

    class Called(nn.Module):
        def forward(self, q, k, v, causal=False, scale=None, dropout=0.0): ...

    common = {"mha", "backward", "strided", "module", "causal", "scale", "dropout"}
    assert AttendAdapter(Constructed, "c", ()).offers == common | {"key_padding", "bias", "bias_grad"}
    assert AttendAdapter(Called, "c", ()).offers == common


@pytest.mark.parametrize(
    ("equation", "heads"),
    [("b h i d, b h j d", {"mha"}), ("b h i d, b j d", {"shared_kv"}), ("b h i d, b ... j d", {"mha", "shared_kv"})],
)
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
