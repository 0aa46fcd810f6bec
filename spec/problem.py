"""One attention call: its options, and its tensors exactly as the implementation gets them. Importing this needs no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnspec.spec.index import implements
from attnspec.spec.option import Option, option
from attnspec.spec.ragged import FEATURES as RAGGED
from attnspec.spec.ragged import Carrier, carrier_from

if TYPE_CHECKING:
    import torch
    from torch import Tensor

COTANGENTS = ("do", "dlse")
FARTHEST = 1 << 30  # of a start: what a position plus a length may be in 32 bits


def _is_a_mask(problem: Problem, name: str) -> None:
    mask = getattr(problem, name)
    if mask is None:
        return
    if _dtype(mask) != "bool":
        raise ValueError(f"a {name} is bool (True = may attend), found {mask.dtype}; a float is a bias")
    padding = mask.ndim == 2
    _must_broadcast(problem, name, (problem.b, problem.j) if padding else (problem.b, problem.h, problem.i, problem.j))


def _is_a_bias(problem: Problem, name: str) -> None:
    bias = getattr(problem, name)
    if bias is None:
        return
    if not bias.dtype.is_floating_point or bias.element_size() < problem.q.element_size():
        raise ValueError(f"a {name} is a float as wide as q, or wider; found {problem._dtypes('q', name)}; a bool is a mask")
    _must_broadcast(problem, name, (problem.b, problem.h, problem.i, problem.j))


def _is_finite(problem: Problem, name: str) -> None:
    value = getattr(problem, name)
    if value is not None and not math.isfinite(value):
        raise ValueError(f"a {name} is a finite number, or None for the default; found {value}")


def _is_positive(problem: Problem, name: str) -> None:
    value = getattr(problem, name)
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"a {name} is a positive finite number, or None for none; found {value}")


def _is_a_window(problem: Problem, name: str) -> None:
    window = getattr(problem, name)
    sides = window if isinstance(window, tuple) and len(window) == 2 else (-1,)
    fits = all(side is None or (isinstance(side, int) and not isinstance(side, bool) and side >= 0) for side in sides)
    if window is not None and not fits:
        raise ValueError(f"a {name} is two whole numbers from 0 on, either None for no limit, or None for none; found {window!r}")


def _are_slopes(problem: Problem, name: str) -> None:
    slopes = getattr(problem, name)
    if slopes is None:
        return
    if not slopes.dtype.is_floating_point or slopes.element_size() < max(4, problem.q.element_size()):
        raise ValueError(f"{name} are floats as wide as q, and as float32; found {problem._dtypes('q', name)}")
    if tuple(slopes.shape) not in ((problem.h,), (problem.b, problem.h)):
        raise ValueError(f"{name} {tuple(slopes.shape)} are neither (h) {(problem.h,)} nor (b h) {(problem.b, problem.h)}")
    if not bool(slopes.isfinite().all()):
        raise ValueError(f"{name} are finite numbers; found {slopes[~slopes.isfinite()][0].item()}")


def _is_a_count(problem: Problem, name: str) -> None:
    value = getattr(problem, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is a whole number from 0 on, found {value!r}")


def _is_one_a_head(problem: Problem, name: str) -> None:
    logits = getattr(problem, name)
    if logits is None:
        return
    if not logits.dtype.is_floating_point or logits.element_size() < problem.q.element_size():
        raise ValueError(f"{name} are floats as wide as q, or wider; found {problem._dtypes('q', name)}")
    if tuple(logits.shape) != (problem.h,):
        raise ValueError(f"{name} are one number for each query head, ({problem.h},); found {tuple(logits.shape)}")


def _is_a_start(problem: Problem, name: str) -> None:
    start = getattr(problem, name)
    each = start if isinstance(start, tuple) else (start,)
    fits = all(isinstance(x, int) and not isinstance(x, bool) and abs(x) < FARTHEST for x in each)
    if start is not None and not (fits and len(each) == (problem.b if isinstance(start, tuple) else 1)):
        raise ValueError(
            f"a {name} is one whole number, or a tuple of one for each of {problem.b} batch items, none beyond ±{FARTHEST - 1}, "
            f"or None for none; found {start!r}"
        )


def _of_a_start(start: int | tuple[int, ...]) -> set[str]:
    each = start if isinstance(start, tuple) else (start,)
    forms = {"q_start_batch": each is start, "q_start_negative": min(each, default=0) < 0}
    return {"q_start", *(form for form, there in forms.items() if there)}


def _is_carried(problem: Problem, name: str) -> None:
    carrier = getattr(problem, name)
    if carrier is None:
        return
    if not isinstance(carrier, Carrier):
        raise ValueError(f"a {name} is one of attnspec.spec.ragged, or None for none; found {carrier!r}")
    carrier.check(problem)


def _is_a_probability(problem: Problem, name: str) -> None:
    if not 0 <= getattr(problem, name) <= 1:
        raise ValueError(f"{name} is a probability, found {getattr(problem, name)}")


def _must_broadcast(problem: Problem, name: str, shape: tuple[int, ...]) -> None:
    found = tuple(getattr(problem, name).shape)
    fits = len(found) <= len(shape) and all(a in (1, b) for a, b in zip(reversed(found), reversed(shape), strict=False))
    if not fits:
        raise ValueError(f"{name} {found} does not broadcast to {shape}")


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that determines one attention call. The implementation gets these tensors, with these values and strides.

    q (b h i d), k (b g j d) and v (b g j e); or one shared head k (b j d) and v (b j e). All have one floating-point dtype.
    mask: bool, True = may attend; key padding (b j), or 3 or 4 dimensions that broadcast to (b h i j).
    bias: float, as wide as q or wider; added to the scaled scores; broadcasts to (b h i j).
    causal: each query attends to keys up to its own position (chapter CAUSAL).
    scale: multiplies q kᵀ; None for 1/√d.
    softcap: c > 0 makes c·tanh(s/c) of each scaled score s (chapter SOFTCAP); None for none.
    window: (left, right), how far before and behind its own position a query sees keys (chapter WINDOW), None on a side for no
    limit there; None for none.
    first_tokens: so many of the first keys the left end of the window does not hide (WINDOW-16).
    alibi_slopes: (h) or (b h), float, as wide as q and as float32; each score moves by its head's slope times the distance of the
    key, or what alibi_form makes of that (chapter ALIBI). Half types are refused: they hold few slopes exactly, and errors grow
    with the distance.
    sinks: (h) float, as wide as q or wider; one logit for each query head that joins the row sum of its softmax, and has no value
    (chapter SINK); −∞ where a head has none.
    q_start: the position of the first query on the key axis, for all batch items or for each its own; it takes the place of the
    alignment of causal and window (chapter POSITION). None for none.
    dropout: the probability that a weight is dropped, if `training` is True.
    lse: whether the log of each row's sum (b h i) is returned beside the output (chapter LSE).
    carrier: how long each batch item is, and in which tensors they are handed over (:mod:`attnspec.spec.ragged`); None where all
    have one length, in these tensors. Behind its length a batch item has no rows; outputs are zero there.
    do (b h i e): the cotangent of the output, in its dtype. dlse (b h i): that of the lse, float32, or float64 where q is; do may
    be None beside it, which is zeros. wrt: the inputs whose gradients are asked for, of DIFFERENTIABLE.

    Raises ValueError, with what was found and what was expected, for inputs that are not one attention call.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = option(
        None,
        feature="mask",
        says="bool mask that broadcasts to (b h i j)",
        forms={"rank3": "mask or bias of three dimensions (h i j)", "key_padding": "bool key padding mask (b j)"},
        needs=lambda mask: {{2: "key_padding", 3: "rank3"}.get(mask.ndim, "mask")},
        check=_is_a_mask,
        axes="bhij",
    )
    bias: Tensor | None = option(
        None,
        feature="bias",
        says="float bias that is added to the scores",
        also=("rank3",),
        needs=lambda bias: {"bias", "rank3"} if bias.ndim == 3 else {"bias"},
        check=_is_a_bias,
        axes="bhij",
        gradient="bias_grad",
    )
    causal: bool = option(False, feature="causal", says="causal masking")
    scale: float | None = option(None, feature="scale", says="a given scale", check=_is_finite)
    dropout: float = option(0.0, feature="dropout", says="dropout of probabilities", check=_is_a_probability)
    training: bool = option(False)  # goes with dropout
    softcap: float | None = option(None, feature="softcap", says="a soft cap of the scores, c·tanh(s/c)", check=_is_positive)
    window: tuple[int | None, int | None] | None = option(
        None,
        feature="window",
        says="a window of keys around each query",
        forms={"window_right": "a window with an end behind the query"},
        needs=lambda window: {"window"} if window[1] is None else {"window", "window_right"},
        check=_is_a_window,
    )
    first_tokens: int = option(0, feature="first_tokens", says="first keys that no window hides", check=_is_a_count)
    alibi_slopes: Tensor | None = option(
        None,
        feature="alibi",
        says="slopes (h) that lower each score by the distance of its key",
        forms={"alibi_batch": "slopes of each batch item (b h)"},
        needs=lambda slopes: {"alibi"} if slopes.ndim == 1 else {"alibi", "alibi_batch"},
        check=_are_slopes,
        axes="bh",
        gradient="alibi_grad",
    )
    sinks: Tensor | None = option(
        None,
        feature="sinks",
        says="a sink, one logit a query head in the row sum",
        check=_is_one_a_head,
        axes="h",
        gradient="sinks_grad",
    )
    q_start: int | tuple[int, ...] | None = option(
        None,
        feature="q_start",
        says="a given position of the first query",
        forms={
            "q_start_batch": "a position of the first query for each batch item",
            "q_start_negative": "a first query before the first key",
        },
        needs=_of_a_start,
        check=_is_a_start,
    )
    lse: bool = option(
        False,
        feature="lse",
        says="the log of each row's sum, the lse, beside the output",
        forms={"lse_grad": "gradients through the lse"},
        needs=lambda lse: {"lse"} if lse else set(),
    )
    carrier: Carrier | None = option(
        None,
        feature="packed",
        says=RAGGED["packed"],
        forms={name: says for name, says in RAGGED.items() if name != "packed"},
        needs=lambda carrier: carrier.needs(),
        check=_is_carried,
    )
    do: Tensor | None = None
    dlse: Tensor | None = None
    wrt: tuple[str, ...] = ()

    @implements("ERROR-2", "ERROR-4")
    def __post_init__(self) -> None:
        """Raise ValueError unless the inputs are one attention call."""
        if self.q.ndim != 4 or self.k.ndim not in (3, 4) or self.v.ndim != self.k.ndim:
            raise ValueError(f"expected q (b h i d) with k, v (b g j d) or (b j d); found {self._shapes('q', 'k', 'v')}")
        same = (
            self.k.shape[0] == self.v.shape[0] == self.b and self.k.shape[-1] == self.d and self.k.shape[:-1] == self.v.shape[:-1]
        )
        if not same:
            raise ValueError(f"batch, key length or query width do not agree: {self._shapes('q', 'k', 'v')}")
        if self.h % self.g if self.g else self.h:
            raise ValueError(f"{self.h} query heads can't be shared evenly among {self.g} key/value heads")
        if not self.q.dtype.is_floating_point or not self.q.dtype == self.k.dtype == self.v.dtype:
            raise ValueError(f"q, k, v are floats of one dtype; found {self._dtypes('q', 'k', 'v')}")
        for name, own in OPTIONS.items():
            if own.check is not None:
                own.check(self, name)
        strange = [name for name in self.wrt if name not in DIFFERENTIABLE or getattr(self, name) is None]
        if strange or len(set(self.wrt)) < len(self.wrt):
            given = [name for name in DIFFERENTIABLE if getattr(self, name) is not None]
            raise ValueError(
                f"wrt names inputs whose gradients are asked for, each once, of {', '.join(given)}; found {self.wrt!r}"
            )
        if self.do is not None and self.do.dtype != self.dtype:
            raise ValueError(f"the cotangent has the dtype of the output; found {self._dtypes('q', 'do')}")
        if self.do is not None and self.do.shape != (self.b, self.h, self.i, self.e):
            raise ValueError(f"the cotangent has shape {tuple(self.do.shape)}, the output {(self.b, self.h, self.i, self.e)}")
        if self.dlse is not None:
            self._check_cotangent_of_lse(self.dlse)

    def _check_cotangent_of_lse(self, dlse: Tensor) -> None:
        wide = "float64" if _dtype(self.q) == "float64" else "float32"
        if not self.lse:
            raise ValueError("dlse is the cotangent of an lse that is not returned: give lse=True, or no dlse")
        if _dtype(dlse) != wide:
            raise ValueError(f"dlse is {wide} beside q {_dtype(self.q)}; found {_dtype(dlse)}")
        if dlse.shape != (self.b, self.h, self.i):
            raise ValueError(f"dlse has shape {tuple(dlse.shape)}, the lse {(self.b, self.h, self.i)}")

    def _shapes(self, *names: str) -> str:
        return ", ".join(f"{name} {tuple(getattr(self, name).shape)}" for name in names)

    def _dtypes(self, *names: str) -> str:
        return ", ".join(f"{name} {_dtype(getattr(self, name))}" for name in names)

    # SIZES, in the letters of the spec

    @property
    def b(self) -> int:
        """Batch items."""
        return self.q.shape[0]

    @property
    def h(self) -> int:
        """Query heads."""
        return self.q.shape[1]

    @property
    def g(self) -> int:
        """Key/value heads; 1 for one shared head."""
        return 1 if self.shared else self.k.shape[1]

    @property
    def i(self) -> int:
        """Queries."""
        return self.q.shape[2]

    @property
    def j(self) -> int:
        """Keys."""
        return self.k.shape[-2]

    @property
    def d(self) -> int:
        """Width of queries and keys."""
        return self.q.shape[3]

    @property
    def e(self) -> int:
        """Width of values."""
        return self.v.shape[-1]

    @property
    def shared(self) -> bool:
        """True if keys and values are one 3-D head, k (b j d) and v (b j e)."""
        return self.k.ndim == 3

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of q, k, v and the output."""
        return self.q.dtype

    @property
    def outputs(self) -> tuple[str, ...]:
        """What an answer has, by name: o, then the lse, then the gradients that are asked for."""
        gradients = tuple(f"d{name}" for name in self.wrt) if self.differentiated else ()
        return ("o", *(("lse",) if self.lse else ()), *gradients)

    def shape_of(self, output: str) -> tuple[int, ...]:
        """The shape of an output: (b h i e) for o, (b h i) for the lse, that of its input for a gradient."""
        if output in ("o", "lse"):
            return (self.b, self.h, self.i, *((self.e,) if output == "o" else ()))
        return tuple(getattr(self, output.removeprefix("d")).shape)

    @property
    def differentiated(self) -> bool:
        """Whether there is a cotangent, so that an answer has gradients."""
        return self.do is not None or self.dlse is not None

    def replace(self, **changes: Any) -> Problem:
        """The same problem with some fields changed. Raises ValueError if they no longer fit together."""
        return dataclasses.replace(self, **changes)

    def inputs(self) -> dict[str, Tensor]:
        """The tensors that the implementation gets, by name: all but the cotangents."""
        return {name: x for name in TENSORS if name not in COTANGENTS and (x := getattr(self, name)) is not None}

    def cotangents(self) -> dict[str, Tensor]:
        """The cotangents that are given, by name."""
        return {name: x for name in COTANGENTS if (x := getattr(self, name)) is not None}

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, by name."""
        return {name: value for name, own in OPTIONS.items() if own.given(value := getattr(self, name))}

    def to_bytes(self) -> bytes:
        """The problem as bytes, with the memory and strides of its tensors; see :func:`attnspec.spec.memory.to_bytes`."""
        from attnspec.spec.memory import to_bytes

        return to_bytes(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Problem:
        """Read what :meth:`to_bytes` wrote."""
        from attnspec.spec.memory import from_bytes

        return from_bytes(data)


# The options of a call by name, in the order of the fields.
OPTIONS: dict[str, Option] = {
    f.name: dataclasses.replace(f.metadata["option"], tensor="Tensor" in str(f.type))
    for f in dataclasses.fields(Problem)
    if "option" in f.metadata
}
SCALARS = tuple(name for name, own in OPTIONS.items() if own.feature and not own.tensor)  # options that are one value
# The inputs whose gradients a problem can ask for.
DIFFERENTIABLE = ("q", "k", "v", *(name for name, own in OPTIONS.items() if own.gradient))
TENSORS = tuple(f.name for f in dataclasses.fields(Problem) if "Tensor" in str(f.type))  # the cotangents come last


def differentiable(features: Iterable[str]) -> tuple[str, ...]:
    """The inputs whose gradients an implementation with these features gives."""
    offered = set(features)
    if "backward" not in offered:
        return ()
    return tuple(name for name in DIFFERENTIABLE if name not in OPTIONS or OPTIONS[name].gradient in offered)


def gradient_features(features: Iterable[str]) -> set[str]:
    """The features of the gradients of the options that these features stand for."""
    offered = set(features)
    return {own.gradient for own in OPTIONS.values() if own.gradient and own.feature in offered}


def options_from(said: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a problem has them, from JSON, which has no tuples."""
    made: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in said.items()}
    if isinstance(made.get("carrier"), Mapping):
        made["carrier"] = carrier_from(made["carrier"])
    return made


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can have them, which :func:`options_from` reads."""
    return {name: x.data() if isinstance(x, Carrier) else x for name, x in options.items()}
