"""The front: the pytest plugin, and check() for notebooks."""
