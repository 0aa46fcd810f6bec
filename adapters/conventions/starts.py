"""How a parameter says where the queries start: one number, a list of them, or a tensor of whole numbers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from attnspec.adapters.answer import Unsupported
from attnspec.adapters.conventions.wording import Wording
from attnspec.spec import Problem

# The position of the first query on the key axis: transformers' masks and splash attention call it an offset, gpt-oss start_q. The
# first six are positions, which may be negative; the others count what lies before the queries.
POSITIONS = ("q_start", "query_start", "start_q", "q_offset", "query_offset", "position_offset")
COUNTS = ("start_pos", "past_length", "past_len", "past_key_values_length")
NAMES = (*POSITIONS, *COUNTS)


@dataclass(frozen=True)
class Said(Wording):
    """How one parameter says a start.

    number: it takes one number for all batch items. many: how it takes one for each: as a "list", as a "tensor" (b) of int32 on the
    device of the queries, which is what kernels take lengths in, or not, "". Where it takes no number, one for all is b equal ones.
    on: it can't be left out; a call without a start is given 0.
    """

    name: str
    number: bool
    many: str
    on: bool = False

    @classmethod
    def of(cls, parameter: inspect.Parameter, function: Callable[..., Any] | None = None) -> Said:
        """Read a parameter from its name and its annotation; without one it takes a number."""
        noted = "" if parameter.annotation is parameter.empty else str(parameter.annotation)
        many = "tensor" if "Tensor" in noted else "list" if re.search(r"(?i)list|tuple|sequence", noted) else ""
        alone = re.sub(r"(?i)(list|tuple|sequence)\[[^]]*]", "", noted)
        number = not many or bool(re.search(r"\bint\b", alone))
        return cls(parameter.name, number, many, parameter.default is parameter.empty)

    @property
    def features(self) -> frozenset[str]:
        """Starts of several items, and those before the first key."""
        found = {"q_start_batch": bool(self.many), "q_start_negative": self.name in POSITIONS}
        return frozenset(feature for feature, said in found.items() if said)

    @property
    def dialect(self) -> dict[str, str]:
        """0 is the start of top-left alignment."""
        return {"causal_alignment": "top_left"} if self.on else {}

    @property
    def constructed(self) -> Said:
        """One number."""
        return replace(self, number=True, many="")

    def value(self, problem: Problem) -> Any:
        """What says the start, or 0 where there is none."""
        start = 0 if problem.q_start is None else problem.q_start
        if self.name in COUNTS and min((start,) if isinstance(start, int) else start, default=0) < 0:
            raise Unsupported(f"{self.name} counts what lies before the queries, which is not less than nothing")
        if isinstance(start, tuple) and not self.many:
            raise Unsupported(f"{self.name} takes one number for all batch items")
        if isinstance(start, int) and self.number:
            return start
        each = [start] * problem.b if isinstance(start, int) else list(start)
        return torch.tensor(each, dtype=torch.int32, device=problem.q.device) if self.many == "tensor" else each
