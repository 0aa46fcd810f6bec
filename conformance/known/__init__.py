"""Known and inherited issues: what a failure is excused by, and where."""
