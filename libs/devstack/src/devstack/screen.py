"""Where `dev` shows what the processes print and what it says itself."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from devstack.colours import COLOURS

_NAME_WIDTH = max(map(len, COLOURS))


class Screen:
    """The terminal, or the file, that all of it is shown on; lines of different threads don't mix."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True, markup=False)

    def log(self, name: str, line: str) -> None:
        """A line that a process printed."""
        text = Text(f"{name:<{_NAME_WIDTH}} │ ", style=COLOURS.get(name, ""))
        self._console.print(text + Text.from_ansi(line))

    def say(self, sentence: str, style: str = "bold") -> None:
        """A sentence of our own."""
        self._console.print(Text(f"{'dev':<{_NAME_WIDTH}} │ {sentence}", style=style))

    def table(self, table: Table) -> None:
        self._console.print(table)
