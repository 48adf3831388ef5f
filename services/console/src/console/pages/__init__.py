"""The views, one module each."""

from console.pages import events, logs, orders, settings_in_force, stock, system, try_it
from console.pages.frame import Dev, Site

__all__ = ["Dev", "Site", "add"]


def add(site: Site) -> None:
    """Add all pages to the site."""
    for module in (system, orders, stock, events, logs, settings_in_force, try_it):
        module.add(site)
