"""The console process: a web site for people, and a health service."""

import argparse

from fastapi import FastAPI
from nicegui import ui

from console import pages
from console.feeds.events import EventReader
from console.feeds.feed import Feeds
from console.feeds.processes import SystemReader
from console.feeds.settings_in_force import SettingsReader
from console.feeds.trial import Load, StockCheck
from console.settings import ConsoleSettings
from console.site import server, sign_in
from console.site.guard import Guard
from console.site.viewers import Viewers
from shop_common.environment.listen import PortBusy
from shop_common.environment.settings import help_text, load, shown
from shop_common.process import lifecycle
from shop_common.telemetry import metrics_server, tracing
from shopctl.client import Shop
from shopctl.system.layout import RELAY


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    argparse.ArgumentParser(
        prog="python -m console",
        description="Serves a page that shows the system, its orders and its stock, and can change them.",
        epilog=help_text(ConsoleSettings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    settings = load(ConsoleSettings)
    lifecycle.begin("console", settings)
    tracing.start("console", settings)
    metrics_server.start(settings)
    try:
        listener = server.opened(settings)
    except PortBusy as error:
        raise SystemExit(str(error)) from None

    origins = server.origins(settings, listener.getsockname()[1])
    viewers = Viewers(settings)
    app = FastAPI(openapi_url=None)
    sign_in.add_to(app, viewers, is_https=any(origin.startswith("https:") for origin in origins))
    in_force = None if settings.sign_in else SettingsReader(settings.watched, shown(settings))
    events = EventReader(settings.broker)
    system = SystemReader(settings.watched)
    dev = _dev(settings)
    pages.add(pages.Site(viewers, Feeds(), system, events, settings.logs_path, in_force, dev))
    ui.run_with(app, title="Shop console", dark=None, language="en-US", tailwind=False, show_welcome_message=False)
    site = server.SiteServer(listener, Guard(app, viewers, origins), settings)
    lifecycle.serve(site, settings, on_stop=[events.stop, *([dev.load.stop] if dev else []), tracing.shutdown])


def _dev(settings: ConsoleSettings) -> pages.Dev | None:
    if settings.run_file_path is None or settings.broker is None:
        return None
    shop = Shop.connect(settings.inventory_target, settings.order_target)
    relay = next((one.metrics for one in settings.watched if one.name == RELAY), None)
    return pages.Dev(settings.run_file_path, Load(shop, settings.broker, relay), StockCheck(shop))
