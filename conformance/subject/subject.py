"""The thing under test on one device: an adapter, the choices it follows, the class it must hold, and what was seen."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from attnspec.adapters import Adapter, Answer
from attnspec.adapters.watch.trace import Trace
from attnspec.adapters.within import PLAINLY, Within
from attnspec.conformance.judging.finding import Judgement
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.judging.lean import LONG, LongRows, long_rows
from attnspec.conformance.problems.case import Case
from attnspec.conformance.problems.fit import fit, sized, thinner
from attnspec.conformance.problems.tensors import build, restricted
from attnspec.conformance.problems.words import describe_problem
from attnspec.conformance.verdicts.lines import Share, worse
from attnspec.reference import Exact, default_class, solve, stricter, to_float64
from attnspec.spec import Clause, Dialect, Problem, differentiable
from attnspec.spec.words import DTYPES, FEATURES, REPEATING, RETURNED

ORACLE = "arb" if find_spec("flint") else "float64"
OBSERVED, ASSUMED = "observed", "assumed canonical"  # how the source of a choice begins that nobody promised
ASK = compile("ask()", "<attnspec>", "eval")


class DeviceGone(KeyboardInterrupt):
    """The device answers nothing any more in this process: the run ends as an interrupted one does."""


@dataclass
class Subject:
    """One variant of an implementation on one device.

    dialect holds for all problems; sources says for each choice where it came from ("--dialect", "promised by …",
    "observed", "not exercised"). claim is the accuracy class claimed for all dtypes, or None.
    """

    adapter: Adapter
    device: str = "cpu"
    dialect: Dialect = field(default_factory=Dialect)
    sources: dict[str, str] = field(default_factory=dict)
    claim: str | None = None
    dtypes: tuple[str, ...] = DTYPES
    width: int = 16  # of queries, keys and values in plain calls
    refused_dtypes: dict[str, str] = field(default_factory=dict)
    refused_widths: dict[int, str] = field(default_factory=dict)
    refused_strides: str = ""
    refused_lse_grad: str = ""
    read_from: str = ""  # who says how its calls are read; "" for an adapter, which says it itself
    masks_from: str = ""  # who says what its masks say, where that was looked for
    found: dict[str, str] = field(default_factory=dict)  # restriction that nobody declared → what showed it
    held: dict[str, str] = field(default_factory=dict)  # dtype → strictest class that no right answer left; none: no entry
    repeated: dict[str, tuple[str, ...]] = field(default_factory=dict)  # dtype → outputs whose bits differed in repeated calls
    long: dict[str, LongRows] = field(default_factory=dict)  # dtype → right outputs of long rows, where class C is asked for
    generic: int = 0  # problems from which the tier tells whether errors lean in one direction
    siblings: tuple[Subject, ...] = ()  # other variants of the same implementation, on the same device
    compiled: str = ""  # the backend of torch.compile that the tier bears
    same_side: Callable[[Case, Case], bool] = lambda met, other: True  # of known issues: may one case explain the other?
    slow: bool = False  # the tier bears costs such as rows of a million keys, and ball arithmetic for every answer in float64
    exempt: int = 0
    elements: int = 0
    judged: int = 0
    calls: int = 0  # of the implementation
    gave_up: dict[str, int] = field(default_factory=dict)  # function on which torch.compile gave up → calls up to then
    backend: Trace | None = None  # what a plain call ran
    called: bool = False
    # dtype ("": while it was made) and global state → which call changed it how, and where
    disturbed: dict[tuple[str, str], tuple[str, Problem]] = field(default_factory=dict)
    around: Within = PLAINLY  # what surrounds each call that says nothing of it
    asking: str = ""  # clause and case that the suite is at, for who reads the traceback of a crash
    under_way: tuple[float, Problem] | None = None  # since when, on the monotonic clock, a call is, and with which problem
    compared: set[Case] = field(default_factory=set)  # cases that tests had compared with the reference
    measured: dict[str, Share] = field(default_factory=dict)  # the worst right answers since the asking test began
    _judgements: OrderedDict[Case, Judgement] = field(default_factory=OrderedDict)
    _fitted: dict[tuple[Case, tuple[tuple[str, Any], ...]], Case] = field(default_factory=dict)
    _offer: tuple[Any, ...] = ()  # to which these cases are fitted

    @property
    def label(self) -> str:
        """The variant, for ids and tables."""
        return self.adapter.variant or "only"

    def offers(self, *features: str) -> bool:
        """True where all of these features are promised."""
        return self.offered.issuperset(features)

    @property
    def offered(self) -> frozenset[str]:
        """The features that are promised."""
        return frozenset(self.adapter.offers).union(REPEATING if self.adapter.deterministic else ())

    def repeats(self, output: str) -> bool:
        """Whether the same bits of an output are promised on every call."""
        return self.offers("deterministic" if output in RETURNED else "deterministic_backward")

    def repetitions(self) -> str:
        """What was seen of the bits of repeated calls, which nobody promised all of."""
        outputs = dict.fromkeys(name for differed in self.repeated.values() for name in differed)
        if not outputs:
            return f"repeated calls gave the same bits each time; who wants to be held to that offers {', '.join(REPEATING)}"
        where = (f"{name} in {', '.join(dtype for dtype, seen in self.repeated.items() if name in seen)}" for name in outputs)
        return f"repeated calls gave other bits of {', '.join(where)}; right answers may, where nobody promises bits"

    def exempt_from(self, clause: Clause) -> str:
        """Why a clause does not bind this subject: it follows another dialect, or does not offer the feature; '' if it binds."""
        if clause.dialect is not None:
            name, _, value = (part.strip() for part in clause.dialect.partition("="))
            if getattr(self.dialect, name) != value:
                return f"it follows {name} = {getattr(self.dialect, name)}"
        if clause.feature in FEATURES and not self.offers(clause.feature):
            return f"{clause.feature} not offered"
        return ""

    def required_class(self, dtype: str) -> str:
        """The class that every answer of a dtype must stay within."""
        return self.claim or self.adapter.accuracy or default_class(dtype)

    def afresh(self) -> Subject:
        """The same subject, of which nothing was asked yet: what was settled when it was met stays."""
        settled = ("adapter", "device", "dialect", "sources", "claim", "dtypes", "width", "generic", "siblings", "compiled", "slow")
        refused = (
            "refused_dtypes",
            "refused_widths",
            "refused_strides",
            "refused_lse_grad",
            "read_from",
            "masks_from",
            "same_side",
            "backend",
            "called",
        )
        return Subject(**{name: getattr(self, name) for name in (*settled, *refused)})

    def fitted(self, case: Case, levels: tuple[tuple[str, Any], ...]) -> Case:
        """The case with these levels, as near to it as the adapter offers.

        A square of many queries, which may cost a thousand times as much as the case, is made smaller. What was found is
        remembered, for many tests want the same levels of the same rows.
        """
        adapter, known = self.adapter, (case, levels)
        offer = adapter.offers, adapter.widths, adapter.restrictions
        if self._offer != offer or len(self._fitted) > 30_000:
            self._offer, self._fitted = offer, {}
        found = self._fitted.get(known)
        if found is None:
            wanted = thinner(replace(case, **dict(levels)), case, adapter) if levels else case
            found = self._fitted[known] = fit(wanted, adapter)
        return found

    # ASKING

    def problem(self, case: Case) -> Problem:
        """The tensors of a case, on the device."""
        restrictions = self.adapter.restrictions
        asked = sized(case, restrictions) if restrictions else case
        problem = build(asked, self.device, differentiable(self.adapter.offers), self.adapter.reading)
        return restricted(problem, restrictions) if restrictions else problem

    def run(self, problem: Problem, within: Within = PLAINLY) -> Answer:
        """The implementation's answer. What the call changes around it is remembered, and set back."""
        return self.begin(problem, within)()

    def begin(self, problem: Problem, within: Within = PLAINLY) -> Callable[[], Answer]:
        """Ask; what is returned gives the answer, once it is there. Until then something else can be done."""
        self.calls, self.under_way = self.calls + 1, (time.monotonic(), problem)
        traced = self.traced(problem)
        later = traced(lambda: self.adapter.begin(problem, within if within != PLAINLY else self.around))

        def answer() -> Answer:
            got = traced(later)
            self.under_way = None  # it stays where something ended the call from outside
            if got.ended and not self.adapter.isolated:
                raise DeviceGone(f"{got.refusal}; with --isolate such a call is a CRASH, and all others are asked")
            self.note(problem, got.disturbed)
            for function in got.gave_up:
                self.gave_up.setdefault(function, self.calls)
            return got

        return answer

    def traced(self, problem: Problem) -> Callable[[Callable[[], Any]], Any]:
        """Who calls a function about this problem, so that a crash or a hang in it shows what was asked.

        Its traceback holds no values, but it does hold the names of files.
        """
        where = f"<attnspec asks {self.asking or 'the first questions'}: {describe_problem(problem)}>"
        code = ASK.replace(co_filename=where)
        return lambda ask: eval(code, {"ask": ask})

    @contextlib.contextmanager
    def surrounded(self, within: Within) -> Iterator[None]:
        """All calls in it are made within these surroundings, but for those that have their own."""
        before, self.around = self.around, within
        try:
            yield
        finally:
            self.around = before

    def note(self, problem: Problem, changes: Mapping[str, str]) -> None:
        """Remember what a call changed of the global state, in words (PURITY-3)."""
        which, self.called = "the call" if self.called else "the first call", True
        for name, how in changes.items():
            self.disturbed.setdefault((str(problem.dtype)[6:], name), (f"{which} changed {how}", problem))

    def disturbed_in(self, dtype: str) -> dict[str, tuple[str, Problem]]:
        """What calls in a dtype changed; the first one speaks of what changed while the implementation was made, too."""
        mine = (dtype, "") if dtype == self.dtypes[0] else (dtype,)
        return {name: seen for (where, name), seen in reversed(self.disturbed.items()) if where in mine}  # what came first stays

    def disturbs(self, case: Case) -> Mapping[str, str]:
        """What a call changes of the global state."""
        return self.run(self.problem(case), Within("after a draw")).disturbed

    def solve(self, problem: Problem, keep: np.ndarray | None = None, *, certain: bool = False) -> Exact:
        """The exact answer in the dialect of this subject. `certain`: from ball arithmetic, where it is installed."""
        try:
            return solve(problem, self.dialect, keep, oracle=ORACLE if certain else "float64")
        except ArithmeticError:  # numbers so far apart that 4096 bits do not hold them
            return solve(problem, self.dialect, keep)

    def judge(self, answer: Answer, exact: Exact) -> Judgement:
        """Compare, and remember which accuracy class the right answers have held so far."""
        dtype = str(exact.problem.dtype).removeprefix("torch.")
        required = self.required_class(dtype)
        self.judged += 1
        if answer.refusal is not None or not isinstance(answer.o, torch.Tensor):
            return judge(answer, exact, required)
        ladder, class_ = stricter(required, dtype), self._class_to_ask(dtype)
        result = judge(answer, exact, class_)
        if result.findings and class_ != required:
            least = judge(answer, exact, required)
            # A right answer is in the strictest class that it did not leave, whatever a milder one exempts it from.
            while result.findings and not least.findings and class_ != required:
                class_ = ladder[ladder.index(class_) + 1] if class_ in ladder else required
                result = judge(answer, exact, class_)
            result = result if not least.findings else least
        if not result.findings and result.elements > result.exempt:
            self.held[dtype] = class_
            if exact.problem.j > LONG and required.startswith("C"):
                b = exact.tolerance("B")
                self.lean(dtype, long_rows(to_float64(answer.o), exact.values["o"], b.bound["o"], b.exempt["o"], exact.problem.j))
        self.exempt += result.exempt
        self.elements += result.elements
        self._measure(result)
        return result

    def _class_to_ask(self, dtype: str) -> str:
        """The strictest class that no right answer has left so far."""
        return self.held.get(dtype) or stricter(self.required_class(dtype), dtype)[0]

    def lean(self, dtype: str, seen: LongRows) -> None:
        """Remember how far the right outputs of long rows lie from the exact ones."""
        self.long[dtype] = seen.with_(self.long.get(dtype))

    def _measure(self, result: Judgement) -> None:
        for output, share in result.worst.items() if not result.findings else ():
            self.measured[output] = worse(self.measured.get(output), Share(share, result.class_))

    def judgement(self, case: Case) -> Judgement:
        """What the judge says of a case; asked once, remembered."""
        if case not in self._judgements:
            problem = self.problem(case)
            self._judgements[case], _ = self.judged_now(problem)
            if len(self._judgements) > 20_000:
                self._judgements.popitem(last=False)
        self._measure(self._judgements[case])
        return self._judgements[case]

    def remembers(self, case: Case) -> bool:
        """Whether a case was judged before."""
        return case in self._judgements

    def judged_now(self, problem: Problem, within: Within = PLAINLY) -> tuple[Judgement, Exact]:
        """What the judge says of a problem, asked now, and the exact answer.

        Beside an answer in float64 the error of a float64 reference counts as much as its own: balls decide.

        Where that is too slow for every problem, they decide what is not clear without them: the tolerance beside a float64
        reference is twice the bound, of which the reference itself was never seen to need more than a quarter.
        """
        double = problem.dtype == torch.float64
        answer, exact = self.answered(problem, within, certain=double and self.slow)
        if (
            double
            and not self.slow
            and max(judge(answer, exact, self.required_class("float64")).worst.values(), default=0.0) > 0.25
        ):
            exact = self.solve(problem, certain=True)
        return self.judge(answer, exact), exact

    def answered(
        self, problem: Problem, within: Within = PLAINLY, exact: Exact | None = None, *, certain: bool = False
    ) -> tuple[Answer, Exact]:
        """The implementation's answer, and the exact one, which is computed meanwhile if it is not given."""
        later = self.begin(problem, within)
        exact = exact if exact is not None else self.solve(problem, certain=certain)
        if self.adapter.isolated:  # the bounds, too: the judge will ask for them
            exact.tolerance(self._class_to_ask(str(problem.dtype).removeprefix("torch.")))
        return later(), exact

    @property
    def observed(self) -> frozenset[str]:
        """The choices that nobody promised and a call showed."""
        return frozenset(name for name, source in self.sources.items() if source.startswith(OBSERVED))

    @property
    def assumed(self) -> frozenset[str]:
        """The choices that nobody promised and no call showed: they are taken for canonical."""
        return frozenset(name for name, source in self.sources.items() if source.startswith(ASSUMED))
