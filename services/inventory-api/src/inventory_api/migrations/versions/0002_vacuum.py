"""When PostgreSQL vacuums what changes fast. SQLite has nothing of the kind.

Such settings lock nobody out: readers and writers go on while they are made.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    # A queue that is empty again and again: giving its pages back each time would lock out those who write to it.
    op.execute("ALTER TABLE outbox SET (vacuum_truncate = off)")
    # The reaper reads holds from the earliest end on, and purging goes from the oldest row on. Each walks an index
    # over what ended or went before: a fifth of a large table, the default, is too much of that.
    for table in ("stock_reservations", "idempotency_keys"):
        op.execute(
            f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000)"
        )
