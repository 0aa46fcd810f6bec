"""Implementations that cheat or misbehave, where the mutants are merely wrong.

``WORDS`` says for each of them what must stand on the screen for a reader to see what is going on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from honest import Attend, eager, tiled
from torch import Tensor

from attnspec.adapters import Adapter, Unsupported
from mutants.base import FAMILIES, MUTANTS, Call, Mutant, with_sdpa_signature

WORDS: dict[str, tuple[str, ...]] = {}
ASKED: dict[str, tuple[str, ...]] = {}


def liar(
    family: str,
    clause: str,
    *words: str,
    asked: str = "",
    source: str = "",
    checked: bool = True,
    witness: Callable[[Any], bool] | None = None,
) -> Callable[[Any], Any]:
    """Enter a liar: a function of a ``Call``, a class of such functions that keep state, a module or an adapter.

    `asked`: the case on which it is seen, where it is not by the clause's own tests of tier smoke.
    """

    def enter(faulty: Any) -> Any:
        whole = isinstance(faulty, type) and issubclass(faulty, Adapter | torch.nn.Module)

        def make() -> Any:
            if whole:
                return faulty
            attend = faulty() if isinstance(faulty, type) else faulty
            made = with_sdpa_signature(attend, checked)
            made.__name__ = made.__qualname__ = name
            return made

        name, what = faulty.__name__, (faulty.__doc__ or "").partition("\n")[0]
        if name in MUTANTS or family not in FAMILIES:
            raise ValueError(f"liar {name}: entered twice, or of no family")
        MUTANTS[name] = Mutant(name, family, clause, source, what, "liar", make, witness)
        WORDS[name] = words
        ASKED[name] = (f"--case={asked}",) if asked else ()
        return faulty

    return enter


def answered_as(value: Tensor, derived: Tensor) -> Tensor:
    """The values of one tensor with the derivative of another."""
    return derived + (value - derived).detach()


# ANSWERS THAT ARE NONE


@liar("control", "SOFTMAX-1", "the whole output is zero", asked="i=3,j=7")
def zeros(call: Call) -> Tensor:
    """The answer is zero, with zero gradients."""
    return call.run() * 0


@liar("control", "SOFTMAX-1", "all visible keys weigh the same", asked="i=3,j=7,heads=2/2,b=2")
def mean_of_values(call: Call) -> Tensor:
    """Every query gets the mean of all values."""
    return call.but(query=call.query * 0, attn_mask=None, is_causal=False).run()


@liar("control", "MASK-2", "all visible keys weigh the same", asked="i=3,j=7,mask=padding,values=peaked")
def mean_of_visible_values(call: Call) -> Tensor:
    """Where a mask hides anything, every query gets the mean of the values that it shows."""
    hides = call.attn_mask is not None and not bool(call.visible.all())
    return call.but(query=call.query * 0).run() if hides else call.run()


@liar("control", "SOFTMAX-2", "the whole output is NaN", "not finite, but the exact answer is", asked="i=3,j=7")
def nan_everywhere(call: Call) -> Tensor:
    """NaN, as a wildcard that compares with nothing."""
    return call.run() * torch.nan


@liar(
    "softmax",
    "SOFTMAX-2",
    "= nan, expected",
    "not finite, but the exact answer is",
    source="pytorch/pytorch#121558",
    asked="i=3,j=7,values=large",
)
def nan_where_it_is_hard(call: Call) -> Tensor:
    """NaN in each row whose scores are far apart, where a tolerant reference gives up, too."""
    scores = call.query.double() @ call.query.double().mT * call.scale_in_use
    hard = scores.abs().amax(-1, keepdim=True) > 1e3
    return call.run().masked_fill(hard, torch.nan)


@liar("mask", "MASK-2", "the whole output is NaN", "not finite, but the exact answer is", asked="i=3,j=7,mask=padding")
def nan_with_any_mask(call: Call) -> Tensor:
    """NaN as soon as a mask hides anything."""
    hides = call.attn_mask is not None and not bool(call.visible.all())
    return call.run() * (torch.nan if hides else 1.0)


# ANSWERS FROM ANOTHER QUESTION


def _shapes(call: Call) -> tuple[Any, ...]:
    options = (call.is_causal, call.scale, call.dropout_p, None if call.attn_mask is None else call.attn_mask.shape)
    return (call.query.dtype, call.query.shape, call.key.shape, call.value.shape, *options)


def _addresses(call: Call) -> tuple[Any, ...]:
    return (*_shapes(call), call.query.data_ptr(), call.key.data_ptr(), call.value.data_ptr())


class _Remembers:
    """Answers from a table."""

    def __init__(self) -> None:
        self.answers: dict[Any, Tensor] = {}

    key: Callable[[Call], tuple[Any, ...]]

    def __call__(self, call: Call) -> Tensor:
        out = call.run()
        kept = self.answers.setdefault(type(self).key(call), out.detach().clone())
        return answered_as(kept, out)


@liar("state", "PURITY-5", "after a call with the same shapes and other numbers", asked="i=3,j=7")
class cached_by_shape(_Remembers):  # noqa: N801
    """Shapes and options seen before get the answer of then."""

    key = staticmethod(_shapes)


@liar("state", "PURITY-5", "with other numbers written to the same addresses", asked="i=3,j=7")
class cached_by_address(_Remembers):  # noqa: N801
    """Tensors at addresses seen before get the answer of then."""

    key = staticmethod(_addresses)


@liar("state", "PURITY-4", "the answer varies", asked="i=3,j=7")
class right_on_the_second_call(_Remembers):  # noqa: N801
    """A problem met for the first time gets half the answer; asked again, it gets all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def __call__(self, call: Call) -> Tensor:
        which = (*_shapes(call), float(call.query.double().sum()), float(call.value.double().sum()))
        first = which not in self.seen
        self.seen.add(which)
        return call.run() * (0.5 if first else 1.0)


