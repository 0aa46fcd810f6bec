"""The adapter of a Solution: what its Definition promises, and how its function is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from attnspec.adapters.contract import Adapter
from attnspec.adapters.conventions.signature import ResolveError
from attnspec.adapters.forms import Form
from attnspec.adapters.reading import words as said_of
from attnspec.adapters.solutions.calls import entry_of, solved, solved_packed, solved_paged
from attnspec.adapters.solutions.records import Definition, Solution, definition_of, read_solution
from attnspec.spec.words import DTYPES

PAGED = ("qo_indptr", "kv_indptr", "kv_indices", "kv_last_page_len", "sm_scale")
# What a call is told, by its form: the tensors that it must have, and what else it may have.
INPUTS = {
    "paged": (("q", "k_cache", "v_cache"), PAGED),
    "latent": (("q_nope", "q_pe", "ckv_cache", "kpe_cache"), PAGED),
    "packed": (("q", "k", "v"), ("qo_indptr", "kv_indptr", "seq_indptr", "sm_scale")),
}
KNOWN = ("causal", "definition")


class Solved(Adapter):
    """A Solution of FlashInfer-Bench, with the heads, the widths and the rows of a page that its Definition has."""

    def __init__(self, solution: Solution, definition: Definition, causal: bool | None = None) -> None:
        self.definition, self.of = definition, _form(definition)
        self.form = "packed" if self.of == "packed" else "paged"
        self.name = solution.name
        self._latent = definition.size("ckv_cache", -1) or 0 if self.of == "latent" else 0
        says = ("causal" in definition.name and "qo_indptr" in definition.inputs) or "seq_indptr" in definition.inputs
        self._causal = says if causal is None else causal
        self._path = str(solution.path.resolve())
        outputs = [
            (name, x.dtype, [definition.axes[axis] for axis in (x.shape or ())[1:]]) for name, x in definition.outputs.items()
        ]
        self._words = {"inputs": list(definition.inputs), "outputs": outputs, "in_place": solution.in_place}
        self.dtypes = (_dtype(definition, self.of),)
        self.widths = _widths(self)
        self.offers = _offers(self)
        self.restrictions = _restrictions(self)
        self.dialect = {"head_grouping": "blocked"}
        self.dialect |= {"empty_row": "zero"} if self.of != "latent" else {}
        self.dialect |= {"causal_alignment": "bottom_right"} if self._causal else {}
        if "lse" in self.offers:
            wide = definition.outputs["lse"].dtype == "float32"
            self.dialect |= {"lse_base": "2", "lse_empty": "minus_inf", "lse_dtype": "wide" if wide else "operand"}
        try:
            self._solves = entry_of(self._path)  # type: ignore[no-untyped-call]
        except (Exception, SystemExit) as error:
            raise ResolveError(f"importing the sources of {solution.path} raised {said_of(error)}") from None
        if not callable(self._solves):
            raise ResolveError(f"{solution.path}: spec.entry_point names a {type(self._solves).__name__}, which can't be called")
        function: Callable[..., Any] = partial(solved_packed, self._solves, self._words)
        if self.form == "paged":
            function = partial(solved_paged, self._solves, self._words, self._latent)
        setattr(self, f"attend_{self.form}", function)

    def lines_of(self, form: Form) -> tuple[str, ...]:
        """Python that defines what takes a form."""
        used = (entry_of, solved, solved_packed if self.form == "packed" else solved_paged)
        lines = [line for function in used for line in (*inspect.getsource(function).splitlines(), "", "")]
        more = f", {self._latent}" if self.form == "paged" else ""
        given = f"entry_of({self._path!r}), {self._words!r}{more}"
        return ("from functools import partial", "", "", *lines, f"{form.method} = partial({used[-1].__name__}, {given})")


def solutions(target: str, kwargs: Mapping[str, Any]) -> list[Adapter]:
    """The adapter of the Solution in a file. Raises ResolveError, which says what is wrong with it, or what is missing."""
    if set(kwargs) - set(KNOWN):
        raise ResolveError(f"--impl-kwargs of a Solution are {' and '.join(KNOWN)}; found {', '.join(sorted(kwargs))}")
    solution = read_solution(Path(target))
    return [Solved(solution, definition_of(solution, kwargs.get("definition")), kwargs.get("causal"))]


# WHAT A DEFINITION SAYS


def _form(definition: Definition) -> str:
    """paged, latent (keys in pages that are their own values) or packed, by the names of the inputs. Raises ResolveError."""
    names = set(definition.inputs)
    form = next((form for form, (must, _) in INPUTS.items() if names >= set(must)), None)
    strange = sorted(names - {*INPUTS[form][0], *INPUTS[form][1]}) if form else []
    lacks = form and not names & ({"seq_indptr", "kv_indptr"} if form == "packed" else {"kv_indptr"})
    if form is None or strange or lacks or (form != "packed" and "kv_indices" not in names):
        known = "; ".join(f"{', '.join(must)} with {', '.join(more)}" for must, more in INPUTS.values())
        raise ResolveError(
            f"{definition.name} ({definition.origin}) has the inputs {', '.join(definition.inputs)}"
            f"{f', and nothing is known of {strange[0]}' if strange else ''}. attnspec calls Definitions of {known}."
        )
    rows = definition.size("ckv_cache" if form == "latent" else "k_cache", 1) if form != "packed" else 1
    if rows != 1 and "kv_last_page_len" not in names:
        raise ResolveError(f"{definition.name}: pages have more than one row, and no kv_last_page_len says where a sequence ends")
    if not set(definition.outputs) - {"lse"} or len(definition.outputs) > 2:
        raise ResolveError(f"{definition.name} has the outputs {', '.join(definition.outputs)}; attnspec knows output and lse")
    if any(None in [definition.axes[axis] for axis in (x.shape or ())[1:]] for x in definition.outputs.values()):
        raise ResolveError(f"{definition.name}: an axis of an output behind its rows differs from call to call")
    return form


def _dtype(definition: Definition, form: str) -> str:
    """The one dtype of queries, keys and values."""
    found = {definition.inputs[name].dtype for name in INPUTS[form][0]}
    if len(found) > 1 or not found <= set(DTYPES):
        raise ResolveError(
            f"{definition.name} has queries, keys and values in {', '.join(sorted(found))}; "
            f"attnspec asks one of {', '.join(DTYPES)}"
        )
    return found.pop()


def _heads(adapter: Solved) -> tuple[int | None, int | None]:
    """Query heads and key heads."""
    definition = adapter.definition
    if adapter.of == "latent":
        return definition.size("q_nope", 1), 1
    return definition.size("q", 1), definition.size("k" if adapter.of == "packed" else "k_cache", -2)


def _offers(adapter: Solved) -> frozenset[str]:
    h, g = _heads(adapter)
    heads = {"mha", "mqa", "gqa"} if h is None or g is None else {"mha" if h == g else "mqa" if g == 1 else "gqa"}
    found = {*heads, adapter.form, *(("scale",) if "sm_scale" in adapter.definition.inputs else ())}
    found |= {"causal"} if adapter._causal else set()
    found |= {"lse"} if "lse" in adapter.definition.outputs else set()
    found |= {"value_width"} if _value_width(adapter) not in (None, *(_widths(adapter) or ())) else set()
    if adapter.form == "paged":
        found |= {"paged_queries"} if "qo_indptr" in adapter.definition.inputs else set()
        rows = _rows_of_a_page(adapter)
        found |= {"paged_any_size"} if rows is None or rows % 16 else set()
    return frozenset(found)


def _rows_of_a_page(adapter: Solved) -> int | None:
    return adapter.definition.size("ckv_cache" if adapter.of == "latent" else "k_cache", 1)


def _value_width(adapter: Solved) -> int | None:
    name = {"latent": "ckv_cache", "packed": "v", "paged": "v_cache"}[adapter.of]
    return adapter.definition.size(name, -1)


def _widths(adapter: Solved) -> tuple[int, ...] | None:
    one = adapter.definition.size("q_nope" if adapter.of == "latent" else "q", -1)
    more = adapter.definition.size("q_pe", -1) if adapter.of == "latent" else 0
    return None if one is None or more is None else (one + more,)


def _restrictions(adapter: Solved) -> frozenset[str]:
    definition, (h, g) = adapter.definition, _heads(adapter)
    found = {"always_causal"} if adapter._causal else set()
    found |= {f"heads:{h}/{g}"} if h is not None and g is not None else set()
    if "value_width" in adapter.offers:
        found.add(f"value_width:{_value_width(adapter)}")
    if adapter.form == "paged":
        rows = _rows_of_a_page(adapter)
        found |= {f"page_size:{rows}"} if rows is not None else set()
        found |= set() if "qo_indptr" in definition.inputs else {"queries:1"}
    else:
        found.add("no_tail")
        same = "seq_indptr" in definition.inputs or any("".join(x.split()) in SAME for x in definition.constraints)
        found |= {"equal_lengths"} if same else set()
    return frozenset(found | ({"latent_values"} if adapter.of == "latent" else set()))


SAME = ("total_q==total_kv", "total_kv==total_q")
