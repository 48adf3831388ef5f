"""No response exceeds the default size limit of gRPC clients."""

from datetime import UTC, datetime
from uuid import UUID

from grpc import StatusCode

from inventory_api.api import render
from inventory_api.api.parse import (
    AVAILABILITY_PRODUCTS_MAX,
    BATCH_LINES_MAX,
    BATCH_ORDERS_MAX,
    BATCH_REQUESTS_MAX,
    LINE_QUANTITY_MAX,
)
from inventory_api.domain.commands import OrderLines
from inventory_api.domain.errors import InsufficientStock
from inventory_api.domain.model import (
    ITEM_QUANTITY_MAX,
    LOCATIONS_MAX,
    ORDER_ALLOCATIONS_MAX,
    ORDER_RESERVATIONS_MAX,
    WITHHOLDINGS_MAX,
    Allocation,
    Availability,
    Item,
    Line,
    LocationAvailability,
    Reservation,
    State,
)
from inventory_api.operations.items.availability import ITEMS_MAX, Availabilities
from inventory_api.store.reservations import pages
from shop_common.api.valid import INT64_MAX
from shop_common.errors import ShopError
from shop_common.identity.tenant import DEFAULT
from shop_protos.inventory.v1 import inventory_pb2 as pb

BYTES_MAX = 4 * 1024 * 1024
"""The default size limit of gRPC clients for a message."""

PAGE_SIZE_MAX = 1_000
"""The limit in proto/shop/inventory/v1/inventory.proto."""

LATE = datetime(2262, 4, 11, 23, 47, 16, 854_775, tzinfo=UTC)


def reservation(allocations: int) -> Reservation:
    """The largest reservation with this many allocations."""
    parts = tuple(Allocation(INT64_MAX, "W" * 64, ITEM_QUANTITY_MAX) for _ in range(allocations))
    return Reservation(
        DEFAULT,
        "",
        str(UUID(int=1)),
        INT64_MAX,
        ITEM_QUANTITY_MAX,
        "o" * 64,
        State.FULFILLED,
        LATE,
        LATE,
        allocations=parts,
    )


def test_the_largest_page_of_reservations_fits() -> None:
    each = pages.PAGE_ALLOCATIONS // PAGE_SIZE_MAX
    page = [render.reservation(reservation(each))] * PAGE_SIZE_MAX

    assert pb.ListReservationsResponse(reservations=page).ByteSize() < BYTES_MAX


def test_the_largest_page_of_items_fits() -> None:
    item = Item(
        DEFAULT,
        INT64_MAX,
        INT64_MAX,
        "W" * 64,
        ITEM_QUANTITY_MAX,
        ITEM_QUANTITY_MAX,
        INT64_MAX,
        LATE,
        LATE,
        withheld_quantity=ITEM_QUANTITY_MAX,
        withholdings=(("R" * 64, ITEM_QUANTITY_MAX),) * WITHHOLDINGS_MAX,
    )

    assert pb.ListInventoryItemsResponse(items=[render.item(item)] * PAGE_SIZE_MAX).ByteSize() < BYTES_MAX


def test_the_largest_availability_fits() -> None:
    at = LocationAvailability("W" * 64, ITEM_QUANTITY_MAX, ITEM_QUANTITY_MAX, ITEM_QUANTITY_MAX)
    each = ITEMS_MAX // AVAILABILITY_PRODUCTS_MAX
    product = Availability(INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, LATE, (at,) * each)

    response = render.availability(Availabilities(LATE, [product] * AVAILABILITY_PRODUCTS_MAX))

    assert response.ByteSize() < BYTES_MAX


def test_the_largest_confirmation_fits() -> None:
    each = ORDER_ALLOCATIONS_MAX // ORDER_RESERVATIONS_MAX
    confirmed = [render.reservation(reservation(each))] * ORDER_RESERVATIONS_MAX

    assert pb.ConfirmReservationsResponse(reservations=confirmed).ByteSize() < BYTES_MAX


def test_the_largest_batch_fits_and_has_every_reservation() -> None:
    lines_each = BATCH_LINES_MAX // BATCH_ORDERS_MAX
    outcomes: list[list[Reservation] | ShopError] = [[reservation(LOCATIONS_MAX)] * lines_each] * BATCH_ORDERS_MAX

    # Every product of the order has a shortfall, too.
    lines = tuple(Line(INT64_MAX - number, LINE_QUANTITY_MAX) for number in range(lines_each))

    response = render.batch([OrderLines("order", lines, allow_partial=True)] * BATCH_ORDERS_MAX, outcomes)

    assert response.ByteSize() < BYTES_MAX
    assert [len(result.reservations.reservations) for result in response.results] == [lines_each] * BATCH_ORDERS_MAX
    allocations = [len(each.allocations) for result in response.results for each in result.reservations.reservations]
    assert allocations == [LOCATIONS_MAX] * 50 + [0] * (BATCH_LINES_MAX - 50)


def test_the_largest_batch_of_confirmations_fits() -> None:
    most = render.RESPONSE_RESERVATIONS_MAX // ORDER_RESERVATIONS_MAX
    large = [reservation(ORDER_ALLOCATIONS_MAX // ORDER_RESERVATIONS_MAX)] * ORDER_RESERVATIONS_MAX

    response = render.batch_confirm([large] * BATCH_REQUESTS_MAX)

    assert response.ByteSize() < BYTES_MAX
    confirmed, too_many = response.results[:most], response.results[most:]
    assert [len(each.response.reservations) for each in confirmed] == [ORDER_RESERVATIONS_MAX] * most
    assert {each.error.code for each in too_many} == {StatusCode.RESOURCE_EXHAUSTED.value[0]}


def test_a_batch_of_usual_orders_has_every_allocation() -> None:
    refusal = InsufficientStock(1, 2, 1)

    outcomes: list[list[Reservation] | ShopError] = [*([[reservation(5)] * 10] * 500), refusal]

    response = render.batch([OrderLines("order", (Line(1, 1),))] * 501, outcomes)

    assert [len(result.reservations.reservations[0].allocations) for result in response.results[:-1]] == [5] * 500
    assert response.results[-1].HasField("error")
