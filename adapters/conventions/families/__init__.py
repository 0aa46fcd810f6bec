"""One file a family: its conventions, as data."""
