"""The colour of each process in all output."""

from shopctl.system.layout import CONSOLE, INVENTORY_API, ORDER_API, REAPER, RELAY

BROKER = "broker"

COLOURS = {
    BROKER: "magenta",
    INVENTORY_API: "cyan",
    ORDER_API: "green",
    REAPER: "yellow",
    RELAY: "blue",
    CONSOLE: "white",
}
