"""Runs each operation behind a coalescer. The servicer has no other access to the database."""

from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import Connection

from inventory_api.domain.commands import (
    AddRequest,
    AddStock,
    AvailabilityQuestion,
    ChangeStock,
    ExpireRequest,
    ExtendRequest,
    ItemFilter,
    LocationFilter,
    MovementFilter,
    OrderLines,
    OrderRequest,
    PastItemQuestion,
    PurgeRequest,
    ReleaseRequest,
    ReservationFilter,
    RetakeRequest,
    SetQuantity,
    SettleRequest,
    StockQuestion,
    UpdateLocation,
    VerifyRequest,
)
from inventory_api.domain.errors import WithholdingDisabled
from inventory_api.domain.model import Item, ItemKey, Location, OrderKey, PastItem, Reservation, ReservationKey
from inventory_api.domain.movements import Movement, MovementKind
from inventory_api.domain.stock_changes import ChangedStock
from inventory_api.operations import batch_sizes
from inventory_api.operations.items.add_stock import add_stock
from inventory_api.operations.items.availability import Availabilities, get_availability
from inventory_api.operations.items.change_stock import change_stock
from inventory_api.operations.items.check_stock import check_stock
from inventory_api.operations.items.read_items import get_items, get_past_item, list_items, list_past_items
from inventory_api.operations.items.set_quantity import set_quantity
from inventory_api.operations.locations import list_locations, update_locations
from inventory_api.operations.purge import Purge, Purged
from inventory_api.operations.reservations.add import add
from inventory_api.operations.reservations.confirm import confirm
from inventory_api.operations.reservations.expire import ExpirySweep
from inventory_api.operations.reservations.extend import extend
from inventory_api.operations.reservations.release import release
from inventory_api.operations.reservations.reserve import Reservations, reserve
from inventory_api.operations.reservations.retake import retake
from inventory_api.operations.reservations.settle import Settlement
from inventory_api.operations.verify_stock import StockVerification, Verified
from inventory_api.store import movements
from inventory_api.store.reservations import pages, reserved_orders, rows
from shop_common.api.paging import Page, PageRequest
from shop_common.batching.coalescers import ALONE, Audit, Coalescers, audit_of
from shop_common.db.audit import AuditLog
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS
from shop_common.errors import BrokerUnavailable, ShopError
from shop_common.events.redrive import Redrive, RedriveResult, Redriving


def _ids(reservations: Iterable[Reservation]) -> list[str]:
    return [reservation.id for reservation in reservations]


_RESERVE: Audit[OrderLines, Reservations] = audit_of(
    OrderLines, "ReserveStock", lambda _, reservations: _ids(reservations)
)
_RELEASE: Audit[ReleaseRequest, int] = audit_of(
    ReleaseRequest, "ReleaseStock", lambda request, _: (request.reservation_id,)
)
_CONFIRM: Audit[OrderRequest, list[Reservation]] = audit_of(
    OrderRequest, "ConfirmReservations", lambda _, reservations: _ids(reservations)
)
_EXTEND: Audit[ExtendRequest, list[Reservation]] = audit_of(
    ExtendRequest, "ExtendReservations", lambda _, reservations: _ids(reservations)
)
_RETAKE: Audit[RetakeRequest, list[Reservation]] = audit_of(
    RetakeRequest, "ConfirmReservations", lambda _, reservations: _ids(reservations)
)
_ADD: Audit[AddRequest, list[Reservation]] = audit_of(
    AddRequest, "ReserveAdditions", lambda _, reservations: _ids(reservations)
)
_ADD_STOCK: Audit[AddStock, Item] = audit_of(AddStock, "CreateInventoryItem", lambda _, item: (str(item.id),))
_SET_QUANTITY: Audit[SetQuantity, Item] = audit_of(SetQuantity, "UpdateInventoryItem", lambda _, item: (str(item.id),))
_CHANGE_STOCK: Audit[ChangeStock, list[ChangedStock | ShopError]] = audit_of(
    ChangeStock,
    "BatchChangeStock",
    lambda _, outcomes: dict.fromkeys(
        str(item.id)
        for each in outcomes
        if isinstance(each, ChangedStock)
        for item in (each.item, each.target)
        if item is not None
    ),
)
_UPDATE_LOCATION: Audit[UpdateLocation, Location] = audit_of(
    UpdateLocation, "UpdateLocation", lambda _, location: (location.location,)
)
"""What the audit log has about each operation."""


