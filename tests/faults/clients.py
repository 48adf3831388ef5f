"""Clients that order, reserve, release, add, move and withhold stock, and record each call before they send it.

They use channels without gRPC's retries, so that each attempt is recorded. A call without a response is repeated with
its request id, or abandoned. A call with a response is sometimes repeated, as by a client that lost the response. The
seed determines the calls of each client, but not how the calls of several clients interleave.

Each client works for one tenant. Its twin works for another tenant, and begins each operation with the same product,
user, order id and request id. So a row that is looked up without its tenant is often found.
"""

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self
from uuid import UUID

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from google.type.money_pb2 import Money

from shop_protos.inventory.v1 import inventory_pb2 as inventory
from shop_protos.inventory.v1.inventory_pb2_grpc import InventoryServiceStub
from shop_protos.order.v1 import order_pb2 as orders
from shop_protos.order.v1.order_pb2_grpc import OrderServiceStub
from tests.faults.access import Access, Header
from tests.faults.history import (
    DEFECTS,
    EXTENDED,
    AddStock,
    Answer,
    Call,
    CallLog,
    CancelUnits,
    ChangeLines,
    ChangeStatus,
    ChangeStock,
    CreateOrder,
    Info,
    Operation,
    Outcome,
    Read,
    Refusal,
    Release,
    Reserve,
    ReturnUnits,
    ShipUnits,
)
from tests.faults.snapshot import LONG

SHORT_SECONDS = 4
LONG_SECONDS = 7200
CALL_SECONDS = 5.0
GIVE_UP_SECONDS = 45.0
ANSWERED_SECONDS = 120.0
LOCATIONS = ("NORTH", "SOUTH")
UNITS_MAX = 3
_USER_ID_BITS = 40

_DEFINITE = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


_Operation = tuple[Operation, Any, Any, Callable[[Any], str | int]]
"""An operation, the method of the stub, the request, and the function that reads the value of the response."""


