"""The factors of calls of many sequences: in which tensors they are carried, how long each is, and what stands between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attnspec.conformance.problems.factors.factor import Changes, Factor, Failing, Offer
from attnspec.spec.ragged import FORMS, POISONS, Cached, Carrier, Kept, Packed, Paged

if TYPE_CHECKING:
    from attnspec.conformance.problems.case import Case

# What a word of a level adds to its form; "paged+3" has pages of three rows.
WORDS: dict[str, dict[str, dict[str, Any]]] = {
    "packed": {
        "gaps": {"q_gap": 1, "k_gap": 3},
        "tail": {"tail": 2},
        "slack": {"slack": 5},
        "turned": {"order": ...},
        "long": {"long": True},
        "fused": {"fused": True},
    },
    "padded": {},
    "cached": {
        "append": {"new": ...},
        "left": {"left": ...},
        "room": {"room": 3},
        "slots": {"slots": ..., "spare": 1},
        "fused": {"fused": True},
    },
    "paged": {
        "append": {"new": ...},
        "spare": {"spare": 2},
        "columns": {"columns": 2},
        "minus": {"columns": 1, "unused": -1},
        "beyond": {"columns": 1, "unused": 1 << 20},
        "dealt": {"seed": 1},
        "fused": {"fused": True},
    },
}
NEEDS = {  # of a word: the feature without which it is left out
    "packed+gaps": "packed_gaps",
    "packed+long": "packed_long",
    "packed+fused": "strided",
    "cached+fused": "strided",
    "paged+fused": "strided",
    "cached+append": "cached_append",
    "cached+left": "cached_left",
    "cached+slots": "cached_slots",
    "paged+append": "paged_append",
    "paged+minus": "paged_any_entry",
    "paged+beyond": "paged_any_entry",
}
SAID = {
    "gaps": "room behind each sequence",
    "tail": "rows behind the last sequence",
    "slack": "larger longest lengths than there are",
    "turned": "the last sequence first",
    "long": "lengths in int64",
    "append": "with new keys",
    "left": "rows before the first key",
    "room": "room behind the longest sequence",
    "slots": "slots in another order and one to spare",
    "spare": "pages to spare",
    "columns": "columns of the table to spare",
    "minus": "−1 in table entries that are not used",
    "beyond": "a page that there is not in table entries that are not used",
    "dealt": "pages in any order",
    "rotary": "new keys and queries that the call turns",
    "interleaved": "in pairs of neighbours",
    "told": "in pairs that the call names",
    "steady": "by the same angle more for each position",
    "fused": "keys and values side by side in one tensor",
    "latent": "values that are the first channels of the keys",
}
TURNS: dict[str, dict[str, Any]] = {
    "rotary": {"rotary": ...},
    "interleaved": {"interleaved": True},
    "told": {"told": True},
    "steady": {"steady": True},
    "latent": {"latent": True},
}
WORDS["cached"] |= TURNS
WORDS["paged"] |= TURNS
NEEDS |= {f"{form}+{word}": f"{form}_{word}" for form in ("cached", "paged") for word in ("rotary", "latent")}
NEEDS |= {f"{form}+told": "rotary_told" for form in ("cached", "paged")}
SIZE = 16  # rows of a page, where a level says nothing of it


def lengths_of(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The queries and keys of each batch item that a level stands for: a word, or "3:7/0:2", in turn and no more than there are."""
    b, i, j = case.b, case.i, case.keys
    middle = b // 2
    mixed = [(i, j), ((i + 1) // 2, max(1, j // 2)), (1, max(1, j - 1))]
    every = {
        "full": [(i, j)],
        "mixed": mixed,
        "crossed": [(i, max(1, j // 3)), (max(1, i // 3), j)],
        "decode": [(1, j), (1, max(1, j - 1)), (1, max(1, j // 2))],
        "edges": [(i, j), (i, max(1, (j - 1) // SIZE * SIZE)), (max(1, i - 1), max(1, j // SIZE * SIZE - 1))],
    }
    if case.lengths in every:
        each = [every[case.lengths][n % len(every[case.lengths])] for n in range(b)]
    elif case.lengths in ("zero_first", "zero_middle", "zero_last", "no_keys", "no_queries"):
        each = [mixed[n % 3] for n in range(b)]
        at = {"zero_first": 0, "zero_last": b - 1, "no_queries": 0}.get(case.lengths, middle)
        each[at] = {"no_keys": (i, 0), "no_queries": (0, j)}.get(case.lengths, (0, 0))
    else:
        pairs = [tuple(map(int, text.split(":"))) for text in case.lengths.split("/")]
        each = [(min(i, pairs[n % len(pairs)][0]), min(j, pairs[n % len(pairs)][1])) for n in range(b)]
    return tuple(x for x, _ in each), tuple(y for _, y in each)


def form_of(case: Case) -> str:
    """The form of a level: packed, padded, cached or paged; none without a carrier."""
    return case.carrier.partition("+")[0]


def carrier_of(case: Case) -> Carrier | None:
    """The carrier that a level stands for, "paged+3+append", with the lengths and the poison that stand beside it."""
    form, *words = case.carrier.split("+")
    if form == "none":
        return None
    q_lengths, k_lengths = lengths_of(case)
    own: dict[str, Any] = {"poison": case.poison}
    for word in words:
        own |= {"size": int(word)} if word.isdecimal() else WORDS[form][word]
    b = case.b
    if own.get("order") is ...:
        own["order"] = tuple(range(b - 1, -1, -1))
    if own.get("left") is ...:
        own["left"] = tuple(n % 3 for n in range(1, b + 1))
    if own.get("slots") is ...:
        own["slots"] = tuple(range(b, 0, -1))
    if form == "cached":
        q_lengths = (case.i,) * b
        if own.get("new") is ...:
            own["new"] = (min(case.i, *k_lengths),) * b
    if form == "paged" and own.get("new") is ...:
        own["new"] = tuple(min(k, max(q, 1)) for q, k in zip(q_lengths, k_lengths, strict=True))
    if form == "paged" and "seed" in own:
        own["seed"] = case.seed + 1
    if own.get("rotary") is ...:
        own["rotary"] = turning(case.d) if own.get("new") else 0
    if own.get("latent") and (case.g != 1 or case.e > case.d):
        own["latent"] = False
    return FORMS[form](q_lengths, k_lengths, **own)


def turning(d: int) -> int:
    """How many of d channels turn: a multiple of 16 where they are as many, and not all of them where they are more than two."""
    return max(16, d // 32 * 16) if d >= 16 else max(d // 4, min(d // 2, 1)) * 2


def written(carrier: Carrier) -> str:
    """The level that is nearest to a carrier."""
    words = [carrier.feature]
    if isinstance(carrier, Paged) and carrier.size != SIZE:
        words.append(str(carrier.size))
    there: dict[str, Any] = {}
    if isinstance(carrier, Packed):
        there = {"gaps": carrier.q_gap or carrier.k_gap, "tail": carrier.tail, "slack": carrier.slack}
        there |= {"turned": carrier.order, "long": carrier.long, "fused": carrier.fused}
    if isinstance(carrier, Cached):
        there = {"append": carrier.new, "left": carrier.left, "room": carrier.room, "slots": carrier.slots or carrier.spare}
        there |= {"fused": carrier.fused}
    if isinstance(carrier, Paged):
        there = {"append": any(carrier.new), "spare": carrier.spare, "dealt": carrier.seed, "fused": carrier.fused}
        there |= {"minus": carrier.unused < 0, "beyond": carrier.unused > 0, "columns": carrier.columns and not carrier.unused}
    if isinstance(carrier, Kept):
        there |= {word: getattr(carrier, word) for word in TURNS}
    return "+".join([*words, *(word for word, given in there.items() if given)])


def lengths_written(carrier: Carrier) -> str:
    """The level of a carrier's lengths."""
    return "/".join(f"{q}:{k}" for q, k in zip(carrier.q_lengths, carrier.k_lengths, strict=True)) or "full"


def read_carrier(text: str) -> str:
    """Reads a carrier. Raises ValueError for what is none."""
    form, *words = text.split("+")
    strange = [x for x in words if not (x in WORDS.get(form, {}) or (form == "paged" and re.fullmatch(r"[1-9][0-9]{0,4}", x)))]
    if form not in WORDS or strange:
        known = "; ".join("+".join((name, *own)) for name, own in WORDS.items())
        raise ValueError(
            f"carrier can't be {text[:60]!r}; it is a form and what it adds, of {known}, and a number of rows for paged"
        )
    return text


def read_lengths(text: str) -> str:
    """Reads lengths. Raises ValueError for what is none."""
    if not re.fullmatch(r"[0-9]{1,6}:[0-9]{1,6}(/[0-9]{1,6}:[0-9]{1,6})*", text):
        raise ValueError(f"lengths can't be {text[:40]!r}; it is queries:keys of each batch item in turn, such as 3:7/0:2")
    return text


def offered(case: Case, offer: Offer) -> str:
    """The carrier as far as it is offered: its form, and what is offered of what it adds; another form where there is one."""
    form, *words = case.carrier.split("+")
    if form == "none":
        return "none"
    if form not in offer.features:
        form = next((other for other in WORDS if other in offer.features), "none")
        words = []
    kept = [word for word in words if NEEDS.get(f"{form}+{word}", form) in offer.features]
    if form == "paged" and "paged_any_size" not in offer.features:
        kept = [word for word in kept if not word.isdecimal() or int(word) % SIZE == 0]
    return "+".join([form, *kept])


def lengths_offered(case: Case, offer: Offer) -> str:
    """The lengths as far as they are offered: as many queries for each sequence where others are not."""
    if case.carrier == "none":
        return "full"
    form = form_of(case)
    needed = {"padded": "padded_queries", "paged": "paged_queries"}.get(form, form)
    if form == "cached" or needed in offer.features:
        return case.lengths
    q_lengths, k_lengths = lengths_of(case)
    same = all(n == case.i for n in q_lengths) if form == "padded" else len(set(q_lengths)) == 1
    if same:
        return case.lengths
    return "/".join(f"{case.i}:{k}" for k in k_lengths)


def in_words(case: Case) -> str:
    """What a carrier shows."""
    return "" if case.carrier == "none" else level_in_words(case.carrier)


def level_in_words(level: str) -> str:
    """The form of a level, and what it adds."""
    form, *words = level.split("+")
    return ", ".join([form, *(f"pages of {word}" if word.isdecimal() else SAID[word] for word in words)])


def lengths_in_words(case: Case) -> str:
    """The lengths of the sequences."""
    if case.carrier == "none":
        return ""
    return sequences_in_words(form_of(case), *lengths_of(case))


def sequences_in_words(form: str, q_lengths: tuple[int, ...], k_lengths: tuple[int, ...]) -> str:
    """How long the sequences of a form are; beside a cache they have the same queries."""
    some = "one sequence" if len(k_lengths) == 1 else "sequences"
    keys = f"{_listed(k_lengths)} key{'s' * (k_lengths != (1,))}"
    if form == "cached":
        return f"{some} of {keys}"
    return f"{some} of {_listed(q_lengths)} {'query' if q_lengths == (1,) else 'queries'} and {keys}"


def _listed(lengths: tuple[int, ...]) -> str:
    """Numbers, one for each sequence."""
    return ", ".join(map(str, lengths))


def simpler(case: Case) -> Iterable[Changes]:
    """No carrier, its form alone, then without one of its words."""
    if case.carrier == "none":
        return
    form, *words = case.carrier.split("+")
    texts = ["none", form, *("+".join([form, *words[:n], *words[n + 1 :]]) for n in range(len(words)))]
    yield from ({"carrier": text} for text in dict.fromkeys(texts) if text != case.carrier)


def simpler_lengths(case: Case) -> Iterable[Changes]:
    """One length for all, each sequence's own in one batch item, fewer sequences, then smaller numbers.

    A sequence without rows is nothing simple: one that has some is simpler, and none is made that has not.
    """
    if case.carrier == "none" or case.lengths == "full":
        return
    each = list(zip(*lengths_of(case), strict=True))
    yield {"lengths": "full"}
    for q, k in dict.fromkeys(each):
        if len(each) > 1 or (q, k) != (case.i, case.keys):
            alone: Changes = {"lengths": f"{q}:{k}", "b": 1, "i": max(q, 1), "j": max(k, 1)}
            if any(getattr(case, name) != x for name, x in alone.items()):
                yield alone
    for n in range(len(each)) if len(each) > 1 else ():
        fewer = [*each[:n], *each[n + 1 :]]
        yield {"lengths": "/".join(f"{q}:{k}" for q, k in fewer), "b": len(fewer)}
    for n, (q, k) in enumerate(each):
        least = [(q_, k_) for q_, k_ in ((max(q, 1), max(k, 1)), (max(q, 1), k), (q, max(k, 1))) if not q * k]
        smaller = [(min(q, 1), k), (q, min(k, 1)), (q // 2, k), (q, k // 2), (q - 1, k), (q, k - 1)]
        for q_, k_ in (
            *least,
            *(pair for pair in smaller if all(new > 0 or new == old for new, old in zip(pair, (q, k), strict=True))),
        ):
            if (q_, k_) != (q, k):
                changed = [*each[:n], (q_, k_), *each[n + 1 :]]
                yield {"lengths": "/".join(f"{x}:{y}" for x, y in changed)}


def carrier_clause(case: Case, failing: Failing) -> str:
    """Of a carrier, by its form and by what is beside it: a dense call with the same options is right."""
    if case.carrier == "none" or (own := turned_clause(case, failing)):
        return "" if case.carrier == "none" else own
    q_lengths, k_lengths = lengths_of(case)
    zero = 0 in q_lengths or 0 in k_lengths
    moved = case.causal or case.window != "none" or case.alibi_slopes != "none"
    match form_of(case):
        case "packed":
            if failing.kind == "changed":
                return "VARLEN-11"
            if "gaps" in case.carrier:
                return "VARLEN-9"
            if failing.gradient:
                return "VARLEN-4"
            if zero:
                return "VARLEN-3"
            return "VARLEN-2" if moved else "VARLEN-1"
        case "padded":
            return "PURITY-1" if failing.kind == "changed" else "VARLEN-12"
        case "cached":
            if failing.kind == "changed":
                return "CACHE-4"
            if "append" in case.carrier:
                return "CACHE-2"
            if "left" in case.carrier or "slots" in case.carrier:
                return "CACHE-6" if "left" in case.carrier else "CACHE-7"
            return "CACHE-10" if zero else "CACHE-8" if moved else "CACHE-1"
        case _:
            if failing.kind == "changed" or "append" in case.carrier:
                return "PAGED-7"
            if zero:
                return "PAGED-5"
            if len(set(q_lengths)) > 1 or case.causal or case.window != "none":
                return "PAGED-6"
            return "PAGED-1"


# What a clause becomes where the answer depends on rows that belong to no sequence.
OF_NOBODY = {
    "VARLEN-1": "VARLEN-5",
    "VARLEN-2": "VARLEN-5",
    "VARLEN-3": "VARLEN-5",
    "VARLEN-4": "VARLEN-5",
    "CACHE-1": "CACHE-3",
    "CACHE-8": "CACHE-3",
    "CACHE-10": "CACHE-3",
    "PAGED-1": "PAGED-3",
    "PAGED-5": "PAGED-3",
    "PAGED-6": "PAGED-3",
}


def turned_clause(case: Case, failing: Failing) -> str:
    """Of latents, of new keys that are turned, and of pages of two widths; "" where there is none of them."""
    form, *words = case.carrier.split("+")
    if "latent" in words:
        return "MLA-6" if failing.kind == "changed" else "MLA-7" if failing.output == "lse" else f"MLA-{1 + (form == 'cached')}"
    if "rotary" not in words:
        return "MLA-9" if form == "paged" and case.width != case.d and failing.kind in ("value", "nonfinite") else ""
    if failing.kind == "changed":
        return "ROTARY-8"
    if "left" in words:
        return "ROTARY-9"
    if case.causal or case.window != "none":
        return "ROTARY-2"
    return "ROTARY-1" if case.i == 1 else "ROTARY-5" if failing.dialect.rotary_query == "first" else "ROTARY-4"


def other_carrier(case: Case) -> Mapping[str, Changes]:
    """With other lengths."""
    return {} if case.carrier == "none" else {"with other lengths": {"lengths": "mixed" if case.lengths == "full" else "full"}}


CARRIER = Factor(
    "carrier",
    (
        "none",
        "packed",
        "packed+tail+slack",
        "packed+turned",
        "packed+gaps",
        "packed+gaps+tail+turned",
        "padded",
        "cached",
        "cached+append",
        "cached+left+room",
        "cached+slots",
        "cached+append+left+room+slots",
        "paged",
        "paged+1+dealt+minus",
        "paged+3+spare+dealt",
        "paged+append+dealt",
        "paged+3+append+dealt+beyond",
        "paged+16+spare+columns+dealt",
    ),
    array="ragged",
    reads=read_carrier,
    given=carrier_of,
    found=written,
    rule=offered,
    examples={
        "packed": "packed",
        "packed_gaps": "packed+gaps",
        "packed_long": "packed+long",
        "padded": "padded",
        "cached": "cached",
        "cached_append": "cached+append",
        "cached_left": "cached+left",
        "cached_slots": "cached+slots",
        "paged": "paged",
        "paged_append": "paged+append",
        "paged_any_size": "paged+3",
        "paged_any_entry": "paged+minus",
    },
    turn=5,
    simpler=simpler,
    says=in_words,
    traits={
        **{form: (lambda case, form=form: form_of(case) == form) for form in WORDS},  # type: ignore[misc]
        **{
            f"{form}+{word}": (lambda case, form=form, word=word: form_of(case) == form and word in case.carrier.split("+"))  # type: ignore[misc]
            for form, own in WORDS.items()
            for word in own
        },
    },
    flags={"ragged": lambda case: case.carrier != "none"},  # many sequences in one call
    conditions=("ragged",),
    option=True,
    probed=True,
    otherwise=other_carrier,
    blames={1: carrier_clause},
)
LENGTHS = Factor(
    "lengths",
    ("full", "mixed", "crossed", "decode", "edges", "zero_first", "zero_middle", "zero_last", "no_keys", "no_queries"),
    array="ragged",
    reads=read_lengths,
    of=CARRIER,
    rule=lengths_offered,
    turn=4,
    simpler=simpler_lengths,
    says=lengths_in_words,
    traits={"lengths": lambda case: case.carrier != "none" and case.lengths != "full"},
    conditions=('lengths != "full"',),
)
POISON = Factor(
    "poison",
    POISONS,
    array="ragged",
    of=CARRIER,
    rule=lambda case, offer: case.poison if case.carrier != "none" else "nan",
    turn=3,
    says=lambda case: "" if case.carrier == "none" or case.poison == "nan" else f"poison: {case.poison}",
)
# What no call of many sequences has; it gives way.
DENSE_ALONE: Mapping[str, Any] = {"mask": "none", "bias": "none", "q_start": "none", "layout": "contiguous"}
