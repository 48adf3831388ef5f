"""The frame of each page: navigation, the viewer, live sections, and questions before actions."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import tzinfo
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import Request
from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from console import words
from console.feeds.events import EventReader
from console.feeds.feed import FETCH_SECONDS, Feeds, Reading, TooManyViews, in_words
from console.feeds.processes import SystemReader
from console.feeds.settings_in_force import SettingsReader
from console.feeds.trial import Load, StockCheck
from console.site.guard import SESSION_COOKIE, SIGN_IN_PATH
from console.site.viewers import Viewer, Viewers
from shop_client.errors import ShopError
from shop_common.telemetry import tracing

_Value = TypeVar("_Value")

REFRESH_SECONDS = 0.4
_CONNECT_SECONDS = 30.0
_NUMBER_MAX = 2**63 - 1

_VIEWS = {
    "System": "/",
    "Orders": "/orders",
    "Stock": "/stock",
    "Events": "/events",
    "Logs": "/logs",
    "Settings": "/settings",
}
_DEV_VIEWS = {"Try it": "/try"}
_STYLE = resources.files("console.pages").joinpath("style.css").read_text()


class Unusable(Exception):
    """The fields of a question cannot be sent. The message is for the viewer."""


@dataclass(frozen=True)
class Dev:
    """What the console of `dev` can try out. `run_file` has the processes of `dev`."""

    run_file: Path
    load: Load
    stock: StockCheck


@dataclass(frozen=True)
class Site:
    """What all pages share."""

    viewers: Viewers
    feeds: Feeds
    system: SystemReader
    events: EventReader
    logs_path: Path | None
    """The logs that `dev` stores, or None elsewhere."""
    settings: SettingsReader | None
    """None if viewers sign in, because the settings concern all tenants."""
    dev: Dev | None
    """None unless this is the console of `dev`."""


@dataclass(frozen=True)
class Page:
    """One open page in a browser."""

    site: Site
    viewer: Viewer
    zone: tzinfo

    def live(
        self,
        view: str,
        key: object,
        fetch: Callable[[], Awaitable[_Value]],
        render: Callable[[_Value], object],
        *,
        waiting: str = "Reading …",
        every: float = FETCH_SECONDS,
    ) -> None:
        """Add a section that shows the newest value of a feed. `render` adds the elements of a value.

        The feed reads its value again after `every` seconds.
        """
        section = ui.element("section").classes("live")
        seen = -1

        def refresh() -> None:
            nonlocal seen
            if not self.viewer.is_active:
                ui.navigate.to(SIGN_IN_PATH)
                return
            try:
                reading = self.site.feeds.look(view, (self.viewer.id, key), fetch, every=every)
            except TooManyViews:
                reading = Reading(None, "Too many views are open in this console. Close some of them.")
            if reading.version == seen and reading.value is not None:
                return
            seen = reading.version
            section.clear()
            with section:
                if reading.error is not None:
                    text(reading.error, classes="note").props("role=alert")
                if reading.value is not None:
                    render(reading.value)
                elif reading.error is None:
                    text(waiting, classes="soft")

        refresh()
        ui.timer(REFRESH_SECONDS, refresh)


@contextmanager
def page(site: Site, viewer: Viewer, title: str, zone: tzinfo) -> Iterator[Page]:
    """Add the frame of a page. The block adds the view."""
    ui.page_title(f"{title} – Shop console")
    ui.add_css(_STYLE)
    ui.colors(primary="#0b57a4", negative="#b3261e", positive="#146c2e")
    # Quasar renders the page as the element `main`. The navigation must come before it.
    with ui.context.client.layout:
        header = tag("header").classes("top")
        header.move(target_index=0)
    with header:
        text("Shop console", "span", classes="name")
        with tag("nav").props('aria-label="Views"'):
            for name, path in (_VIEWS | (_DEV_VIEWS if site.dev else {})).items():
                link = text(name, "a").props(f'href="{path}"')
                if name == title:
                    link.props('aria-current="page"')
        if site.viewers.sign_in_required:
            text(f"{viewer.name}, {viewer.tenant}", "span", classes="who soft")
            with tag("form").props('method="post" action="/sign-out"'):
                text("Sign out", "button").props("type=submit")
    with tag("div").classes("view"):
        yield Page(site, viewer, zone)


async def viewer_of(site: Site, request: Request) -> tuple[Viewer, tzinfo]:
    """Return the viewer of a page and the viewer's time zone, after the browser has connected.

    Raises PermissionError if the session has ended since the guard checked it.
    """
    viewer = site.viewers.of(request.cookies.get(SESSION_COOKIE))
    if viewer is None:
        raise PermissionError("sign in first")
    await ui.context.client.connected(timeout=_CONNECT_SECONDS)
    name = await ui.run_javascript("Intl.DateTimeFormat().resolvedOptions().timeZone", timeout=_CONNECT_SECONDS)
    return viewer, words.zone_named(name)


def tag(name: str) -> ui.element:
    """Add an element of HTML."""
    return ui.element(name)


def text(content: str, name: str = "p", *, classes: str = "") -> TextElement:
    """Add an element of HTML with text, which the browser never treats as HTML."""
    element = TextElement(tag=name, text=content)
    return element.classes(classes) if classes else element


def order_link(order_id: str) -> None:
    """Add a link to the page of an order."""
    text(order_id, "a").props["href"] = order_path(order_id)


def order_path(order_id: str) -> str:
    """Return the path of the page of an order."""
    return f"/orders/{quote(order_id, safe='')}"


def table(caption: str, columns: Mapping[str, str], rows: Sequence[Sequence[str | Callable[[], Any]]]) -> None:
    """Add a table. `columns` maps each title to the class of its cells. A cell is text or a function that adds it."""
    # A wide table scrolls by itself, also with the keyboard.
    with tag("div").classes("scroll").props(f'tabindex=0 role=region aria-label="{caption}"'), tag("table"):
        with tag("thead"), tag("tr"):
            for title, classes in columns.items():
                text(title, "th", classes=classes).props("scope=col")
        with tag("tbody"):
            for row in rows:
                with tag("tr"):
                    for cell, classes in zip(row, columns.values(), strict=True):
                        if isinstance(cell, str):
                            text(cell, "td", classes=classes)
                        else:
                            with tag("td").classes(classes):
                                cell()


def whole(field: ui.number) -> int:
    """Return the number in a field, or 0 if it is empty. The APIs name the field whose number they refuse.

    A number that does not fit into a field of a message becomes the nearest one that fits.
    """
    return int(min(max(field.value or 0, -_NUMBER_MAX), _NUMBER_MAX))


def state(name: str) -> None:
    """Add the name of a status in its colour."""
    text(name.lower(), "span", classes=f"state {name}")


async def act(
    question: str,
    consequence: str,
    verb: str,
    action: Callable[[], Awaitable[object]],
    done: str,
    *,
    add_fields: Callable[[], object] | None = None,
) -> bool:
    """Ask once, then run the action and show how it ended. Returns whether it was done.

    `add_fields` adds the fields that the question has.
    """
    # A live section may remove the button that was clicked. So the dialog with the question is an element of the page,
    # outside the section. The dialog has no animation, since its buttons must not move while the viewer clicks on them.
    with (
        ui.context.client.content,
        ui.dialog().props("transition-duration=0") as dialog,
        tag("div").classes("question"),
    ):
        text(question, "h2")
        text(consequence)
        if add_fields is not None:
            add_fields()
        with tag("div").classes("actions"):
            ui.button(verb, on_click=lambda: dialog.submit(True)).props("no-caps unelevated").classes("confirm")
            ui.button("Back", on_click=lambda: dialog.submit(False)).props("no-caps outline")
    is_confirmed = await dialog
    with dialog.client.content:
        dialog.delete()
        return bool(is_confirmed) and await _run(verb, action, done)


async def _run(verb: str, action: Callable[[], Awaitable[object]], done: str) -> bool:
    """Run an action and show how it ended. Returns whether it was done."""
    content = ui.context.client.content
    try:
        with tracing.span(verb):
            await action()
    except (ShopError, Unusable) as error:
        message = in_words(error) if isinstance(error, ShopError) else str(error)
        with content:
            # It stays until it is closed, so that slow readers do not miss it.
            ui.notify(message, type="negative", timeout=0, close_button="Close")
        return False
    with content:
        ui.notify(done, type="positive")
    return True
