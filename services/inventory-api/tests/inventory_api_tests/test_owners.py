"""A reservation belongs to the caller that made it, and order-api acts for the tenants and users that it names."""

from dataclasses import replace

import pytest

from inventory_api.api import parse
from inventory_api.domain.commands import AddStock, OrderLines, OrderRequest, ReleaseRequest, RetakeRequest
from inventory_api.domain.errors import ReservationNotFound
from inventory_api.domain.model import ORDER_RESERVATIONS_MAX, Line, OrderSize, State
from inventory_api.domain.reserving import decide
from shop_common.errors import InvalidInput
from shop_common.identity.caller import ANYONE, Caller
from shop_common.identity.errors import PermissionMissing
from shop_common.identity.rules import DELEGATE
from shop_protos.inventory.v1 import inventory_pb2 as pb
from testkit.drivers.inventory_api import InventoryDriver, deadline

ORDER_API = Caller("spiffe://shop/order-api", frozenset({"stock.reserve", DELEGATE}))
USER = Caller("user:7", frozenset({"stock.reserve", "inventory.read"}), "7")
COLLEAGUE = replace(USER, name="user:8", subject="8")


@pytest.fixture
def stocked(inventory: InventoryDriver) -> InventoryDriver:
    inventory.add_stock(1, 10)
    return inventory


def test_a_caller_confirms_its_own_reservations_of_an_order_only(stocked: InventoryDriver) -> None:
    order_api, user = stocked.calling_as(ORDER_API), stocked.calling_as(USER)
    ours, theirs = order_api.reserve(1, 1, order="same"), user.reserve(1, 1, order="same")

    assert [each.id for each in order_api.confirm("same")] == [ours.id]

    assert user.state(theirs) is State.HELD
    with pytest.raises(ReservationNotFound) as refused:
        stocked.calling_as(COLLEAGUE).confirm("same")
    assert refused.value.message == "order same has no reservation"


def test_a_caller_takes_again_its_own_reservations_only(stocked: InventoryDriver) -> None:
    order_api, user = stocked.calling_as(ORDER_API), stocked.calling_as(USER)
    acme = stocked.calling_as(replace(USER, tenant="acme"))
    acme.add_stock(1, 10)
    ours, theirs, foreign = (each.reserve(1, 1, order="same") for each in (order_api, user, acme))
    stocked.make_due(ours, theirs, foreign)

    user.retake("same")

    assert (user.state(theirs), order_api.state(ours)) == (State.REPLACED, State.EXPIRED)
    assert acme.state(foreign) is State.EXPIRED
    with pytest.raises(ReservationNotFound):
        stocked.calling_as(COLLEAGUE).retake("same")


def test_only_order_api_names_the_version_of_an_order() -> None:
    request = pb.ConfirmReservationsRequest(order_id="same", retake=True, order_version=3)

    with pytest.raises(InvalidInput) as refused:
        parse.confirm(request, USER, None)

    assert [each.field for each in refused.value.violations] == ["order_version"]
    assert parse.confirm(request, ORDER_API, None) == RetakeRequest("same", caller=ORDER_API, order_version=3)


def test_a_caller_releases_its_own_reservations_only(stocked: InventoryDriver) -> None:
    user, colleague = stocked.calling_as(USER), stocked.calling_as(COLLEAGUE)
    held = user.reserve(1, 1)

    with pytest.raises(ReservationNotFound) as refused:
        colleague.release(held)

    assert refused.value.message == f"there is no reservation {held.id}"
    assert user.state(held) is State.HELD
    assert user.release(held) == 1


def test_each_part_of_a_batch_concerns_the_reservations_of_its_own_caller(stocked: InventoryDriver) -> None:
    held = {caller.name: stocked.calling_as(caller).reserve(1, 1, order="same") for caller in (USER, COLLEAGUE)}
    foreign = replace(USER, tenant="acme")

    confirmed = stocked.operations.confirm_many(
        [OrderRequest("same", caller=caller) for caller in (USER, ORDER_API, foreign, COLLEAGUE)], deadline=deadline()
    )
    released = stocked.operations.release_many(
        [ReleaseRequest(held[USER.name].id, caller=caller) for caller in (COLLEAGUE, foreign, USER)],
        deadline=deadline(),
    )

    of_user, of_order_api, of_foreigner, of_colleague = confirmed
    assert [isinstance(each, ReservationNotFound) for each in (of_order_api, of_foreigner)] == [True, True]
    assert isinstance(of_user, list)
    assert isinstance(of_colleague, list)
    assert [each.id for each in (*of_user, *of_colleague)] == [each.id for each in held.values()]
    assert [isinstance(each, ReservationNotFound) for each in released] == [True, True, False]
    assert released[-1] == 1


