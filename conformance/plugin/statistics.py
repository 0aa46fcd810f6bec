"""What Hypothesis says of a search, for --hypothesis-show-statistics: our tests search inside, and are no tests of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def watch(item: pytest.Item) -> Iterator[None]:
    """Keep the statistics of a search where Hypothesis's plugin looks for those of its own tests."""
    from hypothesis.statistics import collector, describe_statistics

    def keep(statistics: Any) -> None:
        statistics["nodeid"] = item.nodeid
        item.hypothesis_statistics = describe_statistics(statistics)  # type: ignore[attr-defined]

    with collector.with_value(keep):  # type: ignore[arg-type]
        yield
