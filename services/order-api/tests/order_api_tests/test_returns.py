"""Units of orders that come back after their shipment."""

from dataclasses import replace

import orjson
import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from order_api.api import parse
from order_api.domain import events as order_events
from order_api.domain import units
from order_api.domain.commands import ChangeStatus, ReturnItems, ShipItems
from order_api.domain.errors import OrderItemNotFound, OrderNotFound, ReturnsLimit, UnitsNotReturnable
from order_api.domain.model import (
    LINES_MAX,
    RETURN_ITEMS_MAX,
    Order,
    OrderItem,
    Return,
    ReturnedUnits,
    Status,
    Treatment,
)
from order_api.operations.change_status import change_status
from order_api.operations.change_units import return_items, ship_items
from order_api.store import tables
from order_api_tests.test_change_units import NOW, PRICE, after, load, order, processing
from shop_common.api.valid import TEXT_LENGTH_MAX
from shop_common.db.database import Database
from shop_common.db.idempotency import RequestIdReused
from shop_common.errors import InvalidInput, ShopError
from shop_common.events.outbox import PAYLOAD_BYTES_MAX
from shop_common.identity.caller import ANYONE
from shop_protos.order.v1 import order_pb2 as pb
from testkit.drivers.order_api import at_once, events

RESTOCKED, DISCARDED = (Treatment.RESTOCK, "BERLIN", ""), (Treatment.DISCARD, "", "")
WITHHELD = (Treatment.WITHHOLD, "BERLIN", "DAMAGED")


def returned(item_id: int, quantity: int, treatment: tuple[Treatment, str, str] = RESTOCKED) -> ReturnedUnits:
    return ReturnedUnits(item_id, quantity, *treatment)


def take_back(before: Order, *items: ReturnedUnits) -> units.UnitsChange | ShopError:
    return units.take_back(before, ReturnItems("o", items))


# --- decisions ---


def test_shipped_units_come_back_with_any_treatment_and_still_count_as_shipped() -> None:
    before = order(shipped=4)

    back = after(take_back(before, returned(1, 1), returned(1, 2, DISCARDED)))

    assert [item.returned for item in back.items] == [3, 0]
    assert back.status is before.status
    assert units.targets(back) == units.targets(before)


@pytest.mark.parametrize("status", [Status.SHIPPED, Status.DELIVERED])
def test_all_kept_units_of_an_order_that_was_shipped_as_a_whole_can_come_back(status: Status) -> None:
    back = after(take_back(order(status, cancelled=1), returned(1, 4), returned(2, 3)))

    assert [item.returned for item in back.items] == [4, 3]
    assert back.status is status


def test_only_shipped_units_that_have_not_come_back_can_come_back() -> None:
    before = after(take_back(order(shipped=4), returned(1, 3)))

    # Both treatments count together.
    refused = take_back(before, returned(1, 1), returned(1, 1, DISCARDED))

    assert isinstance(refused, UnitsNotReturnable)
    assert refused.metadata() == {"id": "o", "item_id": "1", "requested": "2", "returnable": "1"}
    assert isinstance(take_back(before, returned(9, 1)), OrderItemNotFound)
    for status in (Status.PENDING, Status.CONFIRMED, Status.PROCESSING, Status.CANCELLED):
        assert isinstance(take_back(order(status), returned(1, 1)), UnitsNotReturnable)


def test_the_returns_of_an_order_have_a_limited_number_of_items() -> None:
    earlier = Return("r", "", (returned(1, 1),) * (RETURN_ITEMS_MAX - 1), NOW)
    before = replace(order(Status.SHIPPED), returns=(earlier,))

    assert isinstance(take_back(before, returned(1, 1)), units.UnitsChange)
    refused = take_back(before, returned(1, 1), returned(2, 1))
    assert isinstance(refused, ReturnsLimit)
    assert refused.metadata() == {"id": "o", "limit": str(RETURN_ITEMS_MAX)}


def test_the_returned_units_of_a_product_are_summed_by_treatment_location_and_reason() -> None:
    paris, stained = (Treatment.RESTOCK, "PARIS", ""), (Treatment.WITHHOLD, "BERLIN", "STAINED")
    parts = (
        returned(1, 1),
        returned(2, 2),
        returned(1, 1, DISCARDED),
        returned(2, 1, paris),
        returned(1, 1, WITHHELD),
        returned(2, 2, WITHHELD),
        returned(1, 1, stained),
    )
    before = replace(order(Status.SHIPPED), returns=(Return("r", "", parts, NOW), Return("s", "", parts[:1], NOW)))

    assert units.returned(before) == {7: {RESTOCKED: 4, DISCARDED: 1, paris: 1, WITHHELD: 3, stained: 1}}


# --- requests ---


def request(*items: pb.ReturnedUnits) -> pb.CreateReturnRequest:
    return pb.CreateReturnRequest(id="01930d4a-5f1c-7b22-8a40-5e9d8c3b1f10", items=items)


def withheld_units(*, location: str = "", withholding_reason: str = "") -> pb.ReturnedUnits:
    return pb.ReturnedUnits(
        item_id=1,
        quantity=1,
        treatment=pb.RETURN_TREATMENT_WITHHOLD,
        location=location,
        withholding_reason=withholding_reason,
    )


