"""The commands of `python -m devstack`, one a module: its docstring is the help, `configure` declares its options,
and `run` does the work and returns the exit code.
"""
