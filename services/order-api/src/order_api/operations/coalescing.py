"""The operations that the servicer calls. An operation reaches the database only through coalescers."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from order_api.domain.commands import (
    CANCEL_ITEMS_METHOD,
    CHANGE_METHOD,
    RETURN_METHOD,
    SHIP_METHOD,
    CancelAbandoned,
    CancelItems,
    ChangeLines,
    ChangeStatus,
    EraseUser,
    ExtendOrder,
    NewOrder,
    OrderCommand,
    OrderFilter,
    PurgeKeys,
    Reconcile,
    Reinstate,
    ReturnItems,
    ShipItems,
)
from order_api.domain.errors import OrderNotFound, PartialChangesDisabled
from order_api.domain.model import LINES_MAX, Order, OrderHistory, OrderKey, Status
from order_api.inventory import Inventory
from order_api.operations.abandoned_work import AbandonedWork, Ended
from order_api.operations.change_order import OrderChange
from order_api.operations.change_status import change_status
from order_api.operations.change_units import cancel_items, return_items, ship_items
from order_api.operations.confirm_order import Confirmation
from order_api.operations.create_order import OrderCreation
from order_api.operations.erase_user import Erased, UserErasure
from order_api.operations.extend_order import Extension
from order_api.operations.purge import KeyPurge, Purged
from order_api.operations.reconcile_orders import Reconciled, Reconciliation
from order_api.operations.reinstate_order import Reinstatement
from order_api.operations.stock_calls import StockCalls
from order_api.store import order_lists, orders
from shop_common.api.paging import Page, PageRequest
from shop_common.batching.coalescer import Coalescer
from shop_common.batching.coalescers import Bulk, Coalescers, Sizes, audit_of
from shop_common.db.audit import AuditLog
from shop_common.db.database import Database
from shop_common.errors import BrokerUnavailable, ShopError
from shop_common.events.redrive import Redrive, RedriveResult, Redriving

_Command = TypeVar("_Command", bound=OrderCommand)


def _changes(
    run: Coalescers, name: str, change: Bulk[_Command, Order], kind: type[_Command], method: str
) -> Coalescer[_Command, Order]:
    """Return the coalescer of an operation that changes existing orders. `method` is its name in the audit log."""
    return run.writes(
        name,
        change,
        key=lambda command: command.repeat_key,
        sizes=Sizes[_Command](key=lambda command: command.order_key, read=orders.count_lines, size_max=LINES_MAX),
        audit=audit_of(kind, method, lambda command, _: (command.order_id,)),
    )


class Operations:
    """Every operation of this service.

    `deadline` is the time at which the caller stops waiting, by time.monotonic. Each method raises the ShopError that
    refuses the request, QueueFull if its batch did not start in time, and DatabaseUnavailable if the database did not
    respond. With `audit_log`, changes are recorded there. `redriving` is None if this process has no broker.
    """

    def __init__(
        self,
        database: Database,
        stock: Inventory,
        *,
        on_fatal: Callable[[str, BaseException], None],
        audit_log: AuditLog | None = None,
        redriving: Redriving | None = None,
        partial_changes: bool = True,
    ) -> None:
        run = Coalescers(database, on_fatal, audit_log)
        self.close = run.close
        self._creation = OrderCreation(database, stock, run)
        calls = StockCalls()
        self._confirmation = Confirmation(stock, calls, run, audit_log)
        self._extension = Extension(stock, calls, run)
        self._change = OrderChange(stock, calls, run, audit_log)
        self._reinstatement = Reinstatement(stock, calls, run, audit_log)
        self._set_status = _changes(run, "set-status", change_status, ChangeStatus, CHANGE_METHOD)
        self._partial_changes = partial_changes
        self._ship_items = _changes(run, "ship-items", ship_items, ShipItems, SHIP_METHOD)
        self._cancel_items = _changes(run, "cancel-items", cancel_items, CancelItems, CANCEL_ITEMS_METHOD)
        self._return_items = _changes(run, "return-items", return_items, ReturnItems, RETURN_METHOD)
        self._get_order = run.reads(
            "order",
            orders.get_with_history,
            sizes=Sizes[OrderKey](key=lambda order: order, read=orders.count_lines, size_max=LINES_MAX),
        )
        self._list_orders = run.pages("orders-page", order_lists.list_page)
        self._erase_user = run.alone("erase-user", UserErasure(database, audit_log).erase)
        self._redrive = None if redriving is None else run.alone("redrive", redriving.redrive)
        self._cancel_abandoned = run.alone("cancel-abandoned", AbandonedWork(database, audit_log).end)
        self._reconcile = run.alone("reconcile", Reconciliation(database, stock).run)
        self._purge_keys = run.alone("purge", KeyPurge(database, audit_log).purge)

    def create_order(self, order: NewOrder, *, deadline: float) -> Order:
        return self._creation.create(order, deadline=deadline)

    def create_orders(self, new: Sequence[NewOrder], *, deadline: float) -> list[Order | ShopError]:
        """Create many orders independently. Returns one outcome per order, in order."""
        return self._creation.create_many(new, deadline=deadline)

    def update_status(self, command: ChangeStatus, *, owner: int | None, deadline: float) -> Order:
        """Change the status of an order. A change to CONFIRMED calls inventory-api first. For `owner` see get_order."""
        self._check_owner(command, owner, deadline)
        if command.status is Status.CONFIRMED:
            return self._confirmation.confirm(command, deadline=deadline)
        return self._set_status.submit(command, deadline=deadline)

    def extend(self, command: ExtendOrder, *, owner: int | None, deadline: float) -> Order:
        """Hold the stock of an order for longer. For `owner` see get_order."""
        self._check_owner(command, owner, deadline)
        return self._extension.extend(command, deadline=deadline)

    def reinstate(self, command: Reinstate, *, owner: int | None, deadline: float) -> Order:
        """Reinstate an order. Raises PartialChangesDisabled. For `owner` see get_order."""
        self._check_partial_change(command, owner, deadline)
        return self._reinstatement.reinstate(command, deadline=deadline)

    def change_lines(self, command: ChangeLines, *, owner: int | None, deadline: float) -> Order:
        """Change the lines and the charges of an order. Raises PartialChangesDisabled. For `owner` see get_order."""
        self._check_partial_change(command, owner, deadline)
        return self._change.change(command, deadline=deadline)

    def ship_items(self, command: ShipItems, *, owner: int | None, deadline: float) -> Order:
        """Ship units of an order. Raises PartialChangesDisabled. For `owner` see get_order."""
        self._check_partial_change(command, owner, deadline)
        return self._ship_items.submit(command, deadline=deadline)

    def cancel_items(self, command: CancelItems, *, owner: int | None, deadline: float) -> Order:
        """Cancel units of an order. Raises PartialChangesDisabled. For `owner` see get_order."""
        self._check_partial_change(command, owner, deadline)
        return self._cancel_items.submit(command, deadline=deadline)

    def return_items(self, command: ReturnItems, *, owner: int | None, deadline: float) -> Order:
        """Record that units of an order came back. Raises PartialChangesDisabled. For `owner` see get_order."""
        self._check_partial_change(command, owner, deadline)
        return self._return_items.submit(command, deadline=deadline)

    def _check_partial_change(self, command: OrderCommand, owner: int | None, deadline: float) -> None:
        if not self._partial_changes:
            raise PartialChangesDisabled
        self._check_owner(command, owner, deadline)

    def _check_owner(self, command: OrderCommand, owner: int | None, deadline: float) -> None:
        if owner is not None:
            self.get_order(command.order_key, owner=owner, deadline=deadline)  # no other user ever gets the order

    def get_order(self, key: OrderKey, *, owner: int | None, deadline: float) -> OrderHistory:
        """Return an order with its history. If `owner` is not None, raises OrderNotFound for another user's order."""
        found = self._get_order.submit(key, deadline=deadline)
        if owner not in (None, found.order.user_id):
            raise OrderNotFound(key.id)
        return found

    def list_orders(self, page: PageRequest[OrderFilter], *, deadline: float) -> Page[Order]:
        return self._list_orders.submit(page, deadline=deadline)

    def erase_user(self, command: EraseUser, *, deadline: float) -> Erased:
        """Erase a user from the user's orders that have ended. See UserErasure."""
        return self._erase_user.submit(command, deadline=deadline)

    def redrive(self, command: Redrive, *, deadline: float) -> list[RedriveResult]:
        """Redrive dead letters of the consumed topic. Returns one result per letter, in order. See Redriving.

        Raises BrokerUnavailable.
        """
        if self._redrive is None:
            raise BrokerUnavailable("this process is not connected to Kafka")
        return self._redrive.submit(command, deadline=deadline)

    def cancel_abandoned(self, request: CancelAbandoned, *, deadline: float) -> Ended:
        return self._cancel_abandoned.submit(request, deadline=deadline)

    def reconcile(self, request: Reconcile, *, deadline: float) -> Reconciled:
        return self._reconcile.submit(request, deadline=deadline)

    def purge_keys(self, request: PurgeKeys, *, deadline: float) -> Purged:
        return self._purge_keys.submit(request, deadline=deadline)
