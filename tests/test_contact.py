"""At first contact: another layout, a tuple, arrays of another framework, and what a mask says."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from calling import problem, textbook
from honest import eager

from attnspec.adapters import ResolveError, resolve
from attnspec.adapters.conventions.layout import Reading
from attnspec.adapters.remote.isolated import isolated
from attnspec.conformance.subject.contact import ENDINGS, look
from attnspec.conformance.subject.meeting import meet
from attnspec.conformance.subject.subject import Subject
from attnspec.spec.words import MASKS

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
def flat(q, k, v, causal=False):
    return kernel(q, k, v, causal).transpose(1, 2).flatten(2)
def rows(q, k, v, causal=False):
    return None, turned(q, k, v, causal).flatten(2).flatten(0, 1)
def first_axis(q, k, v, causal=False):
    return kernel(*(x.permute(1, 2, 0, 3) for x in (q, k, v)), causal).transpose(1, 2)
def self_alone(q, k, v, causal=True):
    if q.shape != k.shape:
        raise ValueError("queries and keys have one length")
    return both(q, k, v, causal)
"""


def met(name: str, *dtypes: str):
    (adapter,) = resolve(name)
    return meet(adapter.on("cpu"), "cpu", {}, None, dtypes or ("float32",))


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("kernel", Reading()),
        ("turned", Reading("b i h d")),
        ("pair", Reading(returns=("o", "other"))),
        ("both", Reading("b i h d", returns=("o", "other"))),
        ("flat", Reading(output="b i (h d)")),
        ("rows", Reading("b i h d", "(b i) (h d)", ("other", "o"))),
        ("first_axis", Reading("i b h d", "b i h d")),
        ("self_alone", Reading("b i h d", returns=("o", "other"))),
    ],
)
def test_order_of_axes_and_what_is_returned_are_seen_in_plain_calls(name, reading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "contact_kernel.py").write_text(KERNEL)
    subject = met(f"contact_kernel.py:{name}")
    assert (subject.adapter.reading, subject.read_from) == (reading, "observed in plain calls")
    assert set(subject.adapter.offers) == {"mha", "strided", "backward", "causal"}
    asked = problem()
    asked = asked.replace(k=asked.k[:, :, :4], v=asked.v[:, :, :4], wrt=("q", "k", "v"), do=torch.randn(asked.shape_of("o")))
    answer = subject.adapter.run(asked)
    torch.testing.assert_close(answer.o, textbook(asked.q, asked.k, asked.v))
    assert answer.gradients["dq"].shape == asked.q.shape


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
    subject = met("contact_arrays.py:attend")
    assert subject.adapter.reading == Reading("b i h d", arrays="numpy")
    assert "backward" not in subject.adapter.offers
    asked = problem().replace(wrt=(), do=None)
    torch.testing.assert_close(subject.adapter.run(asked).o, textbook(asked.q, asked.k, asked.v))


@pytest.mark.parametrize("mask", MASKS)
def test_what_a_mask_says_is_seen_where_nobody_promises_it(mask):
    def attend(q, k, v, mask=None):
        shown = None if mask is None else {"shows": mask, "hides": ~mask if mask.dtype == torch.bool else mask, "adds": mask}[said]
        if mask is not None and (mask.dtype == torch.bool) == (said == "adds"):
            raise TypeError("a mask of another dtype")
        return eager(q, k, v, shown)

    said = mask
    subject = meet(resolve(attend)[0].on("cpu"), "cpu", {}, None, ("float32",))
    assert (subject.adapter.reading.mask, subject.masks_from) == (mask, "observed in plain calls")


def test_a_promise_that_plain_calls_break_is_no_convention():
    """With torch's parameters the order of axes is promised; who means another one says so."""

    def attend(query, key, value, attn_mask=None, is_causal=False):
        return eager(*(x.transpose(1, 2) for x in (query, key, value)), attn_mask, is_causal=is_causal).transpose(1, 2)

    with pytest.raises(ResolveError, match=r'torch SDPA promises that .*Add --layout="b i h d" to test it so'):
        meet(resolve(attend)[0].on("cpu"), "cpu", {}, None, ("float32",))


