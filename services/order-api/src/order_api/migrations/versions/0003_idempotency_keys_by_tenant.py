"""Adds the tenant to idempotency keys, so that tenants may use the same request_ids.

Rows from before are of the tenant `default`. A process of the previous version inserts this default too.
"""

import sqlalchemy as sa

from shop_common.db import online_ddl

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    online_ddl.add_column("idempotency_keys", sa.Column("tenant", sa.Text, nullable=False, server_default="default"))
    online_ddl.replace_primary_key("idempotency_keys", ["request_id", "tenant", "scope", "method"])
