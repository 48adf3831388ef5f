"""Tenants use the same user ids and request_ids in the same batches, and none finds anything of another."""

from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest
from sqlalchemy import select

from order_api.api import consumer, parse
from order_api.domain.commands import CancelAbandoned, ChangeStatus, NewOrder, ReservedOrder
from order_api.domain.errors import OrderNotFound
from order_api.domain.model import Order, OrderKey, Status
from order_api.domain.transitions import ConfirmationResult
from order_api.operations.cancel_orders import AbandonedOrders
from order_api.operations.change_status import change_status
from order_api.operations.confirm_order import finish, needs_call
from order_api.store import order_lists, orders, tables
from shop_common.api import paging
from shop_common.api.paging import Page
from shop_common.db.database import Database
from shop_common.db.idempotency import RequestIdReused
from shop_common.errors import InvalidInput, ShopError
from shop_common.events.consumer import Event
from shop_common.identity.caller import ANYONE, Caller
from shop_protos.order.v1 import order_pb2 as pb
from testkit.drivers.order_api import at_once, new_order, new_request, stored

PERMISSIONS = frozenset({"orders.read", "orders.write", "orders.any"})
ACME = Caller("user:staff", PERMISSIONS, "staff", "acme")
OTHER = Caller("user:staff", PERMISSIONS, "staff", "other")
CALLERS = (ANYONE, ACME, OTHER)


def requested(caller: Caller, *, user_id: int = 1, request_id: str = "r", units: int = 1) -> NewOrder:
    """The order that a caller requests with this request_id."""
    request = new_request((1, units, "1"), user_id=user_id, request_id=request_id)
    return parse.new_order(request, caller, None)


def insert(database: Database, *new: NewOrder) -> list[Order | ShopError]:
    return database.transact(lambda tx: orders.insert(tx, [ReservedOrder(order, 60) for order in new]))


def change(database: Database, *commands: ChangeStatus) -> list[Order | ShopError]:
    return database.transact(lambda tx: change_status(tx, commands))


def tenants_of_events(database: Database, event_type: str) -> dict[str, str]:
    """The tenant in the headers of each event of this type, by order id."""
    outbox = tables.outbox.table
    with database.read() as tx:
        rows = tx.execute(select(outbox.c.key, outbox.c.headers).where(outbox.c.type == event_type)).all()
    return {row.key: orjson.loads(row.headers or "{}").get("ce_tenant", "default") for row in rows}


def test_the_same_request_of_each_tenant_creates_an_order_of_its_own(database: Database) -> None:
    new = [requested(caller) for caller in CALLERS]

    created = insert(database, *new)
    repeated = insert(database, *reversed(new))

    assert [order.tenant for order in created if isinstance(order, Order)] == ["default", "acme", "other"]
    assert len({order.id for order in new}) == len(CALLERS)
    assert repeated == created[::-1]
    assert tenants_of_events(database, "ORDER_CREATED") == {order.id: order.caller.tenant for order in new}


def test_other_content_is_compared_with_the_request_of_the_same_tenant(database: Database) -> None:
    insert(database, requested(ACME), requested(OTHER, units=2))

    same, other = insert(database, requested(ACME), requested(OTHER, units=1))
    with database.read() as tx:
        earlier = orders.find_earlier(tx, [requested(ACME, units=3), requested(OTHER, units=2)])

    assert isinstance(same, Order)
    assert isinstance(other, RequestIdReused)
    assert isinstance(earlier[requested(ACME).key], RequestIdReused)
    assert isinstance(earlier[requested(OTHER).key], Order)


def test_ids_of_the_default_tenant_stay_and_no_other_tenant_can_derive_them() -> None:
    assert requested(ANYONE, request_id="r").id == "6b52690a-b2d8-5d7a-bb84-9a8d28179486"

    # Joined with colons, the parts of both names are equal.
    named_one = Caller("user:2", PERMISSIONS, "2", "1")
    assert requested(ANYONE, user_id=1, request_id="2:r").id != requested(named_one, user_id=2, request_id="r").id


def test_the_order_of_another_tenant_is_unknown(database: Database) -> None:
    keys = [order.key for order in stored(database, *(new_order(caller=caller) for caller in CALLERS))]
    unknown = OrderKey("acme", new_order().id)
    foreign = [OrderKey("acme", key.id) for key in keys if key.tenant != "acme"]

    with database.read() as tx:
        outcomes = orders.get(tx, [*keys, *foreign, unknown])
        assert orders.statuses(tx, foreign) == {}
        assert orders.count_lines(tx, foreign) == {}
        assert orders.find_earlier(tx, [replace(new_order(caller=ACME), id=key.id) for key in foreign]) == {}
    with database.write() as tx:
        assert orders.lock(tx, foreign).orders == {}

    assert [order.key for order in outcomes if isinstance(order, Order)] == keys
    refused = [refusal for refusal in outcomes if isinstance(refusal, OrderNotFound)]
    assert len(refused) == len(foreign) + 1
    assert {refusal.message.replace(refusal.order_id, "ID") for refusal in refused} == {"there is no order ID"}


def test_a_batch_changes_only_the_orders_of_each_commands_tenant(database: Database) -> None:
    ours, theirs = stored(database, new_order(caller=ACME), new_order(caller=OTHER))

    outcomes = change(
        database,
        ChangeStatus(theirs.id, Status.CANCELLED, caller=ACME, request_id="r"),
        ChangeStatus(ours.id, Status.CANCELLED, caller=OTHER, request_id="r"),
    )
    cancelled, *_ = change(
        database,
        ChangeStatus(ours.id, Status.CANCELLED, caller=ACME, request_id="r"),
        ChangeStatus(theirs.id, Status.CONFIRMED, caller=OTHER, request_id="r"),
    )

    assert [type(outcome) for outcome in outcomes] == [OrderNotFound, OrderNotFound]
    with database.read() as tx:
        stored_orders = orders.load(tx, [ours.key, theirs.key])
    assert stored_orders[ours.key] == cancelled
    assert stored_orders[theirs.key].status is Status.CONFIRMED
    assert tenants_of_events(database, "ORDER_CANCELLED") == {ours.id: "acme"}
    assert tenants_of_events(database, "ORDER_CONFIRMED") == {theirs.id: "other"}


