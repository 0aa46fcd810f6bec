"""How a call is read: the order of its axes, what it returns, whose arrays it takes, and what its mask says."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from attnspec.adapters.arrays import FRAMEWORKS, bridged, source_of
from attnspec.spec.words import MASKS

AXES = "b h i d"  # the order of the suite
LAYOUTS = (AXES, "b i h d", "i b h d")  # of queries, keys and values; the place of a key is i here, too
OUTPUTS = (*LAYOUTS, "b i (h d)", "i b (h d)", "(b i) h d", "(b i) (h d)")


@dataclass(frozen=True)
class Reading:
    """How the calls of an implementation are read.

    layout: the order of the axes of queries, keys and values, an einops pattern of LAYOUTS. output: that of the output, of OUTPUTS;
    "" for the layout. returns: what comes back, each by its name, ("o", "lse") or ("weights", "o"); () where that is the output, or
    the output first where an lse is asked for. arrays: the framework whose arrays it takes, of FRAMEWORKS; "" for torch. mask:
    what a mask says, of MASKS.
    """

    layout: str = AXES
    output: str = ""
    returns: tuple[str, ...] = ()
    arrays: str = ""
    mask: str = "shows"

    @property
    def words(self) -> list[str]:
        """What of it is not as the suite has it, in words."""
        output = self.output or self.layout
        said = (
            (f"q, k and v are ({self.layout})", self.layout != AXES),
            (f"the output is ({output})", output != AXES),
            (f"it returns ({', '.join(self.returns)}{',' * (len(self.returns) == 1)})", bool(self.returns)),
            (f"it takes arrays of {FRAMEWORKS.get(self.arrays, '')}", bool(self.arrays)),
            (MASKS[self.mask], self.mask != "shows"),
        )
        return [words for words, so in said if so]

    @property
    def options(self) -> str:
        """What says the same on the command line."""
        layout = self.layout + (f" -> {self.output}" if self.output not in ("", self.layout) else "")
        said = ((f'--layout="{layout}"', layout != AXES), (f"--returns={','.join(self.returns)}", bool(self.returns)))
        return " ".join(option for option, so in (*said, (f"--mask={self.mask}", self.mask != "shows")) if so)

    def plain(self) -> dict[str, Any]:
        """Plain data, for another process; what is as the suite has it is left out."""
        return {name: list(x) if name == "returns" else x for name, x in asdict(self).items() if x != getattr(AS_IT_IS, name)}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Reading:
        """From plain data."""
        given: dict[str, Any] = {name: tuple(x) if name == "returns" else x for name, x in plain.items()}
        return cls(**given)


AS_IT_IS = Reading()


def read(called: Callable[..., Any], how: Reading, tensors: tuple[str, ...], lse: bool) -> Callable[..., Any]:
    """The same function, which takes and returns tensors as the suite has them.

    tensors: its parameters for queries, keys and values. lse: it returns what else it returned behind the output.
    """
    function = bridged(called, how.arrays) if how.arrays else called
    return partial(attend_so, function, how.layout, how.output or how.layout, how.returns, tensors, lse)


def source(how: Reading, tensors: tuple[str, ...], lse: bool) -> tuple[str, ...]:
    """Lines of Python that make of the function that is called `attend` one that :func:`read` gives."""
    lines = [*source_of(how.arrays), "attend = bridged(attend)"] if how.arrays else []
    text = inspect.getsource(attend_so).splitlines()
    made = f"partial(attend_so, attend, {how.layout!r}, {how.output or how.layout!r}, {how.returns!r}, {tensors!r}, {lse})"
    return (*lines, "from functools import partial", "from typing import Any", "", "", *text, "", f"attend = {made}")


def attend_so(
    function: Any, layout: str, output: str, returns: tuple[str, ...], tensors: tuple[str, ...], lse: bool, /, **arguments: Any
) -> Any:
    """One call. It stands in the scripts of failures, too: it needs nothing of its module."""
    from einops import rearrange

    def turned(x: Any) -> Any:
        """In the order of the function; what is dense stays dense, as who calls it has it."""
        if x.ndim != 4 or layout == "b h i d":
            return x
        there = rearrange(x, f"b h i d -> {layout}")
        return there.contiguous() if x.is_contiguous() else there

    def turned_back(x: Any) -> Any:
        """In the order of the suite; as it came where it has other axes."""
        if output == "b h i d" or getattr(x, "ndim", 0) != len(output.replace("(b i)", "n").replace("(h d)", "m").split()):
            return x
        known = ({"b": b} if "(b i)" in output else {}) | ({"h": h} if "(h d)" in output else {})
        return rearrange(x, f"{output} -> b h i d", **known)

    b, h = arguments[tensors[0]].shape[:2]
    returned = function(**{**arguments, **{name: turned(arguments[name]) for name in tensors}})
    several = isinstance(returned, (tuple, list)) and len(returned) > 0
    if returns and several and len(returned) > returns.index("o"):
        others = (
            [returned[returns.index("lse")]]
            if "lse" in returns[: len(returned)]
            else [x for n, x in enumerate(returned) if n != returns.index("o")]
        )
        o = turned_back(returned[returns.index("o")])
        return (o, *others) if lse else o
    if several and lse:
        return (turned_back(returned[0]), *returned[1:])
    return turned_back(returned)
