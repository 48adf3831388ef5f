"""Which system a command speaks to: what its options name, else what the run file says `dev` runs."""

import argparse
from pathlib import Path

from sqlalchemy.engine import make_url

from devstack import runfile
from devstack.client import Shop
from devstack.commands.failures import CommandFailed
from devstack.stack import INVENTORY_API, ORDER_API, Databases, Ports

DATA_FOLDER = runfile.PATH.with_name("data")
"""Where `dev` keeps its SQLite files unless told otherwise."""

_FROM_DEV = "(default: that of ./task dev)"


def add_apis(parser: argparse.ArgumentParser) -> None:
    """--inventory and --orders."""
    for option, api in (("--inventory", INVENTORY_API), ("--orders", ORDER_API)):
        parser.add_argument(option, metavar="HOST:PORT", help=f"address of {api} {_FROM_DEV}")


def add_broker(parser: argparse.ArgumentParser) -> None:
    """--bootstrap."""
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help=f"the Kafka broker {_FROM_DEV}")


def add_databases(parser: argparse.ArgumentParser) -> None:
    """--inventory-url and --orders-url."""
    parser.add_argument("--inventory-url", metavar="URL", help=f"the inventory database {_FROM_DEV}")
    parser.add_argument("--orders-url", metavar="URL", help=f"the orders database {_FROM_DEV}")


def apis(options: argparse.Namespace) -> tuple[str, str]:
    """The addresses of inventory-api and order-api. Raises NotRunning when none is given."""
    if options.inventory or options.orders:
        ports = Ports()
        return options.inventory or f"localhost:{ports.inventory}", options.orders or f"localhost:{ports.orders}"
    processes = runfile.read().processes
    return processes[INVENTORY_API].address, processes[ORDER_API].address


def shop(options: argparse.Namespace) -> Shop:
    """A client of both. Raises NotRunning."""
    return Shop.connect(*apis(options))


def bootstrap(options: argparse.Namespace) -> str:
    """The broker. Raises NotRunning."""
    return options.bootstrap or runfile.read().bootstrap


def databases(options: argparse.Namespace) -> Databases:
    """Both databases; those of `dev` can be told of while it does not run."""
    dev = _dev_databases()
    return Databases(options.inventory_url or dev.inventory, options.orders_url or dev.orders)


def require(database_url: str) -> None:
    """Raises CommandFailed when it is an SQLite file that is missing: to open it would make it."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise CommandFailed(f"there is no {url.database}; ./task db-init makes it")


def running() -> runfile.RunFile | None:
    """What `dev` runs, if it does."""
    try:
        return runfile.read()
    except runfile.NotRunning:
        return None


def _dev_databases() -> Databases:
    run = running()
    return run.databases if run else Databases.in_folder(DATA_FOLDER)
