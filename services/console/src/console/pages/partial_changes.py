"""Shipments and returns of some units of an order: a button for each, which asks for the units."""

from collections.abc import Sequence
from functools import partial

from nicegui import ui

from console.pages.frame import Page, Unusable, act, text, whole
from shop_client.values import ItemUnits, Order, OrderItem, OrderStatus, ReturnedUnits, ReturnTreatment

_LINES_MAX = 50
_TREATMENTS = {
    ReturnTreatment.RESTOCK: "Restock: the units can be sold again",
    ReturnTreatment.WITHHOLD: "Withhold: the units are in stock, but not for sale",
    ReturnTreatment.DISCARD: "Discard: the units cannot be sold",
}


def has_actions(order: Order) -> bool:
    """Return whether `add_buttons` would add a button."""
    return bool(_open(order) or _returnable(order))


def add_buttons(here: Page, order: Order) -> None:
    """Add the buttons that the order allows now."""
    if _open(order):
        ui.button("Ship some units", on_click=partial(_ship, here, order)).props("no-caps outline")
    if _returnable(order):
        ui.button("Record a return", on_click=partial(_return, here, order)).props("no-caps outline")


def _open(order: Order) -> list[tuple[OrderItem, int]]:
    """Return the lines with units to ship, and how many these are."""
    if order.status is not OrderStatus.PROCESSING:
        return []
    units = ((line, line.quantity - line.shipped - line.cancelled) for line in order.items)
    return [(line, count) for line, count in units if count > 0]


def _returnable(order: Order) -> list[tuple[OrderItem, int]]:
    """Return the lines with shipped units that have not come back, and how many these are."""
    units = ((line, line.shipped - line.returned) for line in order.items)
    return [(line, count) for line, count in units if count > 0]


class _Units:
    """The fields for the units of each line."""

    def __init__(self, lines: Sequence[tuple[OrderItem, int]], *, are_all: bool) -> None:
        self._fields: list[tuple[OrderItem, ui.number]] = []
        for line, count in lines[:_LINES_MAX]:
            field = ui.number(
                f"Product {line.product_id}: units of {count:,}",
                value=count if are_all else 0,
                min=0,
                max=count,
                precision=0,
            )
            self._fields.append((line, field.props("outlined dense")))
        if len(lines) > _LINES_MAX:
            text(f"These are the first {_LINES_MAX} lines.", classes="soft")

    def chosen(self) -> list[tuple[int, int]]:
        """Return the ids of the lines with their units. Raises Unusable if there are none."""
        found = [(line.id, whole(field)) for line, field in self._fields if field.value]
        if not found:
            # For the API, a shipment without lines ships all open units.
            raise Unusable("Enter the units of at least one line.")
        return found


async def _ship(here: Page, order: Order) -> None:
    units: list[_Units] = []
    texts: list[ui.input] = []

    def add_fields() -> None:
        units.append(_Units(_open(order), are_all=True))
        texts.extend(ui.input(label).props("outlined dense") for label in ("Carrier", "Tracking number"))

    async def ship() -> None:
        carrier, tracking_number = (field.value or "" for field in texts)
        items = [ItemUnits(line, count) for line, count in units[0].chosen()]
        await here.viewer.shop.create_shipment(order.id, items, carrier=carrier, tracking_number=tracking_number)

    consequence = "The goods have left. After the last unit, the order is shipped."
    if await act("Ship some units?", consequence, "Ship", ship, "The shipment was recorded.", add_fields=add_fields):
        here.site.feeds.read_now("order")


async def _return(here: Page, order: Order) -> None:
    units: list[_Units] = []
    texts: list[ui.input] = []
    treatments: list[ui.radio] = []

    def add_fields() -> None:
        units.append(_Units(_returnable(order), are_all=False))
        treatments.append(ui.radio(_TREATMENTS, value=ReturnTreatment.RESTOCK))
        location = ui.input("Location of the stock", value="WAREHOUSE_A").props("outlined dense")
        location.bind_visibility_from(treatments[0], "value", lambda value: value != ReturnTreatment.DISCARD)
        withheld = ui.input("Withheld as", value="DAMAGED").props("outlined dense")
        withheld.bind_visibility_from(treatments[0], "value", value=ReturnTreatment.WITHHOLD)
        texts.extend((location, withheld, ui.input("Reason (optional)").props("outlined dense")))

    async def record() -> None:
        location, withheld, reason = (field.value or "" for field in texts)
        treatment = treatments[0].value
        place = None if treatment is ReturnTreatment.DISCARD else location
        cause = withheld if treatment is ReturnTreatment.WITHHOLD else None
        items = [ReturnedUnits(line, count, treatment, place, cause) for line, count in units[0].chosen()]
        await here.viewer.shop.create_return(order.id, items, reason=reason)

    consequence = "The units have come back. The status of the order stays."
    if await act("Record a return?", consequence, "Record", record, "The return was recorded.", add_fields=add_fields):
        here.site.feeds.read_now("order")
