"""Decides what remains of an order after its user was erased. Needs no database."""

from dataclasses import replace
from datetime import datetime

from order_api.domain.model import Order, Status
from shop_common.identity.caller import user_name

NO_USER = 0
"""The user of an erased order. No request may name it."""

ERASABLE = (Status.SHIPPED, Status.DELIVERED, Status.CANCELLED)
"""Orders are erased only after they have left the warehouse: until then, consumers of events need the buyer to ship
them. SHIPPED orders are erased too, because not every shop reports deliveries."""

OPEN = tuple(status for status in Status if status not in ERASABLE)


def erased(order: Order, now: datetime) -> Order:
    """Return the next version of the order without personal data. Lines, amounts, statuses and times remain."""
    return replace(
        order,
        user_id=NO_USER,
        status_reason="",
        version=order.version + 1,
        updated_at=now,
        created_by="" if order.created_by == user_name(str(order.user_id)) else order.created_by,
        external_reference="",
        charges=tuple(replace(each, label="") for each in order.charges),
        labels=(),
        shipments=tuple(replace(each, tracking_number="") for each in order.shipments),
        returns=tuple(replace(each, reason="") for each in order.returns),
    )