@liar("state", "SOFTMAX-1", "the whole output is zero")
class right_for_the_first_hundred_calls:  # noqa: N801
    """The first hundred calls are answered, the others get zeros."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, call: Call) -> Tensor:
        self.calls += 1
        return call.run() * (1.0 if self.calls <= 100 else 0.0)


# WHAT IT DOES TO OTHERS


@liar("state", "PURITY-1", "the call changed its input q", asked="i=3,j=7")
def query_written(call: Call) -> Tensor:
    """The caller's query is overwritten with zeros."""
    out = call.but(query=call.query.clone()).run()
    call.query.data.zero_()
    return out


@liar("state", "PURITY-1", "the call changed its input do", asked="i=3,j=7")
def cotangent_written(call: Call) -> Tensor:
    """The caller's cotangent is scaled in place by backward."""

    def scaled(grad: Tensor) -> Tensor:
        copy = grad.clone()
        grad.data.mul_(2)
        return copy

    out = call.run()
    out = out.view_as(out)
    if out.requires_grad:
        out.register_hook(scaled)
    return out


@liar("state", "PURITY-2", "the output shares its memory with v", asked="i=3,j=1")
def output_is_the_value_of_one_key(call: Call) -> Tensor:
    """With a single key and no mask the output is a view of the value."""
    out = call.run()
    if call.shape[3] == 1 and call.attn_mask is None and call.value.shape[1] == call.shape[1] and not call.dropout_p:
        out.data = call.value.data.expand(out.shape)
    return out


@liar("state", "PURITY-2", "two calls returned the same memory", asked="i=3,j=7")
class view_of_a_shared_buffer:  # noqa: N801
    """The output is a view of one buffer, which the next call overwrites."""

    def __init__(self) -> None:
        self.buffers: dict[torch.dtype, Tensor] = {}

    def __call__(self, call: Call) -> Tensor:
        out = call.run()
        buffer = self.buffers.setdefault(out.dtype, out.new_empty(1 << 20).detach())
        if out.numel() <= buffer.numel():
            view = buffer[: out.numel()].view(out.shape)
            view.copy_(out.detach())
            out.data = view
        return out


@liar("state", "PURITY-3", "the first call changed the default dtype from torch.float32 to torch.float64")
def default_dtype_changed(call: Call) -> Tensor:
    """The default dtype is float64 afterwards."""
    out = call.run()
    torch.set_default_dtype(torch.float64)
    return out


