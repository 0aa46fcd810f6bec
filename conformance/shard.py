"""The documented place of :func:`merge`, which lives with the verdict files."""

from attnspec.conformance.verdicts.merge import merge

__all__ = ["merge"]
