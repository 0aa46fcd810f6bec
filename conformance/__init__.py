"""What an implementation must show."""

__version__ = "0.1.0"
