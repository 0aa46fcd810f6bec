"""The tests, one file a chapter of the spec."""
