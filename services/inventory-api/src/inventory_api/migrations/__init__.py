"""The migrations of this service's database; see shop_common.db.schema."""

from pathlib import Path

from inventory_api.store import tables
from shop_common.db.schema import Schema

SCHEMA = Schema(service="inventory-api", migrations=Path(__file__).parent, metadata=tables.metadata)
