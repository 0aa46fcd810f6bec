"""What an option of a call owes, said once, on its line in :class:`attnspec.spec.Problem`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnspec.spec.problem import Problem


@dataclass(frozen=True)
class Option:
    """An option of a call; its name, its default and whether it is a tensor come from the line on which it stands.

    feature: what an implementation offers that takes it, and `says`: that in words. An option without a feature goes with another.
    forms: further features of its own, in words. also: features of other options that its parameter has words for.
    needs: the features that a value needs, where that is not the feature alone. check: raises ValueError for a problem whose value
    is none; it gets the problem and the option's name.
    axes: of a tensor, its dimensions in the letters of the spec, the last of them where it has fewer. gradient: the feature of who
    gives its gradient, where it has one.
    """

    feature: str = ""
    says: str = ""
    forms: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    needs: Callable[[Any], set[str]] | None = None
    check: Callable[[Problem, str], None] | None = None
    axes: str = ""
    gradient: str = ""
    default: Any = None
    tensor: bool = False

    def given(self, value: Any) -> bool:
        """Whether a value is more than the default."""
        return value is not None if self.default is None else bool(value != self.default)

    def needed(self, value: Any) -> set[str]:
        """The features that an implementation must offer to take this value."""
        if self.needs is not None:
            return self.needs(value)
        return {self.feature} if self.feature else set()

    @property
    def features(self) -> tuple[str, ...]:
        """The features for which a parameter of this name has words."""
        gradient = (self.gradient,) if self.gradient else ()
        return (self.feature, *self.forms, *gradient, *self.also) if self.feature else ()


def option(
    default: Any,
    *,
    feature: str = "",
    says: str = "",
    forms: Mapping[str, str] | None = None,
    also: tuple[str, ...] = (),
    needs: Callable[[Any], set[str]] | None = None,
    check: Callable[[Problem, str], None] | None = None,
    axes: str = "",
    gradient: str = "",
) -> Any:
    """The line of an option in :class:`attnspec.spec.Problem`; see :class:`Option` for what it says."""
    own = Option(feature, says, forms or {}, also, needs, check, axes, gradient, default)
    return field(default=default, metadata={"option": own})
