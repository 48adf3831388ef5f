"""The operations as the servicer calls them: each behind a coalescer, which is their only way to the database."""

from collections.abc import Callable
from functools import partial

from inventory_api.operations import reserve, sizes, stock, transitions
from inventory_api.operations.expiry import Expiry
from inventory_api.operations.history import History, Purged, PurgeRequest
from inventory_api.store import reservation_pages, reservations
from shop_common.batching.coalesced import ALONE, LISTS, Coalesced, one_by_one
from shop_common.batching.coalescer import Coalescer
from shop_common.db.database import Database


class Operations:
    """Every operation of this service by name: call it with a request and a deadline."""

    def __init__(self, database: Database, *, ttl_seconds: float, die: Callable[[str, BaseException], None]) -> None:
        run = Coalesced(database, die)
        self.close = run.close

        self.reserve = run.writes(
            "reserve",
            partial(reserve.reserve, default_ttl_seconds=ttl_seconds),
            key=lambda order: order.request_id,
            weigh=lambda order: len(order.lines),
        )
        self.release = run.writes(
            "release", transitions.release, key=lambda request: request.reservation_id, sizes=sizes.RELEASES
        )
        self.confirm = run.writes("confirm", transitions.confirm, key=lambda order: order.order_id, sizes=sizes.ORDERS)
        self.add_stock = run.writes("add-stock", stock.add, key=lambda request: request.request_id)
        self.set_quantity = run.writes("set-quantity", stock.set_quantity, key=lambda request: request.request_id)

        self.check_stock = run.reads("check-stock", stock.check, sizes=sizes.QUESTIONS)
        self.item = run.reads("item", stock.get)
        self.reservation = run.reads("reservation", reservations.get, sizes=sizes.RESERVATIONS)
        self.items_page = run.reads("items-page", one_by_one(stock.list_page), limits=LISTS)
        self.reservations_page = run.reads("reservations-page", one_by_one(reservation_pages.list_page), limits=LISTS)

        expiry = Expiry(database)
        self.expire: Coalescer[int, int] = run.own(
            "expire", lambda counts: list(map(expiry.expire_due, counts)), limits=ALONE
        )
        history = History(database)
        self.purge: Coalescer[PurgeRequest, Purged] = run.own(
            "purge", lambda requests: list(map(history.purge, requests)), limits=ALONE
        )
