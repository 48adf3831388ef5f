"""Bring both databases to the newest schema. Keeps all data, and does nothing where the schema is new already."""

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
    """What `python -m inventory_api migrate` and `python -m order_api migrate` do; stops at the first that fails."""
    return schema.main(arguments, INVENTORY, inventory_url) or schema.main(arguments, ORDERS, orders_url)
