"""What is said of a clause for one implementation, dtype and device."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What is said of a clause for one implementation, dtype and device."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNSUPPORTED = "UNSUPPORTED"
    KNOWN_ISSUE = "KNOWN_ISSUE"
    XPASS = "XPASS"
    CRASH = "CRASH"
    TIMEOUT = "TIMEOUT"
    RESOURCE = "RESOURCE"
    HARNESS_ERROR = "HARNESS_ERROR"
    NOT_RUN = "NOT_RUN"


BROKEN = (Verdict.FAIL, Verdict.XPASS, Verdict.CRASH, Verdict.TIMEOUT)
JUDGED = (Verdict.PASS, Verdict.KNOWN_ISSUE, *BROKEN)  # an answer was looked at, or its lack was
RANDOM = "random"  # what a header says of a seed that was drawn, and is told at the end
