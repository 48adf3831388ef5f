"""Fetches the rows of a list RPC page by page, up to the limit in the options, and prints them."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from rich.table import Column

from shopctl.terminal.output import add_json, console, print_json, print_table

_Row = TypeVar("_Row")

PAGE_SIZE_MAX = 1_000
"""The largest page that the APIs return."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add --limit, --all and --json."""
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--limit", type=_positive, default=50, metavar="N", help="maximum number of rows (default: %(default)s)"
    )
    amount.add_argument("--all", action="store_true", help="all rows")
    add_json(parser)


def fetch_rows(options: argparse.Namespace, fetch: Callable[[int, str], tuple[Iterable[_Row], str]]) -> Iterator[_Row]:
    """Yield the rows. `fetch` takes a page size and a token, and returns the page's rows and the next token."""
    limit = None if options.all else options.limit
    size = min(limit or PAGE_SIZE_MAX, PAGE_SIZE_MAX)
    return islice(every(lambda token: fetch(size, token)), limit)


def every(fetch: Callable[[str], tuple[Iterable[_Row], str]]) -> Iterator[_Row]:
    """Yield the rows of all pages. `fetch` takes a token, and returns the page's rows and the next token."""
    token = ""
    while True:
        page, token = fetch(token)
        yield from page
        if not token:
            return


def show(
    options: argparse.Namespace, title: str, columns: Sequence[str | Column], rows: Iterator[Mapping[str, Any]]
) -> None:
    """Print rows as a table with these columns. With --json, print each complete row as a line of JSON instead."""
    if options.json:
        for row in rows:
            print_json(row)
        return
    cells = [[row[str(c.header) if isinstance(c, Column) else c] for c in columns] for row in rows]
    print_table(title, columns, cells)
    if not options.all and len(cells) == options.limit:
        console().print(f"Only the first {options.limit} are shown; use --limit N or --all for more.", style="dim")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)
