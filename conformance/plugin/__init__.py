"""The front: the pytest plugin, and check() for notebooks. pytest knows the plugin by the name of this package."""

pytest_plugins = ["attnspec.conformance.plugin.hooks"]
