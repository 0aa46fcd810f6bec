"""What a peer says of itself, read strictly: a word that nobody knows ends the run, and does not become a promise less."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attnspec.adapters.remote.process import Misspoken
from attnspec.adapters.remote.protocol import ABILITIES
from attnspec.adapters.restrictions import RESTRICTIONS, unknown
from attnspec.spec import CHOICES
from attnspec.spec.words import CLASSES, DTYPES, FEATURES


def implementations(reply: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The implementations of a peer, as it describes them, with their numbers. Raises Misspoken."""
    found = reply.get("implementations")
    if not isinstance(found, list) or not found or not all(isinstance(told, dict) for told in found):
        raise Misspoken("its answer to describe has no list `implementations` of objects")
    return [_checked({"implementation": number, **told}) for number, told in enumerate(found)]


def _checked(told: dict[str, Any]) -> dict[str, Any]:
    for name, value in told.items():
        if name not in FIELDS:
            raise Misspoken(f"it describes itself by {name!r}, which is no field; choose from {', '.join(FIELDS)}")
        what, fits = FIELDS[name]
        if not ((value is None and name in NULLABLE) or fits(value)):
            raise Misspoken(f"its {name} is {value!r:.200}, and must be {what}")
    if not told.get("name") or "offers" not in told:
        raise Misspoken("it must say a name and what it offers")
    for name, words in (("offers", FEATURES), ("does", ABILITIES), ("dtypes", DTYPES)):
        strange = sorted(set(told.get(name) or ()) - set(words))
        if strange:
            raise Misspoken(f"its {name} names unknown {', '.join(strange)}; choose from {', '.join(words)}")
    if strange := unknown(told.get("restrictions") or ()):
        raise Misspoken(f"its restrictions name unknown {', '.join(strange)}; choose from {', '.join(RESTRICTIONS)}")
    for choice, value in told.get("dialect", {}).items():
        if choice not in CHOICES or value not in CHOICES[choice].values:
            there = "; ".join(f"{one.name} = {' | '.join(one.values)}" for one in CHOICES.values())
            raise Misspoken(f"its dialect has {choice}={value}; choose from {there}")
    if told.get("accuracy") not in (None, *CLASSES):
        raise Misspoken(f"its accuracy is {told['accuracy']!r}; choose from {', '.join(CLASSES)}")
    if "strided" in told["offers"] and "memory" not in told.get("does", ()):
        raise Misspoken("it offers strided, and gets its tensors row by row: leave that out, or say that it does `memory`")
    return told


def _text(x: Any) -> bool:
    return isinstance(x, str)


def _texts(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(one, str) for one in x)


def _some(x: Any) -> bool:
    return bool(x) and _texts(x)


def _number(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


def _numbers(x: Any) -> bool:
    return isinstance(x, list) and bool(x) and all(_number(one) and one for one in x)


def _mapping(x: Any) -> bool:
    return isinstance(x, dict) and all(isinstance(one, str) for one in x.values())


def _object(x: Any) -> bool:
    return isinstance(x, dict)


def _flag(x: Any) -> bool:
    return isinstance(x, bool)


# Of each field: what it must be, in words and as a question.
FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "implementation": ("a number", _number),
    "name": ("a text", _text),
    "version": ("a text", _text),
    "variant": ("a text", _text),
    "offers": ("a list of texts", _texts),
    "dtypes": ("a list of texts, not empty", _some),
    "widths": ("a list of numbers above 0, not empty", _numbers),
    "devices": ("a list of texts, not empty", _some),
    "restrictions": ("a list of texts", _texts),
    "dialect": ("an object of texts", _mapping),
    "accuracy": ("a text", _text),
    "deterministic": ("true or false", _flag),
    "does": ("a list of texts", _texts),
    "disturbed": ("an object of texts", _mapping),
    "flash": ("true or false", _flag),
    "torch_convention": ("true or false", _flag),
    "presents": ("true or false", _flag),
    "dense_form": ("a text", _text),
    "kernel": ("a text", _text),
    "reading": ("an object", _object),
    "read_by": ("a text", _text),
    "arrays": ("a list of texts", _texts),
    "masks": ("a list of texts", _texts),
}
NULLABLE = ("dtypes", "widths", "devices", "accuracy", "kernel")


def of_run(reply: Mapping[str, Any]) -> None:
    """Raise Misspoken where an answer to `run` says neither what came out nor why nothing did."""
    error = reply.get("error")
    if error is not None and not (isinstance(error, dict) and isinstance(error.get("line"), str)):
        raise Misspoken(f"its error is {error!r:.200}, and must be an object with the text `line`")
    for name in ("refusal", "file", "lost"):
        if not isinstance(reply.get(name, ""), str):
            raise Misspoken(f"its {name} is {reply[name]!r:.200}, and must be a text")
    if not reply.keys() & {"file", "refusal", "error", "lost"}:
        raise Misspoken("its answer to run has neither a file, nor a refusal, nor an error")


def of_outputs(found: Iterable[str]) -> None:
    """Raise Misspoken where the file of an answer has no output."""
    found = sorted(found)
    if "o" not in found:
        raise Misspoken(f"its file has no tensor o; there is {', '.join(found) or 'none'}")
