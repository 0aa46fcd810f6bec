"""Faults of bits: what they depend on beside a sequence itself, although it was promised that they do not; and worse than bits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from steady import PLAIN, RANDOM, About, Both, Plan, Steady
from torch import Tensor

from attnspec.adapters import Adapter
from attnspec.conformance.problems.case import Case
from attnspec.conformance.run.run import Run
from attnspec.conformance.subject.subject import Subject
from attnspec.conformance.testing.clause import tests_of
from attnspec.conformance.testing.outcomes import Broken, NotApplicable, NotOffered
from attnspec.spec import Dialect
from attnspec.spec.words import PROMISES
from mutants.base import mutant


def broken(adapter: Adapter, *clauses: str, one: bool = False, into: Run | None = None) -> dict[str, Broken]:
    """The tests of these clauses that the adapter does not pass in float32, and what they found.

    one: the first alone. into: a run of this adapter, which then knows what was seen.
    """
    run = into or Run("", [Subject(adapter, dialect=Dialect(**adapter.dialect), dtypes=("float32",))])
    (subject,), found = run.subjects, {}
    for test in tests_of(clauses):
        if subject.offers(*test.plan.offering):
            try:
                test.asking(run, subject, "float32").test(subject, Case(heads="2/2"))
            except Broken as wrong:
                found[test.__name__] = wrong
                if one:
                    break
            except (NotApplicable, NotOffered):
                pass
    return found


def bits(clause: str, source: str = "") -> Callable[[Any], Any]:
    """Enter a mutant. It shows where the tests of its own clause see it: no single call is wrong."""
    return mutant("determinism", clause, source, raw=True, witness=lambda kind: bool(broken(kind(), clause, one=True)))


def anyhow(j: int) -> Plan:
    """In the order in which keys come, another one each time."""
    return Plan(torch.from_numpy(RANDOM.permutation(j)))


def off(x: Tensor, by: float, where: Any = ...) -> Tensor:
    """The numbers with some of them off by a share."""
    factor = torch.ones_like(x)
    factor[where] += by
    return x * factor


ULP = 2.0**-22  # of one: some bits


class Counts(Steady):
    """It counts its calls of a sequence."""

    calls = 0

    def changed(self, about: About, o: Tensor, lse: Tensor) -> Both:
        self.calls += 1
        return self.after(self.calls, about, o, lse)

    def after(self, calls: int, about: About, o: Tensor, lse: Tensor) -> Both:
        return o, lse


# THE SAME CALL AGAIN


@bits("DETERMINISM-2")
class OrderOfArrival(Steady):
    """Keys are added up in the order in which they come."""

    def plan(self, about: About, j: int) -> Plan:
        return anyhow(j)


@bits("DETERMINISM-2")
class OrderOfArrivalUnderLoad(Steady):
    """While other threads compute, keys are added up in the order in which they come."""

    def plan(self, about: About, j: int) -> Plan:
        return anyhow(j) if threading.active_count() > 2 else PLAIN


@bits("DETERMINISM-2", "NVIDIA/TransformerEngine#3331")
class LowBitsOfMemory(Counts):
    """In every seventh sequence one number of the output holds low bits of memory that was not cleared."""

    def after(self, calls: int, about: About, o: Tensor, lse: Tensor) -> Both:
        return (off(o, ULP, (0, 0, 0)), lse) if calls % 7 == 3 and o.numel() else (o, lse)


@bits("DETERMINISM-2")
class LowBitsOfTheLse(Counts):
    """In every eleventh sequence the lse holds low bits of memory that was not cleared."""

    def after(self, calls: int, about: About, o: Tensor, lse: Tensor) -> Both:
        return (o, off(lse, ULP, (0, -1))) if calls % 11 == 5 and lse.numel() else (o, lse)


@bits("DETERMINISM-2")
class ParityOfCalls(Steady):
    """Two workspaces are used in turn, and with the second one keys are added up in two parts."""

    turn = 0

    def call(self, problem: Any) -> Any:
        self.turn += 1
        return super().call(problem)

    def plan(self, about: About, j: int) -> Plan:
        return Plan(parts=1 + self.turn % 2)


@bits("DETERMINISM-2")
class FirstCallOfAShape(Steady):
    """The first call with a shape runs before it is tuned, and adds keys up in three parts."""

    def __init__(self) -> None:
        self.tuned: set[tuple[int, int]] = set()

    def plan(self, about: About, j: int) -> Plan:
        if (about.count, j) in self.tuned:
            return PLAIN
        self.tuned.add((about.count, j))
        return Plan(parts=3)


@bits("DETERMINISM-2")
class SeedOfTheProcess(Steady):
    """The order of keys comes from a hash that is another one in each process."""

    made = 0

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def elsewhere(self) -> Adapter:
        return SeedOfTheProcess(self.seed + 1)

    def plan(self, about: About, j: int) -> Plan:
        return Plan(torch.randperm(j, generator=torch.Generator().manual_seed(self.seed)))


@bits("DETERMINISM-1", "Dao-AILab/flash-attention#1678")
class UnclearedCounter(Counts):
    """A counter begins with what memory holds: in every twenty-third sequence the first row is doubled. It promises nothing."""

    offers = Steady.offers - PROMISES.keys()

    def after(self, calls: int, about: About, o: Tensor, lse: Tensor) -> Both:
        return (off(o, 1.0, (slice(None), 0)), lse) if calls % 23 == 9 and o.numel() else (o, lse)


@bits("DETERMINISM-1")
class RaceUnderLoad(Steady):
    """While other threads compute, a part of the last row is not there yet when it is read. It promises nothing."""

    offers = Steady.offers - PROMISES.keys()

    def changed(self, about: About, o: Tensor, lse: Tensor) -> Both:
        late = threading.active_count() > 2 and o.numel()
        return (off(o, -0.1, (slice(None), -1)), lse) if late else (o, lse)


# GRADIENTS


@bits("DETERMINISM-3", "Dao-AILab/flash-attention#1893")
class AtomicGradients(Steady):
    """Backward adds up in the order in which blocks come."""

    def backward_plan(self, about: About, j: int) -> Plan:
        return anyhow(j)


@bits("DETERMINISM-3", "PaddlePaddle/flash-attention#134")
class AtomicGradientsOfCausal(Steady):
    """Backward of a causal call adds up in the order in which blocks come."""

    def backward_plan(self, about: About, j: int) -> Plan:
        return anyhow(j) if about.causal else PLAIN


@bits("DETERMINISM-3", "Dao-AILab/flash-attention#2549")
class AtomicGradientsOfPacks(Steady):
    """Backward of packed sequences adds up in the order in which blocks come."""

    def backward_plan(self, about: About, j: int) -> Plan:
        return anyhow(j) if about.form == "packed" else PLAIN


@bits("DETERMINISM-3", "Dao-AILab/flash-attention#2510")
class AtomicGradientsOfGroups(Steady):
    """Where several query heads share keys, backward adds up in the order in which blocks come."""

    grouped = False

    def sequence(self, q: Tensor, k: Tensor, v: Tensor, about: About, scale: float | None) -> Both:
        self.grouped = len(q) != len(k)
        return super().sequence(q, k, v, about, scale)

    def backward_plan(self, about: About, j: int) -> Plan:
        return anyhow(j) if self.grouped else PLAIN


# FLAGS AND THREADS


def flagged() -> bool:
    return torch.are_deterministic_algorithms_enabled()


@bits("DETERMINISM-5")
class SmallWorkspaceUnderTheFlag(Steady):
    """Under the flag partial sums are kept in half precision. It promises nothing."""

    offers = Steady.offers - PROMISES.keys()

    def changed(self, about: About, o: Tensor, lse: Tensor) -> Both:
        return (o.bfloat16().to(o.dtype), lse) if flagged() else (o, lse)


@bits("DETERMINISM-5")
class FlagAsParameterReversesKeys(Steady):
    """With its parameter `deterministic` it takes the values in another order than the keys. It promises nothing."""

    offers = Steady.offers - PROMISES.keys()

    def attend(self, q, k, v, *, causal=False, scale=None, lse=False, deterministic=False):  # type: ignore[no-untyped-def, override]
        return super().attend(q, k, v.flip(2) if deterministic else v, causal=causal, scale=scale, lse=lse)


@bits("DETERMINISM-6", "Dao-AILab/flash-attention#1596")
class FlagDropped(Steady):
    """The flag is accepted and not handed on to backward."""

    offers = Steady.offers - {"deterministic_backward"}

    def backward_plan(self, about: About, j: int) -> Plan:
        return anyhow(j)


@bits("DETERMINISM-6", "Dao-AILab/flash-attention#1766")
class FlagDroppedForPacks(Steady):
    """The flag is handed on by the dense call, and not by that of packed sequences."""

    offers = Steady.offers - {"deterministic_backward"}

    def backward_plan(self, about: About, j: int) -> Plan:
        return PLAIN if flagged() and about.form != "packed" else anyhow(j)


@bits("DETERMINISM-7")
class FlagSplitsForward(Steady):
    """Under the flag forward adds keys up in four parts."""

    def plan(self, about: About, j: int) -> Plan:
        return Plan(parts=4) if flagged() else PLAIN


@bits("DETERMINISM-4")
class ScheduleOfTheFirstThreads(Steady):
    """Work is dealt out to as many threads as there were in the first call; with another number the last query is not reached."""

    offers = Steady.offers - PROMISES.keys()
    threads = 0

    def changed(self, about: About, o: Tensor, lse: Tensor) -> Both:
        self.threads = self.threads or torch.get_num_threads()
        missed = self.threads != torch.get_num_threads() and o.numel()
        return (off(o, -1.0, (slice(None), -1)), lse) if missed else (o, lse)


@bits("DETERMINISM-8")
class LseOnAnotherPath(Steady):
    """With gradients the lse is an ulp or two larger."""

    def changed(self, about: About, o: Tensor, lse: Tensor) -> Both:
        return o, off(lse, ULP) if about.graded else lse


@bits("DETERMINISM-8")
class OutputOfTheTrainingPath(Steady):
    """With gradients forward adds keys up in two parts."""

    def plan(self, about: About, j: int) -> Plan:
        return Plan(parts=2) if about.graded else PLAIN


@bits("DETERMINISM-8")
class OutputBesideAnLse(Steady):
    """Where the lse is asked for, the output of a causal call is scaled in another place."""

    def changed(self, about: About, o: Tensor, lse: Tensor) -> Both:
        return (off(o, ULP), lse) if about.lse and about.causal else (o, lse)


# COMPANIONS


@bits("BATCH-3", "sgl-project/sgl-flash-attn#43")
class PartsByBatch(Steady):
    """A batch of few is added up in more parts."""

    def plan(self, about: About, j: int) -> Plan:
        return Plan(parts=max(1, 8 // about.count))


@bits("BATCH-3", "Dao-AILab/flash-attention#2450")
class PartsByTheLongest(Steady):
    """The number of parts follows from the longest sequence of the call."""

    def plan(self, about: About, j: int) -> Plan:
        return Plan(parts=1 + about.longest // 256)


@bits("BATCH-3")
class ItemsFromSixteen(Steady):
    """Items from 16 on are the second wave, and added up in two parts."""

    def plan(self, about: About, j: int) -> Plan:
        return Plan(parts=1 + about.place // 16)


@bits("BATCH-3")
class OddItems(Steady):
    """Keys of odd items of a dense batch are added up from the eighth on, and the first seven last."""

    def plan(self, about: About, j: int) -> Plan:
        return Plan(torch.arange(j).roll(-7)) if about.place % 2 and not about.form else PLAIN


@bits("BATCH-3")
class TilesOfThePack(Steady):
    """The borders of tiles are those of the pack, and not of the sequence."""

    def plan(self, about: About, j: int) -> Plan:
        start = about.begins % 16 if about.form == "packed" else 0
        return Plan(torch.arange(j).roll(start)) if start and j else PLAIN


@bits("BATCH-3")
class PartsByCapacity(Steady):
    """The number of parts follows from the capacity of the cache."""

    def plan(self, about: About, j: int) -> Plan:
        return Plan(parts=1 + about.room // 128) if about.form == "cached" else PLAIN


@bits("BATCH-3")
class PartsByFreePages(Steady):
    """The number of parts follows from the size of the pool of pages."""

    def plan(self, about: About, j: int) -> Plan:
        return Plan(parts=1 + about.room // 30) if about.form == "paged" else PLAIN


@bits("BATCH-3", "pytorch/pytorch#182593")
class OrderOfPages(Steady):
    """A sequence that begins in an odd page is added up in another order."""

    def plan(self, about: About, j: int) -> Plan:
        return Plan(torch.arange(j).roll(5)) if about.form == "paged" and about.begins % 2 else PLAIN


@bits("BATCH-4")
class GradientsByGrid(Steady):
    """The number of parts in backward follows from the number of sequences."""

    def backward_plan(self, about: About, j: int) -> Plan:
        return Plan(parts=1 + about.count % 3)


@bits("BATCH-4")
class GradientsBesideALongSequence(Steady):
    """Beside a packed sequence of more than 512 keys backward adds up in two parts."""

    def backward_plan(self, about: About, j: int) -> Plan:
        return Plan(parts=2) if about.form == "packed" and about.longest > 512 else PLAIN


@bits("BATCH-1")
class SecondWave(Steady):
    """Items from 16 on are the second wave, whose last head is a percent too large. It promises nothing."""

    offers = Steady.offers - PROMISES.keys()

    def changed(self, about: About, o: Tensor, lse: Tensor) -> Both:
        return (off(o, 0.01, -1), lse) if about.place >= 16 and o.numel() else (o, lse)


@bits("BATCH-1")
class LateGradients(Steady):
    """Backward of items from 16 on leaves the last key out. It promises nothing."""

    offers = Steady.offers - PROMISES.keys()

    def backward_plan(self, about: About, j: int) -> Plan:
        return Plan(torch.arange(max(j - 1, 1))) if about.place >= 16 and j else PLAIN


@bits("BATCH-1")
class BesideALongSequence(Steady):
    """Beside a sequence of more than 512 keys the lse of others is kept in half precision. It promises nothing."""

    offers = Steady.offers - PROMISES.keys()

    def changed(self, about: About, o: Tensor, lse: Tensor) -> Both:
        narrow = about.form != "" and about.longest > 512
        return o, lse.bfloat16().to(lse.dtype) if narrow else lse


# OTHER QUERIES


@bits("BATCH-5")
class PartsByQueries(Steady):
    """One query has a kernel of its own, in which keys are added up in four parts."""

    def sequence(self, q: Tensor, k: Tensor, v: Tensor, about: About, scale: float | None) -> Both:
        self.rows = q.shape[1]
        return super().sequence(q, k, v, about, scale)

    def plan(self, about: About, j: int) -> Plan:
        return Plan(parts=4 if self.rows == 1 else 1)


@bits("BATCH-5")
class PartsByFewQueries(PartsByQueries):
    """Two and three queries beside pages are added up in two parts."""

    def plan(self, about: About, j: int) -> Plan:
        return Plan(parts=2 if self.rows in (2, 3) and about.form == "paged" else 1)


@bits("BATCH-2")
class RowsOfATile(PartsByQueries):
    """Where there are more than four queries, the last row of a causal call is a percent too large. It promises nothing."""

    offers = Steady.offers - PROMISES.keys()

    def plan(self, about: About, j: int) -> Plan:
        return PLAIN

    def changed(self, about: About, o: Tensor, lse: Tensor) -> Both:
        return (off(o, 0.01, (slice(None), -1)), lse) if self.rows > 4 and about.causal and o.numel() else (o, lse)
