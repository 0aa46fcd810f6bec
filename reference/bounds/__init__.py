"""How far from the exact answer an honest kernel may be."""
