"""The thing under test on one device: an adapter, the choices it follows, the class it must hold, and what was seen."""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from attnspec.adapters import FEATURES, Adapter, Answer
from attnspec.adapters.state import RANDOM, watched
from attnspec.adapters.trace import Trace
from attnspec.conformance.blame import FORM_CLAUSE, accuracy_clause, blame, choice_clause
from attnspec.conformance.case import Case, describe_problem, fit, simpler
from attnspec.conformance.diagnosis import Diagnosis, diagnose, explained_by, other_choice
from attnspec.conformance.judge import Finding, Judgement, judge, with_class
from attnspec.conformance.tensors import build
from attnspec.conformance.verdicts import Share, worse
from attnspec.reference import Exact, default_class, solve, stricter, to_float64
from attnspec.spec import Clause, Dialect, Problem

SIMPLIFYING = 2e7  # products that simpler numbers for one failure may take; not seconds, which would show other numbers elsewhere
REDUCTIONS = 120  # answers that the reduction of one failure may ask for
REDUCED_FAILURES = 8  # failures in one dtype that are reduced, each to its own entry
ORACLE = "arb" if find_spec("flint") else "float64"
DTYPES = ("float32", "float64", "bfloat16", "float16")


class Within(NamedTuple):
    """Surroundings of a call: a context that makes them, and Python that makes them around '{call}'."""

    enter: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    source: str = "{call}"


PLAINLY = Within()


