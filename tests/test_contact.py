"""At first contact: another layout, a tuple, and the adapter that the message shows, which runs as it stands."""

from __future__ import annotations

import pytest
import torch
from calling import problem, textbook
from honest import eager

from attnspec.adapters import ResolveError, resolve
from attnspec.conformance.subject.meeting import meet

KERNEL = """
import torch
def kernel(q, k, v, causal=False):
    s = q @ k.mT * q.shape[-1] ** -0.5
    i, j = s.shape[-2:]
    s = s.masked_fill(~torch.ones(i, j, dtype=torch.bool).tril(j - i), float("-inf")) if causal else s
    return torch.softmax(s, -1) @ v
def turned(q, k, v, causal=False):
    return kernel(*(x.transpose(1, 2) for x in (q, k, v)), causal).transpose(1, 2)
def pair(q, k, v, causal=False):
    return kernel(q, k, v, causal), None
def both(q, k, v, causal=False):
    return turned(q, k, v, causal), None
def self_alone(q, k, v, causal=True):
    if q.shape != k.shape:
        raise ValueError("queries and keys have one length")
    return both(q, k, v, causal)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("turned", ["its tensors are (b i h d)"]),
        ("pair", ["a tuple whose first element is the output"]),
        ("both", ["its tensors are (b i h d)", "a tuple whose first element is the output"]),
        (
            "self_alone",
            ["its tensors are (b i h d)", "a tuple whose first element is the output", "restrictions = {'equal_lengths'}"],
        ),
    ],
)
def test_another_layout_and_a_tuple_are_said_with_an_adapter_that_runs(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "contact_kernel.py").write_text(KERNEL)
    (adapter,) = resolve(f"contact_kernel.py:{name}")
    with pytest.raises(ResolveError) as raised:
        meet(adapter.on("cpu"), "cpu", {}, None, ("float32",))
    text = str(raised.value)
    assert all(word in text for word in words)
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ") or not line]
    (tmp_path / f"adapter_{name}.py").write_text("\n".join(lines))
    (fitting,) = resolve(f"adapter_{name}.py:Attention")
    assert set(fitting.offers) == {"mha", "backward", "causal"}
    asked = problem()
    asked = asked.replace(k=asked.k[:, :, :4], v=asked.v[:, :, :4])
    torch.testing.assert_close(fitting.run(asked).o, textbook(asked.q, asked.k, asked.v))
    meet(fitting.on("cpu"), "cpu", {}, None, ("float32",))


ARRAYS = """
import numpy as np
def attend(query, key, value, mask=None):
    q, k, v = (np.moveaxis(np.asarray(x), 2, 1) for x in (query, key, value))
    s = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    s = s if mask is None else np.where(np.asarray(mask), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return np.moveaxis(p / p.sum(-1, keepdims=True) @ v, 1, 2)
"""


def test_arrays_of_another_framework_are_carried_there_and_back(tmp_path, monkeypatch):
    """jax's attention took tensors without gradients, answered in its own arrays, and got no word of either."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "contact_arrays.py").write_text(ARRAYS)
    (adapter,) = resolve("contact_arrays.py:attend")
    with pytest.raises(ResolveError, match=r"\(b i h d\).* and it returns an array of another framework") as raised:
        meet(adapter.on("cpu"), "cpu", {}, None, ("float32",))
    lines = [line[4:] for line in str(raised.value).splitlines() if line.startswith("    ") or not line]
    (tmp_path / "adapter_arrays.py").write_text("\n".join(lines))
    (fitting,) = resolve("adapter_arrays.py:Attention")
    assert set(fitting.offers) == {"mha", "key_padding", "mask"}
    asked = problem()
    torch.testing.assert_close(fitting.run(asked).o, textbook(asked.q, asked.k, asked.v))
    assert meet(fitting.on("cpu"), "cpu", {}, None, ("float32",)).dtypes == ("float32",)


def test_what_is_wrong_in_every_layout_is_asked_as_it_stands():
    def wrong(q, k, v):
        return eager(q, k, v) * 1.01

    for function in (wrong, eager):
        assert meet(resolve(function)[0].on("cpu"), "cpu", {}, None, ("float32",)).dtypes == ("float32",)


def test_the_adapter_has_the_parameters_of_the_function():
    def attend(module, query, key, value, attention_mask, scaling, other=3, **more): ...

    with pytest.raises(ResolveError) as raised:
        resolve(attend)
    text = str(raised.value)
    assert "module=..., query=q, key=k, value=v, attention_mask=mask, scaling=scale)" in text
    assert 'offers = {"mha", "backward", "key_padding", "mask", "scale"}' in text
    assert "replace each ..." in text

    class Projecting(torch.nn.Module):
        def forward(self, x): ...

    with pytest.raises(ResolveError, match="their forward does not take q, k, v"):
        resolve(Projecting)


def test_what_an_option_leaves_on_is_turned_off():
    """An option is left out where it is not asked for, unless its default would turn it on."""

    def causal_unless_told(q, k, v, causal=True, dropout_p=0.5):
        return torch.dropout(eager(q, k, v, is_causal=causal), dropout_p, True)

    class Attend:
        def __init__(self, causal=True, dropout=0.5):
            self.options = causal, dropout

        def __call__(self, q, k, v):
            return causal_unless_told(q, k, v, *self.options)

    for thing in (causal_unless_told, Attend):
        (adapter,) = resolve(thing)
        asked = problem()
        torch.testing.assert_close(adapter.run(asked).o, textbook(asked.q, asked.k, asked.v))
        assert meet(adapter.on("cpu"), "cpu", {}, None, ("float32",)).dtypes == ("float32",)


def test_a_parameter_is_guessed_where_only_one_is_like_the_word():
    def attend(query, key, value, in_proj_bias, bias_k, attention_scaling, key_padding_mask=None, attn_mask=None): ...

    with pytest.raises(ResolveError) as raised:
        resolve(attend)
    text = str(raised.value)
    assert "value=v, in_proj_bias=..., bias_k=..., attention_scaling=scale, attn_mask=mask)" in text
    assert "bias=bias" not in text


def test_what_is_wrong_only_at_first_is_no_matter_of_reading():
    """Its second answer is right, and not for the reading in which it is asked: the clauses have to say what is wrong."""
    seen = set()

    def kernel(q, k, v):
        first = (q.shape, k.shape) not in seen
        seen.add((q.shape, k.shape))
        return textbook(q, k, v) + first

    subject = meet(resolve(kernel)[0].on("cpu"), "cpu", {}, None, ("float32",))
    assert len(seen) >= 2
    assert subject.offers("mha")
