"""Families of model libraries, asked of the packages where they are installed: what these do right, and what they do not."""

from __future__ import annotations

import pytest
from test_families_torch import CASES, CAUSAL, EAGER, HEADS, MASKS, WITH_CAUSAL, findings, right, told

from attnspec.adapters import resolve
from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.families import diffusers, fla, lucidrains, transformers

pytestmark = pytest.mark.filterwarnings("ignore")
MODELS, MEMORY = "transformers.models", "memory_efficient_attention_pytorch"
BUCKETED = {"plain", "padding", "causal and padding", "bias", "bias and padding", "bias and causal"}

# Import path, convention, variants, what of CASES every variant answers rightly, and what it does not.
PACKAGES: list[tuple[str, Convention, int, set[str], set[str]]] = [
    (f"{MODELS}.llama.modeling_llama.eager_attention_forward", transformers.GROUPED, 1, EAGER | HEADS, set()),
    (f"{MODELS}.bert.modeling_bert.eager_attention_forward", transformers.EAGER, 1, EAGER, set()),
    (f"{MODELS}.longt5.modeling_longt5.eager_attention_forward", transformers.EAGER, 1, EAGER, set()),
    (f"{MODELS}.gemma2.modeling_gemma2.eager_attention_forward", transformers.CAPPED, 1, EAGER | HEADS | {"softcap"}, set()),
    (f"{MODELS}.gpt_oss.modeling_gpt_oss.eager_attention_forward", transformers.WITH_SINKS, 1, EAGER | HEADS | {"sinks"}, set()),
    (
        "transformers.integrations.sdpa_attention.sdpa_attention_forward",
        transformers.SDPA,
        1,
        EAGER | HEADS | CAUSAL | {"bias and causal"},
        set(),
    ),
    (
        "diffusers.models.attention_dispatch.dispatch_attention_fn",
        diffusers.DISPATCH,
        2,
        EAGER | HEADS | CAUSAL | WITH_CAUSAL | {"bias and causal"},
        set(),
    ),
    (
        "fla.ops.attn.naive.naive_parallel_attn",
        fla.NAIVE,
        1,
        {"square", "causal, square", "window", "scale", "sinks"} | HEADS,
        set(),
    ),
    # A row whose last keys causal hides is not zero, as one without a key is otherwise.
    (
        "x_transformers.attend.Attend",
        lucidrains.X_TRANSFORMERS,
        2,
        EAGER | HEADS | {"causal", "causal, square", "bias and causal"},
        {"causal, tall"},
    ),
    (f"{MEMORY}.memory_efficient_attention.memory_efficient_attention", lucidrains.MEMORY_EFFICIENT, 2, BUCKETED | CAUSAL, set()),
    (f"{MEMORY}.memory_efficient_attention.attention", lucidrains.PLAIN, 1, BUCKETED | CAUSAL | MASKS | WITH_CAUSAL, set()),
    # Beside more keys its causal hides as many too many as there are more of them.
    (
        f"{MEMORY}.flash_attention.FlashAttentionFunction.apply",
        lucidrains.FLASH_FUNCTION,
        2,
        {"plain", "causal, square"} | MASKS,
        {"causal", "causal, tall"},
    ),
    # It ignores a mask beside causal.
    (
        "ring_attention_pytorch.ring_attention.default_attention",
        lucidrains.RING,
        1,
        {"plain", "padding", "softcap", "width"} | CAUSAL | HEADS,
        {"causal and padding"},
    ),
    # Beside more keys gradients are those of other rows.
    (
        "ring_attention_pytorch.ring_flash_attention.ring_flash_attn",
        lucidrains.RING_FLASH,
        2,
        {"plain", "padding", "softcap", "causal, square"} | HEADS,
        {"causal", "causal, tall"},
    ),
]


@pytest.mark.parametrize(("path", "convention", "variants", "good", "bad"), PACKAGES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_package_is_called_as_its_family_says(
    path: str, convention: Convention, variants: int, good: set[str], bad: set[str]
) -> None:
    module = path.rpartition(".")[0].removesuffix(".FlashAttentionFunction")
    package = path.partition(".")[0]
    pytest.importorskip(package, reason=f"the package {package} is not installed", exc_type=ImportError)
    pytest.importorskip(module, reason=f"the package {package} can't import {module} here", exc_type=ImportError)
    for subject in told(resolve(path), convention, variants):
        right(subject, good)
        for name in bad:
            assert findings(subject, CASES[name]), name


def test_what_says_no_to_an_option_is_not_asked_for_it() -> None:
    """transformers' sdpa refuses a cap by itself; a mask beside causal is left out, for it would hide the triangle's place."""
    pytest.importorskip("transformers", reason="the package transformers is not installed", exc_type=ImportError)
    (adapter,) = resolve("transformers.integrations.sdpa_attention.sdpa_attention_forward")
    assert not {"softcap", "sinks", "sinks_grad"} & set(adapter.offers)
    assert set(adapter.restrictions) == {"mask_or_causal"}
    (compiled,) = resolve("transformers.integrations.flex_attention.flex_attention_forward")
    assert compiled.convention is transformers.FLEX  # type: ignore[attr-defined]
    assert {"softcap", "causal"} <= set(compiled.offers)
    assert not {"dropout", "sinks"} & set(compiled.offers)
