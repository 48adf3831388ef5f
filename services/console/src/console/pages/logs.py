"""The view of the logs of dev's processes: the newest lines, filtered by process, level and text."""

from datetime import datetime
from functools import partial

from fastapi import Request
from nicegui import ui

from console import words
from console.feeds.logs import LINES_MAX, Lines, LogFilter, LogTail
from console.pages.frame import Page, Site, page, tag, text, viewer_of
from shopctl.system.layout import CONSOLE, INVENTORY_API, ORDER_API, REAPER, RELAY
from shopctl.system.log_book import LEVELS, Line

_WORDS_MAX = 200
_PROCESSES = (INVENTORY_API, ORDER_API, REAPER, RELAY, CONSOLE, "dev")


def add(site: Site) -> None:
    @ui.page("/logs")
    async def logs(request: Request, process: str = "", level: str = "", contains: str = "") -> None:
        viewer, zone = await viewer_of(site, request)
        chosen = LogFilter(
            process if process in _PROCESSES else "", level if level in LEVELS else LEVELS[0], contains[:_WORDS_MAX]
        )
        with page(site, viewer, "Logs", zone) as here:
            text("Logs", "h1")
            if site.logs_path is None:
                text(_why_empty(site), classes="empty")
                return
            _filters(chosen)
            with tag("div").classes("newest").props('tabindex=0 role=region aria-label="Log lines"'):
                here.live("logs", chosen, LogTail(site.logs_path, chosen).read, partial(_list, here, chosen))


def _why_empty(site: Site) -> str:
    if site.viewers.sign_in_required:
        return (
            "The logs concern all tenants, so the console shows them only where viewers do not sign in. On the machine "
            "of ./task dev, run ./task logs."
        )
    return (
        "Only ./task dev stores logs for the console. Elsewhere, look where your platform collects the output of the "
        "processes, for example with docker compose logs or kubectl logs."
    )


def _filters(chosen: LogFilter) -> None:
    # A plain form of HTML, so that the filter is part of the address.
    with tag("form").classes("row-of-fields").props('method="get" action="/logs" aria-label="Filter"'):
        _select("Process", "process", {"": "all", **{name: name for name in _PROCESSES}}, chosen.process)
        _select("Level", "level", {name: f"{name} or higher" for name in LEVELS}, chosen.level)
        with text("Contains ", "label"):
            field = tag("input").props(f'name="contains" maxlength="{_WORDS_MAX}"')
            field.props["value"] = chosen.words
        text("Filter", "button").props("type=submit")


def _select(title: str, name: str, values: dict[str, str], chosen: str) -> None:
    with text(f"{title} ", "label"), tag("select").props(f'name="{name}"'):
        for value, shown in values.items():
            option = text(shown, "option")
            option.props["value"] = value
            if value == chosen:
                option.props("selected")


def _list(here: Page, chosen: LogFilter, found: Lines) -> None:
    if not found.rows:
        is_filtered = chosen != LogFilter()
        text("No line matches the filter." if is_filtered else "No line is stored yet.", classes="empty")
        return
    if found.has_older:
        text(f"The newest {LINES_MAX:,} lines. ./task logs shows older ones.", classes="soft older")
    with tag("ol").classes("logs"):
        for line in found.rows:
            _line(here, line)


def _line(here: Page, line: Line) -> None:
    with tag("li").classes(line.level):
        text(words.clock(datetime.fromisoformat(line.time), here.zone), "span", classes="soft time")
        text(line.process, "span", classes="soft process")
        text(line.line, "span", classes="line")
