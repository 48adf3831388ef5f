"""The client for asyncio.

async with AsyncShop(Settings(inventory_target="localhost:50053", order_target="localhost:50054")) as shop:
await shop.reserve(product_id=1, quantity=2, order_id="order-1")
"""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

import grpc

from shop_client import calls, transport
from shop_client.async_coalescer import AsyncCoalescer
from shop_client.calls import BATCHED, INVENTORY_SERVICE, ORDER_SERVICE, PAGE_SIZE, BatchedCall, Call, Method, Page
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


class AsyncShop:
    """A client of both APIs for one event loop. It connects at the first call.

    It has the methods of `Shop`, as coroutines, and lists as asynchronous iterators. See there for their contracts.
    A task that is cancelled stops waiting at once, but its call may still have its effect.

    The first call decides the event loop. gRPC's asyncio API does not survive a fork, so fork before the first call.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Use the given settings, or else the SHOP_* variables of the environment. Raises ValueError."""
        self._settings = settings or Settings.from_environment()
        self._connection: _Connection | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Running calls end with Cancelled, and so do later calls. May be repeated."""
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # --- stock ---

    async def add_stock(
        self,
        product_id: int,
        quantity: int,
        location: str | None = None,
        *,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Item:
        return await self._run(calls.add_stock(product_id, quantity, location, request_id), timeout_seconds)

    async def get_item(self, item_id: int, *, timeout_seconds: float | None = None) -> Item:
        return await self._run(calls.get_item(item_id), timeout_seconds)

    async def get_past_item(self, item_id: int, as_of: datetime, *, timeout_seconds: float | None = None) -> PastItem:
        return await self._run(calls.get_past_item(item_id, as_of), timeout_seconds)

    async def set_quantity(
        self,
        item_id: int,
        quantity: int,
        *,
        version: int | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Item:
        return await self._run(calls.set_quantity(item_id, quantity, version, request_id), timeout_seconds)

    async def batch_change_stock(
        self,
        changes: Sequence[StockChange],
        *,
        atomic: bool = False,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> list[ChangedStock | ShopError]:
        call = calls.batch_change_stock(changes, atomic, request_id)
        deadline = self._deadline(timeout_seconds)
        outcomes = await self._until(call, deadline)
        pauses = transport.Pauses(deadline)
        while any(isinstance(each, Unavailable) for each in outcomes) and (pause := pauses.next()):
            await asyncio.sleep(pause)
            try:
                # Repeat the whole call: the server makes only the changes that were not made yet.
                outcomes = await self._until(call, deadline)
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
    ) -> AsyncIterator[Item]:
        return self._pages(calls.list_items(product_id, location, page_size), timeout_seconds)

    def list_past_items(
        self,
        as_of: datetime,
        *,
        product_id: int | None = None,
        location: str | None = None,
        page_size: int = PAGE_SIZE,
        timeout_seconds: float | None = None,
    ) -> AsyncIterator[PastItem]:
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
    ) -> AsyncIterator[Movement]:
        return self._pages(
            calls.list_movements(product_id, location, order_id, kind, actor, created_after, created_before, page_size),
            timeout_seconds,
        )

    async def check_stock(
        self,
        product_id: int,
        required_quantity: int = 1,
        *,
        location: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Stock:
        deadline = self._deadline(timeout_seconds)
        together = calls.check_stock_in_batch(product_id, required_quantity, location)
        if together is not None:
            try:
                return await self._until_in_batch(together, deadline)
            except InvalidInput:
                pass  # the products of the batch have more items than one response may have
        return await self._until(calls.check_stock(product_id, required_quantity, location), deadline)

    async def get_availability(
        self, product_ids: Iterable[int], *, by_location: bool = False, timeout_seconds: float | None = None
    ) -> list[Availability]:
        return await self._run(calls.get_availability(product_ids, by_location), timeout_seconds)

    async def update_location(
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
        call = calls.update_location(location, is_active, priority, region, labels, request_id)
        return await self._run(call, timeout_seconds)

    def list_locations(
        self, *, page_size: int = PAGE_SIZE, timeout_seconds: float | None = None
    ) -> AsyncIterator[Location]:
        return self._pages(calls.list_locations(page_size), timeout_seconds)

    # --- reservations ---

    async def reserve(
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
        line = Line(product_id, quantity, location)
        (reservation,) = await self.reserve_lines(
            order_id, [line], ttl_seconds=ttl_seconds, request_id=request_id, timeout_seconds=timeout_seconds
        )
        return reservation

    async def reserve_lines(
        self,
        order_id: str,
        lines: Iterable[Line],
        *,
        allow_partial: bool = False,
        ttl_seconds: float | None = None,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Reservation]:
        order = OrderLines(order_id, tuple(lines), ttl_seconds, request_id, allow_partial)
        return await self._run_in_batch(calls.reserve_lines(order, transport.current_traceparent()), timeout_seconds)

    async def batch_reserve(
        self, orders: Sequence[OrderLines], *, timeout_seconds: float | None = None
    ) -> list[list[Reservation] | ShopError]:
        traceparent = transport.current_traceparent()
        messages = [calls.order_lines(order, traceparent) for order in orders]
        return await self._decided(messages, calls.batch_reserve, timeout_seconds)

    async def release(self, reservation_id: str, *, timeout_seconds: float | None = None) -> int:
        return await self._run_in_batch(calls.release(reservation_id, transport.current_traceparent()), timeout_seconds)

    async def confirm_reservations(
        self, order_id: str, *, retake: bool = False, timeout_seconds: float | None = None
    ) -> list[Reservation]:
        call = calls.confirm_reservations(order_id, retake, transport.current_traceparent())
        deadline = self._deadline(timeout_seconds)
        try:
            return await self._until_in_batch(call, deadline)
        except AnswerTooLarge:
            # The reservations are confirmed, but the response of their batch has no room for them.
            return await self._until(calls.confirm_reservations_alone(order_id), deadline)

    async def extend_reservations(
        self, order_id: str, ttl_seconds: float, *, timeout_seconds: float | None = None
    ) -> list[Reservation]:
        return await self._run(calls.extend_reservations(order_id, ttl_seconds), timeout_seconds)

    async def get_reservation(self, reservation_id: str, *, timeout_seconds: float | None = None) -> Reservation:
        return await self._run(calls.get_reservation(reservation_id), timeout_seconds)

    def list_reservations(
        self,
        *,
        order_id: str | None = None,
        product_id: int | None = None,
        state: ReservationState | None = None,
        page_size: int = PAGE_SIZE,
        timeout_seconds: float | None = None,
    ) -> AsyncIterator[Reservation]:
        return self._pages(calls.list_reservations(order_id, product_id, state, page_size), timeout_seconds)

    # --- orders ---

    async def create_order(
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
        return await self._run_in_batch(calls.create_order(order, transport.current_traceparent()), timeout_seconds)

    async def batch_create_orders(
        self, orders: Sequence[NewOrder], *, timeout_seconds: float | None = None
    ) -> list[Order | ShopError]:
        """Create up to 500 orders. For each order, returns the order, or the error that refused it.

        Orders are decided independently of each other. An order with the error Unavailable was repeated until the
        deadline. It may have been created: repeat it with the error's `request_id`.
        """
        traceparent = transport.current_traceparent()
        messages = [calls.new_order(order, traceparent) for order in orders]
        return await self._decided(messages, calls.batch_create_orders, timeout_seconds)

    async def get_order(self, order_id: str, *, timeout_seconds: float | None = None) -> Order:
        return await self._run(calls.get_order(order_id), timeout_seconds)

    async def update_order_status(
        self,
        order_id: str,
        status: OrderStatus,
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Order:
        return await self._run(calls.update_order_status(order_id, status, reason, request_id), timeout_seconds)

    async def create_shipment(
        self,
        order_id: str,
        items: Sequence[ItemUnits] = (),
        *,
        carrier: str = "",
        tracking_number: str = "",
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Order:
        call = calls.create_shipment(order_id, items, carrier, tracking_number, request_id)
        return await self._run(call, timeout_seconds)

    async def cancel_order_items(
        self,
        order_id: str,
        items: Sequence[ItemUnits],
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Order:
        return await self._run(calls.cancel_order_items(order_id, items, reason, request_id), timeout_seconds)

    async def create_return(
        self,
        order_id: str,
        items: Sequence[ReturnedUnits],
        *,
        reason: str = "",
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Order:
        return await self._run(calls.create_return(order_id, items, reason, request_id), timeout_seconds)

    async def change_order(
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
        call = calls.change_order(order_id, version, items, new_items, charges, currency, reason, request_id)
        return await self._run(call, timeout_seconds)

    async def extend_order(self, order_id: str, ttl_seconds: float, *, timeout_seconds: float | None = None) -> Order:
        return await self._run(calls.extend_order(order_id, ttl_seconds), timeout_seconds)

    async def reinstate_order(
        self, order_id: str, *, reason: str = "", request_id: str | None = None, timeout_seconds: float | None = None
    ) -> Order:
        return await self._run(calls.reinstate_order(order_id, reason, request_id), timeout_seconds)

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
    ) -> AsyncIterator[Order]:
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

    async def erase_user(self, user_id: int, *, timeout_seconds: float | None = None) -> ErasedUser:
        return await self._run(calls.erase_user(user_id), timeout_seconds)

    async def redrive_order_events(
        self, letters: Iterable[tuple[int, int]], *, timeout_seconds: float | None = None
    ) -> list[RedrivenLetter]:
        return await self._run(calls.redrive_order_events(letters), timeout_seconds)

    async def redrive_inventory_events(
        self, letters: Iterable[tuple[int, int]], *, timeout_seconds: float | None = None
    ) -> list[RedrivenLetter]:
        return await self._run(calls.redrive_inventory_events(letters), timeout_seconds)

    async def get_caller(self, *, timeout_seconds: float | None = None) -> Caller:
        return await self._run(calls.get_caller(), timeout_seconds)

    # --- sending ---

    async def _pages(self, call: Call[Page[_Value]], timeout_seconds: float | None) -> AsyncIterator[_Value]:
        request: Any = call.request
        while True:
            page = await self._run(call, timeout_seconds)
            for value in page.values:
                yield value
            if not page.next_token:
                return
            request.page_token = page.next_token

    async def _run(self, call: Call[_Result], timeout_seconds: float | None) -> _Result:
        return await self._until(call, self._deadline(timeout_seconds))

    async def _until(self, call: Call[_Result], deadline: float) -> _Result:
        pauses = transport.Pauses(deadline)
        while True:
            try:
                return call.read(await self._attempt(call, deadline))
            except Unavailable as error:
                await asyncio.sleep(pauses.after(error))

    async def _decided(
        self,
        messages: Sequence[_Message],
        batch: Callable[[Sequence[_Message]], Call[list[_Value | ShopError]]],
        timeout_seconds: float | None,
    ) -> list[_Value | ShopError]:
        """Send the batch, and repeat its parts with the outcome Unavailable until the deadline."""
        deadline = self._deadline(timeout_seconds)
        outcomes = await self._until(batch(messages), deadline)
        pauses = transport.Pauses(deadline)
        while (again := [n for n, each in enumerate(outcomes) if isinstance(each, Unavailable)]) and (
            pause := pauses.next()
        ):
            await asyncio.sleep(pause)
            try:
                repeated = await self._until(batch([messages[n] for n in again]), deadline)
            except ShopError:
                return outcomes  # with Unavailable for the parts that are not decided
            for n, outcome in zip(again, repeated, strict=True):
                outcomes[n] = outcome
        return outcomes

    async def _run_in_batch(self, call: BatchedCall[_Result], timeout_seconds: float | None) -> _Result:
        return await self._until_in_batch(call, self._deadline(timeout_seconds))

    async def _until_in_batch(self, call: BatchedCall[_Result], deadline: float) -> _Result:
        pauses = transport.Pauses(deadline)
        while True:
            try:
                coalescer = self._connected().coalescers[call.rpc.method.name]
                return call.read(await coalescer.submit(call, deadline=deadline, token=await self._token()))
            except Unavailable as error:
                await asyncio.sleep(pauses.after(error))

    async def _attempt(self, call: Call[Any], deadline: float) -> Any:
        metadata = transport.headers(await self._token(), transport.current_traceparent())
        method = self._connected().method(call.method)
        try:
            return await method(call.request, timeout=deadline - time.monotonic(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_of(status_of(error), call.request_id) from error
        except grpc.aio.UsageError as error:
            raise Cancelled(str(error), request_id=call.request_id) from error  # another task has closed the client

    def _deadline(self, timeout_seconds: float | None) -> float:
        return time.monotonic() + (self._settings.timeout_seconds if timeout_seconds is None else timeout_seconds)

    async def _token(self) -> str:
        token = self._settings.token
        value = token() if callable(token) else token
        return await value if inspect.isawaitable(value) else value

    def _connected(self) -> "_Connection":
        connection = self._connection
        if connection is not None and connection.generation != PROCESS.generation:
            raise RuntimeError("the parent process has used this AsyncShop: fork before its first call")
        loop = asyncio.get_running_loop()
        if connection is None:
            if self._is_closed:
                raise Cancelled("the client is closed")
            connection = self._connection = _Connection(self._settings, loop)
        if connection.loop is not loop:
            raise RuntimeError("this AsyncShop belongs to another event loop: create one for each loop")
        return connection


class _Connection:
    """The channels to both APIs, of one event loop."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.generation = PROCESS.generation
        self.loop = loop
        targets = transport.targets(settings, INVENTORY_SERVICE, ORDER_SERVICE)
        credentials = transport.credentials(settings.tls) if settings.tls is not None else None
        self._channels = {
            service: grpc.aio.insecure_channel(target, transport.options(service))
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, transport.options(service))
            for service, target in targets.items()
        }
        self._methods: dict[str, Any] = {}
        self.coalescers = {rpc.method.name: AsyncCoalescer(self.method(rpc.method)) for rpc in BATCHED}

    def method(self, method: Method) -> Any:
        """Return the callable of the RPC."""
        found = self._methods.get(method.name)
        if found is None:
            found = self._methods[method.name] = self._channels[method.service].unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return found

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
