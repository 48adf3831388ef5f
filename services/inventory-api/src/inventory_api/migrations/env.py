"""The entry point of Alembic. Every service runs its migrations in the same way."""

from shop_common.db.schema import run_migrations

run_migrations()
