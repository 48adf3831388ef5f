"""The console in a real browser, in front of real processes."""

import re
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine, text

from shop_client.values import ItemUnits, NewItem, OrderStatus, ReturnedUnits, ReturnTreatment, StockChange
from testkit.eventually import eventually
from tests.console import views
from tests.console.browser import Browser
from tests.console.conftest import System

_VIEWS = ("/", "/orders", "/stock?product=21", "/stock", "/events", "/logs", "/settings")
_SHOWN = r"ready\.|in all|WAREHOUSE|all tenants|ORDER_CREATED[\s\S]*FAILED"
"""A text of each view, when its content is there."""


def _sign_in(page: Browser, token: str) -> None:
    page.open("/")
    page.fill("API key or token", token)
    page.click("Sign in")
    page.sees("processes are ready")


def test_an_order_goes_from_its_creation_to_its_delivery_by_clicking(system: System, page: Browser) -> None:
    _sign_in(page, system.token("acme"))
    page.click("Stock")
    page.sees("There is no stock here")
    page.fill("Product", "11", form="Add stock")
    page.fill("Quantity", "1500", form="Add stock")
    page.fill("Location (optional)", "WAREHOUSE_A", form="Add stock")
    page.act("Add stock", "Add 1,500 units")
    page.sees("1,500")

    page.click("Orders")
    page.sees("There are no orders yet")
    page.fill("Product", "11")
    page.fill("Quantity", "2")
    page.act("Create order", "Create an order")
    page.sees("2 of product 11 reserved")
    for verb, status in (
        ("Confirm", "confirmed"),
        ("Start processing", "processing"),
        ("Mark as shipped", "shipped"),
        ("Mark as delivered", "delivered"),
    ):
        page.act(verb, verb)
        page.sees(f"Order {status}")

    with system.shop("acme") as shop:
        (order,) = shop.list_orders()
        assert (order.status, order.items[0].quantity) == (OrderStatus.DELIVERED, 2)
    page.open("/stock?product=11")
    page.sees("received")
    page.sees("fulfilled")
    page.sees("1,498")
    assert page.errors() == []


def test_a_refusal_is_shown_in_the_words_of_the_api(system: System, page: Browser) -> None:
    _sign_in(page, system.token("poor"))
    page.click("Orders")
    page.fill("Product", "999")
    page.act("Create order", "Create an order")

    page.sees("(INSUFFICIENT_STOCK)")


def test_a_change_by_somebody_else_shows_without_reloading(system: System, page: Browser) -> None:
    with system.shop("live") as shop:
        item = shop.add_stock(12, 40)
        _sign_in(page, system.token("live"))
        page.open("/stock?product=12")
        page.sees("40")

        shop.reserve(12, 7, "an-order")

        page.sees("33")
        page.sees("an-order")
        page.sees("left")
        shop.set_quantity(item.id, 2777)
        page.sees("2,770")


def test_a_quantity_is_set_in_the_question(system: System, page: Browser) -> None:
    with system.shop("counted") as shop:
        item = shop.add_stock(14, 40, "WAREHOUSE_A")
        _sign_in(page, system.token("counted"))
        page.open("/stock?product=14")

        page.act("Adjust product 14 in WAREHOUSE_A", "Set the quantity of product 14", New_quantity="1350")

        page.sees("1,350")
        assert shop.get_item(item.id).quantity == 1350


def test_a_shipment_a_return_and_cancelled_units_are_in_the_order(system: System, page: Browser) -> None:
    with system.shop("partial") as shop:
        shop.add_stock(15, 10)
        order = shop.create_order(1, [NewItem(15, 5, Decimal(1))], "EUR")
        for status in (OrderStatus.CONFIRMED, OrderStatus.PROCESSING):
            shop.update_order_status(order.id, status)
        line = order.items[0].id
        shop.create_shipment(order.id, [ItemUnits(line, 3)], carrier="DHL", tracking_number="TRACK-17")
        shop.cancel_order_items(order.id, [ItemUnits(line, 2)], reason="two were damaged")
        shop.create_return(order.id, [ReturnedUnits(line, 1, ReturnTreatment.DISCARD)], reason="too small")
    _sign_in(page, system.token("partial"))

    page.open(f"/orders/{order.id}")

    for shown in (
        "Shipment of 3 of product 15",
        "DHL TRACK-17",
        "Cancelled",
        "Return of 1 of product 15",
        "by user:staff",
    ):
        page.sees(shown)


