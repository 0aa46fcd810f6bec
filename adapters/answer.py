"""What one call gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from attnspec.adapters.reading import words

KEPT = "an earlier answer"


class Unsupported(Exception):
    """An adapter raises this if its calling convention can't express a combination of features. The implementation is not asked."""


@dataclass(frozen=True)
class Answer:
    """What one call gave: its tensors, or what it raised.

    o: what the call returned, which should be a tensor (b h i e). lse: what it returned beside it, (b h i), if that was asked for.
    gradients: by name (dq, dk, dv, dbias, dalibi_slopes, dsinks), which should have the shapes of the inputs; None if autograd
    gave none.
    error: what was raised, in the stage "forward" or "backward".
    unsupported: why the implementation was not asked.
    changed: the inputs that the call changed, or around which it wrote in the same memory.
    disturbed: what the call changed of the global state, by name, in words.
    shares: the inputs whose memory the output shares, and KEPT if it shares that of an answer that is kept.
    refuses: whether the implementation raised the error by itself, and did not stumble.
    gave_up: functions on which torch.compile gave up.
    ended: CRASH or TIMEOUT, if the process of the implementation ended; log: the last lines that it wrote.
    """

    o: Any = None
    gradients: Mapping[str, Tensor | None] = field(default_factory=dict)
    error: BaseException | None = None
    stage: str = "forward"
    unsupported: str | None = None
    changed: tuple[str, ...] = ()
    disturbed: Mapping[str, str] = field(default_factory=dict)
    shares: tuple[str, ...] = ()
    refuses: bool = False
    gave_up: tuple[str, ...] = ()
    ended: str = ""
    log: tuple[str, ...] = ()
    lse: Any = None

    def output(self, name: str) -> Any:
        """An output by name: o, lse or a gradient; None where it is not there."""
        return self.o if name == "o" else self.lse if name == "lse" else self.gradients.get(name)

    @property
    def raised(self) -> str:
        """The class of what was raised, '' where nothing was."""
        return "Unsupported" if self.unsupported is not None else "" if self.error is None else words(self.error).partition(":")[0]

    @property
    def refusal(self) -> str | None:
        """Why there is no answer, in one line; None if there is one."""
        if self.unsupported is not None:
            return self.unsupported
        return None if self.error is None else words(self.error)
