"""Sets when PostgreSQL vacuums the tables that change fast. SQLite has no such settings.

These ALTER TABLE statements do not block readers or writers.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    # The outbox often becomes empty. Vacuum would then truncate its file each time, under a lock that blocks writers.
    op.execute("ALTER TABLE outbox SET (vacuum_truncate = off)")
    # The reaper reads held reservations from the earliest expiry on. A purge reads rows from the oldest on. Both first
    # scan the index entries of rows that were changed or deleted before. By default vacuum removes these entries only
    # after a fifth of the table has changed. In a large table that is too late.
    for table in ("stock_reservations", "idempotency_keys"):
        op.execute(
            f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000)"
        )
