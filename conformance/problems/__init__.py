"""The problems that are put to an implementation: cases, their arrays, their tensors, and how they are made smaller."""
