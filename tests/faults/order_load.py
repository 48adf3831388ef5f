"""A load of large orders, at a fixed concurrency or at a fixed rate. Every call is recorded, and none is repeated."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money

from shop_protos.order.v1 import order_pb2 as orders
from shop_protos.order.v1.order_pb2_grpc import OrderServiceStub
from tests.faults.clients import SHORT_SECONDS, Clients, outcome_of
from tests.faults.history import Call, CreateOrder

CALL_SECONDS = 5.0
_END_SECONDS = 60
_CHANNELS = 4


class OrderLoad:
    """Orders for one unit of each product of the clients, by each tenant in turn."""

    def __init__(self, clients: Clients) -> None:
        self._call_log = clients.call_log
        self._lines = tuple((product, 1) for product in clients.products)
        price = Money(currency_code="EUR", units=19)
        items = [orders.CreateOrderItem(product_id=product, quantity=n, price=price) for product, n in self._lines]
        self._request = orders.CreateOrderRequest(items=items, ttl=Duration(seconds=SHORT_SECONDS))
        self._access = clients.access
        self._turns = ((user_id, tenant) for user_id in itertools.count(1) for tenant in clients.access.tenants)
        self._pending = 0
        self._changed = threading.Condition()

    def at_concurrency(self, buyers: int, seconds: float) -> float:
        """Keep this many calls outstanding. Returns the number of acknowledged orders a second."""
        with self._stubs() as stubs:
            began = time.monotonic()
            sent: list[Call] = []
            while time.monotonic() < began + seconds:
                with self._changed:
                    self._changed.wait_for(lambda: self._pending < buyers, CALL_SECONDS)
                sent.append(self._send(stubs[len(sent) % _CHANNELS]))
            took = time.monotonic() - began
        return sum(call.fate == "done" for call in sent) / took

    def at_rate(self, rate: float, seconds: float) -> float:
        """Send orders at this rate, whatever the responses.

        Returns the actual rate, which is lower if this machine cannot send so many.
        """
        with self._stubs() as stubs:
            began = time.monotonic()
            sent = 0
            while (now := time.monotonic()) < began + seconds:
                due = int((now - began) * rate)
                for _ in range(sent, due):
                    self._send(stubs[sent % _CHANNELS])
                    sent += 1
                with self._changed:
                    self._changed.wait(1 / rate)
            took = time.monotonic() - began
        return sent / took

    def _send(self, stub: Any) -> Call:
        user_id, tenant = next(self._turns)
        request = orders.CreateOrderRequest()
        request.CopyFrom(self._request)
        request.user_id = user_id
        request.request_id = str(user_id)
        call = self._call_log.open(CreateOrder(user_id, self._lines), request.request_id, tenant)
        with self._changed:
            self._pending += 1
        sent_at = time.monotonic()

        def finish(future: Any) -> None:
            call.add(sent_at, outcome_of(future, lambda response: response.order.id))
            with self._changed:
                self._pending -= 1
                self._changed.notify()

        headers = self._access.headers(tenant)
        stub.CreateOrder.future(request, timeout=CALL_SECONDS, metadata=headers).add_done_callback(finish)
        return call

    @contextmanager
    def _stubs(self) -> Iterator[list[Any]]:
        """Stubs over a few connections. At the end, waits until every call has finished."""
        with ExitStack() as at_the_end:
            target = self._access.orders_target
            channels = [at_the_end.enter_context(self._access.channel(target)) for _ in range(_CHANNELS)]
            yield [OrderServiceStub(channel) for channel in channels]
            with self._changed:
                assert self._changed.wait_for(lambda: self._pending == 0, _END_SECONDS), "calls outlive their deadline"
