"""Faults of calls that turn new keys and queries: by which row, which channels, how often, and what is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import rotated
import torch
from rotated import Honest, Sequence, Turn, rotate
from torch import Tensor

from attnspec.spec import Dialect
from mutants.base import mutant


def rotary(clause: str, source: str = "") -> Callable[[Any], Any]:
    """Enter an adapter with a fault."""
    return mutant("rotary", clause, source, raw=True, witness=lambda kind: rotated.wrong(kind, rotated.turns(), Dialect()))


# BY WHICH ROW


@rotary("ROTARY-1")
class RotaryOneLate(Honest):
    """New keys and queries are turned by the position behind their own."""

    def of_keys(self, one: Sequence) -> list[int]:
        return [at + 1 for at in super().of_keys(one)][:-1] + super().of_keys(one)[-1:]

    def of_queries(self, one: Sequence) -> list[int]:
        return [at + 1 for at in super().of_queries(one)][:-1] + super().of_queries(one)[-1:]


@rotary("ROTARY-1", "microsoft/onnxruntime#20521")
class RotaryFromTheRowBefore(Honest):
    """The first new key of a call is turned by the row of the last key that is there, and so are all others one too early."""

    def of_keys(self, one: Sequence) -> list[int]:
        return [max(at - 1, 0) for at in super().of_keys(one)]

    def of_queries(self, one: Sequence) -> list[int]:
        return [max(at - 1, 0) for at in super().of_queries(one)]


@rotary("ROTARY-1", "pytorch/executorch#2010 lucidrains/rotary-embedding-torch#11")
class RotaryCountsWithinTheCall(Honest):
    """Positions begin at 0 in each call."""

    def of_keys(self, one: Sequence) -> list[int]:
        return list(range(len(one.k_new)))

    def of_queries(self, one: Sequence) -> list[int]:
        return list(range(len(one.q)))


@rotary("ROTARY-1")
class RotaryRowsOfTheFirstSequence(Honest):
    """All sequences are turned by the positions of the first."""

    def of_keys(self, one: Sequence) -> list[int]:
        return [at - one.length + int(one.lengths[0]) for at in super().of_keys(one)]

    def of_queries(self, one: Sequence) -> list[int]:
        return [at - one.length + int(one.lengths[0]) for at in super().of_queries(one)]


@rotary("ROTARY-1", "fla-org/flash-linear-attention#45")
class RotaryRowsOfTheShortestSequence(Honest):
    """All sequences are turned by positions that count from the end of the shortest."""

    def of_keys(self, one: Sequence) -> list[int]:
        return [at - one.length + int(one.lengths.min()) for at in super().of_keys(one)]

    def of_queries(self, one: Sequence) -> list[int]:
        return [at - one.length + int(one.lengths.min()) for at in super().of_queries(one)]


@rotary("ROTARY-1")
class RotaryRowsWithinAPage(Honest):
    """In pages a position is the row of its page."""

    def of_keys(self, one: Sequence) -> list[int]:
        return [at % one.size if one.size else at for at in super().of_keys(one)]


@rotary("ROTARY-1", "skyzh/tiny-llm#46")
class RotaryPromptCountedTwice(Honest):
    """Behind keys of an earlier call positions grow by the number of new keys again, as far as the tables go."""

    def of_keys(self, one: Sequence) -> list[int]:
        return self.later(one, super().of_keys(one))

    def of_queries(self, one: Sequence) -> list[int]:
        return self.later(one, super().of_queries(one))

    def later(self, one: Sequence, at: list[int]) -> list[int]:
        last = len(one.turn.cos) - 1 if one.turn else 0
        return [min(x + len(one.k_new) * (one.length > 0), last) for x in at]


@rotary("ROTARY-2")
class RotaryRowsAtMost63(Honest):
    """Positions of 64 and more are turned by row 63."""

    def of_keys(self, one: Sequence) -> list[int]:
        return [min(at, 63) for at in super().of_keys(one)]

    def of_queries(self, one: Sequence) -> list[int]:
        return [min(at, 63) for at in super().of_queries(one)]


@rotary("ROTARY-2", "Dao-AILab/flash-attention#1752")
class RotaryQueriesLikeTheFirst(Honest):
    """All queries are turned like the first, under causal and windows, too."""

    def of_queries(self, one: Sequence) -> list[int]:
        return [one.length] * len(one.q)


@rotary("ROTARY-2")
class RotaryQueriesLikeTheFirstInWindows(Honest):
    """Under a window without causal all queries are turned like the first."""

    def of_queries(self, one: Sequence) -> list[int]:
        return [one.length] * len(one.q) if one.window is not None and not one.causal else super().of_queries(one)


@rotary("ROTARY-2")
class RotaryQueriesFromTheEndInAPrompt(Honest):
    """Several causal queries are turned by positions that count backwards."""

    def of_queries(self, one: Sequence) -> list[int]:
        return super().of_queries(one)[::-1] if one.causal else super().of_queries(one)


@rotary("ROTARY-6")
class RotaryQueryRuleByTheirNumber(Honest):
    """Without causal more than two queries are all turned like the first, and two each by its own position."""

    def of_queries(self, one: Sequence) -> list[int]:
        return [one.length] * len(one.q) if not one.placed and len(one.q) > 2 else super().of_queries(one)


@rotary("ROTARY-9")
class RotaryLeftSubtracted(Honest):
    """Rows before the first key do not count."""

    def of_keys(self, one: Sequence) -> list[int]:
        return [at - one.left for at in super().of_keys(one)]

    def of_queries(self, one: Sequence) -> list[int]:
        return [at - one.left for at in super().of_queries(one)]


@rotary("ROTARY-9")
class RotaryLeftSubtractedForQueries(Honest):
    """Rows before the first key do not count for queries, and do for keys."""

    def of_queries(self, one: Sequence) -> list[int]:
        return [at - one.left for at in super().of_queries(one)]


# WHICH CHANNELS


class Paired(Honest):
    """Another turn."""

    def other(self, turn: Turn, x: Tensor) -> Turn:
        return turn

    def turned_keys(self, one: Sequence) -> Tensor:
        return super().turned_keys(one if one.turn is None else replace(one, turn=self.other(one.turn, one.k_new)))

    def turned_queries(self, one: Sequence) -> Tensor:
        return super().turned_queries(one if one.turn is None else replace(one, turn=self.other(one.turn, one.q)))


@rotary("ROTARY-3")
class RotaryPairsAlwaysHalves(Paired):
    """Pairs are halves, whatever the call names."""

    def other(self, turn: Turn, x: Tensor) -> Turn:
        return replace(turn, interleaved=False)


@rotary("ROTARY-3")
class RotaryPairsAlwaysInterleavedWhereAllTurn(Paired):
    """Where all channels turn, pairs are interleaved."""

    def other(self, turn: Turn, x: Tensor) -> Turn:
        return replace(turn, interleaved=True) if turn.width == x.shape[-1] else turn


@rotary("ROTARY-3")
class RotaryPairsOfKeysAndQueriesDiffer(Honest):
    """Queries are turned in the other pairs."""

    def turned_queries(self, one: Sequence) -> Tensor:
        turn = one.turn
        return super().turned_queries(one if turn is None else replace(one, turn=replace(turn, interleaved=not turn.interleaved)))


@rotary("ROTARY-7")
class RotaryHalfOfThePairs(Paired):
    """The second half of the pairs is not turned."""

    def other(self, turn: Turn, x: Tensor) -> Turn:
        cos, sin, half = turn.cos.clone(), turn.sin.clone(), turn.cos.shape[1] // 2
        cos[:, half or 1 :], sin[:, half or 1 :] = 1, 0
        return replace(turn, cos=cos, sin=sin)


@rotary("ROTARY-7", "openvinotoolkit/openvino#37653")
class RotaryWidthTakenForAll(Honest):
    """Halves are those of all channels, whatever the tables hold."""

    def turned_keys(self, one: Sequence) -> Tensor:
        return one.k_new if one.turn is None else self.across(one.k_new, self.of_keys(one), one.turn)

    def turned_queries(self, one: Sequence) -> Tensor:
        return one.q if one.turn is None else self.across(one.q, self.of_queries(one), one.turn)

    def across(self, x: Tensor, at: list[int], turn: Turn) -> Tensor:
        pairs, half = turn.cos.shape[1], x.shape[-1] // 2
        if turn.interleaved or 2 * pairs == x.shape[-1]:
            return rotate(x, at, turn)
        order = [*range(pairs), *range(half, half + pairs)]
        found = x.clone()
        found[..., order] = rotate(x[..., order], at, turn)
        return found


@rotary("ROTARY-1")
class RotaryOnlyTheFirstKeyHead(Honest):
    """Of several heads of keys the first alone is turned."""

    def turned_keys(self, one: Sequence) -> Tensor:
        keys = super().turned_keys(one)
        return torch.cat([keys[:, :1], one.k_new[:, 1:]], 1)


@rotary("ROTARY-1")
class RotarySineOfQueriesHasTheOtherSign(Honest):
    """Queries are turned the other way round."""

    def turned_queries(self, one: Sequence) -> Tensor:
        turn = one.turn
        return super().turned_queries(one if turn is None else replace(one, turn=replace(turn, sin=-turn.sin)))


# HOW OFTEN, AND WHAT IS WRITTEN


@rotary("ROTARY-8")
class RotaryAppliedTwice(Honest):
    """New keys are turned before they are written, and again before they are attended to."""

    def turned_keys(self, one: Sequence) -> Tensor:
        keys = super().turned_keys(one)
        return keys if one.turn is None else rotate(keys, self.of_keys(one), one.turn)

    def written(self, one: Sequence, keys: Tensor) -> tuple[Tensor, Tensor]:
        return super().turned_keys(one), one.v_new


@rotary("ROTARY-1")
class RotaryKeysThatAreThereAgain(Honest):
    """Keys of earlier calls are turned again when they are read."""

    def keys_there(self, one: Sequence) -> Tensor:
        at = [one.left + j for j in range(len(one.k))]
        return one.k if one.turn is None else rotate(one.k, at, one.turn)


@rotary("ROTARY-8")
class RotaryKeysWrittenAsTheyCame(Honest):
    """New keys are attended to as they must be, and written without their turn."""

    def written(self, one: Sequence, keys: Tensor) -> tuple[Tensor, Tensor]:
        return one.k_new, one.v_new


@rotary("ROTARY-8")
class RotaryLastKeyOfAPromptWrittenAsItCame(Honest):
    """Of several new keys the last is written without its turn."""

    def written(self, one: Sequence, keys: Tensor) -> tuple[Tensor, Tensor]:
        return (torch.cat([keys[:-1], one.k_new[-1:]]) if len(keys) > 1 else keys), one.v_new


@rotary("ROTARY-8")
class RotaryValuesAreTurned(Honest):
    """New values are written turned, where they have as many channels as keys."""

    def written(self, one: Sequence, keys: Tensor) -> tuple[Tensor, Tensor]:
        alike = one.turn is not None and one.v_new.shape == one.k_new.shape
        return keys, rotate(one.v_new, self.of_keys(one), one.turn) if alike and one.turn else one.v_new


@rotary("ROTARY-8")
class RotaryWritesTheQueriesBack(Honest):
    """The turned queries are written over those that were given."""

    def turned_queries(self, one: Sequence) -> Tensor:
        found = super().turned_queries(one)
        one.q.copy_(found)
        return found


@rotary("ROTARY-1")
class RotarySingleQueryIsNotTurned(Honest):
    """One query is not turned, and several are."""

    def turned_queries(self, one: Sequence) -> Tensor:
        return one.q if len(one.q) == 1 else super().turned_queries(one)
