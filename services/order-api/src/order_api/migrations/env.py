"""Where Alembic enters; the rest is the same for every service."""

from shop_common.db.schema import run_migrations

run_migrations()
