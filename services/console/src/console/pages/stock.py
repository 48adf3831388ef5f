"""The view of stock: bars by product and location, reservations with their time left, and movements."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import groupby

from fastapi import Request
from nicegui import ui

from console import words
from console.feeds import shop
from console.feeds.shop import Rows
from console.pages import stock_forms
from console.pages.frame import Page, Site, act, order_link, page, table, tag, text, viewer_of, whole
from shop_client.values import Item, Movement, Reservation

_ITEMS_MAX = 200


def add(site: Site) -> None:
    @ui.page("/stock")
    async def stock(request: Request, product: str = "") -> None:
        viewer, zone = await viewer_of(site, request)
        product_id = int(product) if product.isdecimal() and int(product) else None
        with page(site, viewer, "Stock", zone) as here:
            text("Stock" if product_id is None else f"Stock of product {product_id}", "h1")
            _filter(product_id)
            fetch = partial(shop.items, viewer.shop, product_id, _ITEMS_MAX)
            here.live("items", product_id, fetch, partial(_items, here, product_id))
            if product_id is not None:
                text("Reservations that are not confirmed", "h2")
                held = partial(shop.held_reservations, viewer.shop, product_id)
                here.live("held", product_id, partial(_with_now, held), _held)
                text("Movements", "h2")
                moved = partial(shop.movements, viewer.shop, product_id)
                here.live("movements", product_id, moved, partial(_movements, here))
            if viewer.may.change_stock:
                stock_forms.add_forms(here, product_id)


def _filter(product_id: int | None) -> None:
    with tag("form").classes("row-of-fields").props('method="get" action="/stock" aria-label="Filter"'):
        with text("Product ", "label"):
            field = tag("input").props('name="product" inputmode="numeric" size="8"')
            field.props["value"] = str(product_id or "")
        text("Show", "button").props("type=submit")


def _items(here: Page, product_id: int | None, found: Rows[Item]) -> None:
    if not found.rows:
        text("There is no stock here. Add some below, or run ./task seed-data.", classes="empty")
        return
    with tag("p"):
        text("", "span", classes="key available")
        text("available", "span")
        text("", "span", classes="key reserved")
        text("reserved", "span")
        text("", "span", classes="key withheld")
        text("withheld", "span")
    columns = {
        # A phone has no room for this column, and the title of the page shows the product.
        "Product": "" if product_id is None else "phone-off",
        "Location": "",
        "Stock": "",
        "Available": "number",
        "Reserved": "number phone-off",
        "Withheld": "number phone-off",
    }
    if here.viewer.may.change_stock:
        columns["Change"] = ""
    ordered = sorted(found.rows, key=lambda item: (item.product_id, item.location))
    largest = {product: max(item.quantity for item in items) for product, items in _by_product(ordered)}
    table("Stock", columns, [_row(here, item, largest[item.product_id]) for item in ordered])
    if found.has_more:
        text(f"The first {len(found.rows):,} rows. Show one product to see all of its locations.", classes="soft")


def _by_product(ordered: Sequence[Item]) -> list[tuple[int, list[Item]]]:
    return [(product, list(items)) for product, items in groupby(ordered, key=lambda item: item.product_id)]


def _row(here: Page, item: Item, largest: int) -> list[str | Callable[[], object]]:
    return [
        partial(_link, item.product_id),
        item.location,
        partial(_bar, item, largest),
        words.whole(item.available_quantity),
        words.whole(item.reserved_quantity),
        words.whole(item.withheld_quantity),
        *([partial(_adjust, here, item)] if here.viewer.may.change_stock else []),
    ]


def _link(product_id: int) -> None:
    text(f"{product_id}", "a").props(f'href="/stock?product={product_id}"')


def _bar(item: Item, largest: int) -> None:
    """Add the bar of an item. The bars of a product have the same scale."""
    parts = (
        ("available", item.available_quantity),
        ("reserved", item.reserved_quantity),
        ("withheld", item.withheld_quantity),
    )
    label = ", ".join(f"{units:,} {name}" for name, units in parts)
    with tag("div").classes("bar").props(f'role=img aria-label="{label}"'):
        for name, units in parts:
            tag("div").classes(name).style(f"width: {100 * units / max(largest, 1):.2f}%")


def _adjust(here: Page, item: Item) -> None:
    async def clicked() -> None:
        fields: list[ui.number] = []

        def add_fields() -> None:
            field = ui.number("New quantity", value=item.quantity, min=0, precision=0).props("outlined dense")
            fields.append(field)

        async def change() -> None:
            (quantity,) = fields
            # With the version, the API refuses the change if somebody else has changed the item meanwhile.
            await here.viewer.shop.set_quantity(item.id, whole(quantity), version=item.version)

        question = f"Set the quantity of product {item.product_id} in {item.location}"
        bound = f"{item.reserved_quantity:,} are reserved and {item.withheld_quantity:,} withheld"
        present = f"It is {item.quantity:,}, of which {bound}."
        if await act(question, present, "Set", change, "The quantity was set.", add_fields=add_fields):
            stock_forms.read_now(here)

    label = f"Adjust product {item.product_id} in {item.location}"
    button = ui.button("Adjust", on_click=clicked).props("no-caps outline dense padding='2px 10px'")
    button.props["aria-label"] = label


async def _with_now(
    fetch: Callable[[], Awaitable[Rows[Reservation]]],
) -> tuple[Rows[Reservation], datetime]:
    """Return the reservations with the current second, so that the time left is rendered again each second."""
    return await fetch(), datetime.now(UTC).replace(microsecond=0)


def _held(found: tuple[Rows[Reservation], datetime]) -> None:
    reservations, now = found
    if not reservations.rows:
        text("No unit is waiting for a confirmation.", classes="empty")
        return
    columns = {"Order": "id", "Quantity": "number", "Time left": "time"}
    rows: list[Sequence[str | Callable[[], object]]] = [
        [
            partial(order_link, each.order_id),
            words.whole(each.quantity),
            words.countdown(each.expires_at, now) if each.expires_at else words.NONE,
        ]
        for each in reservations.rows
    ]
    table("Reservations that are not confirmed", columns, rows)
    if reservations.has_more:
        text(f"The first {len(reservations.rows):,}.", classes="soft")


def _movements(here: Page, found: Rows[Movement]) -> None:
    if not found.rows:
        text("No movement is known. Each change of the stock adds one.", classes="empty")
        return
    columns = {
        "Time": "time",
        "Kind": "",
        "Change": "number",
        "Units after": "number phone-off",
        "Withheld": "number phone-off",
        "Location": "",
        "Order or reason": "id phone-off",
        "By": "id phone-off",
    }
    table("Movements", columns, [_movement(here, each) for each in found.rows])
    if found.has_more:
        text(f"The newest {len(found.rows):,}.", classes="soft")


def _movement(here: Page, movement: Movement) -> list[str | Callable[[], object]]:
    return [
        words.at(movement.created_at, here.zone),
        movement.kind.lower(),
        _difference(movement.quantity),
        words.whole(movement.quantity_after),
        _difference(movement.withheld),
        movement.location,
        partial(order_link, movement.order_id) if movement.order_id else movement.reason,
        movement.actor,
    ]


def _difference(units: int) -> str:
    return f"{units:+,}" if units else words.NONE
