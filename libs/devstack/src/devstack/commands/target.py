"""Which system a command speaks to: what its options name, else what the run file says `dev` runs."""

import argparse

from devstack import runfile
from devstack.stack import INVENTORY_API, ORDER_API, Databases

DATA_FOLDER = runfile.PATH.with_name("data")
"""Where `dev` keeps its SQLite files unless told otherwise."""

_FROM_DEV = "(default: that of ./task dev)"


def add_apis(parser: argparse.ArgumentParser) -> None:
    """--inventory and --orders."""
    parser.add_argument("--inventory", metavar="HOST:PORT", help=f"address of inventory-api {_FROM_DEV}")
    parser.add_argument("--orders", metavar="HOST:PORT", help=f"address of order-api {_FROM_DEV}")


def add_broker(parser: argparse.ArgumentParser) -> None:
    """--bootstrap."""
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help=f"the Kafka broker {_FROM_DEV}")


def add_databases(parser: argparse.ArgumentParser) -> None:
    """--inventory-url and --orders-url."""
    parser.add_argument("--inventory-url", metavar="URL", help=f"the inventory database {_FROM_DEV}")
    parser.add_argument("--orders-url", metavar="URL", help=f"the orders database {_FROM_DEV}")


def inventory_address(options: argparse.Namespace) -> str:
    """Of inventory-api. Raises NotRunning."""
    return options.inventory or runfile.read().processes[INVENTORY_API].address


def orders_address(options: argparse.Namespace) -> str:
    """Of order-api. Raises NotRunning."""
    return options.orders or runfile.read().processes[ORDER_API].address


def bootstrap(options: argparse.Namespace) -> str:
    """The broker. Raises NotRunning."""
    return options.bootstrap or runfile.read().bootstrap


def databases(options: argparse.Namespace) -> Databases:
    """Both databases; those of `dev` can be told of while it does not run."""
    dev = _dev_databases()
    return Databases(options.inventory_url or dev.inventory, options.orders_url or dev.orders)


def running() -> runfile.RunFile | None:
    """What `dev` runs, if it does."""
    try:
        return runfile.read()
    except runfile.NotRunning:
        return None


def _dev_databases() -> Databases:
    run = running()
    return run.databases if run else Databases.in_folder(DATA_FOLDER)
