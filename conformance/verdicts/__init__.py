"""The verdict file of a run: its writer, its reader, its gates and its pages. Nothing here imports torch."""

from attnspec.conformance.verdicts.lines import VerdictError, Verdicts, read

__all__ = ["VerdictError", "Verdicts", "read"]
