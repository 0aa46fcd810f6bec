"""The region of a known issue: an expression over the factors of a case, `causal and i > j and dtype == "bfloat16"`.

The grammar is a small part of Python's: `and`, `or`, `not`, comparisons (also chained, `in`, `not in`), `+ - * // %` of whole
numbers, parentheses, numbers and words in quotes. Python's own parser reads it, nothing of it is ever executed: the
tree is walked here, and what is not in the grammar is an error that points at its column.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from attnspec.conformance.problems.case import FACTORS, IN_WORDS, Case

# What a factor lets a region say: its levels, where they are words, and what it says of itself beside them.
WORDS: dict[str, tuple[str, ...]] = {
    **{name: own.levels for name, own in FACTORS.items() if own.in_words and not own.words},
    **{word: values for own in FACTORS.values() for word, values in own.words.items()},
}
NUMBERS: dict[str, Callable[[Case], float]] = {name: of for own in IN_WORDS for name, of in own.numbers.items()}
FLAGS: dict[str, Callable[[Case], bool]] = {name: of for own in IN_WORDS for name, of in own.flags.items()}
NAMES = (*WORDS, *NUMBERS, *FLAGS)
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda x, several: x in several,
    ast.NotIn: lambda x, several: x not in several,
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
Value = Callable[[Case], Any]


class RegionError(ValueError):
    """An expression that is none, with the column at which it ceases to be one."""

    def __init__(self, text: str, column: int, what: str) -> None:
        super().__init__(f"{what}\n    {text}\n    {' ' * column}^")


@dataclass(frozen=True)
class Region:
    """For which cases an entry speaks; calling it with a case says whether the case lies inside.

    Words: factors whose levels are words, such as mask and dtype, and sharing (mha, mqa, gqa, shared_kv). Numbers: b, h, g, i, j,
    d, e (j keys and values e wide, even where a case leaves them out), and scale, the one that is used. True or false: causal, and
    scaled, whether a scale is given. All of them stand in WORDS, NUMBERS and FLAGS.
    """

    text: str
    holds: Callable[[Case], bool] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read an expression. Raises RegionError."""
        text = " ".join(text.split())
        try:
            tree = ast.parse(text, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            column = (getattr(error, "offset", None) or 1) - 1
            raise RegionError(text, max(column, 0), f"not a valid expression ({getattr(error, 'msg', error)}); {_SAY}") from None
        return cls(text, _condition(tree.body, text))

    def __call__(self, case: Case) -> bool:
        """Whether a case lies inside."""
        return self.holds(case)


_SAY = 'write a condition such as causal and i > j and dtype == "bfloat16"'


def _column(node: ast.AST, text: str) -> int:
    return len(text.encode()[: node.col_offset].decode())  # type: ignore[attr-defined]


def _wrong(node: ast.AST, text: str, what: str) -> RegionError:
    return RegionError(text, _column(node, text), what)


def _condition(node: ast.AST, text: str) -> Callable[[Case], bool]:
    """Something that is true or false of a case."""
    if isinstance(node, ast.BoolOp):
        parts = [_condition(part, text) for part in node.values]
        whole = all if isinstance(node.op, ast.And) else any
        return lambda case: whole(part(case) for part in parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _condition(node.operand, text)
        return lambda case: not inner(case)
    if isinstance(node, ast.Compare):
        return _comparison(node, text)
    if isinstance(node, ast.Name) and node.id in FLAGS:
        return FLAGS[node.id]
    if isinstance(node, ast.Name) and node.id in (*WORDS, *NUMBERS):
        raise _wrong(node, text, f"{node.id} is not true or false by itself; compare it with something")
    if isinstance(node, ast.Name):
        raise _wrong(node, text, f"unknown name {node.id!r}; choose from {', '.join(NAMES)}")
    raise _wrong(node, text, f"not a condition; {_SAY}")


def _comparison(node: ast.Compare, text: str) -> Callable[[Case], bool]:
    nodes = [node.left, *node.comparators]
    links = []
    for op, left, right in zip(node.ops, nodes, nodes[1:], strict=False):
        if type(op) not in _COMPARE:
            raise _wrong(right, text, "numbers and words are compared with ==, !=, <, <=, >, >=, in and not in")
        links.append((_COMPARE[type(op)], *_pair(op, left, right, text)))
    return lambda case: all(compare(left(case), right(case)) for compare, left, right in links)


def _pair(op: ast.cmpop, left: ast.expr, right: ast.expr, text: str) -> tuple[Value, Value]:
    """Both sides of one comparison: numbers, or a factor and the words that it can be."""
    factor = next((x for x in (left, right) if isinstance(x, ast.Name) and x.id in WORDS), None)
    member = isinstance(op, ast.In | ast.NotIn)
    if factor is None:
        if member:
            return _number(left, text), _several(right, text, lambda x: _number(x, text))
        return _number(left, text), _number(right, text)
    other = right if factor is left else left
    if member and factor is left:
        return _word_of(factor), _several(right, text, lambda x: _level(x, factor.id, text))
    if not isinstance(op, ast.Eq | ast.NotEq):
        raise _wrong(factor, text, f"{factor.id} is a word: compare it with ==, !=, in or not in")
    return _word_of(factor), _level(other, factor.id, text)


def _word_of(name: ast.Name) -> Value:
    factor = name.id
    return lambda case: getattr(case, factor)


def _level(node: ast.AST, factor: str, text: str) -> Value:
    if isinstance(node, ast.Constant) and node.value in WORDS[factor]:
        word = node.value
        return lambda case: word
    raise _wrong(node, text, f"{factor} can't be this; it can be " + ", ".join(f'"{word}"' for word in WORDS[factor]))


def _several(node: ast.AST, text: str, each: Callable[[ast.AST], Value]) -> Value:
    if not isinstance(node, ast.Tuple | ast.List) or not node.elts:
        raise _wrong(node, text, '`in` needs several values in parentheses, such as (1, 2) or ("q", "k")')
    values = [each(element) for element in node.elts]
    return lambda case: [value(case) for value in values]


def _number(node: ast.AST, text: str) -> Value:
    """A number, a size, or whole numbers added, subtracted, multiplied or divided."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        constant = node.value
        return lambda case: constant
    if isinstance(node, ast.Name) and node.id in NUMBERS:
        return NUMBERS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _number(node.operand, text)
        return lambda case: -inner(case)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        if isinstance(node.op, ast.FloorDiv | ast.Mod) and not (isinstance(node.right, ast.Constant) and node.right.value):
            raise _wrong(node.right, text, "divide by a number that is not zero")
        apply, left, right = _ARITHMETIC[type(node.op)], _number(node.left, text), _number(node.right, text)
        return lambda case: apply(left(case), right(case))
    if isinstance(node, ast.Name) and node.id in FLAGS:
        raise _wrong(node, text, f"{node.id} is true or false: write `{node.id}` or `not {node.id}`")
    if isinstance(node, ast.Name):
        raise _wrong(node, text, f"unknown name {node.id!r}; choose from {', '.join(NAMES)}")
    raise _wrong(node, text, "not a number; numbers are " + ", ".join(NUMBERS) + ", literals, and + - * // % of them")
