"""Change stock as a CSV file describes it, for example after a delivery, a stock count or a correction.

  import stock delivery.csv                            imports the file
  import stock delivery.csv --dry-run                  only checks the file, without a call
  import stock delivery.csv --rejected rejected.csv    also writes the refused rows to a file, to correct them there

The first line names the columns, in any order:

  product_id,location,received,reference
  1001,WAREHOUSE_A,40,DN-7781

Each row has a value in one of these columns: `received` (units that were added), `adjusted` (units to add, or if
negative, to take out), `counted` (the new quantity), or `moved` with `to_location`. Rows may also have `version`,
`reason`, `reference` and `occurred_at`. Columns of `export stock` are ignored.

Rows are independent: a row with an error is listed with its line, and the others are imported. After an interruption,
run the same command again: rows that were imported before are not imported twice. The command recognises a file by its
content, for as long as request ids are kept (a week by default). A changed file is a new one, so do not correct rows
in a file that was imported: use --rejected.

The exit code is 0 if all rows were imported, and 1 otherwise. With --json, each error is one line, and the last line
is the summary. The command needs the permission `inventory.write`. docs/stock-files.md has more.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shop_common.errors import Contention, Overload, ShopError, Unavailable
from shop_common.rpc.status import from_status
from shop_protos.inventory.v1.inventory_pb2 import BatchChangeStockRequest, BatchChangeStockResponse
from shopctl.client import Shop
from shopctl.stock.stock_file import Row, StockFile
from shopctl.system import target
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, error_console, print_json, printable

BATCH_ROWS = 1_000
"""Rows in one call. Another number would change the request ids, so a file that an older release has begun to import
would be imported twice."""

CALL_SECONDS = 30.0
TRIES_MAX = 5
FIRST_PAUSE_SECONDS = 0.5

_TRANSIENT = (Contention, Overload, Unavailable)


@dataclass
class _Counts:
    rows: int = 0
    imported: int = 0
    refused: int = 0


def configure(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    stock = kinds.add_parser("stock", help="change stock as the rows of a CSV file describe it")
    stock.add_argument("file", type=Path, metavar="FILE.csv")
    stock.add_argument("--dry-run", action="store_true", help="only check the file: make no call and change nothing")
    stock.add_argument("--rejected", type=Path, metavar="FILE.csv", help="write the refused rows to this new file")
    target.add_apis(stock)
    add_json(stock)


def run(options: argparse.Namespace) -> int:
    """Import the file. Raises CommandFailed and ShopError."""
    began = time.monotonic()
    file = StockFile(options.file)
    # Read the whole file before the first change, so that a file that is not CSV after some lines changes nothing.
    counts = _Counts(file.count())
    with ExitStack() as stack:
        report = _Report(options, file, stack)
        shop = None if options.dry_run else stack.enter_context(target.shop(options))
        digest = file.digest()
        columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # While Rich shows the progress, it can redirect standard output to standard error. Allow that only on a
        # terminal.
        progress = Progress(
            *columns,
            console=error_console(),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=False,
        )
        bar = stack.enter_context(progress).add_task("rows", total=counts.rows)
        for batch in _batches(file.rows()):
            errors = _import(shop, digest, batch)
            for row, code, message in errors:
                report.add(row, code, message)
            counts.refused += len(errors)
            counts.imported += len(batch) - len(errors)
            progress.advance(bar, len(batch))
    _summarize(options, counts, time.monotonic() - began)
    return 1 if counts.refused else 0


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def _import(shop: Shop | None, digest: str, batch: Sequence[Row]) -> list[tuple[Row, str, str]]:
    """Import the rows, in one call. Returns the refused rows by line, each with the reason and the message."""
    errors = [(row, "INVALID_ROW", row.error) for row in batch if row.change is None]
    changes = [(row, row.change) for row in batch if row.change is not None]
    if shop is not None and changes:
        first, last = batch[0].line, batch[-1].line
        request = BatchChangeStockRequest(
            changes=[change for _, change in changes],
            # The batches of a file are always the same, so a repeated import repeats these ids.
            request_id=f"import-{digest[:32]}-{first}-{last}",
        )
        try:
            outcomes = _outcomes(shop, request)
        except ShopError as error:
            raise CommandFailed(
                f"lines {first} to {last}: {error}; the lines before them were imported, and these lines perhaps: "
                "run the same command again to continue"
            ) from error
        errors += [
            (row, outcome.reason, outcome.message)
            for (row, _), outcome in zip(changes, outcomes, strict=True)
            if outcome is not None
        ]
    return sorted(errors, key=lambda error: error[0].line)


def _outcomes(shop: Shop, request: BatchChangeStockRequest) -> list[ShopError | None]:
    """Return the error of each change, or None if it was made. Repeats the call while errors are transient.

    Raises the last transient error, and any other error of the call.
    """
    pause = FIRST_PAUSE_SECONDS
    for _ in range(TRIES_MAX - 1):
        try:
            return _call(shop, request)
        except _TRANSIENT:
            time.sleep(pause)
            pause *= 2
    return _call(shop, request)


def _call(shop: Shop, request: BatchChangeStockRequest) -> list[ShopError | None]:
    """Raises the first transient error of the changes: the call must be repeated to decide them."""
    response: BatchChangeStockResponse = shop.call(
        shop.inventory.BatchChangeStock, request, timeout_seconds=CALL_SECONDS
    )
    outcomes = [
        from_status(result.error, unavailable_reason="UNAVAILABLE") if result.HasField("error") else None
        for result in response.results
    ]
    for outcome in outcomes:
        if isinstance(outcome, _TRANSIENT):
            raise outcome
    return outcomes


class _Report:
    """Lists the refused rows, and writes them to the file of --rejected."""

    def __init__(self, options: argparse.Namespace, file: StockFile, stack: ExitStack) -> None:
        self._is_json = options.json
        self._write: Callable[[Iterable[str]], object] | None = None
        if options.rejected is not None:
            try:
                # Never overwrite: the rows in an existing file may be corrected already.
                opened = stack.enter_context(options.rejected.open("x", encoding="utf-8", newline=""))
            except FileExistsError:
                raise CommandFailed(f"{options.rejected} exists already; choose another name for --rejected") from None
            self._write = csv.writer(opened, lineterminator="\n").writerow
            self._write(file.header)

    def add(self, row: Row, reason: str, message: str) -> None:
        if self._is_json:
            print_json({"line": row.line, "reason": reason, "message": message})
        else:
            print(f"line {row.line}: {reason}: {printable(message)}")
        if self._write is not None:
            self._write(row.cells)


def _summarize(options: argparse.Namespace, counts: _Counts, seconds: float) -> None:
    if options.json:
        print_json(
            {
                "rows": counts.rows,
                "valid" if options.dry_run else "imported": counts.imported,
                "refused": counts.refused,
                "seconds": round(seconds, 3),
            }
        )
        return
    done = "valid, nothing was changed" if options.dry_run else "imported"
    print(f"{counts.rows:,} rows: {counts.refused:,} refused, {counts.imported:,} {done}; {seconds:.1f} s")
