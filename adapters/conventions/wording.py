"""How a parameter says an option: for the options that packages say in several ways, whatever their parameter is called."""

from __future__ import annotations

from collections.abc import Mapping
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
