"""Where `dev` shows what the processes print and what it says itself."""

import os
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from devstack.dev.log_book import LogBook
from shopctl.terminal.colours import COLOURS

DEV = "dev"
"""The process that what we say ourselves is kept under."""

_NAME_WIDTH = max(map(len, COLOURS))


class Screen:
    """The terminal, or the file, that all of it is shown on; lines of different threads don't mix.

    A terminal that is closed, or a reader who has gone, ends the showing and nothing else: with a `book` all is kept.
    """

    def __init__(self) -> None:
        self._console = _Console(highlight=False, soft_wrap=True, markup=False)
        self.book: LogBook | None = None

    def log(self, name: str, line: str) -> None:
        """A line that a process printed."""
        self._keep(name, line)
        self._show(named(name, line))

    def say(self, sentence: str, style: str = "bold") -> None:
        """A sentence of our own."""
        self._keep(DEV, sentence, "info")
        self._show(Text(prefix(DEV) + sentence, style=style))

    def complain(self, sentence: str) -> None:
        """A sentence of our own on what went wrong."""
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
    """A line with the name of its process before it, in its colour."""
    return Text(prefix(name), style=COLOURS.get(name, "")) + Text.from_ansi(line)


def prefix(name: str) -> str:
    """What stands before each line of that process."""
    return f"{name:<{_NAME_WIDTH}} │ "


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Show no more. Rich would end the process."""
        self.quiet = True
        # What Python has buffered and flushes once more at its exit must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
