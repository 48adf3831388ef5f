"""Runs a command of `./task`. Each command is part of either devstack or shopctl."""

from collections.abc import Sequence

from devstack import __main__ as of_dev
from shopctl import __main__ as of_any_system

COMMANDS = of_dev.COMMANDS | of_any_system.COMMANDS


def package_of(word: str) -> str:
    """Return the name of the package that has the command, for `python -m`."""
    return "devstack" if word in of_dev.COMMANDS else "shopctl"


def main(words: Sequence[str]) -> int:
    """Run the command in this process and return its exit code."""
    if words and words[0] in of_dev.COMMANDS:
        return of_dev.main(words)
    return of_any_system.main(words)
