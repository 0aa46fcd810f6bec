"""How a parameter says an option: for the options that packages say in several ways, whatever their parameter is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attnspec.spec import Problem


class Wording:
    """How one parameter says one option. Each option of that kind has a class of its own.

    on: it must be passed where a problem asks for no such option, too: left out, it would do something, or be missing.
    """

    name: str
    on: bool = False

    @property
    def features(self) -> frozenset[str]:
        """What it has words for beside the option itself."""
        return frozenset()

    @property
    def dialect(self) -> Mapping[str, str]:
        """The choices that its name, or what is written about it, makes."""
        return {}

    @property
    def restrictions(self) -> frozenset[str]:
        """What it has no words for, of RESTRICTIONS."""
        return frozenset()

    @property
    def also(self) -> tuple[str, ...]:
        """The other options that it says."""
        return ()

    @property
    def constructed(self) -> Wording:
        """The same in a constructor, which knows no tensor and no number of items."""
        return self

    def value(self, problem: Problem) -> Any:
        """What is passed for a problem. Raises Unsupported where it has no words for what is asked."""
        raise NotImplementedError


def passed(
    asked: Mapping[str, Any], said: Mapping[str, Wording], off: Mapping[str, Any], problem: Problem
) -> Iterator[tuple[str, Any]]:
    """The options that a call passes, by field, and what says each; but for those that another parameter says.

    asked: what a problem asks for, None for nothing. said: how parameters say options. off: what turns off a parameter that is on.
    """
    told = {other for wording in said.values() for other in wording.also}
    for field, value in asked.items():
        if field in told:
            continue
        if field in said and (value is not None or said[field].on):
            yield field, said[field].value(problem)
        elif value is not None:
            yield field, value
        elif field in off:
            yield field, off[field]
