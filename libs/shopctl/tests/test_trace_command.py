import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from google.type.money_pb2 import Money

from devstack.dev.options import port_option
from devstack.ports import free_ports
from devstack.process import Process
from devstack.stack import Ports
from shop_common.errors import Refused
from shop_protos.inventory.v1.inventory_pb2 import CreateInventoryItemRequest
from shop_protos.order.v1.order_pb2 import (
    ORDER_STATUS_CANCELLED,
    ORDER_STATUS_SHIPPED,
    CreateOrderItem,
    CreateOrderRequest,
    GetOrderRequest,
    ListOrdersRequest,
    UpdateOrderStatusRequest,
)
from shopctl.__main__ import main
from shopctl.client import Shop
from shopctl.system import runfile
from testkit.eventually import eventually

HEALTHY_SECONDS = 180
EFFECT_SECONDS = 90
BUYERS = 24

Start = Callable[..., Process]
Spans = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dev")


@pytest.fixture(scope="module")
def start(folder: Path) -> Iterator[Start]:
    """Starts `dev`, on the same ports each time; kills what is still running after the tests."""
    options = [port_option(field.name) for field in fields(Ports) if not field.name.endswith("_metrics")]
    options.append("--kafka-port")
    ports = [f"{option}={port}" for option, port in zip(options, free_ports(len(options)), strict=True)]
    with ExitStack() as afterwards:

        def start(**environment: str) -> Process:
            command = [sys.executable, "-m", "devstack.dev", "--no-metrics", "--no-console", *ports]
            dev = Process("dev", command, environment, folder=folder).start()
            afterwards.callback(dev.kill)
            dev.wait_for_line("next: ", HEALTHY_SECONDS)
            return dev

        yield start


@pytest.fixture(scope="module")
def dev(start: Start) -> Process:
    return start()


@pytest.fixture
def shop(dev: Process, folder: Path) -> Iterator[Shop]:
    with Shop.connect(*runfile.read(folder / runfile.PATH).apis) as shop:
        yield shop