def test_a_request_becomes_a_command() -> None:
    restock, discard, withhold = (
        pb.RETURN_TREATMENT_RESTOCK, pb.RETURN_TREATMENT_DISCARD, pb.RETURN_TREATMENT_WITHHOLD,
    )  # fmt: skip
    command = parse.return_items(
        request(
            pb.ReturnedUnits(item_id=1, quantity=2, treatment=restock, location="BERLIN"),
            pb.ReturnedUnits(item_id=1, quantity=1, treatment=discard),
            pb.ReturnedUnits(
                item_id=1, quantity=3, treatment=withhold, location="BERLIN", withholding_reason="DAMAGED"
            ),
        ),
        ANYONE,
        None,
    )

    assert command.units == (returned(1, 2), returned(1, 1, DISCARDED), returned(1, 3, WITHHELD))


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (pb.ReturnedUnits(item_id=1, quantity=1), "treatment"),
        (pb.ReturnedUnits(item_id=1, quantity=1, treatment=pb.RETURN_TREATMENT_RESTOCK), "location"),
        (pb.ReturnedUnits(item_id=1, quantity=1, treatment=pb.RETURN_TREATMENT_DISCARD, location="A"), "location"),
        (withheld_units(withholding_reason="DAMAGED"), "location"),
        (withheld_units(location="A"), "withholding_reason"),
        (withheld_units(location="A", withholding_reason="two words"), "withholding_reason"),
        (withheld_units(location="A", withholding_reason="UPGRADE"), "withholding_reason"),
        (
            pb.ReturnedUnits(
                item_id=1,
                quantity=1,
                treatment=pb.RETURN_TREATMENT_RESTOCK,
                location="A",
                withholding_reason="DAMAGED",
            ),
            "withholding_reason",
        ),
        (pb.ReturnedUnits(item_id=1, quantity=0, treatment=pb.RETURN_TREATMENT_DISCARD), "quantity"),
        (pb.ReturnedUnits(item_id=0, quantity=1, treatment=pb.RETURN_TREATMENT_DISCARD), "item_id"),
    ],
)
def test_an_invalid_field_is_named(item: pb.ReturnedUnits, field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse.return_items(request(item), ANYONE, None)

    assert [violation.field for violation in refusal.value.violations] == [f"items[0].{field}"]


def test_a_line_occurs_once_for_each_reason_of_a_withholding() -> None:
    damaged, stained = (withheld_units(location="A", withholding_reason=reason) for reason in ("DAMAGED", "STAINED"))

    assert len(parse.return_items(request(damaged, stained), ANYONE, None).units) == 2
    with pytest.raises(InvalidInput) as refusal:
        parse.return_items(request(damaged, stained, damaged), ANYONE, None)

    assert [violation.field for violation in refusal.value.violations] == ["items[2].item_id"]


def test_a_line_occurs_only_once_with_the_same_treatment_and_location() -> None:
    item = pb.ReturnedUnits(item_id=1, quantity=1, treatment=pb.RETURN_TREATMENT_DISCARD)

    with pytest.raises(InvalidInput) as refusal:
        parse.return_items(request(item, item), ANYONE, None)

    assert [violation.field for violation in refusal.value.violations] == ["items[1].item_id"]


# --- on both databases ---


def shipped(database: Database) -> Order:
    """A PROCESSING order of which 2 of the 5 units of product 7 have been shipped."""
    before = processing(database)
    command = ShipItems(before.id, ((before.items[0].id, 2),))
    (outcome,) = database.transact(lambda tx: ship_items(tx, [command]))
    assert isinstance(outcome, Order)
    return outcome


def take_back_from(database: Database, *commands: ReturnItems) -> list[Order | ShopError]:
    return database.transact(lambda tx: return_items(tx, commands))


def test_returns_are_stored_with_their_order_and_reported(database: Database) -> None:
    before = shipped(database)
    line = before.items[0].id
    first = ReturnItems(before.id, (returned(line, 1),), "too small")
    second = ReturnItems(before.id, (returned(line, 1, DISCARDED),))

    _, back = take_back_from(database, first, second)

    assert isinstance(back, Order)
    assert (back.status, back.version, back.items[0].returned) == (Status.PROCESSING, before.version + 2, 2)
    assert load(database, before) == back
    assert [(each.reason, each.units) for each in back.returns] == [("too small", first.units), ("", second.units)]
    event, last = events(database, before.id)[-2:]
    assert (event["event_type"], last["event_type"]) == ("ORDER_RETURNED", "ORDER_RETURNED")
    restocked = {"treatment": "RESTOCK", "quantity": 1, "location": "BERLIN"}
    discarded = {"treatment": "DISCARD", "quantity": 1}
    assert event["data"]["return"] == {
        "id": back.returns[0].id,
        "reason": "too small",
        "items": [{"product_id": 7, **restocked}],
    }
    assert last["data"]["targets"] == [
        {"product_id": 7, "kept": 5, "shipped": 2, "returned": [restocked, discarded]},
        {"product_id": 8, "kept": 3, "shipped": 0},
    ]


def test_a_withheld_return_is_stored_and_reported_with_its_reason(database: Database) -> None:
    before = shipped(database)
    line = before.items[0].id
    command = ReturnItems(before.id, (returned(line, 1, WITHHELD), returned(line, 1)), request_id="once")

    (back,) = take_back_from(database, command)
    (repeated,) = take_back_from(database, command)
    other_reason = replace(command, units=(returned(line, 1, (*WITHHELD[:2], "STAINED")), returned(line, 1)))
    (reused,) = take_back_from(database, other_reason)

    assert isinstance(back, Order)
    assert repeated == back
    assert isinstance(reused, RequestIdReused)
    assert load(database, before) == back
    assert back.returns[0].units == command.units
    event = events(database, before.id)[-1]
    withheld = {"treatment": "WITHHOLD", "quantity": 1, "location": "BERLIN", "withholding_reason": "DAMAGED"}
    restocked = {"treatment": "RESTOCK", "quantity": 1, "location": "BERLIN"}
    assert event["data"]["return"]["items"] == [{"product_id": 7, **withheld}, {"product_id": 7, **restocked}]
    assert event["data"]["targets"][0]["returned"] == [withheld, restocked]


def test_returns_that_are_not_withheld_are_stored_as_earlier_processes_read_them(database: Database) -> None:
    before = shipped(database)
    line = before.items[0].id
    take_back_from(database, ReturnItems(before.id, (returned(line, 1), returned(line, 1, DISCARDED))))

    with database.read() as tx:
        (stored,) = tx.execute(select(tables.order_returns.c["items"])).scalars()
    assert orjson.loads(stored) == [[line, 1, "RESTOCK", "BERLIN"], [line, 1, "DISCARD", ""]]


def test_later_events_of_the_order_still_have_its_returns(database: Database) -> None:
    before = shipped(database)
    take_back_from(database, ReturnItems(before.id, (returned(before.items[0].id, 1),)))

    for status in (Status.SHIPPED, Status.DELIVERED):
        command = ChangeStatus(before.id, status)
        database.transact(lambda tx, command=command: change_status(tx, [command]))  # type: ignore[misc]  # of lambdas

    restocked = [{"treatment": "RESTOCK", "quantity": 1, "location": "BERLIN"}]
    for event in events(database, before.id)[-2:]:
        assert event["data"]["targets"][0] == {"product_id": 7, "kept": 5, "shipped": 5, "returned": restocked}
    assert load(database, before).items[0].returned == 1


def test_a_repeated_request_id_returns_once(database: Database) -> None:
    before = shipped(database)
    command = ReturnItems(before.id, (returned(before.items[0].id, 1),), request_id="once")

    first, *repeats = (take_back_from(database, command)[0] for _ in range(3))
    other = take_back_from(database, replace(command, reason="another"))[0]

    assert repeats == [first, first]
    assert isinstance(other, RequestIdReused)
    assert load(database, before).items[0].returned == 1


def test_an_unknown_order_has_no_returns(database: Database) -> None:
    command = ReturnItems("00000000-0000-4000-8000-000000000000", (returned(1, 1),))

    assert isinstance(take_back_from(database, command)[0], OrderNotFound)


def test_concurrent_returns_never_return_a_unit_twice(database: Database) -> None:
    before = shipped(database)
    command = ReturnItems(before.id, (returned(before.items[0].id, 1),))

    outcomes = at_once(8, lambda _: take_back_from(database, command)[0])

    assert sum(isinstance(outcome, Order) for outcome in outcomes) == 2
    assert sum(isinstance(outcome, UnitsNotReturnable) for outcome in outcomes) == 6
    assert load(database, before).items[0].returned == 2


def test_the_database_refuses_more_units_than_a_line_has(database: Database) -> None:
    before = processing(database)
    items = tables.order_items
    line = update(items).where(items.c.id == before.items[0].id)

    for units_of_line in ({"shipped": 3, "cancelled": 3}, {"returned": 6}, {"cancelled": 3, "returned": 3}):
        with pytest.raises(IntegrityError), database.write() as tx:
            tx.execute(line.values(units_of_line))


def test_the_event_of_the_largest_order_with_returns_fits_a_message() -> None:
    big = 10**9
    lines = tuple(OrderItem(n, 2**63 - 1 - n, big, PRICE, "L" * 64, returned=big) for n in range(LINES_MAX))
    parts = tuple(
        returned(n % LINES_MAX, big // 3, (Treatment.WITHHOLD, "L" * 64, f"{n:064}")) for n in range(RETURN_ITEMS_MAX)
    )
    first = Return("01930d4a-5f1c-7b22-8a40-5e9d8c3b1f10", '"' * TEXT_LENGTH_MAX, parts[:LINES_MAX], NOW)
    full = replace(order(Status.SHIPPED), items=lines, returns=(first, replace(first, units=parts[LINES_MAX:])))

    message = order_events.units_returned(full, first, None, None)

    assert len(message.data["targets"]) == LINES_MAX
    assert len(orjson.dumps(message.data)) < PAYLOAD_BYTES_MAX / 4
