"""The commands of warehouses, on inventory-api with each kind of database."""

import csv
import itertools
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from devstack.kafka import Kafka
from devstack.stack import READY_SECONDS, Databases, Options, Stack
from shop_protos.inventory.v1.inventory_pb2 import ListInventoryItemsRequest, ReserveStockRequest
from shopctl.client import Shop
from testkit.apis import WITHOUT_EVENTS
from testkit.eventually import eventually
from testkit.tasks import main

_ids = itertools.count(random.SystemRandom().randrange(2**40) * 1000 + 1)

NOBODY = "localhost:1"


@pytest.fixture(scope="module")
def stack(
    database_kind: str, request: pytest.FixtureRequest, embedded_broker: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """inventory-api without the other processes."""
    databases = (
        Databases.in_folder(tmp_path_factory.mktemp("stock"))
        if database_kind == "sqlite"
        else Databases.on_server(request.getfixturevalue("postgres_server"))
    )
    stack = Stack(databases, embedded_broker, options=Options(environment=WITHOUT_EVENTS))
    try:
        stack.migrate()
        stack.inventory_api.start()
        stack.inventory_api.wait_ready(READY_SECONDS)
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def shop(stack: Stack) -> Iterator[Shop]:
    with Shop.connect(stack.inventory_address, NOBODY) as opened:
        yield opened


class Shell:
    """Runs commands for the running inventory-api."""

    def __init__(self, stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
        self.addresses = ["--inventory", stack.inventory_address, "--orders", NOBODY]
        self._capsys = capsys

    def lines(self, *words: object, code: int = 0) -> list[Any]:
        ended = main([*map(str, words), "--json", *self.addresses])
        output = self._capsys.readouterr()
        assert ended == code, output.err
        return [json.loads(line) for line in output.out.splitlines()]

    def text(self, *words: object, code: int = 0) -> str:
        ended = main([*map(str, words), *self.addresses])
        output = self._capsys.readouterr()
        assert ended == code, output.err
        return output.out

    def error(self, *words: object) -> str:
        assert main([*map(str, words), *self.addresses]) == 1
        return self._capsys.readouterr().err


@pytest.fixture
def shell(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(stack, capsys)


@pytest.fixture
def product() -> int:
    """The first of 1,000 ids of products that no other test uses."""
    return next(_ids) * 1000


def write(path: Path, header: str, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def quantities(shop: Shop, product: int) -> dict[str, int]:
    found = shop.call(shop.inventory.ListInventoryItems, ListInventoryItemsRequest(product_id=product))
    return {item.location: item.quantity for item in found.items}


def test_a_file_with_errors_in_the_middle_is_imported_once(
    shell: Shell, shop: Shop, product: int, tmp_path: Path
) -> None:
    units: list[list[object]] = [[product, "A", 1, "", "DN-1"] for _ in range(1_500)]
    units[700] = [product, "A", "many", "", "DN-1"]
    units[701] = [product, "A", "", -5_000, "DN-1"]
    units[1_200] = [product, "no such place", 1, "", "DN-1"]
    file = write(tmp_path / "delivery.csv", "product_id,location,received,adjusted,reference", units)
    rejected = tmp_path / "rejected.csv"

    *errors, summary = shell.lines("import", "stock", file, "--rejected", rejected, code=1)

    assert [(error["line"], error["reason"]) for error in errors] == [
        (702, "INVALID_ROW"),
        (703, "BELOW_RESERVED"),
        (1202, "INVALID_FIELD"),
    ]
    assert (summary["rows"], summary["imported"], summary["refused"]) == (1_500, 1_497, 3)
    assert quantities(shop, product) == {"A": 1_497}
    assert rejected.read_text().splitlines() == [
        "product_id,location,received,adjusted,reference",
        f"{product},A,many,,DN-1",
        f"{product},A,,-5000,DN-1",
        f"{product},no such place,1,,DN-1",
    ]

    again = shell.text("import", "stock", file, code=1)

    assert "line 702: INVALID_ROW: received must be a whole number" in again
    assert "1,500 rows: 3 refused, 1,497 imported" in again
    assert quantities(shop, product) == {"A": 1_497}
    assert "exists already" in shell.error("import", "stock", file, "--rejected", rejected)
    write(rejected, "product_id,location,received", [[product, "A", 3]])
    assert shell.lines("import", "stock", rejected)[-1]["imported"] == 1
    assert quantities(shop, product) == {"A": 1_500}


def test_an_import_that_was_killed_continues(shell: Shell, shop: Shop, product: int, tmp_path: Path) -> None:
    file = write(tmp_path / "delivery.csv", "product_id,location,received", [[product, "A", 1]] * 4_000)
    command = [sys.executable, "-m", "shopctl", "import", "stock", str(file), *shell.addresses]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: quantities(shop, product), within_seconds=120)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()

    (summary,) = shell.lines("import", "stock", file)

    assert (summary["imported"], summary["refused"]) == (4_000, 0)
    assert quantities(shop, product) == {"A": 4_000}


def test_a_dry_run_checks_the_file_without_a_call(shop: Shop, shell: Shell, product: int, tmp_path: Path) -> None:
    file = write(tmp_path / "count.csv", "product_id,location,counted", [[product, "A", 1], [product, "A", "x"]])

    error, summary = shell.lines("import", "stock", file, "--dry-run", code=1)

    assert error["line"] == 3
    assert (summary["valid"], summary["refused"]) == (1, 1)
    assert not quantities(shop, product)
    assert "1 valid, nothing was changed" in shell.text("import", "stock", file, "--dry-run", code=1)


def test_an_export_is_a_count_sheet(shell: Shell, shop: Shop, product: int, tmp_path: Path) -> None:
    for location in ("A", "B"):
        shell.lines("count", product, location, 10)
    sheet, counted = tmp_path / "stock.csv", tmp_path / "counted.csv"
    shell.text("export", "stock", "--product-id", product, "--output", sheet)
    with sheet.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert [row[1:4] for row in rows] == [[str(product), location, "10"] for location in ("A", "B")]
    shell.lines("adjust", product, "B", -1)  # after the export, so the count of this item is outdated

    write(counted, ",".join([*header, "counted"]), [[*row, 12] for row in rows])
    refused, summary = shell.lines("import", "stock", counted, code=1)

    assert (refused["line"], refused["reason"], summary["imported"]) == (3, "VERSION_MISMATCH", 1)
    assert quantities(shop, product) == {"A": 12, "B": 9}


def test_movements_are_exported_as_they_are_in_json_and_without_formulas_in_csv(shell: Shell, product: int) -> None:
    shell.lines("count", product, "A", 10, "--reason", "=1+1", "--reference", "count-7")
    shell.lines("move", product, "A", "B", 4)

    movements = shell.lines("export", "movements", "--product-id", product)
    rows = list(csv.DictReader(shell.text("export", "movements", "--product-id", product).splitlines()))

    assert [(each["kind"], each["quantity"], each["reason"]) for each in movements[-1:]] == [("COUNTED", 10, "=1+1")]
    assert sorted((each["kind"], each["location"], each["quantity"]) for each in movements[:-1]) == [
        ("MOVED", "A", -4),
        ("MOVED", "B", 4),
    ]
    assert [(row["quantity"], row["reason"], row["reference"]) for row in rows[-1:]] == [("10", "'=1+1", "count-7")]
    assert [
        each["quantity"] for each in shell.lines("export", "movements", "--kind", "COUNTED", "--product-id", product)
    ]
    assert not shell.lines("export", "movements", "--before", "1h", "--product-id", product)


def test_the_stock_of_an_earlier_time_is_exported(shell: Shell, product: int) -> None:
    (counted,) = shell.lines("count", product, "A", 10)
    shell.lines("adjust", product, "A", 5)

    (row,) = shell.lines("export", "stock", "--product-id", product, "--as-of", counted["updated_at"])

    assert (row["location"], row["quantity"]) == ("A", 10)
    assert "available_quantity" not in row
    assert not shell.lines("export", "stock", "--product-id", product, "--as-of", "1h")


def test_single_items_are_adjusted_counted_and_moved(shell: Shell, shop: Shop, product: int) -> None:
    (counted,) = shell.lines("count", product, "A", 10)
    (adjusted,) = shell.lines("adjust", product, "A", -3, "--reason", "damaged", "--version", counted["version"])
    source, moved = shell.lines("move", product, "A", "B", 2)

    assert [item["quantity"] for item in (counted, adjusted, source, moved)] == [10, 7, 5, 2]
    assert str(product) in shell.text("adjust", product, "A", 1, "--request-id", f"again-{product}")
    assert str(product) in shell.text("adjust", product, "A", 1, "--request-id", f"again-{product}")
    assert quantities(shop, product) == {"A": 6, "B": 2}
    shop.call(
        shop.inventory.ReserveStock,
        ReserveStockRequest(product_id=product, location="A", quantity=6, order_id=f"order-{product}"),
    )
    assert "available" in shell.error("move", product, "A", "B", 1)
    assert "reserved" in shell.error("count", product, "A", 5)
    assert "version" in shell.error("count", product, "A", 50, "--version", counted["version"])
    assert quantities(shop, product) == {"A": 6, "B": 2}


@pytest.mark.parametrize(("command", "units"), [("count", 4), ("adjust", -6)])
def test_reservations_are_released_only_on_request(
    shell: Shell, shop: Shop, product: int, command: str, units: int
) -> None:
    shell.lines("count", product, "A", 10)
    for number in (1, 2):
        request = ReserveStockRequest(product_id=product, quantity=4, order_id=f"order-{number}")
        shop.call(shop.inventory.ReserveStock, request)

    assert "reserved" in shell.error(command, product, "A", units)
    (item,) = shell.lines(command, product, "A", units, "--release-shortfall", "--reason", "lost")

    assert (item["quantity"], item["available_quantity"]) == (4, 0)


def test_units_are_withheld_and_given_back(shell: Shell, product: int) -> None:
    shell.lines("count", product, "A", 10)
    (withheld,) = shell.lines("withhold", product, "A", 3, "--reason", "DAMAGED")
    (given_back,) = shell.lines("give-back", product, "A", 1, "--reason", "DAMAGED")

    shown = [
        (item["quantity"], item["withheld_quantity"], item["available_quantity"]) for item in (withheld, given_back)
    ]
    assert shown == [(10, 3, 7), (10, 2, 8)]
    assert "withheld" in shell.error("give-back", product, "A", 3, "--reason", "DAMAGED")
    movements = shell.lines("export", "movements", "--product-id", product)
    assert [(each["kind"], each["withheld"], each["withheld_after"], each["reason"]) for each in movements[:2]] == [
        ("WITHHELD", -1, 2, "DAMAGED"),
        ("WITHHELD", 3, 3, "DAMAGED"),
    ]


def test_an_unknown_outcome_names_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adjust", "1", "A", "-3", "--inventory", NOBODY, "--request-id", "mine"]) == 1

    assert "the outcome is unknown: repeat the command with --request-id mine" in capsys.readouterr().err
