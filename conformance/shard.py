"""Where :func:`merge` is promised to be; it is one of the verdict files' own."""

from attnspec.conformance.verdicts.merge import merge

__all__ = ["merge"]
