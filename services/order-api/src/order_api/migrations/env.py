"""The entry point for Alembic. All services share the code that runs the migrations."""

from shop_common.db.schema import run_migrations

run_migrations()
