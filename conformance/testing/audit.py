"""Text, reference and tests must fit: ids and features are known, and each clause has what its kind owes.

Every clause owes a test; a MUST that is of kind value owes a reference function, and conduct a liar (tests/test_liars.py).
"""

from __future__ import annotations

from attnspec.conformance.testing.clause import NEW, TESTED
from attnspec.spec import SPEC_VERSIONS, implementations, index, newer
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
    versions = {id_: clause.since for id_, clause in known.items()} | {test: since for test, (_, since) in NEW.items()}
    problems += [
        f"{what} is since {since}, which is no version of the spec; choose from {', '.join(SPEC_VERSIONS)}"
        for what, since in versions.items()
        if since not in SPEC_VERSIONS
    ]
    problems += [
        f"{test} is since {since}, and so are its clauses; a test says since only where it is newer than each of them"
        for test, (ids, since) in NEW.items()
        if since in SPEC_VERSIONS and any(id_ in known and not newer(since, known[id_].since) for id_ in ids)
    ]
    if complete:
        problems += [f"{id_} has no test" for id_ in known if id_ not in TESTED]
    problems += [
        f"{id_} is a MUST of kind value, and no reference function claims it"
        for id_, clause in known.items()
        if clause.binding and clause.kind == "value" and id_ not in implementations()
    ]
    return problems
