"""Arrays of JAX, MLX, tinygrad and NumPy: tensors go there and back bit by bit, and gradients come from the framework."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from attnspec.adapters import same_bits
from attnspec.adapters.arrays import FRAMEWORKS, bridged, framework

os.environ.setdefault("DEV", "PYTHON")  # of tinygrad's devices the one that needs no compiler
PACKAGES = {"jax": "jax", "mlx": "mlx.core", "tinygrad": "tinygrad", "numpy": "numpy"}
WHOLE = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
# Of float32: zeros, the least and the largest subnormal, the least normal, the largest, infinities, and NaN, quiet, with a payload.
NUMBERS = (0, -(2**31), 1, -(2**31) + 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, -0x800000, 0x7FC00000, 0x7FC01234, -0x3FEDCC)


def present(name: str) -> ModuleType:
    """A framework's bridge; skip where its package is missing."""
    if find_spec(PACKAGES[name].partition(".")[0]) is None:
        pytest.skip(f"the package {name} is not installed")
    return framework(name)


def bits(dtype: torch.dtype) -> Tensor:
    """All numbers of two bytes, but for NaN that signals, which a device may make quiet; of float32 those above, and more."""
    if dtype == torch.float32:
        drawn = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 1e-39
        return torch.cat([torch.tensor(NUMBERS, dtype=torch.int64).to(torch.int32).view(dtype), drawn])
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    quiet = 0x200 if dtype == torch.float16 else 0x40
    return x[~x.view(dtype).isnan() | (x & quiet).bool()].view(dtype)


def tensors(dtype: torch.dtype) -> Iterator[Tensor]:
    """Numbers of all kinds, and tensors of all shapes and strides."""
    yield bits(dtype)
    yield torch.zeros(2, 0, 3, dtype=dtype)
    yield torch.tensor(-0.0, dtype=dtype)
    yield torch.arange(24.0).to(dtype).reshape(2, 3, 4).transpose(0, 2)[::2]
    yield torch.arange(4.0).to(dtype)[None].expand(3, 4)
    yield torch.arange(8.0).to(dtype)[3:]


@pytest.mark.parametrize("dtype", WHOLE, ids=str)
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_tensors_go_there_and_back_bit_by_bit(name: str, dtype: torch.dtype) -> None:
    there_and_back = present(name)
    if name == "numpy" and dtype == torch.bfloat16:
        pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 without ml_dtypes")
    for x in tensors(dtype):
        array = there_and_back.there(x)
        assert there_and_back.own(array)
        assert not there_and_back.own(x)
        assert str(dtype)[6:] in str(array.dtype) or name == "tinygrad"
        assert same_bits(there_and_back.here(array), x.contiguous())


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_masks_and_lengths_do_too(name: str) -> None:
    there_and_back = present(name)
    for x in (torch.tensor([[True, False]]).expand(3, 2), torch.zeros(0, 2, dtype=torch.bool), torch.tensor([3, -(2**31)]).int()):
        assert same_bits(there_and_back.here(there_and_back.there(x)), x.contiguous())


@pytest.mark.parametrize("name", ["mlx", "tinygrad", "numpy"])
def test_so_does_float64_where_it_is_there(name: str) -> None:
    """MLX made float32 of it, and no word of that."""
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert same_bits(present(name).here(present(name).there(x)), x)


def test_jax_has_no_float64_unless_it_is_told_so() -> None:
    jax = present("jax").jax
    if jax.config.jax_enable_x64:
        pytest.skip("it is told so here")
    with pytest.raises(TypeError, match="JAX_ENABLE_X64=1"):
        present("jax").there(torch.zeros(2, dtype=torch.float64))


def test_who_returns_an_input_of_numpy_is_seen() -> None:
    x = torch.randn(2, 3)
    assert bridged(lambda x: x, "numpy")(x).data_ptr() == x.data_ptr()
    assert torch.equal(bridged(lambda x: x[::-1], "numpy")(x), x.flip(0))


def kernel(name: str) -> Any:
    """Softmax attention with its lse, written for a framework; it passes on a word and nothing."""
    package = import_module(PACKAGES[name])

    def attend(q, k, v, word, *, mask=None):  # type: ignore[no-untyped-def]
        s = q @ (k.transpose(-2, -1) if name == "tinygrad" else k.swapaxes(-2, -1))
        if name == "tinygrad":
            s = s if mask is None else mask.where(s, -1e4)
            return s.softmax(-1) @ v, s.logsumexp(-1), word, None
        where = package.numpy.where if name == "jax" else package.where
        softmax, logsumexp = (package.nn.softmax, package.nn.logsumexp) if name == "jax" else (package.softmax, package.logsumexp)
        s = s if mask is None else where(mask, s, -1e4)
        return softmax(s, -1) @ v, logsumexp(s, -1), word, None

    return attend


@pytest.mark.parametrize("name", ["jax", "mlx", "tinygrad"])
def test_gradients_of_some_inputs_through_both_outputs(name: str) -> None:
    """Of tensors that are not dense, beside a mask, and with a cotangent of the lse."""
    present(name)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 4, 5, generator=draw).transpose(0, 1) for _ in range(3))
    mask, do, dlse = torch.rand(3, 2, 4, 4, generator=draw) > 0.3, torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4)
    attend = bridged(kernel(name), name)
    for wrt in ("qkv", "k", "qv"):
        given = {n: x.detach().clone().requires_grad_(n in wrt) for n, x in zip("qkv", (q, k, v), strict=True)}
        o, lse, word, nothing = attend(*given.values(), "word", mask=mask)
        assert (word, nothing) == ("word", None)
        found = torch.autograd.grad((o, lse), [given[n] for n in wrt], (do, dlse))
        s = (given["q"] @ given["k"].mT).masked_fill(~mask, -1e4)
        expected = (s.softmax(-1) @ given["v"], s.logsumexp(-1))
        for x, y in zip((o, lse), expected, strict=True):
            torch.testing.assert_close(x, y)
        for x, y in zip(found, torch.autograd.grad(expected, [given[n] for n in wrt], (do, dlse)), strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_without_gradients_there_is_no_graph(name: str) -> None:
    """Where none is asked for, or under no_grad, or where the framework has none."""
    present(name)
    x = torch.randn(2, 3)
    twice = bridged(lambda x: x + x, name)
    assert not twice(x).requires_grad
    with torch.no_grad():
        assert not twice(x.clone().requires_grad_()).requires_grad
    assert twice(x.clone().requires_grad_()).requires_grad == (name != "numpy")
    torch.testing.assert_close(twice(x), x * 2)
