"""What every test may ask for: databases of both kinds, and a broker."""

pytest_plugins = ["testkit.pytest_plugin"]
