"""Attention implementations with one deliberate fault each, by family; the suite must stop every one of them."""
