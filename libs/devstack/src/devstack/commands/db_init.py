"""Bring both databases to the newest schema. Keeps all data, and changes nothing if the schema is up to date."""

import argparse

from inventory_api.migrations import SCHEMA as INVENTORY
from order_api.migrations import SCHEMA as ORDERS
from shop_common.db import schema
from shopctl.system import target


def configure(parser: argparse.ArgumentParser) -> None:
    target.add_databases(parser)


def run(options: argparse.Namespace) -> int:
    databases = target.databases(options)
    return migrate(databases.inventory, databases.orders)


def migrate(inventory_url: str, orders_url: str, *arguments: str) -> int:
    """Migrate both databases, and stop at the first failure. Returns the exit code."""
    return schema.main(arguments, INVENTORY, inventory_url) or schema.main(arguments, ORDERS, orders_url)
