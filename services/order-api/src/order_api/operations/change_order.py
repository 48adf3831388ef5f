"""ChangeOrder: other lines and charges of an order that has not been shipped as a whole.

If the order gets more units of a product, the change begins with an intent: a row that states which version the order
will get, and by which change. Then inventory-api reserves the new units for this version, and only then the order
changes. The units that the order has stay reserved. Units that it no longer keeps are released when inventory-api
handles the event, whose targets do not have them.

The intent does not change the order, so it does not block other calls. If another call raises the version of the order
first, the change ends without effect. inventory-api counts the new units as the order's when an event has
the version of the change or a later one, and releases those that the event's targets do not have. So to end an intent
without the change, it is enough to raise the version and emit ORDER_CHANGED with the unchanged lines. No transaction is
open during the call. The state after an interruption, or if events or calls are late:

    before the intent                 nothing happened
    intent, no call                   the order is unchanged; a repeat continues; otherwise CancelAbandonedOrders
                                      ends the intent after STALE_SECONDS
    units reserved, order unchanged   a repeat finds the units reserved and finishes; otherwise CancelAbandonedOrders
                                      ends the intent, and its event releases them
    order changed, no response        a repeat with the same request_id returns the order; another one is refused,
                                      because the version is not the one that it has read
    units reserved, but the limits    the change ends with an event, which releases the new units
    per buyer are now exceeded
    the call is refused               the intent is deleted. If an earlier call for it may still reserve the units, the
                                      intent ends with an event instead
    order cancelled or shipped        the event of the new status releases all units that the order does not keep;
    during the call                   inventory-api refuses a call that comes later
    another change of the order       the change ends with an event, which releases the new units
    during the call
    a late call of an ended intent    inventory-api refuses it if the event was applied, or else the event releases what
                                      it reserves
    a late event of a lower version   inventory-api applies it to the other units only
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from sqlalchemy import Connection
from uuid_utils import uuid7

from order_api.domain import buyer_limits as limits
from order_api.domain import changes
from order_api.domain.buyer_limits import Bought, Purchase
from order_api.domain.changes import BegunChange, Change, ChangeResult
from order_api.domain.commands import CHANGE_ORDER_METHOD, CancelAbandoned, ChangeLines
from order_api.domain.errors import OrderNotFound, VersionMismatch
from order_api.domain.model import CANCELLABLE, LINES_MAX, Order, OrderKey, Status, quantities
from order_api.inventory import Inventory
from order_api.operations.order_turns import in_turns
from order_api.operations.stock_calls import StockCalls
from order_api.store import buyer_limits, intents, orders, tables
from order_api.store.intents import Intent
from order_api.store.orders import Locked
from shop_common.batching.coalescers import Audit, Coalescers, Sizes
from shop_common.db.audit import AuditLog, entry
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS
from shop_common.db.sql import now
from shop_common.errors import Contention, NotFound, QueueFull, Refused, ShopError
from shop_common.identity.caller import Caller

STALE_SECONDS = 60
"""The age from which other calls may end an intent. A call of inventory-api takes less time."""


class OrderChange:
    """Changes orders: two coalesced transactions, and between them at most one call of inventory-api for each."""

    def __init__(self, stock: Inventory, calls: StockCalls, run: Coalescers, audit_log: AuditLog | None = None) -> None:
        self._stock = stock
        self._calls = calls
        self._begin = run.writes(
            "change-begin",
            begin,
            sizes=Sizes[ChangeLines](
                key=lambda command: command.order_key, read=orders.count_lines, size_max=LINES_MAX
            ),
        )
        self._finish = run.writes(
            "change",
            partial(finish, audit_log=audit_log),
            key=lambda result: result.command.repeat_key,
            weigh=lambda result: 1 + len(result.command.new_items),
            sizes=Sizes[ChangeResult](
                key=lambda result: result.command.order_key, read=orders.count_lines, size_max=LINES_MAX
            ),
            audit=Audit[ChangeResult, Order](
                CHANGE_ORDER_METHOD,
                command=lambda result: result.command,
                fold=ChangeResult.folded,
                resources=lambda result, _: (result.command.order_id,),
            ),
        )

    def change(self, command: ChangeLines, *, deadline: float) -> Order:
        """Change the order and return it.

        Raises OrderNotFound, OrderItemNotFound, OrderNotChangeable, VersionMismatch, UnitsNotOpen, BuyerLimitExceeded,
        BuyerOrdersLimit, InvalidInput, Contention, RequestIdReused and the refusals of inventory-api: then the lines of
        the order are unchanged. Raises QueueFull if a transaction or the call did not start in time. Then a repeat
        continues.
        """
        begun = self._begin.submit(command, deadline=deadline)
        refusal = None
        if begun.change_id is not None:
            refusal = self._call(command, begun, deadline)  # failpoint: units-of-a-change
        try:
            # failpoint: before-order-changed
            return self._finish.submit(ChangeResult(command, begun, refusal), deadline=deadline)
        except QueueFull as full:
            if begun.change_id is None:
                raise
            message = "change: the order is unchanged, but the new units may be reserved; a repeat continues"
            raise QueueFull(message) from full

    def _call(self, command: ChangeLines, begun: BegunChange, deadline: float) -> ShopError | None:
        return self._calls.answer(
            lambda seconds_left: self._stock.reserve_additions(command, begun, seconds_left=seconds_left),
            "change",
            deadline,
        )


def begin(tx: Connection, commands: Sequence[ChangeLines]) -> list[BegunChange | ShopError]:
    """Store an intent for each command that needs more stock, or continue the intent of an earlier equal command.

    Returns one outcome per command, in order: the call to make, or the refusal. Refuses with BuyerLimitExceeded and
    BuyerOrdersLimit, as `finish` would, before any unit is reserved. A command that repeats a finished call needs no
    call of inventory-api. Emits nothing, except ORDER_CHANGED for another intent that was never ended.
    """
    repeats = tables.idempotency_keys.are_repeats(tx, [command.claim() for command in commands])
    new = [command for command, is_repeat in zip(commands, repeats, strict=True) if not is_repeat]
    locked = orders.lock(tx, (command.order_key for command in new))
    beginning = _Beginning(locked, intents.of(tx, locked.orders), _Wanted(tx, locked, commands))
    outcomes = [
        BegunChange() if is_repeat else beginning.outcome(command)
        for command, is_repeat in zip(commands, repeats, strict=True)
    ]
    locked.save(tx)
    intents.remove(tx, beginning.ended)
    intents.replace(tx, list(beginning.begun.values()))
    return outcomes


class _Beginning:
    """Decides which changes begin, one after another."""

    def __init__(self, locked: Locked, present: dict[OrderKey, Intent], wanted: "_Wanted") -> None:
        self._locked = locked
        self._present = present
        self._wanted = wanted
        self.begun: dict[OrderKey, Intent] = {}
        self.ended: set[OrderKey] = set()

    def outcome(self, command: ChangeLines) -> BegunChange | ShopError:
        order = self._locked.orders.get(command.order_key)
        if order is None:
            return OrderNotFound(command.order_id)
        change = changes.decide(order, command)
        if isinstance(change, ShopError):
            return change
        if not change.added:
            return BegunChange()
        if order.key in self.ended:
            return _contention(order)
        earlier = self._present.get(order.key)
        intent = _intent(order, command, earlier, self._locked)
        if intent is None:
            return self._refuse_for(self._present[order.key], order, command)
        purchase = self._wanted.purchase(order, change, command)
        refusal = None if purchase is None else self._wanted.bought.refusal(purchase)
        # The units may be reserved if an earlier call has begun this intent. Then `finish` refuses and releases them.
        if refusal is not None and (earlier is None or earlier.change_id != intent.change_id):
            return refusal
        self._present[order.key] = self.begun[order.key] = intent
        return BegunChange(
            intent.change_id,
            intent.version,
            order.status is not Status.PENDING,
            change.added,
            quantities(order.items),
            purchase,
        )

    def _refuse_for(self, other: Intent, order: Order, command: ChangeLines) -> ShopError:
        """Return the refusal of a command because of another change. Ends that change if it is stale."""
        if not _is_stale(other, self._locked):
            return _contention(order)
        _give_up(self._locked, order, command.traceparent, command.caller)
        self.ended.add(order.key)
        del self._present[order.key]
        return VersionMismatch(order.id, command.version, self._locked.orders[order.key].version)


class _Wanted:
    """What buyers want by changes of locked orders, and what they have. Runs one statement if no order has a limit."""

    def __init__(self, tx: Connection, locked: Locked, commands: Sequence[ChangeLines]) -> None:
        self._limits = buyer_limits.of(tx, locked.orders)
        purchases = []
        for command in commands:
            order = locked.orders.get(command.order_key)
            if order is not None and (order.key in self._limits or command.buyer_limits):
                change = changes.decide(order, command)
                if isinstance(change, Change) and (purchase := self.purchase(order, change, command)):
                    purchases.append(purchase)
        # This needs no lock of the buyers, because the limit is checked again before the change is stored.
        self.bought = buyer_limits.bought(tx, purchases) if purchases else Bought({})

    def purchase(self, order: Order, change: Change, command: ChangeLines) -> Purchase | None:
        """Return the purchase of the units that the change adds, or None if none of them has a limit."""
        lowest = limits.lowest(self._limits.get(order.key, {}), command.buyer_limits)
        return limits.of_changed(order, changes.added_units(change), lowest) if lowest else None


def _intent(order: Order, command: ChangeLines, present: Intent | None, locked: Locked) -> Intent | None:
    """Return the intent with which to call inventory-api, or None if another change of the order has begun."""
    version, content = order.version + 1, command.content()
    if present is not None and present.version == version:
        if present.content != content:
            return None
        # The earlier call may still be running, or its response was lost.
        return replace(present, is_uncertain=True, created_at=locked.now)
    # An intent with a lower version has no effect any more. The event of this change will release its units.
    return Intent(order.key, str(uuid7()), version, content, present is not None, locked.now)


def _contention(order: Order) -> Contention:
    return Contention(f"another call changes order {order.id}; read it, then try again")


def _is_stale(intent: Intent, locked: Locked) -> bool:
    return intent.created_at < locked.now - timedelta(seconds=STALE_SECONDS)


def finish(
    tx: Connection, results: Sequence[ChangeResult], audit_log: AuditLog | None = None
) -> list[Order | ShopError]:
    """Change the orders for which inventory-api has reserved the new units, and end the intents.

    Returns one outcome per result, in order. The outcome of a repeated request_id is the order as it is now. Refuses
    with BuyerLimitExceeded and BuyerOrdersLimit. Emits ORDER_CHANGED, or ORDER_CANCELLED or ORDER_SHIPPED if no unit is
    open any more.

    With `audit_log`, writes a row there for each change that is refused and yet raises the version of its order.
    """
    commands = [result.command for result in results]
    # The order is changed only if it still has the version of `begun`. Then the purchase is still right.
    purchases = [each.begun.purchase for each in results if each.begun.purchase and each.refusal is None]
    bought = Bought({})
    if purchases:
        # Lock the buyers before the request_ids and the orders; `buyer_limits.lock` states the sequence of all locks.
        buyer_limits.lock(tx, purchases)
        bought = buyer_limits.bought(tx, purchases)
    claimed = tables.idempotency_keys.claim(tx, results, [command.claim() for command in commands])
    replayed = orders.get(tx, [OrderKey(claim.tenant, claim.resources[0]) for claim in claimed.replays])
    outcomes: list[Order | ShopError] = []
    if claimed.new:
        locked = orders.lock(tx, (result.command.order_key for result in claimed.new))
        finishing = _Finishing(tx, locked, intents.of(tx, locked.orders), bought)
        outcomes = [finishing.outcome(result) for result in claimed.new]
        locked.save(tx)
        intents.remove(tx, finishing.ended)
        if audit_log is not None:
            audit_log.append(
                tx,
                [
                    entry(each.caller, CHANGE_ORDER_METHOD, [each.order_id], each.request_id)
                    for each in finishing.given_up
                ],
            )
    return claimed.settle(tx, replayed=replayed, new=outcomes)


class _Finishing:
    """Decides changes one after another, each on the order as the previous change left it."""

    def __init__(self, tx: Connection, locked: Locked, present: dict[OrderKey, Intent], bought: Bought) -> None:
        self._tx = tx
        self._locked = locked
        self._present = present
        self._bought = bought
        self.ended: list[OrderKey] = []
        self.given_up: list[ChangeLines] = []

    def outcome(self, result: ChangeResult) -> Order | ShopError:
        command, change_id = result.command, result.begun.change_id
        order = self._locked.orders.get(command.order_key)
        if order is None:
            return OrderNotFound(command.order_id)
        intent = self._present.get(order.key)
        is_ours = intent is not None and intent.change_id == change_id
        change = changes.decide(order, command)
        if isinstance(change, ShopError):
            if is_ours:
                self._give_up(order, command)
            return change
        if intent is None or not is_ours:
            if change_id is None and not change.added:
                return self._save(change, command)
            # Another call has ended the intent, or has changed the order after we began.
            return _contention(order)
        if result.refusal is None:
            return self._finish(order, change, command, result.begun.purchase)
        if isinstance(result.refusal, Refused | NotFound):
            if intent.is_uncertain:
                self._give_up(order, command)
            else:
                self._end(order.key)
        # Otherwise the outcome of the call is unknown. The intent stays, and a repeat continues.
        return result.refusal

    def _finish(
        self, order: Order, change: Change, command: ChangeLines, purchase: Purchase | None
    ) -> Order | ShopError:
        if purchase is not None:
            refusal = self._bought.take(purchase)
            if refusal is not None:
                self._give_up(order, command)  # inventory-api has reserved the units: the event releases them
                return refusal
            # The order keeps the limits of the new lines, for later changes and for a reinstatement.
            given = {product_id: purchase.limits[product_id] for product_id in command.buyer_limits}
            buyer_limits.replace(self._tx, order.key, given)
        self._end(order.key)
        return self._save(change, command)

    def _save(self, change: Change, command: ChangeLines) -> Order:
        added = orders.add_lines(self._tx, change.order.key, change.new_items)
        changed = changes.with_new_items(change.order, added)
        return self._locked.change(changed, command.reason, command.traceparent, command.caller.actor)

    def _give_up(self, order: Order, command: ChangeLines) -> None:
        self._end(order.key)
        if _give_up(self._locked, order, command.traceparent, command.caller):
            self.given_up.append(command)

    def _end(self, key: OrderKey) -> None:
        self.ended.append(key)
        del self._present[key]


def _give_up(locked: Locked, order: Order, traceparent: str | None, caller: Caller) -> bool:
    """End an intent without its change: the event lets inventory-api release the units. Returns whether it is needed.

    The event of an order that was cancelled or shipped as a whole releases all units that the order does not keep.
    """
    if order.status not in CANCELLABLE:
        return False
    locked.give_up_change(order.key, traceparent, caller.actor)
    return True


class StaleChanges:
    """Changes of orders of all tenants in one database that began long ago and were never ended."""

    def __init__(self, database: Database, audit_log: AuditLog | None = None) -> None:
        self._database = database
        self._audit_log = audit_log

    def end(self, command: CancelAbandoned) -> int:
        """End up to `max_count` changes without effect, the oldest first. Returns their number. Emits ORDER_CHANGED.

        One query reads all keys; each turn ends some in its own transaction (see in_turns).
        """
        keys: Sequence[OrderKey] = self._database.query(
            lambda tx: intents.begun_before(tx, now(tx) - timedelta(seconds=STALE_SECONDS), command.max_count),
            ALL_TENANTS,
        )
        return in_turns(self._database, keys, partial(self._end, caller=command.caller))

    def _end(self, tx: Connection, keys: Sequence[OrderKey], *, caller: Caller) -> int:
        """End the intents that are still old. Returns their number."""
        locked = orders.lock(tx, keys)
        # A repeat may have continued or ended the intent before we got the lock.
        stale = [key for key, intent in intents.of(tx, locked.orders).items() if _is_stale(intent, locked)]
        changed = [key for key in stale if _give_up(locked, locked.orders[key], None, caller)]
        locked.save(tx)
        intents.remove(tx, stale)
        if self._audit_log is not None and changed:
            self._audit_log.append(tx, [entry(caller, "CancelAbandonedOrders", (key.id for key in changed))])
        return len(stale)
