"""How a parameter says a window: two numbers or one, what they count, and what says that there is no limit."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnspec.adapters.answer import Unsupported
from attnspec.adapters.conventions.wording import Wording
from attnspec.spec import Problem

# Parameters that take two numbers, (left, right), both how far the window reaches: flash-attention, torch's varlen_attn,
# TransformerEngine, aiter; JAX. Where the default is one number, or the annotation or the code says so, they take one.
PAIRS = ("window_size", "window", "local_window_size", "local_window", "attention_window")
# Parameters that take one number, and what it is known to count; "" where published kernels differ. transformers, gpt-oss and JAX's
# paged attention keep the last w keys with the query's own; FlashInfer's window_left is how far it reaches; sglang's
# sliding_window_size is too, but others of that name count keys.
SINGLES = {
    "window_left": "inclusive",
    "sliding_window": "total",
    "sliding_window_size": "",
    "sliding_window_length": "total",
}
NAMES = (*PAIRS, *SINGLES)


@dataclass(frozen=True)
class Said(Wording):
    """How one parameter says a window.

    pair: it takes (left, right); else a number alone, which limits the past: what is behind the query is then for causal to hide,
    or, under `window_left`, not limited. count: of attnspec.spec.CHOICES["window_count"], or "" where it is not known.
    unlimited: what says that a side has no limit; "" where nothing does but a number that reaches over all queries and keys.
    on: there is a window, or an error, where it is left out.
    first: its third number says how many first tokens stay visible, as aiter has it.
    """

    name: str
    pair: bool
    count: str
    unlimited: Any
    on: bool = False
    first: bool = False

    @classmethod
    def of(cls, parameter: inspect.Parameter, function: Callable[..., Any] | None = None) -> Said:
        """Read a parameter: its name, its default, its annotation, and where these do not say it, the code."""
        default = None if parameter.default is parameter.empty else parameter.default
        noted = "" if parameter.annotation is parameter.empty else str(parameter.annotation)
        several = isinstance(default, tuple | list) or bool(re.search(r"(?i)tuple|list|sequence", noted))
        one = isinstance(default, int) or bool(re.search(r"\bint\b", noted)) or calculated_with(parameter.name, function)
        pair = several or (parameter.name in PAIRS and not one)
        numbers = default if isinstance(default, tuple | list) else (default,)
        unlimited: Any = -1 if any(isinstance(x, int) and x < 0 for x in numbers) else None
        if pair and default is None:  # a pair that is left out says nothing of its sides
            unlimited = "" if parameter.name == "local_window_size" else -1 if parameter.name == "window_size" else None
        on = any(isinstance(x, int) and x > 0 for x in numbers) or parameter.default is parameter.empty
        first = isinstance(default, tuple | list) and len(default) == 3
        return cls(parameter.name, pair, "inclusive" if pair else SINGLES.get(parameter.name, ""), unlimited, on, first)

    @property
    def features(self) -> frozenset[str]:
        """A right side, and first tokens."""
        return frozenset(feature for feature, said in (("window_right", self.pair), ("first_tokens", self.first)) if said)

    @property
    def restrictions(self) -> frozenset[str]:
        """Of one number nobody knows what it shows behind the query, but for causal, which hides that."""
        return frozenset() if self.pair or self.name == "window_left" else frozenset({"window_with_causal"})

    @property
    def dialect(self) -> dict[str, str]:
        """What its name counts."""
        return {"window_count": self.count} if self.count else {}

    @property
    def also(self) -> tuple[str, ...]:
        """First tokens, where it has a number for them."""
        return ("first_tokens",) if self.first else ()

    @property
    def off(self) -> Any:
        """What says that there is no window."""
        if self.pair and self.unlimited == -1:
            return (-1, -1, 0) if self.first else (-1, -1)
        return None if self.pair else self.unlimited

    def value(self, problem: Problem) -> Any:
        """What says the window, or that there is none, and where it has a number for them its first tokens."""
        if problem.window is None:
            return self.off
        left, right = problem.window
        if self.pair:
            unlimited = max(problem.i, problem.j) if self.unlimited == "" else self.unlimited
            sides = tuple(unlimited if side is None else side for side in problem.window)
            return (*sides, problem.first_tokens) if self.first else sides
        if right is not None:
            raise Unsupported(f"{self.name} takes one number, which does not limit what is behind the query")
        if not problem.causal and self.name != "window_left":
            raise Unsupported(f"{self.name} takes one number: without causal it is not known what it shows behind the query")
        if left == 0 and self.count != "inclusive":
            raise Unsupported(f"{self.name} counts keys, and none of them is no window")
        return self.unlimited if left is None else left


def calculated_with(name: str, function: Callable[..., Any] | None) -> bool:
    """Whether the code of a function calculates with a parameter as it is, or asks whether it is less: it is then one number."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):  # compiled, or a string that was executed
        return False
    for node in ast.walk(tree):
        parts: list[ast.expr] = [node.left, node.right] if isinstance(node, ast.BinOp) else []
        if isinstance(node, ast.Compare) and any(isinstance(x, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for x in node.ops):
            parts = [node.left, *node.comparators]
        if any(isinstance(part, ast.Name) and part.id == name for part in parts):
            return True
    return False
