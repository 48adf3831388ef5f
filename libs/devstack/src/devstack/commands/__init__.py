"""The commands of `./task`.

Each command is a module: its docstring is the help text, `configure` declares its options, and `run` returns the exit
code. `run` raises exceptions that `failures.sentence` can explain.
"""
