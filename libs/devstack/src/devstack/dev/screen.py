"""Prints the output of `dev`: the lines of the processes, and the messages of `dev` itself."""

import os
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shopctl.system.log_book import LogBook
from shopctl.terminal.colours import COLOURS

DEV = "dev"
"""The process name of dev's own messages in the logs."""

_NAME_WIDTH = max(map(len, COLOURS))


class Screen:
    """Prints to the terminal or to a file. Lines of different threads are not mixed.

    If the terminal is closed, or if the reader of a pipe ends, the screen stops printing. Nothing else stops: `book`
    still stores all lines.
    """

    def __init__(self) -> None:
        self._console = _Console(highlight=False, soft_wrap=True, markup=False)
        self.book: LogBook | None = None

    def log(self, name: str, line: str) -> None:
        """Print a line of a process."""
        self._keep(name, line)
        self._show(named(name, line))

    def say(self, sentence: str, style: str = "bold") -> None:
        """Print a message of dev."""
        self._keep(DEV, sentence, "info")
        self._show(Text(prefix(DEV) + sentence, style=style))

    def complain(self, sentence: str) -> None:
        """Print an error message of dev."""
        self._keep(DEV, sentence, "error")
        self._show(Text(prefix(DEV) + sentence, style="bold red"))

    def table(self, table: Table) -> None:
        self._show(table)

    def _keep(self, name: str, line: str, level: str | None = None) -> None:
        if self.book is not None:
            for one in line.splitlines():
                self.book.add(name, one, level)

    def _show(self, shown: Text | Table) -> None:
        try:
            self._console.print(shown)
        except OSError:
            self._console.on_broken_pipe()


def named(name: str, line: str) -> Text:
    """Return the line, after the name of its process in the colour of the process."""
    return Text(prefix(name), style=COLOURS.get(name, "")) + Text.from_ansi(line)


def prefix(name: str) -> str:
    """Return the prefix of each line of the process."""
    return f"{name:<{_NAME_WIDTH}} │ "


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Stop printing. Rich would end the process."""
        self.quiet = True
        # Python flushes its buffer again at exit, which must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
