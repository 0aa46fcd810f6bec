"""Implementations that are known by a short name."""
