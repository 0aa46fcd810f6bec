"""Text, reference and tests must fit: ids and features are known, and each clause has what its kind owes.

Every clause owes a test; a MUST that is of kind value owes a reference function, and conduct a liar (tests/test_liars.py).
"""

from __future__ import annotations

from attnspec.conformance.testing.clause import TESTED
from attnspec.spec import implementations, index
from attnspec.spec.words import FEATURES


def audit(complete: bool) -> list[str]:
    """What does not fit, in sentences. `complete` says that all test modules are imported, so that absence is an error."""
    known = index()
    problems = [f"{', '.join(tests)} names {id_}, which is not in the spec" for id_, tests in TESTED.items() if id_ not in known]
    problems += [
        f"{id_} is bound to feature {clause.feature}, which an adapter can't offer; choose from {', '.join(FEATURES)}"
        for id_, clause in known.items()
        if clause.feature is not None and clause.feature not in FEATURES
    ]
    if complete:
        problems += [f"{id_} has no test" for id_ in known if id_ not in TESTED]
    problems += [
        f"{id_} is a MUST of kind value, and no reference function claims it"
        for id_, clause in known.items()
        if clause.binding and clause.kind == "value" and id_ not in implementations()
    ]
    return problems