def test_some_units_are_shipped_and_returned_by_clicking(system: System, page: Browser) -> None:
    with system.shop("clerk") as shop:
        shop.add_stock(16, 10, "WAREHOUSE_A")
        order = shop.create_order(1, [NewItem(16, 5, Decimal(1))], "EUR")
        for status in (OrderStatus.CONFIRMED, OrderStatus.PROCESSING):
            shop.update_order_status(order.id, status)
        _sign_in(page, system.token("clerk"))
        page.open(f"/orders/{order.id}")

        page.act("Ship some units", "Ship some units", Product_16="3", Carrier="DHL", Tracking_number="TRACK-18")
        page.sees("Shipment of 3 of product 16")
        page.act("Record a return", "Record a return", Product_16="1", Location_of_the_stock="WAREHOUSE_B")
        page.sees("1 restocked in WAREHOUSE_B")
        page.act(
            "Record a return",
            "Record a return",
            choice="Withhold",
            Product_16="1",
            Location_of_the_stock="WAREHOUSE_B",
        )
        page.sees("1 withheld as DAMAGED in WAREHOUSE_B")
        page.act("Record a return", "Record a return", choice="Discard", Product_16="1", Reason="broken")
        page.sees("1 discarded")

        (shipment,) = shop.get_order(order.id).shipments
        assert (shipment.carrier, shipment.tracking_number, shipment.items[0].quantity) == ("DHL", "TRACK-18", 3)
        restocked, withheld, discarded = shop.get_order(order.id).returns
        assert (restocked.items[0].treatment, restocked.items[0].location) == (ReturnTreatment.RESTOCK, "WAREHOUSE_B")
        assert (withheld.items[0].treatment, withheld.items[0].withholding_reason) == (
            ReturnTreatment.WITHHOLD,
            "DAMAGED",
        )
        assert (discarded.items[0].treatment, discarded.reason) == (ReturnTreatment.DISCARD, "broken")
        page.open("/stock?product=16")
        page.sees("Withheld")
        page.sees("returned")
    assert page.errors() == []


def test_a_shipment_without_units_ships_nothing(system: System, page: Browser) -> None:
    with system.shop("careful") as shop:
        shop.add_stock(17, 10)
        order = shop.create_order(1, [NewItem(17, 5, Decimal(1))], "EUR")
        for status in (OrderStatus.CONFIRMED, OrderStatus.PROCESSING):
            shop.update_order_status(order.id, status)
        _sign_in(page, system.token("careful"))
        page.open(f"/orders/{order.id}")

        page.act("Ship some units", "Ship some units", Product_17="0")

        page.sees("Enter the units of at least one line")
        assert shop.get_order(order.id).shipments == ()


def test_stock_is_moved_and_counted_by_clicking(system: System, page: Browser) -> None:
    with system.shop("mover") as shop:
        item = shop.add_stock(18, 40, "WAREHOUSE_A")
        _sign_in(page, system.token("mover"))
        page.open("/stock?product=18")

        for units, target in (("15", "WAREHOUSE_B"), ("999", "WAREHOUSE_B")):
            page.fill("Quantity", units, form="Move stock")
            page.fill("To location", target, form="Move stock")
            page.act("Move stock", f"Move {units} units of product 18 from WAREHOUSE_A to WAREHOUSE_B")
        page.sees("(INSUFFICIENT_STOCK)")
        page.click("Close")
        page.sees("WAREHOUSE_B")
        assert shop.get_item(item.id).quantity == 25

        page.fill("Counted units", "1234", form="Count stock")
        page.fill("Reason (optional)", "yearly", form="Count stock")
        page.act("Count stock", "Record 1,234 counted units of product 18")
        page.sees("counted")
        page.sees("yearly")
        assert shop.get_item(item.id).quantity == 1234

        shop.batch_change_stock([StockChange(18, "WAREHOUSE_A", withheld=1111, reason="DAMAGED")])
        page.sees("+1,111")


def test_a_killed_process_is_red_and_is_green_again_after_its_restart(system: System, page: Browser) -> None:
    _sign_in(page, system.token("acme"))
    relay = system.stack.relay

    relay.kill()

    eventually(lambda: page.state_of("event-relay") == "down")
    page.sees("event-relay does not accept connections")
    relay.start()
    eventually(lambda: page.state_of("event-relay") == "ready")
    page.sees("processes are ready")