class Clients:
    """Clients of one system for some products. All tenants use the same products."""

    def __init__(self, access: Access, call_log: CallLog, products: Sequence[int], seed: int) -> None:
        self.access = access
        self.call_log = call_log
        self.products = products
        self.held_seconds = SHORT_SECONDS
        """The time for which the stock of orders is held."""
        self._seed = seed
        self._added = itertools.count(20)  # each addition has another number of units
        self._done = threading.Event()
        self._failures: list[BaseException] = []

    def at_addresses(self, inventory_target: str, orders_target: str) -> Self:
        """More clients for the same products and with the same call log, which call these addresses."""
        access = self.access.at(inventory_target, orders_target)
        others = type(self)(access, self.call_log, self.products, self._seed + 1)
        others.held_seconds = self.held_seconds
        others._added = self._added
        return others

    @contextmanager
    def working(
        self, count: int = 6, pause_seconds: float = 0.02, weights: tuple[int, int, int] = (6, 3, 1)
    ) -> Iterator[None]:
        """Runs `count` clients until the block ends, the same number for each tenant. Then each finishes its current
        operation.

        `weights` are the relative frequencies of orders, reservations and additions of stock.
        """
        for location in LOCATIONS:
            self.add_stock(location, lambda: next(self._added))
        threads = [threading.Thread(target=self._work, args=(n, pause_seconds, weights)) for n in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            for thread in threads:
                thread.join()
        if self._failures:
            raise self._failures[0]

    def add_stock(self, location: str, units: Callable[[], int]) -> None:
        """Add units of each product of each tenant at the location, in one call per product."""
        for tenant in self.access.tenants:
            with self._client(tenant, "stock") as client:
                for product in self.products:
                    client.add_stock(product, location, units())

    def wait_for(self, more: int, within_seconds: float = ANSWERED_SECONDS) -> None:
        """Wait for this many more acknowledged calls."""
        self._wait(self.call_log.count, more, within_seconds)

    def wait_for_attempts(self, more: int, within_seconds: float = ANSWERED_SECONDS) -> None:
        """Wait for this many more attempts, with any outcome."""
        self._wait(lambda: sum(len(call.attempts) for call in list(self.call_log.calls)), more, within_seconds)

    def _wait(self, count: Callable[[], int], more: int, within_seconds: float) -> None:
        target, deadline = count() + more, time.monotonic() + within_seconds
        while (counted := count()) < target:
            if self._failures:
                raise self._failures[0]
            assert time.monotonic() < deadline, f"{target - counted} of {more} are missing after {within_seconds:g} s"
            self._done.wait(0.05)

    def _work(self, number: int, pause_seconds: float, weights: tuple[int, int, int]) -> None:
        twin, of_tenant = divmod(number, len(self.access.tenants))
        try:
            with self._client(self.access.tenants[of_tenant], str(twin)) as client:
                while not self._done.wait(pause_seconds):
                    client.run_one(weights)
        except BaseException as failure:  # raised again by `_wait` and at the end of `working`
            self._failures.append(failure)

    @contextmanager
    def _client(self, tenant: str, name: str) -> Iterator["_Client"]:
        access = self.access
        with access.channel(access.inventory_target) as to_inventory, access.channel(access.orders_target) as to_orders:
            stubs = InventoryServiceStub(to_inventory), OrderServiceStub(to_orders)
            as_tenant = tenant, access.headers(tenant)
            seed = f"{self._seed}-{name}"
            yield _Client(
                *stubs, self.call_log, self.products, seed, self._added, *as_tenant, held_seconds=self.held_seconds
            )


class _Client:
    def __init__(
        self,
        inventory_api: InventoryServiceStub,
        order_api: OrderServiceStub,
        call_log: CallLog,
        products: Sequence[int],
        seed: str,
        added: Iterator[int],
        tenant: str,
        headers: Sequence[Header],
        *,
        held_seconds: int,
    ) -> None:
        self._inventory_api = inventory_api
        self._order_api = order_api
        self._call_log = call_log
        self._products = products
        self._seed = seed
        self._operations = itertools.count()
        self._chance = random.Random(seed)
        self._added = added
        self._tenant = tenant
        self._headers = headers
        self._held_seconds = held_seconds
        self._order_as_seen: Any = None

    def run_one(self, weights: tuple[int, int, int]) -> None:
        """Run one operation, chosen by the weights, and sometimes read a page or change stock before."""
        # The calls of an operation depend on the responses. So each operation has a new seed, which keeps the twins
        # together.
        self._chance = random.Random(f"{self._seed}-{next(self._operations)}")
        if self._chance.random() < 0.2:
            self._read()
        if self._chance.random() < 0.15:
            self._change_stock()
        (operation,) = self._chance.choices((self._order, self._reserve, self._restock), weights)
        operation()

    def add_stock(self, product: int, location: str, units: int) -> None:
        request = inventory.CreateInventoryItemRequest(product_id=product, location=location, quantity=units)
        operation = AddStock(product, location, units)
        self._call(operation, self._inventory_api.CreateInventoryItem, request, lambda a: a.item.id)

    def _read(self) -> None:
        product = self._chance.choice(self._products)
        items = inventory.ListInventoryItemsRequest(product_id=product)
        reservations = inventory.ListReservationsRequest(product_id=product)
        kind, method, request = self._chance.choice(
            (
                ("items", self._inventory_api.ListInventoryItems, items),
                ("reservations", self._inventory_api.ListReservations, reservations),
                ("orders", self._order_api.ListOrders, orders.ListOrdersRequest()),
            )
        )
        self._call(Read(kind), method, request, lambda page: self._see(row.id for row in getattr(page, kind)))

    def _see(self, ids: Iterable[str | int]) -> int:
        self._call_log.add_page(self._tenant, ids)
        return 0

    def _restock(self) -> None:
        # Each addition has another number of units, so that the checker can match calls with additions.
        self.add_stock(self._chance.choice(self._products), self._chance.choice(LOCATIONS), next(self._added))

    def _change_stock(self) -> None:
        """Move units to the other location, withhold them, or give them back."""
        product, units = self._chance.choice(self._products), self._chance.randint(1, UNITS_MAX)
        here, there = self._chance.sample(LOCATIONS, 2)
        change = inventory.StockChange(product_id=product, location=here)
        movements: tuple[tuple[str, int, int], ...]
        if self._chance.random() < 0.5:
            change.move.to_location, change.move.quantity = there, units
            movements = (here, -units, 0), (there, units, 0)
        else:
            withheld = self._chance.choice((units, -units))
            change.withheld.reason, change.withheld.quantity = "DAMAGED", withheld
            movements = ((here, 0, withheld),)
        request = inventory.BatchChangeStockRequest(changes=[change], atomic=True)
        operation = ChangeStock(product, movements)
        self._call(operation, self._inventory_api.BatchChangeStock, request, lambda a: a.results[0].item.id)

    def _reserve(self) -> None:
        keep = self._chance.random() < 0.2
        order_id = f"{LONG if keep else 'short-'}{self._uuid()}"
        product, units = self._chance.choice(self._products), self._chance.randint(1, UNITS_MAX)
        request = inventory.ReserveStockRequest(
            product_id=product,
            quantity=units,
            order_id=order_id,
            ttl=Duration(seconds=LONG_SECONDS if keep else SHORT_SECONDS),
        )
        operation = Reserve(order_id, product, units)
        held = self._call(operation, self._inventory_api.ReserveStock, request, lambda a: a.reservation.id)
        if held and self._chance.random() < 0.6:
            request_of_release = inventory.ReleaseStockRequest(reservation_id=str(held))
            method = self._inventory_api.ReleaseStock
            release = (Release(str(held)), method, request_of_release, lambda a: a.released_quantity)
            self._call_concurrently([release] * self._chance.randint(1, 3))

    def _order(self) -> None:
        user_id = 1 + self._chance.getrandbits(_USER_ID_BITS)
        products = self._chance.sample(self._products, self._chance.randint(1, len(self._products)))
        lines = tuple((product, self._chance.randint(1, UNITS_MAX)) for product in products)
        request = orders.CreateOrderRequest(
            user_id=user_id,
            items=[orders.CreateOrderItem(product_id=product, quantity=n, price=_PRICE) for product, n in lines],
            ttl=Duration(seconds=self._held_seconds),
        )
        self._order_as_seen = None
        order_id = self._call(CreateOrder(user_id, lines), self._order_api.CreateOrder, request, self._see_order)
        if order_id is None or self._chance.random() < 0.1:
            return
        for steps in self._chance.choice(_COURSES):
            calls = [self._step(step) for step in steps]
            self._call_concurrently([call for call in calls if call is not None])

    def _see_order(self, response: orders.OrderResponse) -> str:
        """Remember the newest order that a response has. Returns its id."""
        order = response.order
        if self._order_as_seen is None or order.version > self._order_as_seen.version:
            self._order_as_seen = order
        return order.id

    def _step(self, step: str) -> _Operation | None:
        """The call of a step for the order as it was last seen. None if it has no units for the step."""
        order = self._order_as_seen
        match step:
            case "change":
                return self._change_lines(order)
            case "ship":
                return self._change_units(order, ShipUnits, self._order_api.CreateShipment, _open)
            case "cancel":
                return self._change_units(order, CancelUnits, self._order_api.CancelOrderItems, _open)
            case "return":
                return self._change_units(order, ReturnUnits, self._order_api.CreateReturn, _with_buyer)
            case "extend":
                longer = orders.ExtendOrderRequest(id=order.id, ttl=Duration(seconds=self._held_seconds))
                return ChangeStatus(order.id, EXTENDED), self._order_api.ExtendOrder, longer, self._see_order
        number = orders.OrderStatus.Value(f"ORDER_STATUS_{step}")
        request = orders.UpdateOrderStatusRequest(id=order.id, status=number)
        return ChangeStatus(order.id, step), self._order_api.UpdateOrderStatus, request, self._see_order

    def _change_units(
        self,
        order: orders.Order,
        operation: Callable[[str, tuple[tuple[int, int], ...]], Operation],
        method: Any,
        available: Callable[[orders.OrderItem], int],
    ) -> _Operation | None:
        """Ship, cancel or return some of the available units of some lines."""
        lines = [item for item in order.items if available(item) > 0]
        if not lines:
            return None
        chosen = self._chance.sample(lines, self._chance.randint(1, len(lines)))
        units = [(item, self._chance.randint(1, available(item))) for item in chosen]
        if operation is ReturnUnits:
            request: Any = orders.CreateReturnRequest(id=order.id, items=[self._returned(*each) for each in units])
        else:
            of_lines = [orders.ItemUnits(item_id=item.id, quantity=count) for item, count in units]
            kind = orders.CreateShipmentRequest if operation is ShipUnits else orders.CancelOrderItemsRequest
            request = kind(id=order.id, items=of_lines)
        by_product = _by_product((item.product_id, count) for item, count in units)
        return operation(order.id, by_product), method, request, self._see_order

    def _returned(self, item: orders.OrderItem, count: int) -> orders.ReturnedUnits:
        chance = self._chance.random()
        if chance < 0.3:
            return orders.ReturnedUnits(item_id=item.id, quantity=count, treatment=orders.RETURN_TREATMENT_DISCARD)
        location = self._chance.choice(LOCATIONS)
        if chance < 0.5:
            return orders.ReturnedUnits(
                item_id=item.id,
                quantity=count,
                treatment=orders.RETURN_TREATMENT_WITHHOLD,
                location=location,
                withholding_reason="DAMAGED",
            )
        return orders.ReturnedUnits(
            item_id=item.id, quantity=count, treatment=orders.RETURN_TREATMENT_RESTOCK, location=location
        )

    def _change_lines(self, order: orders.Order) -> _Operation:
        """Raise or lower lines, remove lines and add lines. One call never does both to the same product."""
        kept = Counter[int]()
        added = Counter[int]()
        fee = orders.Charge(kind=orders.CHARGE_KIND_FEE, amount=Money(currency_code="EUR", units=1))
        request = orders.ChangeOrderRequest(id=order.id, version=order.version)
        request.charges.charges.append(fee)
        for product in self._products:
            lines = [item for item in order.items if item.product_id == product]
            kept[product] = sum(item.quantity - item.cancelled for item in lines)
            line = self._chance.choice(lines) if lines else None
            change = self._chance.choice(("raise", "lower", "remove", "add", "keep", "keep"))
            units = self._chance.randint(1, UNITS_MAX)
            if change in {"lower", "remove"} and line is not None and _open(line) > 0:
                units = _open(line) if change == "remove" else min(units, _open(line))
                kept[product] -= units
                quantity = line.quantity - line.cancelled - units
                request.items.append(orders.ChangedItem(item_id=line.id, quantity=quantity))
            elif change == "raise" and line is not None:
                added[product] = units
                quantity = line.quantity - line.cancelled + units
                request.items.append(orders.ChangedItem(item_id=line.id, quantity=quantity))
            elif change == "add":
                added[product] = units
                request.new_items.append(orders.CreateOrderItem(product_id=product, quantity=units, price=_PRICE))
            if not lines and product not in added:
                del kept[product]
        operation = ChangeLines(order.id, _by_product([*kept.items(), *added.items()]), _by_product(added.items()))
        return operation, self._order_api.ChangeOrder, request, self._see_order

    def _call(
        self, operation: Operation, method: Any, request: Any, read: Callable[[Any], str | int]
    ) -> str | int | None:
        (answer,) = self._call_concurrently([(operation, method, request, read)])
        return answer

    def _call_concurrently(self, operations: Sequence[_Operation]) -> list[str | int | None]:
        """Send all calls at the same time. Repeat, or abandon, each that gets no response.

        Returns the value of the first answer to each call, or None if it had no answer.
        """
        calls = []
        for operation, method, request, read in operations:
            copy = type(request)()
            copy.CopyFrom(request)
            request_id = self._uuid()
            if "request_id" in copy.DESCRIPTOR.fields_by_name:
                copy.request_id = request_id
            _mark(copy, request_id)
            calls.append((self._call_log.open(operation, request_id, self._tenant), method, copy, read))
        retries = self._chance.random() < 0.8
        deadline = time.monotonic() + (GIVE_UP_SECONDS if retries else 0)
        pending = calls
        while pending:
            self._send(pending)
            pending = [each for each in pending if _may_retry(each[0]) and time.monotonic() < deadline]
        if self._chance.random() < 0.1:
            self._send([each for each in calls if each[0].fate == "done"])
        return [call.answers[0] if call.answers else None for call, *_ in calls]

    def _send(self, calls: Sequence[tuple[Call, Any, Any, Callable[[Any], str | int]]]) -> None:
        sent_at = time.monotonic()
        sent = [
            (call, method.future(request, timeout=CALL_SECONDS, metadata=self._headers), read)
            for call, method, request, read in calls
        ]
        for call, answer, read in sent:
            call.add(sent_at, outcome_of(answer, read))

    def _uuid(self) -> str:
        return str(UUID(int=self._chance.getrandbits(128), version=4))


# The steps of an order: statuses, extensions, and changes of some units. Those in one tuple are requested concurrently.
_COURSES = (
    [("CONFIRMED",)],
    [("CONFIRMED",), ("PROCESSING",), ("SHIPPED",), ("DELIVERED",)],
    [("CONFIRMED",), ("PROCESSING",), ("SHIPPED",)],
    [("CONFIRMED",), ("PROCESSING",), ("SHIPPED", "CANCELLED")],
    [("CONFIRMED", "CANCELLED"), ("PROCESSING", "CANCELLED"), ("SHIPPED",)],
    [("extend",), ("extend", "CONFIRMED"), ("extend", "PROCESSING"), ("CANCELLED",)],
    [("extend", "change"), ("extend", "CANCELLED"), ("extend",)],
    [("CONFIRMED", "CONFIRMED"), ("SHIPPED",), ("PROCESSING", "PROCESSING"), ("SHIPPED", "SHIPPED"), ("CANCELLED",)],
    [("CANCELLED", "CANCELLED")],
    [("SHIPPED",), ("CONFIRMED",), ("CANCELLED",)],
    [("CONFIRMED",), ("PROCESSING",), ("ship",), ("change",), ("ship",), ("SHIPPED",), ("return",)],
    [("change",), ("CONFIRMED",), ("change",), ("PROCESSING",), ("change", "ship"), ("SHIPPED", "cancel"), ("return",)],
    [("change", "CONFIRMED"), ("change", "change"), ("PROCESSING",), ("ship", "cancel"), ("change",), ("ship",)],
    [("CONFIRMED",), ("change", "CANCELLED"), ("change",)],
    [("change", "change"), ("cancel",), ("change",)],
    [("CONFIRMED",), ("PROCESSING",), ("SHIPPED",), ("return", "return"), ("DELIVERED",), ("return",)],
    [("CONFIRMED",), ("PROCESSING",), ("ship", "ship"), ("change", "cancel"), ("cancel", "cancel"), ("return",)],
)
_PRICE = Money(currency_code="EUR", units=19, nanos=990_000_000)


def _open(item: orders.OrderItem) -> int:
    """The units of a line that can be shipped or cancelled."""
    return item.quantity - item.shipped - item.cancelled


def _with_buyer(item: orders.OrderItem) -> int:
    """Return how many units of a line the buyer has, which are the units that can be returned."""
    return item.shipped - item.returned


def _by_product(units: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    added = Counter[int]()
    for product, count in units:
        added[product] += count
    return tuple(sorted(added.items()))


def _mark(request: Any, request_id: str) -> None:
    """Write the id of the request into a field that the event of its effect contains."""
    match request:
        case inventory.BatchChangeStockRequest():
            request.changes[0].reference = request_id
        case orders.CreateShipmentRequest():
            request.tracking_number = request_id
        case orders.CancelOrderItemsRequest() | orders.CreateReturnRequest():
            request.reason = request_id
        case orders.ChangeOrderRequest():
            request.charges.charges[0].label = request_id


def _may_retry(call: Call) -> bool:
    return call.fate == "unknown" and DEFECTS.isdisjoint(call.infos)


def outcome_of(answer: Any, read: Callable[[Any], str | int]) -> Outcome:
    """The outcome of a finished call. `read` returns the value of its response."""
    code = answer.code()
    if code is grpc.StatusCode.OK:
        return Answer(read(answer.result()))
    text = str(answer.details())
    if code not in _DEFINITE:
        return Info(code.name, text)
    for key, value in answer.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                info = ErrorInfo()
                if detail.Unpack(info):
                    return Refusal(info.reason, f"{text} {dict(info.metadata)}")
    # Without ErrorInfo the error comes from gRPC itself, for example after a broken connection.
    return Info(code.name, text)