def test_what_is_wrong_in_every_layout_is_asked_as_it_stands():
    def wrong(q, k, v):
        return eager(q, k, v) * 1.01

    for function in (wrong, eager):
        assert meet(resolve(function)[0].on("cpu"), "cpu", {}, None, ("float32",)).dtypes == ("float32",)


def test_the_adapter_has_the_parameters_of_the_function():
    def attend(layer, query, key, value, attention_mask, scaling, other=3, **more): ...

    with pytest.raises(ResolveError) as raised:
        resolve(attend)
    text = str(raised.value)
    assert "layer=..., query=q, key=k, value=v, attention_mask=mask, scaling=scale)" in text
    assert 'offers = {"mha", "backward", "key_padding", "mask", "scale"}' in text
    assert "replace each ..." in text

    class Projecting(torch.nn.Module):
        def forward(self, x): ...

    with pytest.raises(ResolveError, match="their forward does not take q, k, v"):
        resolve(Projecting)


def test_the_adapter_runs_where_shapes_say_what_is_missing(tmp_path):
    kernel = """
import torch


def attend(states_q, states_k, states_v, num_heads, num_kv_heads, head_dim, seqlen_k, causal_mask=None):
    assert (num_heads, head_dim, seqlen_k) == (states_q.shape[1], states_q.shape[3], states_k.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(states_q, states_k, states_v, is_causal=bool(causal_mask))
"""
    (tmp_path / "kernel.py").write_text(kernel)
    with pytest.raises(ResolveError) as raised:
        resolve(f"{tmp_path}/kernel.py:attend")
    text = str(raised.value)
    assert "..." not in text.partition("Write an adapter")[2].replace("ellipsis", "")
    (tmp_path / "attn_adapter.py").write_text(textwrap.dedent(text.partition("Attention\n\n")[2]))
    asked = problem()
    (adapter,) = resolve(f"{tmp_path}/attn_adapter.py:Attention")
    torch.testing.assert_close(adapter.run(asked).o, textbook(asked.q, asked.k, asked.v))
    assert "causal" in adapter.offers


REST = ("is_causal", "STAGE")


def test_a_kernel_of_triton_gets_a_function_that_launches_it():
    class Compiled:
        """What @triton.jit makes."""

        fn = None
        arg_names = ("Q", "k_ptr", "V", "sm_scale", "Out", "stride_qz", "stride_qh", "stride_oz", "N_CTX", "BLOCK_M", *REST)

        def __call__(self, *args): ...

    with pytest.raises(ResolveError, match="is a Triton kernel, which needs a grid") as raised:
        resolve(Compiled())
    text = str(raised.value)
    launch = "Q=q, k_ptr=k, V=v, sm_scale=scale, Out=o, stride_qz=q.stride(0), stride_qh=q.stride(1), stride_oz=o.stride(0), "
    assert launch + "N_CTX=q.shape[2], BLOCK_M=32, is_causal=causal, STAGE=...)" in text
    assert "def attend(q, k, v, causal=False, scale=None):" in text


def test_who_needs_a_gpu_for_triton_is_told_of_its_interpreter(tmp_path):
    (tmp_path / "kernel.py").write_text("def attend(q, k, v):\n    raise RuntimeError('0 active drivers ([])')\n")
    command = [sys.executable, "-m", "pytest", f"--impl={tmp_path}/kernel.py:attend", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "set TRITON_INTERPRET=1 before Python starts" in done.stderr


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


def test_calls_that_end_the_process_are_not_read_in_every_way(tmp_path):
    (tmp_path / "ends.py").write_text("import os\ndef attend(q, k, v):\n    os._exit(3)\n")
    (adapter,) = isolated(f"{tmp_path}/ends.py:attend")
    subject = Subject(adapter)
    look(subject)
    adapter.close()
    assert sum(adapter.endings.values()) == ENDINGS
    assert subject.read_from == "assumed canonical: plain calls are right in no reading"
