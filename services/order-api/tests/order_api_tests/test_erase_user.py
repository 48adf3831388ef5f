"""EraseUser removes the personal data of a user from the orders that have ended, and from no others."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import orjson
import pytest
from sqlalchemy import select

from order_api.domain.commands import ChangeStatus, EraseUser, NewOrder, ReservedOrder, ReturnItems, ShipItems
from order_api.domain.erasure import ERASABLE, NO_USER, OPEN, erased
from order_api.domain.model import (
    LINES_MAX,
    Charge,
    ChargeKind,
    NewDetails,
    NewItem,
    Order,
    OrderKey,
    ReturnedUnits,
    Status,
    Treatment,
)
from order_api.operations import erase_user
from order_api.operations.change_status import change_status
from order_api.operations.change_units import return_items, ship_items
from order_api.operations.erase_user import Erased, UserErasure
from order_api.store import orders, tables
from order_api_tests.test_change_units import order as order_of_status
from shop_common.db.database import Database
from shop_common.errors import ShopError
from shop_common.identity.caller import ANYONE
from testkit.drivers.order_api import at_once, events, new_order, stored

SECRET = "Ann Example"
USER = 7
BUYER = replace(ANYONE, name=f"user:{USER}")
STAFF = replace(ANYONE, name="user:1")
PERSONAL = NewDetails(
    (Charge(ChargeKind.FEE, f"gift wrapping for {SECRET}", Decimal(2)),), f"letter of {SECRET}", (("name", SECRET),)
)
ERASED_TABLES = (
    tables.orders, tables.order_items, tables.order_labels, tables.order_status_changes, tables.shipments,
    tables.order_returns, tables.order_buyer_limits,
)  # fmt: skip


def erase(database: Database, user_id: int = USER) -> Erased:
    return UserErasure(database).erase(EraseUser(user_id))


def change(database: Database, order: Order, status: Status) -> Order:
    command = ChangeStatus(order.id, status, f"{SECRET} asked for it", caller=BUYER)
    (outcome,) = database.transact(lambda tx: change_status(tx, [command]))
    assert isinstance(outcome, Order)
    return outcome


def personal_order(database: Database) -> Order:
    """A SHIPPED order of the user with personal data in every field that can have any."""
    (order,) = stored(database, new_order(user_id=USER, details=PERSONAL, caller=BUYER))
    for status in (Status.CONFIRMED, Status.PROCESSING):
        change(database, order, status)
    line = order.items[0].id
    shipment = ShipItems(order.id, ((line, 1),), "DHL", f"parcel for {SECRET}", caller=STAFF)
    database.transact(lambda tx: ship_items(tx, [shipment]))
    returned = ReturnItems(order.id, (ReturnedUnits(line, 1, Treatment.DISCARD),), f"{SECRET} changed her mind")
    database.transact(lambda tx: return_items(tx, [returned]))
    change(database, order, Status.SHIPPED)
    return load(database, order)


def load(database: Database, order: Order) -> Order:
    with database.read() as tx:
        return orders.load(tx, [order.key])[order.key]


def ended(database: Database, *new: NewOrder) -> list[Order]:
    """Store orders and cancel them."""
    return [change(database, order, Status.CANCELLED) for order in stored(database, *new)]


def stored_text(database: Database) -> str:
    """Return everything that the tables of orders have, as one text."""
    with database.read() as tx:
        return "\n".join(str(tuple(row)) for table in ERASED_TABLES for row in tx.execute(select(table)))


def test_lines_amounts_statuses_and_times_of_an_erased_order_remain() -> None:
    before = order_of_status(Status.SHIPPED)

    after = erased(replace(before, user_id=USER, created_by="user:7", charges=PERSONAL.charges), datetime.now(UTC))

    assert (after.user_id, after.created_by, after.version) == (NO_USER, "", before.version + 1)
    assert (after.items, after.total_amount, after.status, after.created_at) == (
        before.items, before.total_amount, before.status, before.created_at,
    )  # fmt: skip
    assert [(each.kind, each.amount) for each in after.charges] == [(ChargeKind.FEE, Decimal(2))]
    assert erased(replace(before, created_by="user:70"), datetime.now(UTC)).created_by == "user:70"


def test_every_status_is_either_open_or_erasable() -> None:
    assert sorted((*OPEN, *ERASABLE)) == sorted(Status)


def test_no_table_of_orders_has_the_personal_data_any_more(database: Database) -> None:
    before = personal_order(database)
    assert stored_text(database).count(SECRET) > 8
    assert "user:7" in stored_text(database)

    assert erase(database) == Erased(1, has_more=False, has_open=False)

    text = stored_text(database)
    assert SECRET not in text
    assert "user:7" not in text
    after = load(database, before)
    assert (after.user_id, after.labels, after.external_reference, after.version) == (0, (), "", before.version + 1)
    assert (after.items, after.total_amount, after.status) == (before.items, before.total_amount, before.status)
    assert after.shipments == (replace(before.shipments[0], tracking_number=""),)
    with database.read() as tx:
        (history,) = orders.get_with_history(tx, [before.key])
    assert not isinstance(history, ShopError)
    assert [each.status for each in history.changes] == [
        Status.PENDING, Status.CONFIRMED, Status.PROCESSING, Status.SHIPPED,
    ]  # fmt: skip


def test_the_event_of_an_erased_order_has_no_personal_data_and_neither_have_later_ones(database: Database) -> None:
    order = personal_order(database)

    erase(database)
    command = ChangeStatus(order.id, Status.DELIVERED)
    database.transact(lambda tx: change_status(tx, [command]))

    erasure, delivery = events(database, order.id)[-2:]
    assert (erasure["event_type"], delivery["event_type"]) == ("ORDER_USER_ERASED", "ORDER_DELIVERED")
    assert SECRET not in str((erasure, delivery))
    data = erasure["data"]
    assert (data["user_id"], data["status"], data["version"]) == (0, "SHIPPED", order.version + 1)
    assert data["targets"] == events(database, order.id)[-3]["data"]["targets"]
    assert "labels" not in data
    assert "external_reference" not in data


def test_open_orders_keep_their_user_and_are_reported(database: Database) -> None:
    (pending,) = stored(database, new_order(user_id=USER))
    (cancelled,) = ended(database, new_order(user_id=USER))

    assert erase(database) == Erased(1, has_more=False, has_open=True)

    assert load(database, pending) == pending
    change(database, pending, Status.CANCELLED)
    assert erase(database) == Erased(1, has_more=False, has_open=False)
    assert {load(database, each).user_id for each in (pending, cancelled)} == {NO_USER}


def test_orders_of_other_users_and_tenants_are_not_touched(database: Database) -> None:
    acme = replace(BUYER, tenant="acme")
    others = ended(database, new_order(user_id=70, details=PERSONAL))
    (of_acme,) = stored(database, new_order(user_id=USER, details=PERSONAL, caller=acme))
    command = ChangeStatus(of_acme.id, Status.CANCELLED, caller=acme)
    database.transact(lambda tx: change_status(tx, [command]))
    others.append(load(database, of_acme))
    before = stored_text(database)

    assert erase(database) == Erased(0, has_more=False, has_open=False)

    assert stored_text(database) == before
    assert [load(database, each) for each in others] == others


def test_a_repeat_erases_nothing_and_emits_nothing(database: Database) -> None:
    ended(database, new_order(user_id=USER))
    erase(database)
    before = events(database)

    assert erase(database) == Erased(0, has_more=False, has_open=False)

    assert events(database) == before


def test_orders_are_erased_in_turns_and_each_turn_is_in_the_audit_log(database: Database) -> None:
    lines = tuple(NewItem(number, 1, Decimal(1)) for number in range(1, LINES_MAX + 1))
    long = ended(database, *(new_order(user_id=USER, items=lines) for _ in range(7)))
    log = tables.audit_log

    done = UserErasure(database, log).erase(EraseUser(USER, caller=STAFF))

    assert done == Erased(7, has_more=False, has_open=False)
    with database.read() as tx:
        rows = tx.execute(select(log.table.c.caller, log.table.c.method, log.table.c.resources)).all()
    assert [(row.caller, row.method) for row in rows] == [("user:1", "EraseUser")] * 2
    assert sorted(order.id for order in long) == sorted(key for row in rows for key in orjson.loads(row.resources))


def test_a_call_erases_a_limited_number_of_orders(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erase_user, "ORDERS_MAX", 2)
    ended(database, *(new_order(user_id=USER) for _ in range(3)))

    assert erase(database) == Erased(2, has_more=True, has_open=False)
    assert erase(database) == Erased(1, has_more=False, has_open=False)


def test_concurrent_calls_erase_each_order_once(database: Database) -> None:
    ended(database, *(new_order(user_id=USER) for _ in range(5)))

    results = at_once(4, lambda _: erase(database))

    assert sum(each.orders for each in results) == 5
    assert [each["event_type"] for each in events(database)].count("ORDER_USER_ERASED") == 5


def test_a_repeat_of_the_creation_creates_no_second_order(database: Database) -> None:
    (order,) = ended(database, new := replace(new_order(user_id=USER), request_id="once"))
    erase(database)

    (repeated,) = database.transact(lambda tx: orders.insert(tx, [ReservedOrder(new, 60)]))

    assert repeated == load(database, order)
    with database.read() as tx:
        assert orders.load(tx, [OrderKey("default", order.id)])[order.key].user_id == NO_USER