def test_a_frozen_process_is_shown_as_frozen(system: System, page: Browser) -> None:
    _sign_in(page, system.token("acme"))
    reaper = system.stack.reaper

    reaper.freeze()
    try:
        eventually(lambda: page.state_of("reservation-reaper") == "frozen")
    finally:
        reaper.thaw()

    eventually(lambda: page.state_of("reservation-reaper") == "ready")


def test_data_of_another_tenant_is_never_there(system: System, page: Browser) -> None:
    with system.shop("owner") as shop:
        shop.add_stock(4711, 10, "SECRET_PLACE")
        order = shop.create_order(1, [NewItem(4711, 1, Decimal(1))], "EUR")
    _set_aside(system, "owner", order.id, "ValueError: in SECRET_PLACE")
    _sign_in(page, system.token("stranger"))

    for path, ready in (
        ("/orders", "There are no orders yet"),
        ("/stock", "There is no stock here"),
        ("/stock?product=4711", "No unit is waiting"),
        ("/events", "There are no recent dead letters"),
        ("/logs", "The logs concern all tenants"),
        ("/settings", "The settings concern all tenants"),
        (f"/orders/{order.id}", "(ORDER_NOT_FOUND)"),
    ):
        page.open(path)
        page.sees(ready)
        assert "SECRET_PLACE" not in page.text()
        assert "reserved for" not in page.text()


def test_events_appear_while_the_viewer_looks_and_are_filtered_by_type_and_id(system: System, page: Browser) -> None:
    with system.shop("eventful") as shop:
        _sign_in(page, system.token("eventful"))
        page.click("Events")
        page.sees("There are no recent events")
        page.sees("There are no recent dead letters")

        shop.add_stock(31, 10)
        order = shop.create_order(1, [NewItem(31, 2, Decimal(1))], "EUR")

        page.sees("ORDER_CREATED")
        page.sees("STOCK_RESERVED")
        page.sees("user:staff")
        _set_aside(system, "eventful", order.id, "ValueError: no such item")
        page.sees("ValueError: no such item")
        page.sees("waiting")

        page.fill("Type", "stock_res")
        page.click("Filter")
        page.sees("STOCK_RESERVED")
        assert "ORDER_CREATED" not in page.text()
        page.open(f"/events?id={order.id}")
        page.sees("ORDER_CREATED")
        assert "STOCK_UPDATED" not in page.text()
        page.click(f"order {order.id[:8]}…")
        page.sees("2 of product 31 reserved")
    assert page.errors() == []


def test_a_dead_letter_is_redriven_when_its_cause_is_mended(system: System, page: Browser) -> None:
    database = create_engine(system.stack.databases.inventory)
    try:
        with system.shop("mended") as shop:
            shop.add_stock(33, 10)
            order = shop.create_order(1, [NewItem(33, 4, Decimal(1))], "EUR")
            with database.begin() as tx:
                tx.execute(
                    text(
                        "CREATE TRIGGER broken BEFORE UPDATE ON stock_reservations WHEN NEW.tenant = 'mended' "
                        "BEGIN SELECT RAISE(ABORT, 'the shelf is locked'); END"
                    )
                )
            shop.update_order_status(order.id, OrderStatus.CANCELLED)
            _sign_in(page, system.token("mended"))
            page.open("/events")
            page.sees("the shelf is locked")
            page.sees("waiting")
            assert shop.check_stock(33).available_quantity == 6
            with database.begin() as tx:
                tx.execute(text("DROP TRIGGER broken"))

            page.act("Redrive", "Redrive this event of the type ORDER_CANCELLED")

            page.sees("The event is on its way to its consumer")
            page.sees("redriven")
            eventually(lambda: shop.check_stock(33).available_quantity == 10)
        with database.begin() as tx:
            audited = tx.execute(text("SELECT caller, tenant FROM audit_log WHERE method = 'RedriveDeadLetters'")).all()
        assert [tuple(row) for row in audited] == [("user:staff", "mended")]
    finally:
        database.dispose()
    assert page.errors() == []


