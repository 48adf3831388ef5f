"""The client for threads.

with Shop(Settings(inventory_target="localhost:50053", order_target="localhost:50054")) as shop:
shop.reserve(product_id=1, quantity=2, order_id="order-1")
"""

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

import grpc

from shop_client import calls, transport
from shop_client.calls import BATCHED, INVENTORY_SERVICE, ORDER_SERVICE, PAGE_SIZE, BatchedCall, Call, Method, Page
from shop_client.coalescer import Coalescer
from shop_client.errors import AnswerTooLarge, Cancelled, InvalidInput, ShopError, Unavailable
from shop_client.forks import PROCESS
from shop_client.settings import Settings
from shop_client.statuses import error_of, status_of
from shop_client.values import (
    Availability,
    Caller,
    ChangedStock,
    Charge,
    ErasedUser,
    Item,
    ItemUnits,
    Line,
    Location,
    Movement,
    MovementKind,
    NewItem,
    NewOrder,
    Order,
    OrderLines,
    OrderStatus,
    PastItem,
    RedrivenLetter,
    Reservation,
    ReservationState,
    ReturnedUnits,
    Stock,
    StockChange,
)

_Result = TypeVar("_Result")
_Value = TypeVar("_Value")
_Message = TypeVar("_Message")


class Shop:
    """A client of both APIs, safe to share between threads. It connects at the first call.

    Every call has a deadline: `timeout_seconds` after its start. Until then, calls that fail with Unavailable are
    repeated. All changes get a `request_id`, so a repeat has no second effect. Give your own `request_id` if your
    program itself may repeat the call, for example after a crash. Each method raises ShopError; the comments of the
    RPCs in the protos list the reasons.

    After a fork, the client connects again in the child. Calls of the parent's threads do not continue there.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Use the given settings, or else the SHOP_* variables of the environment. Raises ValueError."""
        self._settings = settings or Settings.from_environment()
        self._connection: _Connection | None = None
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Running calls end with Cancelled, and so do later calls. May be repeated."""
        with PROCESS.connecting:
            self._is_closed = True
            connection, self._connection = self._connection, None
            if connection is not None and connection.generation != PROCESS.generation:
                PROCESS.inherited.append(connection)
                return
        if connection is not None:
            connection.close()

    # --- stock ---

    def add_stock(
        self,
        product_id: int,
        quantity: int,
        location: str | None = None,
        *,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Item:
        """Add units to the item of this product at this location, or create the item. Returns the item."""
        return self._run(calls.add_stock(product_id, quantity, location, request_id), timeout_seconds)

    def get_item(self, item_id: int, *, timeout_seconds: float | None = None) -> Item:
        """Return one item. Raises ItemNotFound."""
        return self._run(calls.get_item(item_id), timeout_seconds)

    def get_past_item(self, item_id: int, as_of: datetime, *, timeout_seconds: float | None = None) -> PastItem:
        """Return one item with its quantity at an earlier time. Raises ItemNotFound, also if it had no movement yet."""
        return self._run(calls.get_past_item(item_id, as_of), timeout_seconds)

    def set_quantity(
        self,
        item_id: int,
        quantity: int,
        *,
        version: int | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Item:
        """Set an item's quantity, reserved units included. With `version`, only if the item still has this version.

        Raises ItemNotFound, BelowReserved or VersionMismatch.
        """
        return self._run(calls.set_quantity(item_id, quantity, version, request_id), timeout_seconds)

    def batch_change_stock(
        self,
        changes: Sequence[StockChange],
        *,
        atomic: bool = False,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> list[ChangedStock | ShopError]:
        """Change the stock of up to 5,000 items. For each change, returns the items, or its error.

        With `atomic`, all of up to 400 changes are made, or none: then raises ChangesRefused. Without it, a change with
        the error Unavailable was repeated until the deadline, and may have been made: repeat the call with the error's
        `request_id`, and the same changes.
        """
        call = calls.batch_change_stock(changes, atomic, request_id)
        deadline = self._deadline(timeout_seconds)
        outcomes = self._until(call, deadline)
        pauses = transport.Pauses(deadline)
        while any(isinstance(each, Unavailable) for each in outcomes) and (pause := pauses.next()):
            time.sleep(pause)
            try:
                # Repeat the whole call: the server makes only the changes that were not made yet.
                outcomes = self._until(call, deadline)
            except ShopError:
                return outcomes  # with Unavailable for the changes that are not decided
        return outcomes

    def list_items(
        self,
        *,
        product_id: int | None = None,
        location: str | None = None,
        page_size: int = PAGE_SIZE,
        timeout_seconds: float | None = None,
    ) -> Iterator[Item]:
        """Iterate over the items that match, by ascending id. Reads a page when it is needed."""
        return self._pages(calls.list_items(product_id, location, page_size), timeout_seconds)

    def list_past_items(
        self,
        as_of: datetime,
        *,
        product_id: int | None = None,
        location: str | None = None,
        page_size: int = PAGE_SIZE,
        timeout_seconds: float | None = None,
    ) -> Iterator[PastItem]:
        """Iterate over the items that match, with their quantities at an earlier time. Reads a page when needed."""
        return self._pages(calls.list_past_items(as_of, product_id, location, page_size), timeout_seconds)

    def list_movements(
        self,
        *,
        product_id: int | None = None,
        location: str | None = None,
        order_id: str | None = None,
        kind: MovementKind | None = None,
        actor: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = PAGE_SIZE,
        timeout_seconds: float | None = None,
    ) -> Iterator[Movement]:
        """Iterate over the movements that match, newest first. Reads a page when it is needed.

        `created_after` is inclusive, `created_before` exclusive; both need a time zone.
        """
        return self._pages(
            calls.list_movements(product_id, location, order_id, kind, actor, created_after, created_before, page_size),
            timeout_seconds,
        )

    def check_stock(
        self,
        product_id: int,
        required_quantity: int = 1,
        *,
        location: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Stock:
        """Return whether a quantity could be reserved now, and how many units are available. Reserves nothing.

        Concurrent calls without a location are sent as one batch.
        """
        deadline = self._deadline(timeout_seconds)
        together = calls.check_stock_in_batch(product_id, required_quantity, location)
        if together is not None:
            try:
                return self._until_in_batch(together, deadline)
            except InvalidInput:
                pass  # the products of the batch have more items than one response may have
        return self._until(calls.check_stock(product_id, required_quantity, location), deadline)

    def get_availability(
        self, product_ids: Iterable[int], *, by_location: bool = False, timeout_seconds: float | None = None
    ) -> list[Availability]:
        """Return the stock of up to 1,000 products at one moment, in order. Reserves nothing."""
        return self._run(calls.get_availability(product_ids, by_location), timeout_seconds)

    def update_location(
        self,
        location: str,
        *,
        is_active: bool | None = None,
        priority: int | None = None,
        region: str | None = None,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Location:
        """Change the properties of a location that are not None. Nothing is reserved at an inactive location."""
        call = calls.update_location(location, is_active, priority, region, labels, request_id)
        return self._run(call, timeout_seconds)

    def list_locations(self, *, page_size: int = PAGE_SIZE, timeout_seconds: float | None = None) -> Iterator[Location]:
        """Iterate over the locations that were updated, sorted by location. Reads a page when it is needed."""
        return self._pages(calls.list_locations(page_size), timeout_seconds)

    # --- reservations ---

    def reserve(
        self,
        product_id: int,
        quantity: int,
        order_id: str,
        *,
        location: str | None = None,
        ttl_seconds: float | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Reservation:
        """Reserve units of one product for an order, or nothing.

        Concurrent calls of `reserve` and `reserve_lines` are sent as one batch. Raises InsufficientStock.
        """
        line = Line(product_id, quantity, location)
        (reservation,) = self.reserve_lines(
            order_id, [line], ttl_seconds=ttl_seconds, request_id=request_id, timeout_seconds=timeout_seconds
        )
        return reservation

    def reserve_lines(
        self,
        order_id: str,
        lines: Iterable[Line],
        *,
        allow_partial: bool = False,
        ttl_seconds: float | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Reservation]:
        """Reserve all lines of an order, or nothing. Returns one reservation per product. Raises InsufficientStock.

        With `allow_partial`, reserves what is available of each line, and raises InsufficientStock only if nothing is
        available.
        """
        order = OrderLines(order_id, tuple(lines), ttl_seconds, request_id, allow_partial)
        return self._run_in_batch(calls.reserve_lines(order, transport.current_traceparent()), timeout_seconds)

    def batch_reserve(
        self, orders: Sequence[OrderLines], *, timeout_seconds: float | None = None
    ) -> list[list[Reservation] | ShopError]:
        """Reserve stock for up to 500 orders. For each order, returns its reservations, or the error that refused it.

        Orders are decided in sequence and independently of each other.
        """
        traceparent = transport.current_traceparent()
        messages = [calls.order_lines(order, traceparent) for order in orders]
        return self._decided(messages, calls.batch_reserve, timeout_seconds)

    def release(self, reservation_id: str, *, timeout_seconds: float | None = None) -> int:
        """Release a reservation, and return its units, or 0 if it is expired or fulfilled. Repeatable.

        Raises ReservationNotFound.
        """
        return self._run_in_batch(calls.release(reservation_id, transport.current_traceparent()), timeout_seconds)

    def confirm_reservations(
        self, order_id: str, *, retake: bool = False, timeout_seconds: float | None = None
    ) -> list[Reservation]:
        """Confirm all reservations of an order, so that they no longer expire, or none. Repeatable.

        With `retake`, reserves the units of expired reservations again, at the same locations. Raises
        ReservationNotFound, ReservationReleased, and ReservationExpired, or with `retake` InsufficientStock.
        """
        call = calls.confirm_reservations(order_id, retake, transport.current_traceparent())
        deadline = self._deadline(timeout_seconds)
        try:
            return self._until_in_batch(call, deadline)
        except AnswerTooLarge:
            # The reservations are confirmed, but the response of their batch has no room for them.
            return self._until(calls.confirm_reservations_alone(order_id), deadline)

    def extend_reservations(
        self, order_id: str, ttl_seconds: float, *, timeout_seconds: float | None = None
    ) -> list[Reservation]:
        """Let the held reservations of an order expire `ttl_seconds` from now, or later. Repeatable.

        Raises ReservationNotFound, ReservationExpired, ReservationReleased, or ExtensionLimit after 7 days in all.
        """
        return self._run(calls.extend_reservations(order_id, ttl_seconds), timeout_seconds)

    def get_reservation(self, reservation_id: str, *, timeout_seconds: float | None = None) -> Reservation:
        """Return one reservation. Raises ReservationNotFound."""
        return self._run(calls.get_reservation(reservation_id), timeout_seconds)

    def list_reservations(
        self,
        *,
        order_id: str | None = None,
        product_id: int | None = None,
        state: ReservationState | None = None,
        page_size: int = PAGE_SIZE,
        timeout_seconds: float | None = None,
    ) -> Iterator[Reservation]:
        """Iterate over the reservations that match, by ascending id. Reads a page when it is needed."""
        return self._pages(calls.list_reservations(order_id, product_id, state, page_size), timeout_seconds)

    # --- orders ---

    def create_order(
        self,
        user_id: int,
        items: Iterable[NewItem],
        currency: str,
        *,
        charges: Iterable[Charge] = (),
        external_reference: str = "",
        labels: Mapping[str, str] | None = None,
        ttl_seconds: float | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Order:
        """Reserve stock for all items and create a PENDING order. Confirm it before `reserved_until`.

        Concurrent calls are sent as one batch. Raises InsufficientStock, or BuyerLimitExceeded if a line has a
        `buyer_limit`.
        """
        order = NewOrder(
            user_id,
            tuple(items),
            currency,
            ttl_seconds,
            request_id,
            charges=tuple(charges),
            external_reference=external_reference,
            labels=labels or {},
        )
        return self._run_in_batch(calls.create_order(order, transport.current_traceparent()), timeout_seconds)

    def batch_create_orders(
        self, orders: Sequence[NewOrder], *, timeout_seconds: float | None = None
    ) -> list[Order | ShopError]:
        """Create up to 500 orders. For each order, returns the order, or the error that refused it.

        Orders are decided independently of each other. An order with the error Unavailable was repeated until the
        deadline. It may have been created: repeat it with the error's `request_id`.
        """
        traceparent = transport.current_traceparent()
        messages = [calls.new_order(order, traceparent) for order in orders]
        return self._decided(messages, calls.batch_create_orders, timeout_seconds)

    def get_order(self, order_id: str, *, timeout_seconds: float | None = None) -> Order:
        """Return one order, with its history. Raises OrderNotFound."""
        return self._run(calls.get_order(order_id), timeout_seconds)

    def update_order_status(
        self,
        order_id: str,
        status: OrderStatus,
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Order:
        """Change the status of an order. Repeatable: setting the current status again changes nothing.

        Raises OrderNotFound or IllegalTransition; for CONFIRMED also ReservationExpired or ReservationReleased.
        """
        return self._run(calls.update_order_status(order_id, status, reason, request_id), timeout_seconds)

    def create_shipment(
        self,
        order_id: str,
        items: Sequence[ItemUnits] = (),
        *,
        carrier: str = "",
        tracking_number: str = "",
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Order:
        """Ship units of a PROCESSING order; without `items`, all units that are left.

        Raises OrderNotFound, OrderItemNotFound, IllegalTransition, UnitsNotOpen or ShipmentsLimit.
        """
        call = calls.create_shipment(order_id, items, carrier, tracking_number, request_id)
        return self._run(call, timeout_seconds)

    def cancel_order_items(
        self,
        order_id: str,
        items: Sequence[ItemUnits],
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Order:
        """Cancel units of an order that have not shipped. If none is left to ship, the order is CANCELLED or SHIPPED.

        Raises OrderNotFound, OrderItemNotFound, IllegalTransition or UnitsNotOpen.
        """
        return self._run(calls.cancel_order_items(order_id, items, reason, request_id), timeout_seconds)

    def create_return(
        self,
        order_id: str,
        items: Sequence[ReturnedUnits],
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Order:
        """Record that shipped units of an order came back. Soon afterwards, the stock has those to restock or withhold.

        Raises OrderNotFound, OrderItemNotFound, UnitsNotReturnable or ReturnsLimit.
        """
        return self._run(calls.create_return(order_id, items, reason, request_id), timeout_seconds)

    def change_order(
        self,
        order_id: str,
        version: int,
        *,
        items: Sequence[ItemUnits] = (),
        new_items: Sequence[NewItem] = (),
        charges: Sequence[Charge] | None = None,
        currency: str = "",
        reason: str = "",
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Order:
        """Change lines and charges of an order that has this version. New units are reserved before the order changes.

        `items` are lines with the units that they shall keep, `new_items` are lines to add, and `charges` replace those
        of the order if they are not None. `currency` is that of the order; it is needed for new lines and for charges.

        Raises OrderNotFound, OrderItemNotFound, OrderNotChangeable, VersionMismatch, UnitsNotOpen, InsufficientStock,
        BuyerLimitExceeded, ReservationExpired or ReservationReleased.
        """
        call = calls.change_order(order_id, version, items, new_items, charges, currency, reason, request_id)
        return self._run(call, timeout_seconds)

    def extend_order(self, order_id: str, ttl_seconds: float, *, timeout_seconds: float | None = None) -> Order:
        """Hold the stock of a PENDING order until `ttl_seconds` from now, or longer. Repeatable.

        Raises OrderNotFound, OrderNotPending, ReservationExpired, ReservationReleased or ExtensionLimit.
        """
        return self._run(calls.extend_order(order_id, ttl_seconds), timeout_seconds)

    def reinstate_order(
        self, order_id: str, *, reason: str = "", request_id: str | None = None, timeout_seconds: float | None = None
    ) -> Order:
        """Reserve the units of an order again that was cancelled because its reservation expired, and confirm it.

        Raises OrderNotFound, NotReinstatable, InsufficientStock, BuyerLimitExceeded, ReservationReleased or
        ReservationNotFound.
        """
        return self._run(calls.reinstate_order(order_id, reason, request_id), timeout_seconds)

    def list_orders(
        self,
        *,
        user_id: int | None = None,
        status: OrderStatus | None = None,
        statuses: Iterable[OrderStatus] = (),
        product_id: int | None = None,
        external_reference: str | None = None,
        label: tuple[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        updated_after: datetime | None = None,
        updated_before: datetime | None = None,
        page_size: int = PAGE_SIZE,
        timeout_seconds: float | None = None,
    ) -> Iterator[Order]:
        """Iterate over the orders that match, newest first. Reads a page when it is needed.

        `created_after` and `updated_after` are inclusive, `created_before` and `updated_before` exclusive; all need a
        time zone. An order in one of `statuses` matches. `label` is a name and its value. The comment of ListOrders
        lists the filters that cannot be combined.
        """
        call = calls.list_orders(
            user_id=user_id,
            status=status,
            statuses=statuses,
            product_id=product_id,
            external_reference=external_reference,
            label=label,
            created_after=created_after,
            created_before=created_before,
            updated_after=updated_after,
            updated_before=updated_before,
            page_size=page_size,
        )
        return self._pages(call, timeout_seconds)

    def erase_user(self, user_id: int, *, timeout_seconds: float | None = None) -> ErasedUser:
        """Erase a user from the user's orders that are SHIPPED, DELIVERED or CANCELLED, at most 1,000 in one call."""
        return self._run(calls.erase_user(user_id), timeout_seconds)

    def redrive_order_events(
        self, letters: Iterable[tuple[int, int]], *, timeout_seconds: float | None = None
    ) -> list[RedrivenLetter]:
        """Send dead letters of `order-events.dlq` to `order-events` again, 1 to 20 in one call.

        `letters` are positions in the dead-letter topic: pairs of partition and offset. Returns one result per letter,
        in order. Needs the permission admin. Raises BrokerUnavailable.
        """
        return self._run(calls.redrive_order_events(letters), timeout_seconds)

    def redrive_inventory_events(
        self, letters: Iterable[tuple[int, int]], *, timeout_seconds: float | None = None
    ) -> list[RedrivenLetter]:
        """Send dead letters of `inventory-events.dlq` to `inventory-events` again, like `redrive_order_events`."""
        return self._run(calls.redrive_inventory_events(letters), timeout_seconds)

    def get_caller(self, *, timeout_seconds: float | None = None) -> Caller:
        """Return whose credentials this client uses, as order-api sees them."""
        return self._run(calls.get_caller(), timeout_seconds)

    # --- sending ---

    def _pages(self, call: Call[Page[_Value]], timeout_seconds: float | None) -> Iterator[_Value]:
        request: Any = call.request
        while True:
            page = self._run(call, timeout_seconds)
            yield from page.values
            if not page.next_token:
                return
            request.page_token = page.next_token

    def _run(self, call: Call[_Result], timeout_seconds: float | None) -> _Result:
        return self._until(call, self._deadline(timeout_seconds))

    def _until(self, call: Call[_Result], deadline: float) -> _Result:
        pauses = transport.Pauses(deadline)
        while True:
            try:
                return call.read(self._attempt(call, deadline))
            except Unavailable as error:
                time.sleep(pauses.after(error))

    def _decided(
        self,
        messages: Sequence[_Message],
        batch: Callable[[Sequence[_Message]], Call[list[_Value | ShopError]]],
        timeout_seconds: float | None,
    ) -> list[_Value | ShopError]:
        """Send the batch, and repeat its parts with the outcome Unavailable until the deadline."""
        deadline = self._deadline(timeout_seconds)
        outcomes = self._until(batch(messages), deadline)
        pauses = transport.Pauses(deadline)
        while (again := [n for n, each in enumerate(outcomes) if isinstance(each, Unavailable)]) and (
            pause := pauses.next()
        ):
            time.sleep(pause)
            try:
                repeated = self._until(batch([messages[n] for n in again]), deadline)
            except ShopError:
                return outcomes  # with Unavailable for the parts that are not decided
            for n, outcome in zip(again, repeated, strict=True):
                outcomes[n] = outcome
        return outcomes

    def _run_in_batch(self, call: BatchedCall[_Result], timeout_seconds: float | None) -> _Result:
        return self._until_in_batch(call, self._deadline(timeout_seconds))

    def _until_in_batch(self, call: BatchedCall[_Result], deadline: float) -> _Result:
        pauses = transport.Pauses(deadline)
        while True:
            try:
                coalescer = self._connected().coalescers[call.rpc.method.name]
                return call.read(coalescer.submit(call, deadline=deadline, token=self._token()))
            except Unavailable as error:
                time.sleep(pauses.after(error))

    def _attempt(self, call: Call[Any], deadline: float) -> Any:
        metadata = transport.headers(self._token(), transport.current_traceparent())
        method = self._connected().method(call.method)
        try:
            with PROCESS.rpcs:
                return method(call.request, timeout=deadline - time.monotonic(), metadata=metadata)
        except grpc.RpcError as error:
            failed: Any = error
            raise error_of(status_of(failed), call.request_id) from error
        except ValueError as error:
            raise Cancelled(str(error), request_id=call.request_id) from error  # another thread has closed the client

    def _deadline(self, timeout_seconds: float | None) -> float:
        return time.monotonic() + (self._settings.timeout_seconds if timeout_seconds is None else timeout_seconds)

    def _token(self) -> str:
        token = self._settings.token
        value = token() if callable(token) else token
        if inspect.iscoroutine(value):
            value.close()  # otherwise Python warns that nobody has awaited it
        if not isinstance(value, str):
            raise TypeError("Shop needs a function that returns the token; only AsyncShop accepts a coroutine function")
        return value

    def _connected(self) -> "_Connection":
        connection = self._connection
        if connection is not None and connection.generation == PROCESS.generation:
            return connection
        with PROCESS.connecting:
            if self._is_closed:
                raise Cancelled("the client is closed")
            connection = self._connection
            if connection is None or connection.generation != PROCESS.generation:
                PROCESS.inherited.append(connection)
                with PROCESS.rpcs:
                    connection = self._connection = _Connection(self._settings)
            return connection


class _Connection:
    """The channels to both APIs."""

    def __init__(self, settings: Settings) -> None:
        self.generation = PROCESS.generation
        targets = transport.targets(settings, INVENTORY_SERVICE, ORDER_SERVICE)
        credentials = transport.credentials(settings.tls) if settings.tls is not None else None
        self._channels = {
            service: grpc.insecure_channel(target, transport.options(service))
            if credentials is None
            else grpc.secure_channel(target, credentials, transport.options(service))
            for service, target in targets.items()
        }
        self._methods: dict[str, Any] = {}
        self.coalescers = {rpc.method.name: Coalescer(self.method(rpc.method)) for rpc in BATCHED}

    def method(self, method: Method) -> Any:
        """Return the callable of the RPC. Two threads may create the same one, which does no harm."""
        found = self._methods.get(method.name)
        if found is None:
            found = self._methods[method.name] = self._channels[method.service].unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return found

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
