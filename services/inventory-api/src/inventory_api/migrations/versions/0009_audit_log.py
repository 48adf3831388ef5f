"""Creates the table of the audit log. A process of the previous version does not write it."""

import sqlalchemy as sa
from alembic import op

from shop_common.db.sql import Clock, RowId, Timestamp

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", RowId, sa.Identity(cache=1), nullable=False),
        sa.Column("at", Timestamp, server_default=Clock(), nullable=False),
        sa.Column("tenant", sa.Text, server_default="default", nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("subject", sa.Text),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("resources", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_log_at_id", "audit_log", ["at", "id"])
