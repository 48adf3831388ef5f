"""Creates the table of what orders have done to the stock, and lets reservations be replaced by others.

A process of the previous version neither writes the table nor replaces reservations, and cannot read reservations in
the state REPLACED. There are none until an event concerns only some units of a reservation.

A failed run is repeated from the start.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db import online_ddl
from shop_common.db.sql import Timestamp

revision = "0012"
down_revision = "0009"

_TABLE, _CONSTRAINT = "stock_reservations", "ck_stock_reservations_state_known"
_OLD_STATES = "state IN ('HELD', 'CONFIRMED', 'EXPIRED', 'RELEASED', 'FULFILLED')"
_NEW_STATES = "state IN ('HELD', 'CONFIRMED', 'EXPIRED', 'RELEASED', 'FULFILLED', 'REPLACED')"


def upgrade() -> None:
    op.create_table(
        "order_effects",
        sa.Column("tenant", sa.Text, server_default="default", nullable=False),
        sa.Column("order_id", sa.Text, nullable=False),
        sa.Column("applied_version", sa.BigInteger, nullable=False),
        sa.Column("totals", sa.Text, nullable=False),
        sa.Column("updated_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "order_id", name="pk_order_effects"),
        if_not_exists=True,
    )
    if op.get_context().dialect.name == "sqlite":
        _allow_replaced_on_sqlite()
    else:
        online_ddl.replace_check(_TABLE, _CONSTRAINT, _NEW_STATES)
    replaced = sa.text("state = 'REPLACED'")
    online_ddl.add_index(
        "ix_stock_reservations_replaced", _TABLE, ["ended_at"], postgresql_where=replaced, sqlite_where=replaced
    )


def _allow_replaced_on_sqlite() -> None:
    # SQLite cannot change a constraint. Do not copy the table: dropping the old one would delete the allocations, which
    # refer to it. The constraint allows more values than before, so no row has to be checked, and changing the text of
    # the table is enough (https://www.sqlite.org/lang_altertable.html, "Making Other Kinds Of Table Schema Changes").
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = connection.exec_driver_sql(
        "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = ?",
        (_OLD_STATES, _NEW_STATES, _TABLE),
    )
    assert changed.rowcount == 1
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")
