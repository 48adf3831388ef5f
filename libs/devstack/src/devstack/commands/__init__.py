"""The commands of `./task`.

One a module: its docstring is the help, `configure` declares its options, and `run` does the work and returns the
exit code. It raises what `failures.sentence` can put into words.
"""