def test_a_confirmation_of_another_tenants_order_neither_calls_nor_changes(database: Database) -> None:
    (theirs,) = stored(database, new_order(caller=OTHER))
    command = ChangeStatus(theirs.id, Status.CONFIRMED, caller=ACME)
    assert database.query(lambda tx: needs_call(tx, [command, replace(command, caller=OTHER)])) == [None, 1]

    (outcome,) = database.transact(lambda tx: finish(tx, [ConfirmationResult(command, {1: 2})]))

    assert isinstance(outcome, OrderNotFound)
    assert database.query(lambda tx: orders.load(tx, [theirs.key])) == {theirs.key: theirs}


def test_a_caller_cannot_use_up_the_request_ids_of_another(database: Database) -> None:
    colleague = replace(ACME, name="user:colleague")
    one, two, three = stored(database, new_order(caller=ACME), new_order(caller=ACME), new_order())
    commands = [
        ChangeStatus(one.id, Status.CANCELLED, caller=ACME, request_id="r"),
        ChangeStatus(two.id, Status.CANCELLED, caller=colleague, request_id="r"),
        ChangeStatus(three.id, Status.CANCELLED, request_id="r"),
    ]

    outcomes = change(database, *commands)

    assert all(isinstance(outcome, Order) for outcome in outcomes)
    assert change(database, *commands) == outcomes
    claims = [command.claim() for command in commands]
    assert [claim.scope for claim in claims if claim] == ["user:staff", "user:colleague", ""]


def test_a_list_has_the_orders_of_one_tenant(database: Database) -> None:
    created = stored(database, *(new_order(caller=caller) for _ in range(3) for caller in CALLERS))

    for caller in CALLERS:
        for query in (pb.ListOrdersRequest(), pb.ListOrdersRequest(user_id=1, status=pb.ORDER_STATUS_PENDING)):
            request = parse.orders_page(query, caller)
            page = database.query(lambda tx, request=request: order_lists.list_page(tx, request))  # type: ignore[misc]
            assert {order.id for order in page.rows} == {o.id for o in created if o.tenant == caller.tenant}


def test_a_page_token_of_another_tenant_is_refused() -> None:
    request = parse.orders_page(pb.ListOrdersRequest(), ACME)
    token = paging.next_token(Page([], (0, new_order().id)), request)
    again = pb.ListOrdersRequest(page_token=token)

    assert parse.orders_page(again, ACME).after is not None
    for caller in (OTHER, ANYONE):
        with pytest.raises(InvalidInput):
            parse.orders_page(again, caller)


def lost(order_id: str, tenant: str, **data: str) -> Event:
    """A STOCK_RELEASED event for a reservation under this order id."""
    return Event(
        "STOCK_RELEASED", "1", "id", {"order_id": order_id} | data, datetime.now(UTC), None,
        topic=consumer.TOPIC, partition=0, offset=0, tenant=tenant,
    )  # fmt: skip


def test_an_event_cancels_the_order_of_its_own_tenant_only(database: Database) -> None:
    ours, theirs = stored(database, new_order(caller=ACME), new_order(caller=OTHER))
    events = [lost(theirs.id, "acme"), lost(ours.id, "default"), lost(ours.id, "acme")]

    database.transact(lambda tx: consumer.cancel_released(tx, events))

    with database.read() as tx:
        assert {key.tenant: each.status for key, each in orders.load(tx, [ours.key, theirs.key]).items()} == {
            "acme": Status.CANCELLED,
            "other": Status.PENDING,
        }
    assert tenants_of_events(database, "ORDER_CANCELLED") == {ours.id: "acme"}


def test_the_loss_of_another_owners_reservation_does_not_cancel_the_order(database: Database) -> None:
    (order,) = stored(database, new_order(caller=ACME))

    database.transact(lambda tx: consumer.cancel_released(tx, [lost(order.id, "acme", owner="user:staff")]))

    assert database.query(lambda tx: orders.statuses(tx, [order.key])) == {order.key: Status.PENDING}


def test_abandoned_orders_of_all_tenants_are_cancelled_and_their_events_name_the_tenant(database: Database) -> None:
    created = stored(database, *(new_order(caller=caller) for caller in CALLERS), reserved_seconds=-3600)

    assert AbandonedOrders(database).cancel(CancelAbandoned(60, 100)) == len(CALLERS)

    assert tenants_of_events(database, "ORDER_CANCELLED") == {order.id: order.tenant for order in created}


def test_concurrent_batches_of_all_tenants_agree_on_each_tenants_order(database: Database) -> None:
    """Each batch has the same requests of all tenants. Each tenant's requests create one order."""

    def create(number: int) -> list[Order | ShopError]:
        new = [requested(caller) for caller in CALLERS]
        return insert(database, *(new if number % 2 else reversed(new)))

    outcomes = at_once(8, create)

    created = {order.key for batch in outcomes for order in batch if isinstance(order, Order)}
    assert {key.tenant for key in created} == {"default", "acme", "other"}
    assert len(created) == len(CALLERS)
    assert tenants_of_events(database, "ORDER_CREATED") == {key.id: key.tenant for key in created}
