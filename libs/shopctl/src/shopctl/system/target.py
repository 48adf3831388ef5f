"""Which system a command speaks to: what its options name, else what `dev` runs here, else the containers."""

import argparse
from pathlib import Path

from shop_common.db.address import parse
from shopctl.client import Shop
from shopctl.system import compose, runfile
from shopctl.system.compose import Containers
from shopctl.system.layout import INVENTORY_API, INVENTORY_PORT, ORDER_API, ORDERS_PORT, Databases
from shopctl.system.runfile import NotRunning, RunFile
from shopctl.terminal.failures import CommandFailed

DATA_FOLDER = runfile.PATH.with_name("data")
"""Where `dev` keeps its SQLite files unless told otherwise."""

_DEFAULT = "(default: that of ./task dev, else of the containers)"


def add_apis(parser: argparse.ArgumentParser) -> None:
    """--inventory and --orders."""
    for option, api in (("--inventory", INVENTORY_API), ("--orders", ORDER_API)):
        parser.add_argument(option, metavar="HOST:PORT", help=f"address of {api} {_DEFAULT}")


def add_broker(parser: argparse.ArgumentParser) -> None:
    """--bootstrap."""
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help=f"the Kafka broker {_DEFAULT}")


def add_databases(parser: argparse.ArgumentParser) -> None:
    """--inventory-url and --orders-url."""
    parser.add_argument("--inventory-url", metavar="URL", help=f"the inventory database {_DEFAULT}")
    parser.add_argument("--orders-url", metavar="URL", help=f"the orders database {_DEFAULT}")


def apis(options: argparse.Namespace) -> tuple[str, str]:
    """The addresses of inventory-api and order-api. Raises NotRunning when none is given."""
    if options.inventory or options.orders:
        return options.inventory or f"localhost:{INVENTORY_PORT}", options.orders or f"localhost:{ORDERS_PORT}"
    return system().apis


def shop(options: argparse.Namespace) -> Shop:
    """A client of both. Raises NotRunning."""
    return Shop.connect(*apis(options))


def bootstrap(options: argparse.Namespace) -> str:
    """The broker. Raises NotRunning."""
    return options.bootstrap or system().bootstrap


def databases(options: argparse.Namespace) -> Databases:
    """Both databases; those of `dev` can be told of while it does not run."""
    if options.inventory_url and options.orders_url:
        return Databases(options.inventory_url, options.orders_url)
    found = running()
    default = found.databases if found else Databases.in_folder(DATA_FOLDER)
    return Databases(options.inventory_url or default.inventory, options.orders_url or default.orders)


def require(database_url: str) -> None:
    """Raises CommandFailed when it is an SQLite file that is missing: to open it would make it."""
    url = parse(database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise CommandFailed(f"its file {url.database} is missing; ./task db-init makes it")


def system() -> RunFile | Containers:
    """What runs here. Raises NotRunning."""
    try:
        return runfile.read()
    except NotRunning as neither:
        if containers := compose.running():
            return containers
        if compose.is_here():
            raise NotRunning(f"{neither}, or in containers with ./task docker-run") from None
        raise


def running() -> RunFile | Containers | None:
    """What runs here, if anything does."""
    try:
        return system()
    except NotRunning:
        return None
