"""Loads the fixtures that all tests share: databases of both kinds, and brokers."""

pytest_plugins = ["testkit.pytest_plugin"]
