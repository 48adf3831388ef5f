"""Reads changes of stock from a CSV file, row by row, and names the line of each error."""

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from shop_client import convert
from shop_client.values import StockChange as Change
from shop_protos.inventory.v1.inventory_pb2 import StockChange
from shopctl.terminal.failures import CommandFailed

REQUIRED = ("product_id", "location")
CHANGES = ("received", "adjusted", "counted", "moved", "withheld")
OPTIONAL = ("to_location", "version", "reason", "reference", "occurred_at")
OF_EXPORT = (
    "item_id",
    "quantity",
    "withheld_quantity",
    "reserved_quantity",
    "available_quantity",
    "created_at",
    "updated_at",
)
"""Columns that `export stock` writes and an import ignores, so that an export can be used as a count sheet."""

EXPECTED = (
    f"expected the columns {', '.join(REQUIRED)}, at least one of {', '.join(CHANGES)}, "
    f"and if needed {', '.join(OPTIONAL)}, separated by commas"
)

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_INT64 = range(-(2**63), 2**63)
_DIGEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the file, and the change that it describes, or why it does not describe one."""

    line: int
    """The number of its first line, from 1. A row with quoted line breaks has several lines."""
    cells: Sequence[str]
    change: StockChange | None
    error: str = ""


class StockFile:
    """A CSV file with changes of stock. It can be read several times, and is never in memory as a whole."""

    def __init__(self, path: Path) -> None:
        """Raises CommandFailed if the header is wrong."""
        self._path = path
        if not path.is_file():
            raise CommandFailed(f"{path} is not a file")
        with self._text() as text:
            self.header, _ = self._header(text)

    def digest(self) -> str:
        """Return a digest of the bytes of the file."""
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            while part := file.read(_DIGEST_BYTES):
                digest.update(part)
        return digest.hexdigest()

    def count(self) -> int:
        """Return the number of rows. Raises CommandFailed if the file is not CSV in UTF-8."""
        return sum(1 for _ in self._cells())

    def rows(self) -> Iterator[Row]:
        """Yield the rows in order, without empty ones. Raises CommandFailed if the file is not CSV in UTF-8."""
        for line, cells in self._cells():
            yield self._row(line, cells)

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the cells of each row that is not empty, with the number of its first line."""
        with self._text() as text:
            _, lines = self._header(text)
            reader = csv.reader(text, strict=True)
            line = lines + 1
            try:
                for values in reader:
                    cells = [value.strip() for value in values]
                    if any(cells):
                        yield line, cells
                    line = lines + reader.line_num + 1
            except csv.Error as error:
                raise CommandFailed(f"{self._path}, line {line}: this is not CSV: {error}") from None
            except UnicodeDecodeError:
                raise CommandFailed(f"{self._path}, after line {line}: the text is not in UTF-8") from None

    def _text(self) -> TextIO:
        """Open the file without a byte order mark. The csv module needs the line breaks as they are."""
        return self._path.open(encoding="utf-8-sig", newline="")

    def _header(self, text: TextIO) -> tuple[list[str], int]:
        """Read the header. Returns the names of the columns, and the number of lines up to the header."""
        lines = 0
        try:
            for line in iter(text.readline, ""):
                lines += 1
                if line.strip().strip(","):
                    return self._names(line, lines), lines
        except UnicodeDecodeError:
            raise CommandFailed(f"{self._path} is not in UTF-8; save it as CSV in UTF-8") from None
        raise CommandFailed(f"{self._path} is empty; {EXPECTED}")

    def _names(self, line: str, number: int) -> list[str]:
        for separator, name in ((";", "semicolons"), ("\t", "tabs")):
            if separator in line and "," not in line:
                raise CommandFailed(f"{self._path}, line {number}: the columns are separated by {name}; {EXPECTED}")
        try:
            (cells,) = csv.reader([line], strict=True)
        except csv.Error as error:
            raise CommandFailed(f"{self._path}, line {number}: this is not CSV: {error}; {EXPECTED}") from None
        names = [cell.strip().lower() for cell in cells]
        while not names[-1]:
            names.pop()  # spreadsheets write empty columns at the end
        problems = [f"{name!r} is not a column" for name in names if name not in _KNOWN]
        problems += [f"{name} is there twice" for name in _KNOWN if names.count(name) > 1]
        problems += [f"{name} is missing" for name in REQUIRED if name not in names]
        if not any(name in names for name in CHANGES):
            problems.append(f"one of {', '.join(CHANGES)} is missing")
        if problems:
            raise CommandFailed(f"{self._path}, line {number}: {'; '.join(problems)}; {EXPECTED}")
        return names

    def _row(self, line: int, cells: Sequence[str]) -> Row:
        extra = [cell for cell in cells[len(self.header) :] if cell]
        if extra:
            return Row(line, cells, None, f"the row has more values than the header has columns: {extra[0]!r}")
        try:
            # A spreadsheet may leave out empty cells at the end of a row.
            change = _change({name: value for name, value in zip(self.header, cells, strict=False) if value})
        except ValueError as error:
            return Row(line, cells, None, str(error))
        return Row(line, cells, change)


_KNOWN = (*REQUIRED, *CHANGES, *OPTIONAL, *OF_EXPORT)


def _change(values: Mapping[str, str]) -> StockChange:
    """Return the change. The API checks the limits of the values. Raises ValueError."""
    kinds = [name for name in CHANGES if name in values]
    if len(kinds) != 1:
        raise ValueError(f"exactly one of {', '.join(CHANGES)} must have a value")
    for name in REQUIRED:
        if name not in values:
            raise ValueError(f"{name} is missing")
    (kind,) = kinds
    if (kind == "moved") != ("to_location" in values):
        raise ValueError("moved and to_location must be set together")
    change = Change(
        product_id=_integer(values, "product_id"),
        location=values["location"],
        received=_optional(values, "received"),
        adjusted=_optional(values, "adjusted"),
        counted=_optional(values, "counted"),
        moved=_optional(values, "moved"),
        to_location=values.get("to_location"),
        version=_optional(values, "version"),
        reason=values.get("reason", ""),
        reference=values.get("reference", ""),
        occurred_at=_time(values["occurred_at"]) if "occurred_at" in values else None,
        withheld=_optional(values, "withheld"),
    )
    return convert.stock_change(change)


def _optional(values: Mapping[str, str], name: str) -> int | None:
    return _integer(values, name) if name in values else None


def _integer(values: Mapping[str, str], name: str) -> int:
    text = values[name]
    if not _INTEGER.fullmatch(text) or int(text) not in _INT64:
        raise ValueError(f"{name} must be a whole number without separators, not {text[:40]!r}")
    return int(text)


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise ValueError(f"occurred_at must be a time with its zone, such as 2024-01-15T10:30:00Z, not {text[:40]!r}")
    return at
