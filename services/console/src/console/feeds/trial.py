"""Load for the system, and the proof that it keeps its promises: no unit is oversold, and no event is lost."""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from confluent_kafka import KafkaException

from console.feeds.feed import Unreadable
from shop_common.errors import ShopError
from shop_common.events.broker import Broker
from shop_common.events.kafka_connection import KafkaConnection
from shop_common.telemetry import logs
from shop_protos.inventory.v1.inventory_pb2 import GetInventoryItemRequest
from shop_protos.inventory.v1.maintenance_pb2 import (
    STOCK_MISMATCH_KIND_RESERVED_QUANTITY,
    StockMismatch,
    VerifyStockRequest,
)
from shopctl.client import Shop
from shopctl.load.generator import LoadGenerator
from shopctl.watch.scrape import Scrape, scrape

RATE_MAX = 50
"""Orders per second. More would slow the console itself, which sends them."""

LATE_SECONDS = 60.0
"""An event that is missing for longer, although none waits in the database, is lost."""

UNWATCHED_SECONDS = 10.0
"""The load ends when nobody has looked for this time."""

REMEMBERED_MAX = 10_000
ITEMS_MAX = 10_000
_ITEMS = 1_000
_CALL_SECONDS = 5.0
_TOPIC = "order-events"
_TYPE = "ORDER_CREATED"

_log = logs.get(__name__)


@dataclass(frozen=True)
class LoadState:
    """`ordered` orders were created by the load. The ORDER_CREATED of `waiting` of them has not come yet.

    `lost` of them are lost. `oldest_seconds` is how long the oldest event has been waited for.
    """

    rate: int
    ordered: int
    waiting: int
    oldest_seconds: float
    lost: int
    summary: str
    fault: str


@dataclass(frozen=True)
class StockState:
    """How many items were compared with their reservations, and the units that are reserved beyond their stock."""

    verified: int
    mismatches: int
    oversold: int
    has_more: bool


class Ledger:
    """Compares the orders that order-api has acknowledged with their events. Times are in seconds of any clock."""

    def __init__(self) -> None:
        self.ordered = 0
        self.lost = 0
        self._waiting: OrderedDict[str, float] = OrderedDict()
        self._early: OrderedDict[str, None] = OrderedDict()
        """Orders whose event came before the response of CreateOrder, or that somebody else has created."""

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def created(self, order_id: str, now: float) -> None:
        """Note that an order was created."""
        self.ordered += 1
        if order_id in self._early:
            del self._early[order_id]
        else:
            self._waiting[order_id] = now

    def arrived(self, order_id: str) -> None:
        """Note the event of an order. It may be repeated."""
        if self._waiting.pop(order_id, None) is None:
            self._early[order_id] = None
            if len(self._early) > REMEMBERED_MAX:
                self._early.popitem(last=False)

    def oldest_seconds(self, now: float) -> float:
        """Return how long the oldest missing event has been waited for; 0 if none is missing."""
        return now - next(iter(self._waiting.values()), now)

    def give_up(self, now: float) -> None:
        """Count the events as lost that have been missing for LATE_SECONDS. Call it only if none waits to be sent."""
        while self.oldest_seconds(now) > LATE_SECONDS:
            self._waiting.popitem(last=False)
            self.lost += 1