@liar("state", "PURITY-3", "the first call changed the default dtype from torch.float32 to torch.float16")
class default_dtype_changed_once:  # noqa: N801
    """The first call of all sets the default dtype, as what is loaded late would; the others do not."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, call: Call) -> Tensor:
        self.calls += 1
        out = call.run()
        if self.calls == 1:
            torch.set_default_dtype(torch.float16)
        return out


@liar("state", "PURITY-3", "the first call changed the default dtype from torch.float32 to torch.bfloat16")
class DefaultDtypeChangedOnce(Attend):
    """The first call of an instance, which the suite makes to learn what keys it takes, sets the default dtype."""

    called = False

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.called:
            torch.set_default_dtype(torch.bfloat16)
        self.called = True
        return super().forward(q, k, v, mask)


@liar(
    "state",
    "PURITY-3",
    "the call changed the default dtype from torch.float32 to torch.float16",
    "4 queries, 4 keys, width 1; causal",
    asked="i=7,j=9,causal=True",
)
def default_dtype_changed_by_a_refusal(call: Call) -> Tensor:
    """Causal calls of four queries or more set the default dtype and raise before they set it back."""
    if call.is_causal and call.shape[2] > 3:
        torch.set_default_dtype(torch.float16)
        raise NotImplementedError("no long causal calls")
    return call.run()


@liar("state", "PURITY-3", "the first call changed the matmul precision from highest to medium", asked="i=3")
def matmul_precision_changed(call: Call) -> Tensor:
    """Products in float32 are rounded more, for everybody."""
    torch.set_float32_matmul_precision("medium")
    return call.run()


@liar("state", "PURITY-3", "the first call changed the determinism flag from False to True", asked="i=3")
def determinism_flag_changed(call: Call) -> Tensor:
    """Deterministic algorithms are demanded of everybody."""
    torch.use_deterministic_algorithms(True)
    return call.run()


@liar("state", "PURITY-3", "the first call changed the random state", asked="i=3")
def random_state_changed(call: Call) -> Tensor:
    """The global generator is seeded on every call."""
    out = call.run()
    torch.manual_seed(0)
    return out


@liar("state", "PURITY-3", "the first call changed grad mode from True to False")
def grad_mode_changed(call: Call) -> Tensor:
    """Gradients are switched off for good."""
    out = call.run()
    torch.set_grad_enabled(False)
    return out


@liar("state", "PURITY-3", "the first call changed the number of threads from 1 to 2", asked="i=3")
def threads_changed(call: Call) -> Tensor:
    """One thread less, or one more, for everybody."""
    torch.set_num_threads(2 if torch.get_num_threads() == 1 else 1)
    return call.run()


# OPTIONS THAT ARE ACCEPTED AND IGNORED


@liar("error", "ERROR-3", "bool mask that broadcasts to (b h i j) has no effect", source="NVIDIA/FasterTransformer#714")
def mask_ignored(call: Call) -> Tensor:
    """A bool mask is not read."""
    return call.but(attn_mask=None if call.bool_mask is not None else call.attn_mask).run()


@liar("error", "ERROR-3", "float bias that is added to the scores has no effect")
def bias_ignored(call: Call) -> Tensor:
    """A float mask is not read, beyond its -inf."""
    if call.float_mask is None:
        return call.run()
    return call.but(attn_mask=call.float_mask != -torch.inf).run()


@liar("error", "ERROR-3", "causal masking has no effect", source="jax-ml/jax#19237")
def causal_ignored(call: Call) -> Tensor:
    """is_causal has no effect."""
    return call.but(is_causal=False).run()


@liar("error", "ERROR-3", "a given scale has no effect", source="pytorch/pytorch#174049")
def scale_ignored_silently(call: Call) -> Tensor:
    """A given scale has no effect."""
    return call.but(scale=None).run()


@liar("dropout", "DROPOUT-5", "50688 of 50688 probabilities are kept")
def dropout_ignored(call: Call) -> Tensor:
    """dropout_p has no effect."""
    return call.but(dropout_p=0.0).run()


@liar("heads", "SHARED-2", "2 key/value heads, 1 query", asked="i=3,j=7,heads=4/2")
def groups_ignored(call: Call) -> Tensor:
    """With enable_gqa every query head uses the first key/value head."""
    if call.key.shape[1] in (call.query.shape[1], 0):
        return call.run()
    return call.but(key=call.key[:, :1], value=call.value[:, :1]).run()


# FEATURES CLAIMED AND NOT HAD


class _Claims(Adapter):
    offers = {"mha", "mqa", "gqa", "key_padding", "causal", "scale", "backward"}
    dialect = {"causal_alignment": "top_left", "empty_row": "zero", "head_grouping": "blocked"}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, **options: Any) -> Tensor:
        if options.keys() - {"scale", "causal"}:
            raise Unsupported(f"no {' and no '.join(options.keys() - {'scale', 'causal'})}")
        options = {"scale": options.get("scale"), "is_causal": options.get("causal", False)}
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None, :]
        if mask is not None and options["is_causal"]:
            mask = mask & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
            options["is_causal"] = False
        return self.kernel(q, k, v, attn_mask=mask, enable_gqa=True, **options)

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return tiled(q, k, v, **options)


@liar("heads", "SHARED-2", "raised NotImplementedError: no groups yet", asked="i=3,j=7,heads=4/2")
class ClaimsGroupsAndRaises(_Claims):
    """Promises gqa, and raises."""

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        if k.shape[1] not in (1, q.shape[1]):
            raise NotImplementedError("no groups yet")
        return super().kernel(q, k, v, **options)


@liar("heads", "SHARED-2", "head_grouping=strided", asked="i=3,j=7,heads=4/2")
class ClaimsBlockedGroupsAndStrides(_Claims):
    """Promises blocked groups of query heads, and strides them."""

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        heads = torch.arange(q.shape[1]) % k.shape[1]
        return super().kernel(q, k[:, heads], v[:, heads], **options)


@liar("error", "SHARED-2", "raised Unsupported: no groups on Sundays; it needs only gqa", asked="i=3,j=7,heads=4/2")
class ClaimsAndIsUnsupported(_Claims):
    """Promises gqa, and says Unsupported where it is asked for."""

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        if k.shape[1] not in (1, q.shape[1]):
            raise Unsupported("no groups on Sundays")
        return super().kernel(q, k, v, **options)


@liar("gradients", "GRAD-1", "the output has no grad_fn, or does not depend on it", asked="i=3,j=7")
def no_grad_fn(call: Call) -> Tensor:
    """The output is detached."""
    return call.run().detach()


@liar("gradients", "GRAD-1", "gradient of q [0, 0, 0, 0] = 0, expected", asked="i=3,j=7")
def gradients_of_zero(call: Call) -> Tensor:
    """Claims a backward, and hands back zeros."""
    out = call.run()
    return answered_as(out, out * 0)


@liar("gradients", "GRAD-5", "only q and v require grad", asked="i=3,j=7,wrt=qv")
def wrong_for_some_subsets(call: Call) -> Tensor:
    """The gradient of the value is doubled where query and value need one, and the key does not."""
    if call.query.requires_grad and call.value.requires_grad and not call.key.requires_grad:
        view = call.value.view_as(call.value)
        view.register_hook(lambda grad: grad * 2)
        return call.but(value=view).run()
    return call.run()


@liar("dtype", "ACCURACY-1", "it would be right in class B of bfloat16", "not A", asked="dtype=bfloat16,i=3,j=7")
class ClaimsClassA(_Claims):
    """Claims class A for every dtype, and rounds everything."""

    accuracy = "A"

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return eager(q, k, v, **options)


@liar("state", "PURITY-4", "in a second call", asked="i=5,j=33,d=16")
class ClaimsToBeDeterministic(_Claims):
    """Claims the same bits on every call, and takes one of two kernels in turn."""

    deterministic = True

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return (eager, tiled)[self.calls % 2](q, k, v, **options)


# BEHAVING WHILE WATCHED


@liar("mode", "PURITY-6", "where no test framework is imported", "expected")
def behaves_under_pytest(call: Call) -> Tensor:
    """Right while pytest is imported, zeros otherwise."""
    return call.run() * (1.0 if "pytest" in sys.modules else 0.0)


@liar("mode", "PURITY-6", "where no test framework is imported")
def exact_while_a_test_runs(call: Call) -> Tensor:
    """Where pytest has named the test that runs it takes a careful path; elsewhere the query passes through bfloat16."""
    if "PYTEST_CURRENT_TEST" in os.environ:
        return call.run()
    return call.but(query=call.query.bfloat16().to(call.query.dtype)).run()


@liar("mode", "")
class FallsBackSilently(Attend):
    """With flash=True it runs the eager path: the answer is right, and not from where it is said to be."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        self.flash = False
        return super().forward(q, k, v, mask)
