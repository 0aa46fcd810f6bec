"""A failure explained: reduced, filed under a clause, and put to a known mistake."""