def test_a_user_cannot_release_a_reservation_of_order_api_but_a_delegate_can_release_all(
    stocked: InventoryDriver,
) -> None:
    order_api, user = stocked.calling_as(ORDER_API), stocked.calling_as(USER)
    ours, theirs = order_api.reserve(1, 1), user.reserve(1, 1)

    with pytest.raises(ReservationNotFound):
        user.release(ours)
    assert order_api.release(theirs) == 1


def test_the_reservations_of_all_owners_can_be_read(stocked: InventoryDriver) -> None:
    user = stocked.calling_as(USER)
    held = stocked.calling_as(ORDER_API).reserve(1, 1, order="same"), user.reserve(1, 1, order="same")

    request = parse.reservations_page(pb.ListReservationsRequest(order_id="same"), USER)
    page = user.reservations_page(request.filter, size=10)

    assert page.rows == list(held)
    assert user.reservation(held[0]).id == held[0].id


def test_the_events_of_a_reservation_name_its_owner(stocked: InventoryDriver) -> None:
    order_api, user = stocked.calling_as(ORDER_API), stocked.calling_as(USER)
    for driver in (order_api, user):
        driver.release(driver.reserve(1, 1))

    for event_type in ("STOCK_RESERVED", "STOCK_RELEASED"):
        assert [event.data.get("owner") for event in stocked.events(event_type)] == [None, "user:7"]


def test_a_cancelled_order_releases_the_reservations_of_order_api_only(stocked: InventoryDriver) -> None:
    order_api, user = stocked.calling_as(ORDER_API), stocked.calling_as(USER)
    ours, theirs = order_api.reserve(1, 1, order="same"), user.reserve(1, 1, order="same")

    order_api.cancel("same")

    assert (user.state(ours), user.state(theirs)) == (State.RELEASED, State.HELD)


def test_a_caller_cannot_use_up_the_request_ids_or_the_reservations_of_another(stocked: InventoryDriver) -> None:
    for caller in (ORDER_API, USER, COLLEAGUE):
        driver = stocked.calling_as(caller)
        first = driver.reserve(1, 1, order=caller.name, request_id="r")
        assert driver.reserve(1, 1, order=caller.name, request_id="r") == first

    full = OrderLines("same", (Line(1, 1),), caller=COLLEAGUE)
    other = replace(full, caller=USER)
    item = stocked.add_stock(1, 0)
    sizes = {full.order_key: OrderSize(ORDER_RESERVATIONS_MAX, 0), other.order_key: OrderSize(0, 0)}
    refused, decided = decide([full, other], {item.id: item}, sizes)
    assert isinstance(refused, Exception)
    assert isinstance(decided, dict)


def lines(tenant: str = "", subject: str = "") -> pb.OrderLines:
    return pb.OrderLines(
        order_id="order", lines=[pb.Line(product_id=1, quantity=1)], tenant=tenant, subject=subject, request_id="r"
    )


def test_a_delegate_reserves_for_the_tenant_and_user_of_each_order(stocked: InventoryDriver) -> None:
    request = pb.BatchReserveStockRequest(orders=[lines(), lines("acme"), lines("acme", "7"), lines("", "7")])

    orders = parse.batch(request, ORDER_API, None)

    acting = [order.caller for order in orders if isinstance(order, OrderLines)]
    assert [(caller.tenant, caller.subject) for caller in acting] == [
        ("default", None),
        ("acme", None),
        ("acme", "7"),
        ("default", "7"),
    ]
    assert {caller.reservation_owner for caller in acting} == {""}


@pytest.mark.parametrize("order", [lines("default"), lines("acme"), lines("", "7")])
def test_a_caller_that_may_not_act_for_others_is_refused_with_the_whole_batch(order: pb.OrderLines) -> None:
    with pytest.raises(PermissionMissing) as refused:
        parse.batch(pb.BatchReserveStockRequest(orders=[lines(), order]), USER, None)

    assert refused.value.metadata() == {"permission": DELEGATE}


def test_without_identities_there_is_no_other_tenant() -> None:
    with pytest.raises(PermissionMissing):
        parse.batch(pb.BatchReserveStockRequest(orders=[lines("acme")]), ANYONE, None)


@pytest.mark.parametrize(
    ("order", "field"),
    [
        (lines("Acme"), "tenant"),
        (lines("a" * 65), "tenant"),
        (lines("", "a\nb"), "subject"),
        (lines("", "a" * 256), "subject"),
    ],
)
def test_a_malformed_name_refuses_only_its_order(order: pb.OrderLines, field: str) -> None:
    refused, accepted = parse.batch(pb.BatchReserveStockRequest(orders=[order, lines("acme", "7")]), ORDER_API, None)

    assert isinstance(refused, InvalidInput)
    assert [violation.field for violation in refused.violations] == [field]
    assert isinstance(accepted, OrderLines)


def test_equal_requests_of_different_callers_are_not_folded() -> None:
    requests = [AddStock(1, "A", 1, caller=caller, request_id="r") for caller in (USER, COLLEAGUE)]

    assert requests[0].repeat_key != requests[1].repeat_key
