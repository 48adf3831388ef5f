"""The view of the events and the dead letters of the viewer's tenant."""

from collections.abc import Callable
from functools import partial
from urllib.parse import quote

from fastapi import Request
from nicegui import ui

from console import words
from console.feeds.events import EVENT_TOPICS, LETTER_TOPICS, ROWS_MAX, EventFilter, Events, ShownEvent
from console.pages.frame import Page, Site, Unusable, act, order_path, page, table, tag, text, viewer_of
from console.site.viewers import Permissions
from shop_client.values import RedriveOutcome

_TEXT_MAX = 100
_ORDER_EVENTS, _STOCK_EVENTS = EVENT_TOPICS
_ORDER_LETTERS, _ = LETTER_TOPICS
_COLUMNS = {"Time": "time", "Event": "kind", "By": "phone-off", "Content": "phone-off data"}
# The state is the first column, so that a phone shows the button without scrolling.
_LETTER_COLUMNS = {
    "State": "",
    "Time": "time",
    "Type": "",
    "Reason": "",
    "Error": "data",
    "Set aside by": "phone-off",
    "Position": "phone-off time",
}
_NOT_REDRIVEN = {
    RedriveOutcome.ALREADY_REDRIVEN: "The letter was redriven before. It was not sent again.",
    RedriveOutcome.NOT_FOUND: "The letter is no longer in its topic.",
    RedriveOutcome.NOT_REDRIVABLE: "This letter can only be redriven with ./task dlq redrive.",
}


def add(site: Site) -> None:
    @ui.page("/events")
    async def events(request: Request, type: str = "", id: str = "") -> None:  # noqa: A002 - parts of the address
        viewer, zone = await viewer_of(site, request)
        with page(site, viewer, "Events", zone) as here:
            text("Events", "h1")
            if not site.events.is_connected:
                text(
                    "This console is not connected to the broker. Set KAFKA_BOOTSTRAP_SERVERS, or run "
                    "./task kafka-consume-orders and ./task dlq.",
                    classes="empty",
                )
                return
            _add_events(here, type[:_TEXT_MAX].strip(), id[:_TEXT_MAX].strip())
            _add_dead_letters(here)


def _add_events(here: Page, type_: str, id_: str) -> None:
    topics = _readable(here.viewer.may)
    if not topics:
        text("To see events, you need the permission inventory.read, or orders.read and orders.any.", classes="empty")
        return
    if len(topics) < len(EVENT_TOPICS):
        text(f"Your permissions allow the events of {topics[0]} only.", classes="soft")
    # A plain form of HTML, so that the filter is part of the address.
    with tag("form").classes("row-of-fields").props('method="get" action="/events" aria-label="Filter"'):
        for title, name, value in (("Type", "type", type_), ("Order, product or other id", "id", id_)):
            with text(f"{title} ", "label"):
                field = tag("input").props(f'name="{name}" maxlength="{_TEXT_MAX}"')
                field.props["value"] = value
        text("Filter", "button").props("type=submit")
    chosen = EventFilter(topics, type_, id_)
    here.live(
        "events", chosen, partial(here.site.events.read, here.viewer.tenant, chosen), partial(_list, here, chosen)
    )


def _readable(may: Permissions) -> tuple[str, ...]:
    """Return the topics whose events the viewer could also learn from the APIs."""
    allowed = {_ORDER_EVENTS: may.read_all_orders, _STOCK_EVENTS: may.read_stock}
    return tuple(topic for topic in EVENT_TOPICS if allowed[topic])


def _list(here: Page, chosen: EventFilter, found: Events) -> None:
    if not found.rows:
        is_filtered = bool(chosen.type or chosen.id)
        text(
            "No recent event matches the filter. New ones appear here."
            if is_filtered
            else "There are no recent events. Create an order, and its events appear here.",
            classes="empty",
        )
        return
    if found.has_older:
        text(f"The newest {ROWS_MAX:,} events. ./task kafka-consume-orders shows older ones.", classes="soft older")
    table("Events", _COLUMNS, [_row(here, event) for event in found.rows])


def _row(here: Page, event: ShownEvent) -> list[str | Callable[[], object]]:
    return [
        words.clock(event.at, here.zone),
        partial(_kind, event),
        event.actor or words.NONE,
        partial(text, event.data, "div", classes="clamped"),
    ]


def _kind(event: ShownEvent) -> None:
    """Add the type of an event, and the order or product that it is about."""
    text(event.type or words.NONE, "div")
    if event.topic == _ORDER_EVENTS:
        # The first eight characters are enough to tell orders apart on a page.
        shown = f"order {event.key[:8]}…" if len(event.key) > 8 else f"order {event.key}"
        text(shown, "a").props["href"] = order_path(event.key)
    else:
        product = event.key.rpartition("/")[2]  # the key of another tenant than the default one begins with its name
        text(f"product {product}", "a").props["href"] = f"/stock?product={quote(product, safe='')}"


def _add_dead_letters(here: Page) -> None:
    text("Dead letters", "h2")
    if not here.viewer.may.administer:
        text("To see dead letters, you need the permission admin.", classes="empty")
        return
    text("Events that a process could not handle. It set them aside and went on.", classes="soft")
    chosen = EventFilter(LETTER_TOPICS)
    read = partial(here.site.events.read, here.viewer.tenant, chosen)
    here.live("dead letters", None, read, partial(_list_letters, here))


def _list_letters(here: Page, found: Events) -> None:
    if not found.rows:
        text("There are no recent dead letters.", classes="empty")
        return
    if any(not letter.is_redriven for letter in found.rows):
        text("When the cause is mended, redrive a letter: its consumer handles the event again.", classes="note")
    table("Dead letters", _LETTER_COLUMNS, [_letter_row(here, letter) for letter in found.rows])


def _letter_row(here: Page, letter: ShownEvent) -> list[str | partial[None]]:
    return [
        partial(_state, here, letter),
        words.at(letter.at, here.zone),
        letter.type or words.NONE,
        letter.reason or words.NONE,
        letter.error or words.NONE,
        letter.consumer or words.NONE,
        f"{letter.topic} {letter.partition}:{letter.offset}",
    ]


def _state(here: Page, letter: ShownEvent) -> None:
    if letter.is_redriven:
        text("redriven", "span", classes="state ready")
        return
    with tag("div").classes("with-action"):
        text("waiting", "span", classes="state starting")
        button = ui.button("Redrive", on_click=partial(_ask_to_redrive, here, letter)).props("no-caps outline")
    # The type of a letter may be any text, so it must not be parsed as properties.
    button.props["aria-label"] = f"Redrive {letter.type or 'letter'} at {letter.partition}:{letter.offset}"


async def _ask_to_redrive(here: Page, letter: ShownEvent) -> None:
    """Ask whether to redrive a letter, and say what came of it."""

    async def redrive() -> None:
        shop = here.viewer.shop
        send = shop.redrive_order_events if letter.topic == _ORDER_LETTERS else shop.redrive_inventory_events
        (result,) = await send([(letter.partition, letter.offset)])
        if result.outcome is not RedriveOutcome.REDRIVEN:
            raise Unusable(_NOT_REDRIVEN.get(result.outcome, f"The letter was not redriven: {result.outcome}."))

    await act(
        f"Redrive this event of the type {letter.type or 'unknown'}?",
        f"{letter.consumer or 'Its consumer'} handles it again, after the events that have come since. Mend the cause "
        "first: if the event fails again, it becomes a new dead letter.",
        "Redrive",
        redrive,
        "The event is on its way to its consumer.",
    )