class Operations:
    """The operations that the RPCs of this service call.

    `deadline` is the value of time.monotonic() at which the caller stops waiting. Each method raises the ShopError that
    refuses the request, QueueFull if the queue is full or the request was not started in time, and DatabaseUnavailable
    if the database did not respond in time. With `audit_log`, changes are recorded there. `redriving` is None if this
    process has no broker.
    """

    def __init__(
        self,
        database: Database,
        *,
        ttl_seconds: float,
        on_fatal: Callable[[str, BaseException], None],
        audit_log: AuditLog | None = None,
        redriving: Redriving | None = None,
        withholding: bool = True,
    ) -> None:
        run = Coalescers(database, on_fatal, audit_log)
        self.close = run.close
        self._database = database
        self._ttl_seconds = ttl_seconds
        self._withholding = withholding
        self._reserve = run.writes(
            "reserve",
            self._reserve_batch,
            key=lambda order: order.repeat_key,
            weigh=lambda order: len(order.lines),
            audit=_RESERVE,
        )
        self._release = run.writes(
            "release", release, key=lambda request: request.reservation_key, sizes=batch_sizes.RELEASES, audit=_RELEASE
        )
        self._confirm = run.writes(
            "confirm", confirm, key=lambda order: order.order_key, sizes=batch_sizes.ORDERS, audit=_CONFIRM
        )
        self._extend = run.writes(
            "extend",
            extend,
            key=lambda order: (order.order_key, order.ttl_seconds),
            sizes=batch_sizes.EXTENSIONS,
            audit=_EXTEND,
        )
        self._retake = run.writes("retake", self._retake_one, limits=ALONE, audit=_RETAKE)
        self._add = run.writes("add", self._add_one, limits=ALONE, audit=_ADD)
        self._add_stock = run.writes("add-stock", add_stock, key=lambda request: request.repeat_key, audit=_ADD_STOCK)
        self._set_quantity = run.writes(
            "set-quantity", set_quantity, key=lambda request: request.repeat_key, audit=_SET_QUANTITY
        )
        self._change_stock = run.writes(
            "change-stock",
            lambda tx, turns: [change_stock(tx, turn) for turn in turns],
            weigh=lambda turn: len(turn.changes),
            limits=ALONE,
            audit=_CHANGE_STOCK,
        )
        self._update_location = run.writes(
            "update-location", update_locations, key=lambda request: request.repeat_key, audit=_UPDATE_LOCATION
        )
        self._check_stock = run.reads("check-stock", check_stock, sizes=batch_sizes.QUESTIONS)
        self._get_item = run.reads("item", get_items)
        self._get_reservation = run.reads("reservation", rows.get, sizes=batch_sizes.RESERVATIONS)
        self._get_availability = run.pages("availability", get_availability)
        self._list_locations = run.pages("locations-page", list_locations)
        self._list_items = run.pages("items-page", list_items)
        self._get_past_item = run.pages("past-item", get_past_item)
        self._list_past_items = run.pages("past-items-page", list_past_items)
        self._list_movements = run.pages("movements-page", movements.list_page)
        self._list_reservations = run.pages("reservations-page", pages.list_page)
        self._expire = run.alone("expire", ExpirySweep(database, audit_log).expire_due)
        self._redrive = None if redriving is None else run.alone("redrive", redriving.redrive)
        self._purge = run.alone("purge", Purge(database, audit_log).run)
        self._list_reserved_orders = run.alone("reserved-orders", self._list_reserved)
        self._settle_orders = run.alone("settle-orders", Settlement(database, audit_log).run)
        self._verify_stock = run.alone("verify-stock", StockVerification(database, audit_log).run)

    def reserve(self, order: OrderLines, *, deadline: float) -> Reservations:
        return self._reserve.submit(order, deadline=deadline)

    def reserve_many(self, orders: Sequence[OrderLines], *, deadline: float) -> list[Reservations | ShopError]:
        """Reserve stock for each order independently. Returns one outcome per order, in order."""
        return self._reserve.submit_many(orders, deadline=deadline)

    def release(self, request: ReleaseRequest, *, deadline: float) -> int:
        return self._release.submit(request, deadline=deadline)

    def release_many(self, requests: Sequence[ReleaseRequest], *, deadline: float) -> list[int | ShopError]:
        """Release each reservation independently. Returns one outcome per request, in order."""
        return self._release.submit_many(requests, deadline=deadline)

    def confirm(self, order: OrderRequest, *, deadline: float) -> list[Reservation]:
        """Confirm the reservations of an order. A RetakeRequest also reserves the units of expired ones again."""
        if isinstance(order, RetakeRequest):
            return self._retake.submit(order, deadline=deadline)
        return self._confirm.submit(order, deadline=deadline)

    def add(self, request: AddRequest, *, deadline: float) -> list[Reservation]:
        """Reserve more units for an order that is about to be changed."""
        return self._add.submit(request, deadline=deadline)

    def extend(self, request: ExtendRequest, *, deadline: float) -> list[Reservation]:
        return self._extend.submit(request, deadline=deadline)

    def confirm_many(self, orders: Sequence[OrderRequest], *, deadline: float) -> list[list[Reservation] | ShopError]:
        """Confirm the reservations of each order independently. Returns one outcome per order, in order."""
        retakes = [order for order in orders if isinstance(order, RetakeRequest)]
        if not retakes:
            return self._confirm.submit_many(orders, deadline=deadline)
        others = [order for order in orders if not isinstance(order, RetakeRequest)]
        confirmed = iter(self._confirm.submit_many(others, deadline=deadline) if others else ())
        retaken = iter(self._retake.submit_many(retakes, deadline=deadline))
        return [next(retaken if isinstance(order, RetakeRequest) else confirmed) for order in orders]

    def add_stock(self, request: AddStock, *, deadline: float) -> Item:
        return self._add_stock.submit(request, deadline=deadline)

    def set_quantity(self, request: SetQuantity, *, deadline: float) -> Item:
        return self._set_quantity.submit(request, deadline=deadline)

    def change_stock(self, request: ChangeStock, *, deadline: float) -> list[ChangedStock | ShopError]:
        """Make the changes, in order. Returns one outcome per change, in order.

        Raises WithholdingDisabled, and the ShopError that refused the changes if they are atomic.
        """
        if not self._withholding and any(each.kind is MovementKind.WITHHELD for each in request.changes):
            raise WithholdingDisabled
        if request.is_atomic:
            return self._change_stock.submit(request, deadline=deadline)
        turns = request.turns
        outcomes = self._change_stock.submit_many(turns, deadline=deadline)
        return [
            each
            for turn, outcome in zip(turns, outcomes, strict=True)
            for each in ([outcome] * len(turn.changes) if isinstance(outcome, ShopError) else outcome)
        ]

    def check_stock(self, question: StockQuestion, *, deadline: float) -> int:
        return self._check_stock.submit(question, deadline=deadline)

    def get_availability(self, question: AvailabilityQuestion, *, deadline: float) -> Availabilities:
        return self._get_availability.submit(question, deadline=deadline)

    def update_location(self, request: UpdateLocation, *, deadline: float) -> Location:
        return self._update_location.submit(request, deadline=deadline)

    def list_locations(self, page: PageRequest[LocationFilter], *, deadline: float) -> Page[Location]:
        return self._list_locations.submit(page, deadline=deadline)

    def get_item(self, key: ItemKey, *, deadline: float) -> Item:
        return self._get_item.submit(key, deadline=deadline)

    def get_reservation(self, key: ReservationKey, *, deadline: float) -> Reservation:
        return self._get_reservation.submit(key, deadline=deadline)

    def list_items(self, page: PageRequest[ItemFilter], *, deadline: float) -> Page[Item]:
        return self._list_items.submit(page, deadline=deadline)

    def get_past_item(self, question: PastItemQuestion, *, deadline: float) -> PastItem:
        return self._get_past_item.submit(question, deadline=deadline)

    def list_past_items(self, page: PageRequest[ItemFilter], *, deadline: float) -> Page[PastItem]:
        """Return a page of the items as of the time of the filter."""
        return self._list_past_items.submit(page, deadline=deadline)

    def list_movements(self, page: PageRequest[MovementFilter], *, deadline: float) -> Page[Movement]:
        return self._list_movements.submit(page, deadline=deadline)

    def list_reservations(self, page: PageRequest[ReservationFilter], *, deadline: float) -> Page[Reservation]:
        return self._list_reservations.submit(page, deadline=deadline)

    def expire(self, request: ExpireRequest, *, deadline: float) -> int:
        return self._expire.submit(request, deadline=deadline)

    def purge(self, request: PurgeRequest, *, deadline: float) -> Purged:
        return self._purge.submit(request, deadline=deadline)

    def redrive(self, command: Redrive, *, deadline: float) -> list[RedriveResult]:
        """Redrive dead letters of the consumed topic. Returns one result per letter, in order. See Redriving.

        Raises BrokerUnavailable.
        """
        if self._redrive is None:
            raise BrokerUnavailable("this process is not connected to Kafka")
        return self._redrive.submit(command, deadline=deadline)

    def verify_stock(self, request: VerifyRequest, *, deadline: float) -> Verified:
        return self._verify_stock.submit(request, deadline=deadline)

    def list_reserved_orders(self, page: PageRequest[None], *, deadline: float) -> Page[OrderKey]:
        return self._list_reserved_orders.submit(page, deadline=deadline)

    def settle_orders(self, request: SettleRequest, *, deadline: float) -> set[OrderKey]:
        return self._settle_orders.submit(request, deadline=deadline)

    def _list_reserved(self, page: PageRequest[None]) -> Page[OrderKey]:
        return self._database.query(lambda tx: reserved_orders.list_page(tx, page), ALL_TENANTS)

    def _add_one(self, tx: Connection, requests: Sequence[AddRequest]) -> list[list[Reservation] | ShopError]:
        return add(tx, requests, default_ttl_seconds=self._ttl_seconds)

    def _retake_one(self, tx: Connection, requests: Sequence[RetakeRequest]) -> list[list[Reservation] | ShopError]:
        return retake(tx, requests, default_ttl_seconds=self._ttl_seconds)

    def _reserve_batch(self, tx: Connection, orders: Sequence[OrderLines]) -> Sequence[Reservations | ShopError]:
        return reserve(tx, orders, default_ttl_seconds=self._ttl_seconds)