class Load:
    """The load of this console, for all viewers together. `relay_metrics` is the metrics port of event-relay."""

    def __init__(self, shop: Shop, kafka: KafkaConnection, relay_metrics: str | None) -> None:
        self._shop = shop
        self._kafka = kafka
        self._relay_metrics = relay_metrics
        self._lock = threading.Lock()  # guards the fields below
        self._thread: threading.Thread | None = None
        self._rate = 0
        self._looked_at = 0.0
        self._ledger = Ledger()
        self._summary = ""
        self._fault = ""

    @property
    def rate(self) -> int:
        """The orders per second now."""
        with self._lock:
            return self._rate

    async def read(self) -> LoadState:
        """Return the state. The load goes on only while this is called again and again."""
        now = time.monotonic()
        with self._lock:
            self._looked_at = now
            ledger = self._ledger
            return LoadState(
                self._rate,
                ledger.ordered,
                ledger.waiting,
                round(ledger.oldest_seconds(now), 1),
                ledger.lost,
                self._summary,
                self._fault,
            )

    def set_rate(self, rate: int) -> None:
        """Create this many orders a second from now on; 0 ends the load."""
        with self._lock:
            self._rate, self._fault = min(max(rate, 0), RATE_MAX), ""
            self._looked_at = time.monotonic()
            if self._rate and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="load", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the load, and wait until its calls have ended."""
        with self._lock:
            self._rate, self._looked_at, thread = 0, float("-inf"), self._thread
        if thread is not None:
            thread.join(_CALL_SECONDS * 2)

    def _run(self) -> None:
        try:
            with Broker(self._kafka) as broker:
                ends = {(_TOPIC, number): bound.end for number, bound in broker.bounds(_TOPIC).items()}
                broker.start_at(ends)
                while self._goes_on():
                    self._generate(broker)
                    self._follow(broker)
        except (KafkaException, ShopError) as error:
            self._end(f"The load has ended: {error}.")
        except Exception:
            _log.exception("the load has failed")
            self._end("The load has ended. The log of the console has the cause.")

    def _goes_on(self) -> bool:
        """Return whether there is anything to do. If not, the thread must end."""
        with self._lock:
            if self._is_watched() and (self._rate or self._ledger.waiting):
                return True
            self._thread, self._rate = None, 0
            return False

    def _end(self, fault: str) -> None:
        with self._lock:
            self._thread, self._rate, self._fault = None, 0, fault

    def _generate(self, broker: Broker) -> None:
        """Create orders until the rate changes or nobody looks. Raises KafkaException, or ShopError at the start."""
        if not (rate := self._wanted()):
            return
        with LoadGenerator(self._shop, rate, on_order=self._created) as generator:
            while self._wanted() == rate:
                self._follow(broker)
                with self._lock:
                    self._summary = generator.summary()

    def _follow(self, broker: Broker) -> None:
        events, _ = broker.next_events()
        now = time.monotonic()
        with self._lock:
            for event in events:
                if event.header("ce_type") == _TYPE and event.key is not None:
                    self._ledger.arrived(event.key.decode(errors="replace"))
            is_late = self._ledger.oldest_seconds(now) > LATE_SECONDS
        if is_late and self._nothing_is_pending():
            with self._lock:
                self._ledger.give_up(now)

    def _nothing_is_pending(self) -> bool:
        """Return whether event-relay responds and reports that no event waits in a database."""
        found = scrape(self._relay_metrics) if self._relay_metrics else None
        if not isinstance(found, Scrape):
            return False
        pending = found.samples.get("shop_outbox_pending_events", {})
        return bool(pending) and not any(pending.values())

    def _created(self, order_id: str) -> None:
        with self._lock:
            self._ledger.created(order_id, time.monotonic())

    def _wanted(self) -> int:
        with self._lock:
            return self._rate if self._is_watched() else 0

    def _is_watched(self) -> bool:
        return time.monotonic() - self._looked_at < UNWATCHED_SECONDS


class StockCheck:
    """Compares all stock with its reservations."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    async def read(self) -> StockState:
        """Verify up to ITEMS_MAX items. Raises Unreadable if inventory-api does not respond."""
        try:
            return await asyncio.to_thread(self._verify)
        except ShopError as error:
            raise Unreadable(f"The stock cannot be verified now: {error.message}.") from None

    def _verify(self) -> StockState:
        verified, mismatches, oversold, after = 0, 0, 0, 0
        while verified < ITEMS_MAX:
            request = VerifyStockRequest(after_item_id=after, max_count=_ITEMS)
            api = self._shop.inventory_maintenance
            found = self._shop.call(api.VerifyStock, request, timeout_seconds=_CALL_SECONDS)
            verified += found.verified_count
            mismatches += len(found.mismatches)
            oversold += sum(self._oversold(found.mismatches))
            after = found.next_after_item_id
            if not after:
                break
        return StockState(verified, mismatches, oversold, has_more=bool(after))

    def _oversold(self, mismatches: Iterable[StockMismatch]) -> Iterator[int]:
        """Yield the units of each item that are reserved beyond its stock.

        The database refuses to store more reserved units than there are. So only an item whose stored number is wrong
        can be oversold.
        """
        for mismatch in mismatches:
            if mismatch.kind != STOCK_MISMATCH_KIND_RESERVED_QUANTITY:
                continue
            request = GetInventoryItemRequest(id=mismatch.item_id)
            item = self._shop.call(self._shop.inventory.GetInventoryItem, request, timeout_seconds=_CALL_SECONDS).item
            yield max(0, mismatch.expected + item.withheld_quantity - item.quantity)