class Shell:
    """Runs commands in the folder of `dev`, or in another one."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def text(self, *words: str) -> str:
        assert main(words) == 0, self._capsys.readouterr().err
        return self._capsys.readouterr().out

    def refusal(self, *words: str) -> str:
        assert main(words) == 1
        output = self._capsys.readouterr()
        assert output.out == ""
        (line,) = output.err.splitlines()
        return line

    def spans(self, *words: str) -> Spans:
        document = json.loads(self.text("trace", *words, "--json"))
        return [span for trace in document["traces"] for span in trace["spans"]]


@pytest.fixture
def shell(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(folder)
    return Shell(capsys)


def test_an_order_is_traced_from_the_call_to_the_effects_of_its_events(shell: Shell, shop: Shop) -> None:
    order_id = _place_order(shop, product_id=1)
    shop.call(shop.orders.UpdateOrderStatus, UpdateOrderStatusRequest(id=order_id, status=ORDER_STATUS_CANCELLED))

    spans = _eventually(
        lambda: shell.spans(order_id),
        lambda spans: any(span["kind"] == "CONSUMER" and span["process"] == "inventory-api" for span in spans),
    )

    roots = [span["name"].rpartition("/")[2] for span in spans if not (span["parent_id"] or span["linked_from"])]
    assert roots == ["CreateOrder", "UpdateOrderStatus"]
    assert {span["process"] for span in spans} == {"order-api", "inventory-api", "event-relay"}
    assert _unconnected(spans) == []


def test_every_one_of_many_buyers_finds_the_sql_that_was_run_for_all(shell: Shell, shop: Shop) -> None:
    _add_stock(shop, product_id=2, units=BUYERS)
    with ThreadPoolExecutor(BUYERS) as buyers:
        orders = list(buyers.map(lambda _: _buy(shop, product_id=2), range(BUYERS)))

    for order_id in orders:
        spans = shell.spans(order_id)
        statements = [str(span["attributes"].get("db.query.text", "")) for span in spans]
        assert any(statement.startswith("INSERT INTO orders ") for statement in statements)
        assert any(statement.startswith("INSERT INTO stock_reservations ") for statement in statements)
        assert _orders_of_calls(spans) == {order_id}


def test_a_refused_call_shows_the_reason(shell: Shell, shop: Shop) -> None:
    order_id = _place_order(shop, product_id=3)
    with pytest.raises(Refused):
        shop.call(shop.orders.UpdateOrderStatus, UpdateOrderStatusRequest(id=order_id, status=ORDER_STATUS_SHIPPED))

    shown = shell.text("trace", order_id)

    assert "OrderService/CreateOrder" in shown
    assert "✗ ILLEGAL_TRANSITION" in shown


def test_a_trace_is_shown_by_its_own_id(shell: Shell, shop: Shop) -> None:
    order_id = _place_order(shop, product_id=4)
    shop.call(shop.orders.GetOrder, GetOrderRequest(id=order_id))

    (read,) = _eventually(
        lambda: [span for span in shell.spans(order_id, "--reads") if span["name"].endswith("/GetOrder")], bool
    )

    assert read["attributes"]["shop.order_id"] == order_id
    assert f"trace {read['trace_id']}" in shell.text("trace", read["trace_id"])
    assert "are left out: 1 (" in shell.text("trace", order_id)
    assert "OrderService/GetOrder" in shell.text("trace", order_id, "--reads")


def test_the_last_is_the_newest_order_whatever_was_called_since(shell: Shell, shop: Shop) -> None:
    first, newest = _place_order(shop, product_id=7), _place_order(shop, product_id=8)
    shop.call(shop.orders.GetOrder, GetOrderRequest(id=first))
    list(shop.call(shop.orders.ListOrders, ListOrdersRequest()).orders)
    _eventually(lambda: shell.spans(first, "--reads"), lambda spans: any("GetOrder" in span["name"] for span in spans))

    assert _orders_of_calls(shell.spans("--last")) == {newest}
    assert "OrderService/CreateOrder" in shell.text("trace", "--last")


def test_sql_is_shown_whole_when_asked_for(shell: Shell, shop: Shop) -> None:
    order_id = _place_order(shop, product_id=5)

    assert "INSERT INTO orders …" in shell.text("trace", order_id)
    assert "INSERT INTO orders (tenant, id, user_id, total_amount" in shell.text("trace", order_id, "--sql")


def test_the_error_for_an_unknown_order_is_one_sentence(
    shell: Shell, dev: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shopctl.tracing.trace.WAIT_SECONDS", 0)

    assert shell.refusal("trace", "nobody").startswith("trace: no trace of nobody: it is unknown")


def test_the_error_says_that_dev_is_not_running(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    for words in (["trace", "some-order"], ["trace", "--last"]):
        assert "is not running here" in shell.refusal(*words)


def test_traces_outlive_dev_and_the_error_names_another_endpoint(
    shell: Shell, shop: Shop, dev: Process, start: Start
) -> None:
    order_id = _place_order(shop, product_id=6)
    # It exports its last spans while it ends.
    assert dev.stop(HEALTHY_SECONDS) == 0, dev.tail()
    assert "CreateOrder" in shell.text("trace", order_id)

    elsewhere = start(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")

    assert "CreateOrder" in shell.text("trace", order_id)
    assert "look there" in (output := shell.refusal("trace", "later"))
    assert "http://127.0.0.1:9" in output
    elsewhere.stop(HEALTHY_SECONDS)


def _place_order(shop: Shop, *, product_id: int) -> str:
    _add_stock(shop, product_id=product_id, units=1)
    return _buy(shop, product_id=product_id)


def _add_stock(shop: Shop, *, product_id: int, units: int) -> None:
    item = CreateInventoryItemRequest(product_id=product_id, quantity=units, location="A")
    shop.call(shop.inventory.CreateInventoryItem, item)


def _buy(shop: Shop, *, product_id: int) -> str:
    line = CreateOrderItem(product_id=product_id, quantity=1, price=Money(currency_code="EUR", units=1))
    return shop.call(shop.orders.CreateOrder, CreateOrderRequest(user_id=1, items=[line])).order.id


def _orders_of_calls(spans: Spans) -> set[str]:
    """Return the orders of the shown calls to order-api."""
    return {span["attributes"]["shop.order_id"] for span in spans if span["name"].endswith("/CreateOrder")}


def _unconnected(spans: Spans) -> Spans:
    """Return the spans that are not connected to another shown span."""
    shown = {span["span_id"] for span in spans}
    above = [(span["linked_from"] or span["parent_id"], span) for span in spans]
    return [span for upper, span in above if upper is not None and upper not in shown]


def _eventually(look: Callable[[], Spans], is_right: Callable[[Spans], bool]) -> Spans:
    seen: Spans = []

    def is_there() -> bool:
        seen[:] = look()
        return is_right(seen)

    eventually(is_there, EFFECT_SECONDS, lambda: str(seen))
    return seen
