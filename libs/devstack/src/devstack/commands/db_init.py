"""Bring both databases to the newest schema. Keeps all data, and changes nothing if the schema is up to date.

The command refuses the databases of running containers: each start of the containers migrates them.
"""

import argparse

from inventory_api.migrations import SCHEMA as INVENTORY
from order_api.migrations import SCHEMA as ORDERS
from shop_common.db import schema
from shopctl.system import target
from shopctl.system.compose import Containers
from shopctl.terminal.failures import CommandFailed


def configure(parser: argparse.ArgumentParser) -> None:
    target.add_databases(parser)


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed for the databases of containers."""
    # Commands connect to the databases of the containers with a role that only reads.
    if isinstance(target.running(), Containers) and not (options.inventory_url and options.orders_url):
        raise CommandFailed("the containers are running; ./task docker-run migrates their databases")
    databases = target.databases(options)
    return migrate(databases.inventory, databases.orders)


def migrate(inventory_url: str, orders_url: str, *arguments: str) -> int:
    """Migrate both databases, and stop at the first failure. Returns the exit code."""
    return schema.main(arguments, INVENTORY, inventory_url) or schema.main(arguments, ORDERS, orders_url)
