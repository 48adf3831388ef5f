"""Changes the withheld units of an item. Needs no database."""

from dataclasses import replace

from inventory_api.domain.errors import WithholdingsLimit
from inventory_api.domain.model import WITHHOLDINGS_MAX, Item


def with_withheld(item: Item, reason: str, units: int) -> Item | WithholdingsLimit:
    """Return the item, whose withholdings were read, with so many more units withheld for the reason.

    Negative units are given back: the caller has checked that as many are withheld for the reason. Returns
    WithholdingsLimit if units would be withheld for too many reasons.
    """
    by_reason = dict(item.withholdings)
    if reason not in by_reason and len(by_reason) >= WITHHOLDINGS_MAX:
        return WithholdingsLimit(item)
    by_reason[reason] = by_reason.get(reason, 0) + units
    return replace(
        item,
        withheld_quantity=item.withheld_quantity + units,
        withholdings=tuple(sorted((name, count) for name, count in by_reason.items() if count)),
    )
