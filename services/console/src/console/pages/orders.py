"""The views of orders: a list with filters, a form to create one, and the timeline of one order."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import partial
from urllib.parse import urlencode

from fastapi import Request
from nicegui import ui

from console import words
from console.feeds import shop
from console.feeds.shop import NEXT_STATUSES, PAGE_ROWS, OrderDetails, OrderFilter, Rows
from console.pages import partial_changes
from console.pages.frame import Page, Site, act, order_link, order_path, page, state, table, tag, text, viewer_of, whole
from shop_client.values import NewItem, Order, OrderStatus, Reservation

_ROWS_MAX = 450
_CURRENCY = "EUR"

_VERBS = {
    OrderStatus.CONFIRMED: ("Confirm", "Its reserved stock is confirmed. A confirmed order does not expire."),
    OrderStatus.PROCESSING: ("Start processing", "The order is being prepared."),
    OrderStatus.SHIPPED: ("Mark as shipped", "The goods have left. The order cannot be cancelled afterwards."),
    OrderStatus.DELIVERED: ("Mark as delivered", "The customer has the goods. This is the last status of an order."),
    OrderStatus.CANCELLED: ("Cancel order", "Its stock becomes available to others. This cannot be undone."),
}


def add(site: Site) -> None:
    @ui.page("/orders")
    async def orders(request: Request, user: str = "", status: str = "", rows: int = PAGE_ROWS) -> None:
        viewer, zone = await viewer_of(site, request)
        chosen = OrderFilter(
            int(user) if user.isdecimal() and int(user) else None,
            OrderStatus(status) if status in OrderStatus.__members__ else None,
            min(max(rows, 1), _ROWS_MAX),
        )
        with page(site, viewer, "Orders", zone) as here:
            text("Orders", "h1")
            _filters(chosen)
            here.live("orders", chosen, partial(shop.orders, viewer.shop, chosen), partial(_list, here, chosen))
            if viewer.may.change_orders:
                _form(here)

    @ui.page("/orders/{order_id}")
    async def order(request: Request, order_id: str) -> None:
        viewer, zone = await viewer_of(site, request)
        with page(site, viewer, "Orders", zone) as here:
            text("← All orders", "a").props('href="/orders"')
            text(f"Order {order_id}", "h1")
            here.live("order", order_id, partial(shop.order, viewer.shop, order_id), partial(_details, here))


def _filters(chosen: OrderFilter) -> None:
    # A plain form of HTML: the filter is part of the address, so a filtered list can be bookmarked and sent.
    with tag("form").classes("row-of-fields").props('method="get" action="/orders" aria-label="Filter"'):
        with text("User id ", "label"):
            field = tag("input").props('name="user" inputmode="numeric" size="8"')
            field.props["value"] = str(chosen.user_id or "")
        with text("Status ", "label"), tag("select").props('name="status"'):
            for status in (None, *NEXT_STATUSES, OrderStatus.DELIVERED, OrderStatus.CANCELLED):
                option = text(status.lower() if status else "any", "option")
                option.props["value"] = status.value if status else ""
                if status is chosen.status:
                    option.props("selected")
        text("Filter", "button").props("type=submit")


def _list(here: Page, chosen: OrderFilter, found: Rows[Order]) -> None:
    if not found.rows:
        is_filtered = chosen.user_id is not None or chosen.status is not None
        text(
            "No order matches the filter. Choose other values, or show all orders."
            if is_filtered
            else "There are no orders yet. Create one below, or run ./task test-grpc or ./task load.",
            classes="empty",
        )
        return
    columns = {
        "Order": "id",
        "Status": "",
        "User": "number phone-off",
        "Total": "number",
        "Lines": "number phone-off",
        "Created": "time phone-off",
    }
    table("Orders", columns, [_row(here, order) for order in found.rows])
    if not found.has_more:
        text(f"{len(found.rows):,} in all.", classes="soft")
    elif chosen.rows < _ROWS_MAX:
        more = {"rows": chosen.rows * 3, "user": chosen.user_id or "", "status": chosen.status or ""}
        text(f"Show more than the newest {chosen.rows:,}", "a").props["href"] = f"/orders?{urlencode(more)}"
    else:
        text(f"The newest {len(found.rows):,}. Use a filter to find older ones.", classes="soft")


def _row(here: Page, order: Order) -> list[str | Callable[[], object]]:
    return [
        partial(order_link, order.id),
        partial(state, order.status),
        f"{order.user_id}" if order.user_id else "erased",
        words.amount(order.total_amount, order.currency),
        words.whole(len(order.items)),
        words.at(order.created_at, here.zone),
    ]


def _details(here: Page, found: OrderDetails) -> None:
    order = found.order
    with tag("div").classes("headline"):
        state(order.status)
        text(f" {words.amount(order.total_amount, order.currency)}, {words.buyer(order.user_id)}", "span")
        if order.status_reason:
            text(f"Reason: {order.status_reason}", "div", classes="soft")
    next_statuses = NEXT_STATUSES.get(order.status, ())
    if here.viewer.may.change_orders and (next_statuses or partial_changes.has_actions(order)):
        with tag("div").classes("actions"):
            for status in next_statuses:
                _button(here, order, status)
            partial_changes.add_buttons(here, order)
    text("Timeline", "h2")
    _timeline(here, found)
    text("Lines", "h2")
    _lines(order)
    text("Reservations", "h2")
    _reservations(here, found.reservations)


def _button(here: Page, order: Order, status: OrderStatus) -> None:
    verb, consequence = _VERBS[status]

    async def change() -> None:
        await here.viewer.shop.update_order_status(order.id, status)

    async def clicked() -> None:
        if await act(f"{verb}?", consequence, verb, change, f"The order is {status.lower()}."):
            here.site.feeds.read_now("order")

    button = ui.button(verb, on_click=clicked).props("no-caps")
    button.props("outline color=negative" if status is OrderStatus.CANCELLED else "unelevated")


def _lines(order: Order) -> None:
    """Add the table of the lines. Shipped, cancelled and returned units have columns if there are any."""
    columns = {"Product": "", "Quantity": "number"}
    rows = [[f"{line.product_id}", f"{line.quantity:,}"] for line in order.items]
    partly = {
        "Shipped": [line.shipped for line in order.items],
        "Cancelled": [line.cancelled for line in order.items],
        "Returned": [line.returned for line in order.items],
    }
    for title, units in partly.items():
        if any(units):
            columns[title] = "number"
            for row, count in zip(rows, units, strict=True):
                row.append(f"{count:,}")
    columns["Price"] = "number"
    for row, line in zip(rows, order.items, strict=True):
        row.append(words.amount(line.price, order.currency))
    table("Lines", columns, rows)


def _timeline(here: Page, found: OrderDetails) -> None:
    now = datetime.now(UTC)
    with tag("ol").classes("timeline"):
        for event in shop.timeline(found):
            with tag("li").classes("due" if event.at > now else ""):
                text(event.title, "div", classes="what")
                text(words.at(event.at, here.zone), "div", classes="soft time")
                if event.detail:
                    text(event.detail, "div", classes="detail")


def _reservations(here: Page, found: Rows[Reservation]) -> None:
    if not found.rows:
        text("Nothing is reserved for this order.", classes="empty")
        return
    columns = {"Product": "", "Quantity": "number", "State": "", "Expires": "time"}
    table("Reservations", columns, [_reservation(here, each) for each in found.rows])


def _reservation(here: Page, each: Reservation) -> list[str | Callable[[], object]]:
    expires = words.at(each.expires_at, here.zone) if each.expires_at else words.NONE
    return [f"{each.product_id}", words.whole(each.quantity), partial(state, each.state), expires]


def _form(here: Page) -> None:
    """Add the form that creates an order with one line."""
    text("Create an order", "h2")
    with tag("div").classes("row-of-fields").props('role=group aria-label="Create an order"'):
        user = ui.number("User id", value=1, min=1, precision=0).props("outlined dense")
        product = ui.number("Product", value=1, min=1, precision=0).props("outlined dense")
        quantity = ui.number("Quantity", value=1, min=1, precision=0).props("outlined dense")
        price = ui.input("Price of one", value="9.90").props("outlined dense inputmode=decimal")

        async def create() -> None:
            try:
                item = NewItem(whole(product), whole(quantity), Decimal(price.value or "0"))
            except InvalidOperation:
                ui.notify("The price must be a number, such as 9.90.", type="negative")
                return
            created: list[Order] = []

            async def call() -> None:
                created.append(await here.viewer.shop.create_order(whole(user), [item], _CURRENCY))

            question = f"Create an order of {item.quantity:,} × product {item.product_id}?"
            if await act(question, "Its stock is reserved at once.", "Create", call, "The order was created."):
                ui.navigate.to(order_path(created[0].id))

        ui.button("Create order", on_click=create).props("no-caps unelevated")
