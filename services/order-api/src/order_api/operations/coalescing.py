"""The operations as the servicer calls them: each behind coalescers, which are their only way to the database."""

from collections.abc import Callable
from functools import partial

from order_api.domain.model import LINES_MAX, Order, Status
from order_api.inventory import Inventory
from order_api.operations import history, transitions
from order_api.operations.confirming import Confirming
from order_api.operations.history import PurgeRequest
from order_api.operations.placing import Placing
from order_api.operations.transitions import AbandonedRequest, Step
from order_api.store import orders
from shop_common.batching.coalesced import ALONE, LISTS, Coalesced, Sizes, one_by_one
from shop_common.batching.coalescer import Coalescer
from shop_common.db.database import Database


class Operations:
    """Every operation of this service by name: call it with a request and a deadline."""

    def __init__(self, database: Database, stock: Inventory, *, die: Callable[[str, BaseException], None]) -> None:
        run = Coalesced(database, die)
        self.close = run.close

        self.place = Placing(database, stock, run)
        self._confirm = Confirming(stock, run)
        self._set_status = run.writes(
            "set-status",
            transitions.set_status,
            key=lambda step: step.request_id,
            sizes=Sizes[Step](of=lambda step: step.order_id, read=orders.count_lines, most=LINES_MAX),
        )

        self.order = run.reads("order", orders.get, sizes=Sizes[str](of=str, read=orders.count_lines, most=LINES_MAX))
        self.orders_page = run.reads("orders-page", one_by_one(orders.list_page), limits=LISTS)

        cancel, purge = partial(transitions.cancel_abandoned, database), partial(history.purge_keys, database)
        self.cancel_abandoned: Coalescer[AbandonedRequest, int] = run.own(
            "cancel-abandoned", lambda requests: list(map(cancel, requests)), limits=ALONE
        )
        self.purge_keys: Coalescer[PurgeRequest, int] = run.own(
            "purge", lambda requests: list(map(purge, requests)), limits=ALONE
        )

    def set_status(self, step: Step, *, deadline: float) -> Order:
        """Take the step; to CONFIRMED by way of inventory-api."""
        take = self._confirm if step.status is Status.CONFIRMED else self._set_status
        return take(step, deadline=deadline)
