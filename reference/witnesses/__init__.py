"""Two other forms of the exact answer, which share nothing with the formulas of :mod:`attnspec.reference.dense`."""
