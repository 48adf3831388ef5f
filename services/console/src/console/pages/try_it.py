"""The view in which the viewer of a `dev` makes load, and ends and freezes processes, to see that nothing is lost."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastapi import Request
from nicegui import ui

from console import words
from console.feeds.processes import SystemState
from console.feeds.trial import RATE_MAX, Load, LoadState, StockState
from console.pages.frame import Page, Site, Unusable, act, page, state, tag, text, viewer_of
from shopctl.system import runfile
from shopctl.system.layout import INVENTORY_API, ORDER_API, REAPER, RELAY
from shopctl.system.runfile import NotRunning, RunFile
from shopctl.system.running import end_gracefully, signal_group
from shopctl.terminal.failures import CommandFailed

_VERIFY_SECONDS = 2.0
_CONSEQUENCES = {
    INVENTORY_API: "While it is away, no stock is read or changed, and no order is created.",
    ORDER_API: "While it is away, no order is read or changed. Stock can still be reserved.",
    REAPER: "While it is away, due reservations expire only when a request needs their units.",
    RELAY: "While it is away, events wait in the databases.",
}


def add(site: Site) -> None:
    @ui.page("/try")
    async def try_it(request: Request) -> None:
        viewer, zone = await viewer_of(site, request)
        with page(site, viewer, "Try it", zone) as here:
            text("Try it", "h1")
            if site.dev is None:
                text("Only the console of ./task dev can end and freeze processes.", classes="empty")
                return
            text(
                "Let orders come in, and kill or freeze a process meanwhile. dev starts a process again when it has "
                "ended. Both numbers stay 0.",
                classes="soft",
            )
            with tag("div").classes("proofs"):
                here.live("stock check", None, site.dev.stock.read, _oversold, every=_VERIFY_SECONDS)
                here.live("load", None, site.dev.load.read, _lost)
            _load(site.dev.load)
            text("Processes", "h2")
            with tag("div").classes("cards"):
                for name in _CONSEQUENCES:
                    _process(here, site.dev.run_file, name)


def _load(load: Load) -> None:
    text("Load", "h2")
    text("Orders are confirmed, shipped, returned, cancelled or abandoned, as with ./task load.", classes="soft")
    with text("Orders per second", "label", classes="rate"):
        slider = tag("input").props(f"type=range min=0 max={RATE_MAX} step=1")
        # Not `value`: that would move the slider back whenever anything on the page changes.
        slider.props["defaultValue"] = str(load.rate)
    # Only at the end of a movement: each new rate starts the load anew.
    slider.on(
        "change", lambda event: load.set_rate(int(event.args)), js_handler="(event) => emit(Number(event.target.value))"
    )


def _oversold(found: StockState) -> None:
    with tag("div").classes("proof bad" if found.oversold else "proof good"):
        text(f"{found.oversold:,}", "strong")
        text(" units oversold", "span")
        text(
            f"{'The first ' if found.has_more else ''}{found.verified:,} items were compared with their reservations"
            + (f"; {found.mismatches:,} numbers differ." if found.mismatches else "; all numbers agree."),
            classes="soft",
        )


def _lost(found: LoadState) -> None:
    if found.fault:
        text(found.fault, classes="note").props("role=alert")
    with tag("div").classes("proof bad" if found.lost else "proof good"):
        text(f"{found.lost:,}", "strong")
        text(" events lost", "span")
        text(_arrived(found), classes="soft")
        if found.summary:
            text(f"Now {found.rate:,} orders per second. So far: {found.summary}.", classes="soft")


def _arrived(found: LoadState) -> str:
    if not found.ordered:
        return "Move the slider. The event of each order must come."
    if not found.waiting:
        return f"The events of all {found.ordered:,} orders have come."
    waited = words.duration(found.oldest_seconds)
    return f"{found.ordered:,} orders; {found.waiting:,} events have not come yet, the oldest for {waited}."


def _process(here: Page, run_file: Path, name: str) -> None:
    with tag("article").classes("card").props(f'data-process="{name}"'):
        text(name, "h2")
        here.live("system", None, here.site.system.read, partial(_state, name))
        with tag("div").classes("actions"):
            _button(here, run_file, name, "Kill", _kill, "It ends at once, as in a crash, and starts again.")
            _button(here, run_file, name, "Freeze", _freeze, "It stays frozen until you thaw it.")
            _button(here, run_file, name, "Thaw", _thaw, "It goes on where it was.")
            _button(here, run_file, name, "Restart", end_gracefully, "It finishes its work first, and starts again.")


def _state(name: str, found: SystemState) -> None:
    for process in found.processes:
        if process.name == name:
            state(process.state)


def _button(
    here: Page, run_file: Path, name: str, verb: str, action: Callable[[RunFile, str], object], consequence: str
) -> None:
    async def send() -> None:
        # The run file is read for each action, since a process has another pid after a restart.
        try:
            action(runfile.read(run_file), name)
        except (NotRunning, CommandFailed, KeyError) as refused:
            raise Unusable(f"Cannot do this: {refused}.") from None

    async def ask() -> None:
        why = consequence if verb == "Thaw" else f"{consequence} {_CONSEQUENCES[name]}"
        if await act(f"{verb} {name}?", why, verb, send, f"{verb}: done. The state shows it within a second."):
            here.site.feeds.read_now("system")

    ui.button(verb, on_click=ask).props(f'no-caps outline aria-label="{verb} {name}"')


def _kill(run: RunFile, name: str) -> None:
    signal_group(run, name, signal.SIGKILL)


def _freeze(run: RunFile, name: str) -> None:
    signal_group(run, name, signal.SIGSTOP)


def _thaw(run: RunFile, name: str) -> None:
    signal_group(run, name, signal.SIGCONT)
