"""The view of the system: the worst trouble in one sentence, and the state of each process."""

from fastapi import Request
from nicegui import ui

from console.feeds.processes import ProcessState, SystemState
from console.pages.frame import Site, page, state, tag, text, viewer_of


def add(site: Site) -> None:
    @ui.page("/")
    async def system(request: Request) -> None:
        viewer, zone = await viewer_of(site, request)
        with page(site, viewer, "System", zone) as here:
            text("System", "h1")
            here.live("system", None, site.system.read, _show)


def _show(found: SystemState) -> None:
    with tag("div").classes(f"headline {'bad' if found.troubles else 'good'}").props("role=status"):
        if found.troubles:
            worst, *others = found.troubles
            text(worst, "div")
            if others:
                with tag("ul"):
                    for trouble in others:
                        text(trouble, "li")
        else:
            text(f"All {len(found.processes)} processes are ready.", "div")
    with tag("div").classes("cards"):
        for process in found.processes:
            _show_process(process)


def _show_process(process: ProcessState) -> None:
    with tag("article").classes("card").props(f'data-process="{process.name}"'):
        with tag("h2"):
            text(process.name, "span")
            state(process.state)
        if process.figures:
            with tag("dl"):
                for label, value in process.figures:
                    text(label, "dt")
                    text(value, "dd")
        else:
            text("No metrics.", classes="soft")
