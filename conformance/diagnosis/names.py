"""Which mistakes are said, and in which words."""

from __future__ import annotations

from dataclasses import dataclass, field

from attnspec.conformance.mistakes.vocabulary import MISTAKES
from attnspec.spec import CHOICES, Dialect

FEW = 3  # what rests on fewer problems than these may have no exceptions, and be nothing special
# What a name costs beside the problems that it would have shown in, and did not: one that is special, or fits nearly everything.
SPECIAL, COARSE = 0.4, 0.7
NARROWED = 0.01  # what one costs that is made in some sequences alone: more than one that is made in all, less than an exception
PART = 0.5  # where problems speak against each, a part of one more or less tells none apart
SOME = "in some sequences alone"  # said where several kinds of sequences fit


@dataclass(frozen=True)
class Diagnosis:
    """What explains a failure. cost: of each mistake that does, the likeliest first, its exceptions and how special it is."""

    cost: dict[str, float] = field(default_factory=dict)
    only: str = ""
    asked: int = 0  # problems that it explains
    whole: bool = False  # in each of them all that the mistake would change is wrong
    narrowed: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of mistakes that only some sequences have, which
    cut: bool = False  # the time was up before all of the evidence was read, so that nothing has a name

    @property
    def best(self) -> tuple[str, ...]:
        """The one mistake, or the two that nothing tells apart; none where there are more that share no name."""
        return names_to_print(self.cost)


def exceptions_of(cost: dict[str, float]) -> dict[str, float]:
    """Of what mistakes cost the part that is not about how special or coarse they are."""
    return {name: round(x - SPECIAL * MISTAKES[name].special - COARSE * MISTAKES[name].coarse, 9) for name, x in cost.items()}


def names_to_print(cost: dict[str, float]) -> tuple[str, ...]:
    """Which of the mistakes that explain a failure are said: one, or two that nothing tells apart, or what their like is called."""
    exceptions = exceptions_of(cost)
    plain = {name: x + COARSE * MISTAKES[name].coarse for name, x in exceptions.items()}
    if any(MISTAKES[name].coarse for name in cost):  # as plain a thing as zeros explains it all: nothing special with exceptions
        special = {name for name, x in exceptions.items() if x and MISTAKES[name].special and not MISTAKES[name].coarse}
        plain, cost = ({name: x for name, x in values.items() if name not in special} for values in (plain, cost))
    least = min(plain.values(), default=0.0)
    tied = [name for name in cost if plain[name] <= least + (PART if least >= 1 else 1e-9)]
    families: dict[str, list[str]] = {}
    for name in tied:
        families.setdefault(MISTAKES[name].of or name, []).append(name)
    choices = CHOICES.values()  # whatever else would look the same
    choice = any(name == open_.mistake or name.startswith(f"{open_.name}_") for name in tied for open_ in choices)
    if len(families) > 2 or (choice and len(tied) > 2):
        families = {family: names for family, names in families.items() if not all(MISTAKES[name].special for name in names)}
    if len(families) > 2:
        return ()
    return tuple(family if len(names) > 1 and family in MISTAKES else names[0] for family, names in families.items())


def other_choice(diagnosis: Diagnosis | None, dialect: Dialect) -> str:
    """'choice=value' where the one mistake that explains a failure is to follow another choice than the subject's, else ''.

    Of two values of one choice that nothing offered tells apart, the first.
    """
    names = {MISTAKES[name].of or name for name in diagnosis.best} if diagnosis is not None and diagnosis.whole else set()
    for choice in CHOICES.values():
        others = {choice.mistake_of(value): value for value in reversed(choice.values) if value != getattr(dialect, choice.name)}
        if names and names <= others.keys():
            return f"{choice.name}={[value for name, value in others.items() if name in names][-1]}"
    return ""


def in_which(diagnosis: Diagnosis, name: str) -> str:
    """In which sequences a mistake is made, where it is not in all."""
    kinds = diagnosis.narrowed.get(name) or next((own for one, own in diagnosis.narrowed.items() if MISTAKES[one].of == name), ())
    return f", {kinds[0] if len(kinds) == 1 else SOME}" if kinds else ""


def sentence(diagnosis: Diagnosis) -> str:
    """What is said of it: the mistake, where it shows, and on how much this rests."""
    says = [MISTAKES[name].says + in_which(diagnosis, name) for name in diagnosis.best]
    if not says:
        return ""
    what = says[0] if len(says) == 1 else f"either {says[0]}, or {says[1]}"
    where = f" ({diagnosis.only} only)" if diagnosis.only and not any(diagnosis.narrowed.values()) else ""
    return f"{what}{where}; this reproduces the wrong answer on {diagnosis.asked} problem{'s' * (diagnosis.asked != 1)}"
