"""Sets when PostgreSQL vacuums tables that change fast. SQLite has no such settings.

A change of these settings does not block readers or writers.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    # The outbox often becomes empty. Vacuum would then truncate its file each time, under a lock that blocks writers.
    op.execute("ALTER TABLE outbox SET (vacuum_truncate = off)")
    # The reaper reads PENDING orders from the earliest `reserved_until` on, and a purge reads keys from the oldest on.
    # Both first read the index entries of dead rows. By default, up to a fifth of a table is dead before a vacuum. In a
    # large table, that is too much to read.
    for table in ("orders", "idempotency_keys"):
        op.execute(
            f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000)"
        )
