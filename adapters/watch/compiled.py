"""Where torch.compile, inside an implementation, gives up on a function and runs it uncompiled."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

LOG = logging.getLogger("torch._dynamo.convert_frame")


class _Heard(logging.Filter):
    def __init__(self, functions: list[str]) -> None:
        super().__init__()
        self.functions = functions

    def filter(self, record: Any) -> bool:
        """A record of the log: torch says there, and nowhere else, that a limit was hit."""
        if "torch._dynamo hit config." in str(record.msg) and len(record.args) > 2:
            self.functions.append(str(record.args[2]))
        return True


@contextlib.contextmanager
def given_up() -> Iterator[list[str]]:
    """Around a call: the list that is yielded gets the functions on which torch gives up meanwhile."""
    functions: list[str] = []
    heard = _Heard(functions)
    LOG.addFilter(heard)
    try:
        yield functions
    finally:
        LOG.removeFilter(heard)
