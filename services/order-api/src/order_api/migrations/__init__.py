"""How the database of this service came to be; see shop_common.schema."""

from pathlib import Path

from order_api import tables
from shop_common.schema import Schema

SCHEMA = Schema(service="order-api", migrations=Path(__file__).parent, metadata=tables.metadata)