@dataclass(frozen=True)
class Explained:
    """A failure, reduced: the clause it breaks, the smallest case that still fails, and what is wrong there."""

    clause: str
    case: Case
    finding: Finding
    problem: Problem
    exact: Exact | None  # None where the problem is none that the reference would take
    by_case: bool = True  # False where the test made the problem itself
    margin: np.ndarray | None = None  # where two calls are compared: by how much they may differ, inf where they may at all
    met: list[Case] = field(default_factory=list)  # the cases that failed so, the first first
    diagnosis: Diagnosis | None = None
    earlier: tuple[Problem, ...] = ()  # the calls after which it is seen, and not before
    within: Within = PLAINLY  # what surrounds the call, and must not matter

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two failures the same fault, whatever the dtype."""
        if self.finding.hint:
            return self.clause, self.finding.hint
        return self.clause, *self.finding.likeness

    def needs(self) -> frozenset[str]:
        """What another case must have to show the same fault. Lengths that differ matter where a choice explains it."""
        traits = self.case.traits()
        return traits if self.finding.hint else traits - {"i<j", "i>j"}


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
    refused_dtypes: dict[str, str] = field(default_factory=dict)
    refused_widths: dict[int, str] = field(default_factory=dict)
    refused_strides: str = ""
    held: dict[str, str] = field(default_factory=dict)  # dtype → strictest class not yet left
    generic: int = 0  # problems from which the tier tells whether errors lean in one direction
    siblings: tuple[Subject, ...] = ()  # other variants of the same implementation, on the same device
    compiled: str = ""  # the backend of torch.compile that the tier bears
    same_side: Callable[[Case, Case], bool] = lambda met, other: True  # of known issues: may one case explain the other?
    slow: bool = False  # the tier bears costs such as rows of a million keys, and ball arithmetic for every answer in float64
    exempt: int = 0
    elements: int = 0
    judged: int = 0
    backend: Trace | None = None  # what a plain call ran
    called: bool = False
    disturbed: dict[str, tuple[str, Problem]] = field(default_factory=dict)  # global state → which call changed it how, and where
    asking: str = ""  # clause and case that the suite is at, for who reads the traceback of a crash
    compared: set[Case] = field(default_factory=set)  # cases that tests had compared with the reference
    measured: dict[str, Share] = field(default_factory=dict)  # the worst right answers since the asking test began
    _judgements: OrderedDict[Case, Judgement] = field(default_factory=OrderedDict)
    _explained: list[Explained] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The variant, for ids and tables."""
        return self.adapter.variant or "only"

    def offers(self, *features: str) -> bool:
        """True where all of these features are promised."""
        return set(features) <= set(self.adapter.offers)

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

    # ASKING

    def problem(self, case: Case) -> Problem:
        """The tensors of a case, on the device."""
        names = ("q", "k", "v", "bias") if self.offers("bias_grad") else ("q", "k", "v")
        return build(case, self.device, names if self.offers("backward") else ())

    def run(self, problem: Problem) -> Answer:
        """The implementation's answer. What the call changes around it is remembered, and set back."""
        with self.watching(problem):
            # The traceback of a crash or a hang holds no values, but it does hold the names of files.
            where = f"<attnspec asks {self.asking or 'the first questions'}: {describe_problem(problem)}>"
            return eval(compile("run(problem)", where, "eval"), {"run": self.adapter.run, "problem": problem})

    @contextlib.contextmanager
    def watching(self, problem: Problem) -> Iterator[dict[str, str]]:
        """Around a call: what it changes of the global state, in words, goes to `disturbed`, and is set back (PURITY-3)."""
        which, self.called = "the call" if self.called else "the first call", True
        with watched(apart_from=(RANDOM,) if problem.dropout else ()) as changes:
            yield changes
        for name, how in changes.items():
            self.disturbed.setdefault(name, (f"{which} changed {how}", problem))

    def disturbs(self, case: Case) -> dict[str, str]:
        """What a call changes of the global state."""
        problem = self.problem(case)
        torch.rand(1)  # so that a call that always sets the same random state is seen to set it
        with self.watching(problem) as changes:
            self.adapter.run(problem)
        return changes

    def solve(self, problem: Problem, keep: np.ndarray | None = None, *, certain: bool = False) -> Exact:
        """The exact answer in the dialect of this subject. `certain`: from ball arithmetic, where it is installed."""
        try:
            return solve(problem, self.dialect, keep, oracle=ORACLE if certain else "float64")
        except ArithmeticError:  # numbers so far apart that 4096 bits do not hold them
            return solve(problem, self.dialect, keep)

    def judge(self, answer: Answer, exact: Exact) -> Judgement:
        """Compare, and remember which accuracy class has held so far."""
        dtype = str(exact.problem.dtype).removeprefix("torch.")
        required = self.required_class(dtype)
        self.judged += 1
        if answer.refusal is not None or not isinstance(answer.o, torch.Tensor):
            return judge(answer, exact, required)
        ladder = stricter(required, dtype)
        while True:
            class_ = self.held.setdefault(dtype, ladder[0])
            result = judge(answer, exact, class_)
            if not result.findings or class_ == ladder[-1]:
                break
            # Left this class: see whether a milder one, up to the required, still holds.
            milder = ladder[ladder.index(class_) + 1] if class_ in ladder else ladder[-1]
            if all(f.kind == "value" for f in result.findings) and not judge(answer, exact, required).findings:
                self.held[dtype] = milder
                continue
            result = judge(answer, exact, required)
            break
        self.exempt += result.exempt
        self.elements += result.elements
        self._measure(result)
        return result

    def _measure(self, result: Judgement) -> None:
        for output, share in result.worst.items() if not result.findings else ():
            self.measured[output] = worse(self.measured.get(output), Share(share, result.class_))

    def judgement(self, case: Case) -> Judgement:
        """What the judge says of a case; asked once, remembered."""
        if case not in self._judgements:
            problem = self.problem(case)
            self._judgements[case] = self._judgement(problem)
            if len(self._judgements) > 20_000:
                self._judgements.popitem(last=False)
        self._measure(self._judgements[case])
        return self._judgements[case]

    def _judgement(self, problem: Problem) -> Judgement:
        """Beside an answer in float64 the error of a float64 reference counts as much as its own: balls decide.

        Where that is too slow for every problem, they decide what is not clear without them: the tolerance beside a float64
        reference is twice the bound, of which the reference itself was never seen to need more than a quarter.
        """
        answer, double = self.run(problem), problem.dtype == torch.float64
        exact = self.solve(problem, certain=double and self.slow)
        if (
            double
            and not self.slow
            and max(judge(answer, exact, self.required_class("float64")).worst.values(), default=0.0) > 0.25
        ):
            exact = self.solve(problem, certain=True)
        return self.judge(answer, exact)

    # EXPLAINING

    def explain(self, case: Case, finding: Finding) -> Explained:
        """Reduce a failing case, and name the clause that the smallest failing one breaks."""
        known = self.known(case, finding)
        if known is not None:
            known.met.append(case)
            return known
        same_dtype = [known for known in self._explained if known.case.dtype == case.dtype and self.same_side(case, known.case)]
        if len(same_dtype) >= REDUCED_FAILURES:  # it is red; what more there is shows when these are mended
            return max(
                same_dtype, key=lambda known: (known.finding.output == finding.output, len(known.case.traits() & case.traits()))
            )
        explained = replace(self._explain(self.reduce(case, finding), finding, case), met=[case])
        explained = self.simplify(explained)
        self._explained.append(explained)
        return explained

    def diagnose(
        self, problem: Problem, exact: Exact | None, finding: Finding, met: list[Case], made: Problem | None = None
    ) -> Diagnosis | None:
        """The mistake that explains a failure, on the cases in which it was met, or on what a test made of the first of them."""
        if finding.kind not in ("value", "zero", "nonfinite", "relation"):
            return None
        try:
            before = {name for known in self._explained if known.diagnosis is not None for name in known.diagnosis.best}
            return diagnose(self, problem, exact, met, before, made if met else None)
        except Exception as error:  # a verdict is never lost to what would only explain it
            warnings.warn(f"attnspec could not diagnose a failure: {type(error).__name__}: {error}; please report it", stacklevel=2)
            return None

    def known(self, case: Case, finding: Finding) -> Explained | None:
        """A failure explained before that has nothing special that this case has not: the same fault, met again."""
        for known in self._explained:
            same = known.finding.output == finding.output or known.finding.output in ("o", "call")
            if same and known.case.dtype == case.dtype and known.needs() <= case.traits() and self.same_side(case, known.case):
                return known
        return None

    def reduce(self, case: Case, finding: Finding) -> Case:
        """The simplest case that still fails in the same way, by greedy descent over its factors.

        Where a failure in another dtype was reduced to what this one contains, that first.
        """

        def alike(trial: Case) -> bool:
            return self.same_side(case, trial) and any(f.likeness == finding.likeness for f in self.judgement(trial).findings)

        for known in self._explained:
            if known.by_case and known.case.dtype != case.dtype and known.needs() <= case.traits():
                trial = replace(known.case, dtype=case.dtype, numbers="")
                if alike(trial):
                    return trial
        return descend(case, self.adapter, alike)

    def _explain(self, case: Case, finding: Finding, seen: Case) -> Explained:
        problem = self.problem(case)
        answer, class_ = self.run(problem), self.required_class(case.dtype)
        for certain in (True, False):  # beside numbers that a bound hardly limits one oracle may see what the other does not
            exact = self.solve(problem, certain=certain)
            found = [f for f in judge(answer, exact, class_).findings if f.likeness == finding.likeness]
            if found:
                break
        if not found:  # not repeatable: keep what was seen the first time, where it was seen
            problem = self.problem(seen)
            finding = replace(finding, message=finding.message or "seen once, and not again on the same problem: the answer varies")
            return Explained("PURITY-4", seen, finding, problem, self.solve(problem, certain=True))
        finding = with_class(found[0], answer, exact)
        if finding.output == "o" and not finding.message and isinstance(answer.o, torch.Tensor):
            everything = to_float64(answer.o)
            what = "zero" if not everything.any() else "NaN" if np.isnan(everything).all() else ""
            finding = replace(finding, message=f"the whole output is {what}" if what else "")
        earlier = self._earlier(case) if finding.output == "o" else None
        before, fresh = () if earlier is None else (self.problem(earlier),), self.adapter.fresh()
        if (
            fresh is not None
            and not judge(replace(self, adapter=fresh).run(problem), exact, self.required_class(case.dtype)).findings
        ):
            finding = replace(finding, message="a fresh instance answers this rightly: it remembers earlier calls")
            return Explained("PURITY-5", case, finding, problem, exact, earlier=before)
        if earlier is not None:
            kept = "right where its shapes are new, wrong after a call in them " + (
                "with other numbers" if earlier.seed != case.seed else "without options"
            )
            finding = replace(finding, message=f"{kept}: something of that call is kept")
            return Explained("PURITY-5", case, finding, problem, exact, earlier=before)
        diagnosis = self.diagnose(problem, exact, finding, [seen])
        finding = replace(finding, hint=other_choice(diagnosis, self.dialect))
        clause = blame(case, finding, self.dialect, self.observed, bool(exact.empty.any()))
        if finding.output == "o" and diagnosis is not None and all(name.startswith("scale_") for name in diagnosis.best or ("",)):
            clause = "SCALE-1" if case.scale is None else "SCALE-2"
        told = diagnosis is not None and bool(diagnosis.best)
        if told if not clause.startswith("ACCURACY") else not self._coarse(seen, finding):
            finding = replace(finding, class_="")
        return Explained(clause, case, finding, problem, exact, diagnosis=diagnosis)

    def _coarse(self, seen: Case, finding: Finding) -> bool:
        """Whether coarse arithmetic explains what is wrong with the same output elsewhere, too."""
        for case in (seen, replace(seen, values="peaked"), replace(seen, values="large"), replace(seen, b=1, i=40, j=70)):
            problem = self.problem(fit(case, self.adapter))
            answer, exact = self.run(problem), self.solve(problem)
            wrong = [f for f in judge(answer, exact, self.required_class(case.dtype)).findings if f.output == finding.output]
            # What overflows in a coarser dtype is no number there.
            if wrong and wrong[0].kind == "value" and not with_class(wrong[0], answer, exact).class_:
                return False
        return True

    def simplify(self, explained: Explained) -> Explained:
        """The same failure with simpler numbers, as long as no more mistakes explain it than before."""
        finding, case = explained.finding, explained.case
        simple = bool(case.numbers)  # asked for with --case, as a failure has shown it
        if simple or finding.kind not in ("value", "zero", "nonfinite") or explained.clause.startswith("PURITY"):
            return explained
        class_, (q, k, v) = self.required_class(case.dtype), (explained.problem.q, explained.problem.k, explained.problem.v)
        trials = SIMPLIFYING // max(1, q.numel() // max(1, q.shape[-1]) * k.shape[-2] * (k.shape[-1] + v.shape[-1]))

        def fails(problem: Problem) -> bool:
            """In the same way, and no less."""
            answer, exact = self.run(problem), self.solve(problem)
            alike = [f for f in judge(answer, exact, class_).findings if (f.likeness, f.kind) == (finding.likeness, finding.kind)]
            coarse = with_class(alike[0], answer, exact).class_ if alike else ""
            return bool(alike) and coarse == finding.class_ and alike[0].ratio >= min(finding.ratio, 4.0)

        for known in self._explained:
            same = known.key == explained.key and replace(known.case, dtype=case.dtype, numbers="") == case
            trial = replace(case, numbers=known.case.numbers)  # in another dtype
            if same and trial != case and fails(self.problem(trial)):
                return self._simplified(explained, trial)
        before, made = explained_by(self, explained.problem), {}  # type: frozenset[str], dict[str, str]
        for name in ("do", "bias", "v", "k", "q"):
            tensor = getattr(explained.problem, name)
            if tensor is None or not tensor.numel() or (name == "do" and finding.output == "o"):
                continue
            places = [f"at{n}" for n in range(min(tensor.numel(), 4))] if tensor.numel() > 1 else []
            for how in ("zeros", "ones", *(["hot"] if name == "v" and tensor.shape[-1] > 1 else []), *places, "rounded"):
                trial = replace(case, numbers="+".join(f"{n}:{x}" for n, x in {**made, name: how}.items()))
                problem = self.problem(trial)
                if trials < 1 or torch.equal(getattr(problem, name), getattr(self.problem(case), name)):
                    continue
                trials -= 1
                if not fails(problem) or not explained_by(self, problem) <= before:
                    continue
                made[name], case = how, trial
                break
        return self._simplified(explained, case) if made else explained

    def _simplified(self, explained: Explained, case: Case) -> Explained:
        """The failure as it is seen on a simpler case; as it was where it is not seen again."""
        problem, finding = self.problem(case), explained.finding
        answer, exact = self.run(problem), self.solve(problem, certain=True)
        found = [f for f in judge(answer, exact, self.required_class(case.dtype)).findings if f.likeness == finding.likeness]
        if not found:  # not repeatable
            return explained
        kept = with_class(found[0], answer, exact) if finding.class_ else found[0]
        kept = replace(kept, hint=finding.hint, message=finding.message)
        return replace(explained, case=case, finding=kept, problem=problem, exact=exact)

    @property
    def observed(self) -> frozenset[str]:
        """The choices that nobody promised."""
        return frozenset(name for name, source in self.sources.items() if source.startswith("observed"))

    def attribute(
        self,
        clause: str,
        problem: Problem,
        finding: Finding,
        exact: Exact,
        met: list[Case],
        made: Problem | None = None,
        within: Within = PLAINLY,
    ) -> tuple[str, Finding, Diagnosis | None]:
        """The clause that a relation's failure breaks: another choice or coarser arithmetic may explain it, else `clause`."""
        if finding.kind in FORM_CLAUSE and finding.output in ("o", "call"):
            return FORM_CLAUSE[finding.kind], finding, None
        if finding.kind == "raised" and problem.causal and not (problem.mask is None and problem.bias is None):
            return "CAUSAL-6", finding, None
        answer = self.run(problem)
        if not judge(answer, exact, self.required_class(str(problem.dtype)[6:])).findings:
            if within is PLAINLY:
                return clause, finding, None
            with within.enter():  # right when asked like this: the surroundings of the call matter
                return clause, finding, self.diagnose(problem, exact, finding, [replace(case, wrt="none") for case in met], made)
        diagnosis = self.diagnose(problem, exact, finding, met, made)
        finding = with_class(replace(finding, hint=other_choice(diagnosis, self.dialect)), answer, exact)
        if finding.hint:
            return choice_clause(finding, self.dialect, self.observed), finding, diagnosis
        dtype = str(problem.dtype)[6:]
        seen = any(known.clause.startswith("ACCURACY") and known.case.dtype == dtype for known in self._explained)
        return accuracy_clause(finding, dtype, seen) or clause, finding, diagnosis

    def _earlier(self, case: Case) -> Case | None:
        """A case after which this one is wrong, where it is right if it comes first; None where the order does not matter.

        In shapes never seen: the same numbers can't be asked first twice.
        """

        def other(case: Case, plain: bool) -> Case:
            changes = {"mask": "none", "bias": "none", "causal": False, "scale": None} if plain else {"seed": case.seed + 1}
            return fit(replace(case, **changes), self.adapter)  # type: ignore[arg-type]

        def wrong(more: int, plain: bool, after: bool) -> bool:
            trial = fit(replace(case, i=case.i + more, j=case.keys + more, d=case.d + more), self.adapter)
            if after:
                self.judgement(other(trial, plain))
            return bool(self.judgement(trial).of(("o",)))

        for plain in (False, True):
            # Which of sixteen sizes come first: in an order that no length, no residue and hardly any chance explains.
            order = (n.bit_count() % 2 == 1 for n in range(16))
            least = 61 + case.d % 2 + 32 * plain  # widths that nothing else asks for are odd, and beyond 59
            if other(case, plain) != case and all(wrong(least + 2 * n, plain, x) is x for n, x in enumerate(order)):
                return other(case, plain)
        return None


def descend(case: Case, adapter: Adapter, fails: Callable[[Case], bool]) -> Case:
    """Greedy descent: take the first simpler case that still fails, until none does or REDUCTIONS were asked."""
    asked, tried = 0, {case}
    while True:
        for trial in (fit(simple, adapter) for simple in simpler(case)):
            if trial in tried:
                continue
            tried.add(trial)
            asked += 1
            if asked > REDUCTIONS:
                return case
            if fails(trial):
                case = trial
                break
        else:
            return case
