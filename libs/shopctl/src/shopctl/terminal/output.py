"""What commands write: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

_WIDTH_WITHOUT_TERMINAL = 200


def add_json(parser: Any) -> None:
    """The option --json, for an argparse parser."""
    parser.add_argument("--json", action="store_true", help="write JSON for programs instead of tables")


def print_json(document: Any) -> None:
    """One JSON document on a line of its own; times are RFC 3339 in UTC."""
    print(json.dumps(document, default=_plain, ensure_ascii=False), flush=True)


def console() -> Console:
    """Standard output, wide enough for a table where nobody says how wide it is."""
    return _console(stderr=False)


def error_console() -> Console:
    """Standard error: progress and questions, which a program that reads our output must not see."""
    return _console(stderr=True)


def print_table(title: str, columns: Iterable[str | Column], rows: Iterable[Iterable[object]]) -> None:
    """A table; text in it is shown as it is, whatever it holds."""
    table = Table(*columns, title=title, title_justify="left", title_style="bold", show_edge=False)
    for row in rows:
        cells = zip(table.columns, row, strict=True)
        table.add_row(*(cell if isinstance(cell, Text) else Text(shown(column, cell)) for column, cell in cells))
    console().print(table)


def number(name: str) -> Column:
    """A column of quantities, whose digits are grouped."""
    return Column(name, justify="right", no_wrap=True)


def whole(name: str) -> Column:
    """A column whose cells are copied by people (ids, addresses): never cut or broken."""
    return Column(name, no_wrap=True, overflow="ignore")


def shown(column: Column, value: object) -> str:
    """A cell's text."""
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return time_of(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and column.justify == "right" else printable(str(value))


def printable(text: str) -> str:
    """Text of others, without what a terminal would obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def time_of(at: datetime) -> str:
    """A time for people: UTC, to the millisecond."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]


def moment(stamp: Timestamp) -> datetime:
    """A protobuf time."""
    return stamp.ToDatetime(UTC)


def timestamp(at: datetime) -> str:
    """RFC 3339 in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return _Console(
        stderr=stderr, highlight=False, soft_wrap=False, width=None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL
    )


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line, for which it is no failure. Rich would end the process with 1."""
        raise BrokenPipeError


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return timestamp(value)
    raise TypeError(f"{type(value).__name__} has no JSON")
