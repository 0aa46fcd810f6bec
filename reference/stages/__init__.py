"""The stages of attention, one file each: a formula, its gradient where it has one of its own, and what it adds to the bounds."""
