"""The view of the settings in force of each process. Secrets are hidden."""

from collections.abc import Sequence

from fastapi import Request
from nicegui import ui

from console import words
from console.feeds.settings_in_force import ProcessSettings
from console.pages.frame import Site, page, table, tag, text, viewer_of

_EVERY_SECONDS = 2.0


def add(site: Site) -> None:
    @ui.page("/settings")
    async def settings(request: Request) -> None:
        viewer, zone = await viewer_of(site, request)
        with page(site, viewer, "Settings", zone) as here:
            text("Settings", "h1")
            if site.settings is None:
                text(
                    "The settings concern all tenants, so the console shows them only where viewers do not sign in. "
                    "Look at the environment of the processes.",
                    classes="empty",
                )
                return
            text("The settings with which each process runs. Secrets are hidden.", classes="soft")
            here.live("settings", None, site.settings.read, _list, every=_EVERY_SECONDS)


def _list(found: Sequence[ProcessSettings]) -> None:
    for each in found:
        with tag("section").props(f'data-process="{each.process}"'):
            text(each.process, "h2")
            if each.unknown:
                text(each.unknown, classes="empty")
            else:
                rows = [[name, value or words.NONE] for name, value in each.values.items()]
                table(f"Settings of {each.process}", {"Setting": "id", "Value": "id"}, rows)
