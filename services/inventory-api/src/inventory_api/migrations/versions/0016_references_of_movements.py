"""Adds columns to the movements: the reference, and the time that the caller stated for the change.

The previous version inserts movements without these columns, so they have defaults.
"""

import sqlalchemy as sa

from shop_common.db import online_ddl
from shop_common.db.sql import Timestamp

revision = "0016"
down_revision = "0015"

_MOVEMENTS = "stock_movements"


def upgrade() -> None:
    online_ddl.add_column(_MOVEMENTS, sa.Column("reference", sa.Text, nullable=False, server_default=""))
    online_ddl.add_column(_MOVEMENTS, sa.Column("occurred_at", Timestamp))
