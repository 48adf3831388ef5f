"""The forms below the stock: add, move and count units."""

from collections.abc import Awaitable, Callable

from nicegui import ui

from console.pages.frame import Page, Unusable, act, tag, text, whole
from shop_client.errors import ShopError
from shop_client.values import StockChange

_VIEWS = ("items", "movements")


def read_now(here: Page) -> None:
    """Show a change of stock without waiting for the next read."""
    for view in _VIEWS:
        here.site.feeds.read_now(view)


def add_forms(here: Page, product_id: int | None) -> None:
    """Add the forms. `product_id` is the product that they propose."""
    _add(here, product_id)
    _move(here, product_id)
    _count(here, product_id)


def _add(here: Page, product_id: int | None) -> None:
    with _form("Add stock"):
        product = _number("Product", product_id or 1)
        quantity = _number("Quantity", 10)
        location = ui.input("Location (optional)").props("outlined dense")

        async def add_stock() -> None:
            units, number = whole(quantity), whole(product)

            async def call() -> None:
                await here.viewer.shop.add_stock(number, units, location.value or None)

            question = f"Add {units:,} units of product {number}?"
            await _ask(here, question, "They can be reserved at once.", "Add", call, "The stock was added.")

        ui.button("Add stock", on_click=add_stock).props("no-caps unelevated")


def _move(here: Page, product_id: int | None) -> None:
    with _form("Move stock"):
        product = _number("Product", product_id or 1)
        quantity = _number("Quantity", 1)
        source = ui.input("From location", value="WAREHOUSE_A").props("outlined dense")
        target = ui.input("To location").props("outlined dense")

        async def move() -> None:
            units, number = whole(quantity), whole(product)

            async def call() -> None:
                if not target.value:
                    raise Unusable("Enter the location to which the units move.")
                change = StockChange(number, source.value or None, moved=units, to_location=target.value)
                await _change(here, change)

            question = f"Move {units:,} units of product {number} from {source.value} to {target.value}?"
            await _ask(here, question, "Reserved units stay where they are.", "Move", call, "The stock was moved.")

        ui.button("Move stock", on_click=move).props("no-caps unelevated")


def _count(here: Page, product_id: int | None) -> None:
    with _form("Count stock"):
        product = _number("Product", product_id or 1)
        counted = _number("Counted units", 0, smallest=0)
        location = ui.input("Location", value="WAREHOUSE_A").props("outlined dense")
        reason = ui.input("Reason (optional)").props("outlined dense")

        async def count() -> None:
            units, number = whole(counted), whole(product)
            change = StockChange(number, location.value or None, counted=units, reason=reason.value or "")

            async def call() -> None:
                await _change(here, change)

            question = f"Record {units:,} counted units of product {number} in {location.value}?"
            consequence = "This becomes the quantity, with the reserved units."
            await _ask(here, question, consequence, "Record", call, "The count was recorded.")

        ui.button("Count stock", on_click=count).props("no-caps unelevated")


def _form(title: str) -> ui.element:
    text(title, "h2")
    return tag("div").classes("row-of-fields").props(f'role=group aria-label="{title}"')


def _number(label: str, value: int, *, smallest: int = 1) -> ui.number:
    return ui.number(label, value=value, min=smallest, precision=0).props("outlined dense")


async def _change(here: Page, change: StockChange) -> None:
    """Raises ShopError if the change was refused."""
    (outcome,) = await here.viewer.shop.batch_change_stock([change])
    if isinstance(outcome, ShopError):
        raise outcome


async def _ask(
    here: Page, question: str, consequence: str, verb: str, call: Callable[[], Awaitable[object]], done: str
) -> None:
    if await act(question, consequence, verb, call, done):
        read_now(here)