def test_a_viewer_sees_the_events_that_the_permissions_allow(system: System, page: Browser) -> None:
    with system.shop("allowed") as shop:
        shop.add_stock(32, 10)
        order = shop.create_order(1, [NewItem(32, 2, Decimal(1))], "EUR")
    _set_aside(system, "allowed", order.id, "ValueError: a secret")
    _sign_in(page, system.issuer.token("clerk", "inventory.read", "orders.read", tenant="allowed"))

    page.open("/events")

    page.sees("Your permissions allow the events of inventory-events only")
    page.sees("STOCK_RESERVED")
    page.sees("you need the permission admin")
    assert "ORDER_CREATED" not in page.text()
    assert "a secret" not in page.text()


def test_a_viewer_who_may_only_read_has_no_buttons_for_changes(system: System, page: Browser) -> None:
    with system.shop("readers") as shop:
        shop.add_stock(13, 10)
        order = shop.create_order(1, [NewItem(13, 1, Decimal(1))], "EUR")
    _sign_in(page, system.token("readers", may_change=False))

    page.open(f"/orders/{order.id}")
    page.sees("Reservation expires")
    assert "Cancel order" not in page.text()
    page.open("/stock")
    page.sees("WAREHOUSE")
    assert "Adjust" not in page.text()
    assert "Add stock" not in page.text()
    assert "Move stock" not in page.text()


def test_nobody_gets_in_without_a_valid_token_and_no_page_has_the_token(system: System, page: Browser) -> None:
    page.open("/orders")
    page.fill("API key or token", "nonsense")
    page.click("Sign in")
    page.sees("(TOKEN_INVALID)")
    token = system.token("acme")
    _sign_in(page, token)
    assert token not in page.driver.page_source

    page.click("Sign out")
    page.sees("API key or token")
    page.open("/stock")
    page.sees("API key or token")


def test_each_view_fits_its_screen_and_is_accessible(system: System, page: Browser, tmp_path: Path) -> None:
    _fill(system)
    _set_aside(system, "pictures", str(uuid4()), "ItemNotFound: there is no item of product 21 in WAREHOUSE_C")
    _sign_in(page, system.token("pictures"))
    with system.shop("pictures") as shop:
        order = next(shop.list_orders())
    for path in (*_VIEWS, f"/orders/{order.id}"):
        for width in views.sizes(page):
            page.open(path)
            eventually(lambda: re.search(_SHOWN, page.text()))
            views.check(page, _name(path), width, tmp_path)
    views.skip_without_axe()


def _set_aside(system: System, tenant: str, order_id: str, error: str) -> None:
    """Write a dead letter of an order's event, as inventory-api would."""
    origin = {"dlq_topic": "order-events", "dlq_partition": "0", "dlq_offset": "0", "dlq_consumer": "inventory-api"}
    event = {"ce_id": str(uuid4()), "ce_type": "ORDER_CANCELLED", "ce_tenant": tenant}
    reason = {"dlq_reason": "FAILED", "dlq_error": error}
    system.stack.kafka.produce("order-events.dlq", order_id, b"{}", event | origin | reason)


def _name(path: str) -> str:
    """Return the name of the picture of a view."""
    return {
        "/": "system",
        "/orders": "orders",
        "/stock": "stock",
        "/stock?product=21": "product",
        "/events": "events",
        "/logs": "logs-signed-in",
        "/settings": "settings-signed-in",
    }.get(path, "order")


def _fill(system: System) -> None:
    chain = (OrderStatus.CONFIRMED, OrderStatus.PROCESSING, OrderStatus.SHIPPED, OrderStatus.DELIVERED)
    with system.shop("pictures") as shop:
        for product in range(20, 24):
            shop.add_stock(product, 1200, "WAREHOUSE_A")
            shop.add_stock(product, 300 * (product - 19), "WAREHOUSE_B")
        for number in range(9):
            items = [NewItem(20 + number % 4, 30 + 40 * number, Decimal("9.90")), NewItem(21, 3, Decimal("1234.50"))]
            order = shop.create_order(100 + number % 3, items, "EUR")
            for status in chain[: number % 5] if number != 8 else ():
                shop.update_order_status(order.id, status)
        # One of many events, with a shipment.
        order = shop.create_order(7, [NewItem(21, 12, Decimal("9.90")), NewItem(22, 3, Decimal("1234.50"))], "EUR")
        for status in chain[:2]:
            shop.update_order_status(order.id, status)
        shop.create_shipment(order.id, [ItemUnits(order.items[0].id, 8)], carrier="DHL", tracking_number="JD0146000")
        shop.cancel_order_items(order.id, [ItemUnits(order.items[0].id, 4)], reason="damaged")
