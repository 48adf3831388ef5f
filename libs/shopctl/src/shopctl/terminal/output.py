"""The output of commands: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TextIO

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

_WIDTH_WITHOUT_TERMINAL = 200


def add_json(parser: Any) -> None:
    """Add the option --json."""
    parser.add_argument("--json", action="store_true", help="write JSON instead of tables")


def print_json(document: Any, file: TextIO | None = None) -> None:
    """Print one JSON document on one line, to standard output or to the file; times are RFC 3339 in UTC."""
    print(json.dumps(document, default=_plain, ensure_ascii=False), flush=file is None, file=file)


def console() -> Console:
    """Return a console for standard output. Without a terminal it is wide enough for every table."""
    return _console(stderr=False)


def error_console() -> Console:
    """Return a console for standard error. Use it for progress and questions, because programs read standard output."""
    return _console(stderr=True)


def print_table(title: str, columns: Iterable[str | Column], rows: Iterable[Iterable[object]]) -> None:
    """Print a table. Cell text is printed literally: markup in it has no effect."""
    table = Table(*columns, title=title, title_justify="left", title_style="bold", show_edge=False)
    for row in rows:
        cells = zip(table.columns, row, strict=True)
        table.add_row(*(cell if isinstance(cell, Text) else Text(shown(column, cell)) for column, cell in cells))
    console().print(table)


def number(name: str) -> Column:
    """Return a right-aligned column of numbers with grouped digits."""
    return Column(name, justify="right", no_wrap=True)


def whole(name: str) -> Column:
    """Return a column whose cells are never truncated or wrapped, since people copy them: ids, addresses."""
    return Column(name, no_wrap=True, overflow="ignore")


def shown(column: Column, value: object) -> str:
    """Return the text of a cell."""
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return time_of(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and column.justify == "right" else printable(str(value))


def printable(text: str) -> str:
    """Replace control characters in text from outside: a terminal would interpret them."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def time_of(at: datetime) -> str:
    """Format a time for people: UTC, to the millisecond."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]


def to_datetime(stamp: Timestamp) -> datetime:
    """Return a protobuf timestamp as a datetime in UTC."""
    return stamp.ToDatetime(UTC)


def timestamp(at: datetime) -> str:
    """Format a time as RFC 3339 in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return _Console(
        stderr=stderr, highlight=False, soft_wrap=False, width=None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL
    )


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, which the command line treats as success. Rich would exit with code 1."""
        raise BrokenPipeError


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return timestamp(value)
    raise TypeError(f"{type(value).__name__} has no JSON")
