"""Creates the table of the properties of locations. A process of the previous version does not read it."""

import sqlalchemy as sa
from alembic import op

from shop_common.db.sql import Timestamp

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_table(
        "locations",
        sa.Column("tenant", sa.Text, server_default="default", nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("is_active", sa.Boolean, nullable=False),
        sa.Column("priority", sa.BigInteger, nullable=False),
        sa.Column("region", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("updated_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "location", name="pk_locations"),
    )
