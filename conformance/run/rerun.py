"""How a failure is asked again: as a command line, or as a call of check() for what has no name on one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Rerun(Protocol):
    """What the text of a failure says in the words of whoever reads it."""

    @property
    def accept(self) -> str:
        """The option that accepts what is inherited."""

    def choose(self, choice: str) -> str:
        """The option that follows a choice, "causal_alignment=top_left"."""

    def of(self, clause: str, case: str, *, thorough: bool) -> str:
        """What asks one clause on one case; thorough: in the tier of that name."""


@dataclass(frozen=True)
class Shell:
    """A command line. `command` asks the implementation everything."""

    command: str
    accept: str = "--inherited=note"

    def choose(self, choice: str) -> str:
        """The option that follows a choice."""
        return f"--dialect {choice}"

    def of(self, clause: str, case: str, *, thorough: bool) -> str:
        """The command that asks one clause on one case."""
        tier = " --tier=thorough" if thorough else ""
        return f"{self.command}{tier} --clauses={clause} --case={shlex.quote(case)}"


@dataclass(frozen=True)
class Call:
    """A call of check() with an object. `given` are the options of the first call that the second one needs too."""

    name: str
    given: Mapping[str, Any]
    accept: str = 'inherited="note"'

    def choose(self, choice: str) -> str:
        """The argument that follows a choice."""
        name, _, value = choice.partition("=")
        return f"dialect={ {name: value}!r}"

    def of(self, clause: str, case: str, *, thorough: bool) -> str:
        """The call that asks one clause on one case."""
        tier = {"tier": "thorough"} if thorough else {}
        arguments = tier | {name: value for name, value in self.given.items() if value} | {"clauses": clause, "case": case}
        return f"check({self.name}{''.join(f', {name}={value!r}' for name, value in arguments.items())})"
