"""One run: its subjects, its tier, its budget, its clock and what it comes to."""
