"""Charges, references, labels and locations of orders, and the history of their status."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import grpc
import orjson
import pytest
from google.type.money_pb2 import Money
from sqlalchemy import delete

from order_api.api import parse
from order_api.domain import events
from order_api.domain.commands import ChangeStatus
from order_api.domain.model import (
    CHARGES_MAX,
    LABELS_MAX,
    LINES_MAX,
    Charge,
    ChargeKind,
    Order,
    OrderItem,
    Status,
    StatusChange,
    history,
)
from order_api.domain.transitions import LostStock
from order_api.operations.cancel_orders import cancel_lost
from order_api.operations.change_status import change_status
from order_api.store import orders, tables
from shop_common.api.money import UNITS_MAX
from shop_common.api.valid import TEXT_LENGTH_MAX
from shop_common.db.database import Database
from shop_common.errors import InvalidInput
from shop_common.events.outbox import PAYLOAD_BYTES_MAX
from shop_common.identity.caller import ANYONE
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.order.v1 import order_pb2 as pb
from testkit.calls import refusal
from testkit.drivers.order_api import (
    CALL_SECONDS,
    InventoryClient,
    OrderApiDriver,
    dollars,
    new_order,
    new_request,
    stored,
)

NOW = datetime(2024, 1, 1, tzinfo=UTC)
USER = replace(ANYONE, name="user:7")
SHIPPING, DISCOUNT, TAX, FEE = pb.CHARGE_KIND_SHIPPING, pb.CHARGE_KIND_DISCOUNT, pb.CHARGE_KIND_TAX, pb.CHARGE_KIND_FEE


def charge(kind: pb.ChargeKind.ValueType, amount: str, label: str = "") -> pb.Charge:
    return pb.Charge(kind=kind, label=label, amount=dollars(amount))


def with_details(*lines: tuple[int, int, str], request_id: str = "") -> pb.CreateOrderRequest:
    request = new_request(*(lines or [(1, 1, "10")]), request_id=request_id)
    request.charges.extend([charge(SHIPPING, "4.9", "parcel"), charge(DISCOUNT, "3"), charge(TAX, "0.01")])
    request.external_reference = "web-1182"
    request.labels.extend([pb.Label(name="channel", value="web"), pb.Label(name="campaign", value="été")])
    return request


def changed(change: Callable[[pb.CreateOrderRequest], object]) -> pb.CreateOrderRequest:
    request = with_details()
    change(request)
    return request


def total(*charges: pb.Charge, lines: str = "10") -> Decimal:
    request = new_request((1, 1, lines))
    request.charges.extend(charges)
    return parse.new_order(request, ANYONE, None).total_amount


def labels(count: int) -> list[pb.Label]:
    return [pb.Label(name=str(number)) for number in range(count)]


# --- parsing ---


def test_charges_add_to_the_total_and_discounts_reduce_it() -> None:
    assert total(charge(SHIPPING, "4.9"), charge(TAX, "1.000000001"), charge(FEE, "2")) == Decimal("17.900000001")
    assert total(charge(DISCOUNT, "10")) == 0
    assert total(charge(DISCOUNT, "14.9"), charge(SHIPPING, "4.9")) == 0
    assert total(*[charge(FEE, "0.1")] * 3, lines="0") == Decimal("0.3")


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (changed(lambda r: r.charges.add(kind=DISCOUNT, amount=dollars("11.910000001"))), ["charges"]),
        (changed(lambda r: r.charges.add(kind=FEE, amount=dollars(str(UNITS_MAX)))), ["charges"]),
        (changed(lambda r: r.charges.extend([charge(FEE, "1")] * (CHARGES_MAX - 2))), ["charges"]),
        (changed(lambda r: r.charges[1].ClearField("kind")), ["charges[1].kind"]),
        (changed(lambda r: setattr(r.charges[0], "label", "x" * 65)), ["charges[0].label"]),
        (changed(lambda r: r.charges[0].ClearField("amount")), ["charges[0].amount.currency_code"]),
        (changed(lambda r: setattr(r.charges[2].amount, "units", -1)), ["charges[2].amount.units"]),
        (changed(lambda r: setattr(r.charges[0].amount, "currency_code", "EUR")), ["charges[0].amount.currency_code"]),
        (changed(lambda r: setattr(r, "external_reference", "x" * 129)), ["external_reference"]),
        (changed(lambda r: setattr(r, "external_reference", "a\nb")), ["external_reference"]),
        (changed(lambda r: r.labels.extend(labels(LABELS_MAX - 1))), ["labels"]),
        (changed(lambda r: r.labels.add(value="x")), ["labels[2].name"]),
        (changed(lambda r: r.labels.add(name="é")), ["labels[2].name"]),
        (changed(lambda r: r.labels.add(name="x" * 65)), ["labels[2].name"]),
        (changed(lambda r: r.labels.add(name="channel", value="shop")), ["labels[2].name"]),
        (changed(lambda r: r.labels.add(name="gift", value="x" * 257)), ["labels[2].value"]),
        (changed(lambda r: r.labels.add(name="gift", value="\u202e")), ["labels[2].value"]),
        (changed(lambda r: setattr(r.items[0], "location", "north hall")), ["items[0].location"]),
        (changed(lambda r: setattr(r.items[0], "location", "x" * 65)), ["items[0].location"]),
    ],
)
def test_every_bad_field_is_named(request_: pb.CreateOrderRequest, fields: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse.new_order(request_, ANYONE, None)

    assert [violation.field for violation in caught.value.violations] == fields


@pytest.mark.parametrize(
    "request_",
    [
        changed(lambda r: r.charges.add(kind=DISCOUNT, amount=dollars("11.91"))),
        changed(lambda r: r.charges.extend([charge(FEE, "0")] * (CHARGES_MAX - 3))),
        changed(lambda r: r.charges.add(kind=FEE, amount=Money(currency_code="USD", units=UNITS_MAX - 12))),
        changed(lambda r: setattr(r.charges[0], "label", "é" * 64)),
        changed(lambda r: setattr(r, "external_reference", "é" * 128)),
        changed(lambda r: r.labels.extend(labels(LABELS_MAX - 2))),
        changed(lambda r: r.labels.add(name="~ " * 32, value="é" * 256)),
        changed(lambda r: setattr(r.items[0], "location", "Aa0_-" + "x" * 59)),
    ],
)
def test_values_just_within_the_bounds_are_accepted(request_: pb.CreateOrderRequest) -> None:
    assert parse.new_order(request_, ANYONE, None).total_amount >= 0


def test_labels_are_sorted_so_that_equal_requests_are_equal() -> None:
    one, other = new_request((1, 1, "1"), request_id="r"), new_request((1, 1, "1"), request_id="r")
    one.labels.extend(labels(8))
    other.labels.extend(reversed(labels(8)))

    assert parse.new_order(one, ANYONE, None) == parse.new_order(other, ANYONE, None)


def test_fields_that_are_not_set_do_not_change_the_fingerprint() -> None:
    """An earlier release stored this fingerprint. A repeat of its call must still match."""
    claim = parse.new_order(new_request((1, 1, "1.5"), ttl_seconds=60, request_id="r"), ANYONE, None).claim()

    assert claim is not None
    assert claim.fingerprint == "da85f525cb6106c90d296925bc6e0850"


# --- orders ---


def test_an_order_and_its_event_have_the_details(driver: OrderApiDriver, stock: InventoryClient) -> None:
    request = with_details((stock.product(units=3), 1, "10"))

    order = driver.create_order(request)

    assert (list(order.charges), order.external_reference) == (list(request.charges), request.external_reference)
    assert [(label.name, label.value) for label in order.labels] == [("campaign", "été"), ("channel", "web")]
    assert order.total_amount == dollars("11.91")
    assert driver.order(order.id) == order
    assert driver.list_orders() == [order]
    cancelled = driver.change_status(order.id, pb.ORDER_STATUS_CANCELLED)
    assert (cancelled.charges, cancelled.labels) == (order.charges, order.labels)
    for event in driver.events():
        data = event["data"]
        assert (data["total_amount"], data["external_reference"]) == (11.91, "web-1182")
        assert data["labels"] == {"channel": "web", "campaign": "été"}
        assert data["charges"] == [
            {"kind": "SHIPPING", "label": "parcel", "amount": 4.9},
            {"kind": "DISCOUNT", "label": "", "amount": 3},
            {"kind": "TAX", "label": "", "amount": 0.01},
        ]


def test_the_stock_of_a_line_comes_from_its_location(driver: OrderApiDriver, stock: InventoryClient) -> None:
    product = stock.product(units=5)
    stock.stub.CreateInventoryItem(
        inventory_pb2.CreateInventoryItemRequest(product_id=product, quantity=2, location="NORTH"),
        timeout=CALL_SECONDS,
    )
    request = new_request((product, 2, "1"))
    request.items[0].location = "NORTH"

    order = driver.create_order(request)
    refused = refusal(lambda: driver.create_order(request))

    assert [item.location for item in order.items] == ["NORTH"]
    assert driver.order(order.id) == order
    assert [part.location for part in stock.reservations(order.id)[0].allocations] == ["NORTH"]
    assert driver.events()[0]["data"]["items"][0]["location"] == "NORTH"
    assert (refused.reason, refused.metadata["location"]) == ("INSUFFICIENT_STOCK", "NORTH")


def test_a_request_id_with_other_details_is_refused(driver: OrderApiDriver, stock: InventoryClient) -> None:
    line = (stock.product(units=30), 2, "15")
    request = with_details(line, request_id="r")
    order = driver.create_order(request)
    others = [new_request(line, request_id="r"), *(with_details(line, request_id="r") for _ in range(4))]
    others[1].charges[0].label = "letter"
    others[2].external_reference = "web-1183"
    others[3].labels[0].value = "shop"
    others[4].items[0].location = "WAREHOUSE_A"

    for purged in (False, True):
        if purged:  # then the request is compared with the stored order
            driver.database.transact(lambda tx: tx.execute(delete(tables.idempotency_keys.table)))
        assert driver.create_order(request) == order
        for other in others:
            refused = refusal(lambda other=other: driver.create_order(other))  # type: ignore[misc]  # of lambdas
            assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


def test_the_largest_event_of_every_status_fits() -> None:
    quotes = '"' * TEXT_LENGTH_MAX
    item = OrderItem(2**63 - 1, 2**63 - 1, 10**9, Decimal(10**15) - Decimal("0.000000001"), "W" * 64)
    order = Order(
        "t" * 64, new_order().id, 2**63 - 1, Decimal(10**15) - Decimal("0.000000001"), "EUR", Status.PENDING, quotes,
        NOW, 2**63 - 1, NOW, NOW, (item,) * LINES_MAX,
        external_reference=quotes[: parse.REFERENCE_LENGTH_MAX],
        charges=(Charge(ChargeKind.DISCOUNT, quotes[:64], Decimal(10**15) - Decimal("0.000000001")),) * CHARGES_MAX,
        labels=tuple((f'{number}{quotes[:62]}', quotes[:256]) for number in range(10, 10 + LABELS_MAX)),
    )  # fmt: skip

    for status in Status:
        message = events.status_changed(replace(order, status=status), None, None)
        assert len(orjson.dumps(message.data)) < PAYLOAD_BYTES_MAX / 5


# --- history ---


def test_the_history_has_each_status_with_its_time_reason_and_actor(database: Database) -> None:
    (order,) = stored(database, new_order(caller=USER))

    def change(status: Status, reason: str) -> Order:
        command = ChangeStatus(order.id, status, reason, caller=replace(ANYONE, name="key:1"))
        (outcome,) = database.transact(lambda tx: change_status(tx, [command]))
        assert isinstance(outcome, Order)
        return outcome

    confirmed, again = change(Status.CONFIRMED, "paid"), change(Status.CONFIRMED, "paid twice")
    cancelled = database.transact(lambda tx: cancel_lost(tx, [LostStock(order.key, released=True)]))

    ((found, changes),) = histories(database, order)
    assert (again, cancelled) == (confirmed, False)
    assert found.status is Status.CANCELLED
    assert changes == (
        StatusChange(1, Status.PENDING, order.created_at, "", "user:7"),
        StatusChange(2, Status.CONFIRMED, confirmed.updated_at, "paid", "key:1"),
        StatusChange(3, Status.CANCELLED, found.updated_at, "its stock was released", ""),
    )


def histories(database: Database, *found: Order) -> list[tuple[Order, tuple[StatusChange, ...]]]:
    outcomes = database.query(lambda tx: orders.get_with_history(tx, [order.key for order in found]))
    return [outcome for outcome in outcomes if isinstance(outcome, tuple)]


def test_two_changes_in_one_transaction_are_both_in_the_history(database: Database) -> None:
    (order,) = stored(database, new_order())
    commands = [ChangeStatus(order.id, status) for status in (Status.CONFIRMED, Status.PROCESSING)]

    database.transact(lambda tx: change_status(tx, commands))

    ((_, changes),) = histories(database, order)
    assert [(each.version, each.status) for each in changes] == [(1, "PENDING"), (2, "CONFIRMED"), (3, "PROCESSING")]


def test_only_get_order_returns_the_history(driver: OrderApiDriver) -> None:
    (order,) = stored(driver.database, new_order(caller=USER))

    change = pb.UpdateOrderStatusRequest(id=order.id, status=pb.ORDER_STATUS_CANCELLED, reason="too late")
    updated = driver.stub.UpdateOrderStatus(change, timeout=CALL_SECONDS)
    read = driver.stub.GetOrder(pb.GetOrderRequest(id=order.id), timeout=CALL_SECONDS)

    assert list(updated.history) == []
    assert [(each.status, each.reason, each.actor) for each in read.history] == [
        (pb.ORDER_STATUS_PENDING, "", "user:7"),
        (pb.ORDER_STATUS_CANCELLED, "too late", ""),
    ]
    assert read.history[-1].time == read.order.updated_at


def test_the_latest_change_of_an_earlier_release_is_known_from_the_order() -> None:
    order = Order("default", "o", 1, Decimal(1), "EUR", Status.SHIPPED, "", NOW, 4, NOW, NOW, ())
    shipped = StatusChange(4, Status.SHIPPED, NOW, "", "")

    assert history(order, []).changes == (StatusChange(1, Status.PENDING, NOW, "", ""), shipped)
    assert history(replace(order, version=1, status=Status.PENDING), []).changes[1:] == ()
    assert history(order, [replace(shipped, actor="key:1")]).changes[1:] == (replace(shipped, actor="key:1"),)
