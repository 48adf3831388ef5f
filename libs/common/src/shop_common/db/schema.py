"""The schema of one service's database: upgraded by Alembic, and checked before the service starts.

Migrations only go forward. They expand the schema before they contract it, so the previous version of the code still
runs on the next schema. Each revision is one transaction on both databases, so a failed revision changes nothing.
Changes that would lock a large table use `online_ddl` instead.

A service's `migrations` package has `versions/`, an `env.py` that calls `run_migrations`, and this in `__init__.py`:

    SCHEMA = Schema(service="inventory-api", migrations=Path(__file__).parent, metadata=tables.metadata)
"""

import argparse
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from alembic import command, context
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Connection, MetaData, Table, TableClause, Text, column, inspect, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DropTable

from shop_common.db.database import Database, cause_of
from shop_common.environment import startup
from shop_common.errors import Contention, DatabaseNeedsRepair, ShopError
from shop_common.telemetry import logs

_log = logs.get(__name__)

_VERSION_TABLE_SUFFIX = "_schema_version"

TURN_TIMEOUT_SECONDS = 60
"""The longest time that a migration waits for another migration of the same database."""

TURN_POLL_SECONDS = 0.1
CHECK_INTERVAL_SECONDS = 1.0
LOCK_TIMEOUT_SECONDS = 3
"""The longest time that a migration waits for a table lock. Meanwhile, all later statements on the table wait too."""


class SchemaError(Exception):
    """The service must not run on this database. The message states what to do."""


class SchemaTooOld(SchemaError):
    """The database lacks migrations that the code needs."""


class WrongDatabase(SchemaError):
    """The database belongs to another service."""


class WrongEncoding(SchemaError):
    """The encoding of the database is not UTF8."""


class _State(Enum):
    EMPTY = "has no schema yet"
    OLDER = "has a schema older than this version needs"
    CURRENT = "is up to date"
    NEWER = "has a newer schema"


@dataclass(frozen=True)
class Schema:
    """The schema of one service: the folder of its migrations, and the tables that they create."""

    service: str
    migrations: Path
    metadata: MetaData

    @property
    def version_table(self) -> str:
        """The name of the version table. It contains the service's name, to detect another service's database."""
        return self.service.replace("-", "_") + _VERSION_TABLE_SUFFIX

    def upgrade(self, database: Database, to: str = "head") -> None:
        """Upgrade the database to the revision `to`. Does nothing if the database is at that revision or newer.

        Concurrent runs are safe, because the second waits for the first. Raises WrongDatabase or WrongEncoding. Raises
        ShopError if the database is unavailable or a table stays locked.
        """
        with self._turn(database):
            self._upgrade(database, to)

    def reset(self, database: Database) -> None:
        """Drop every table in one transaction, then upgrade the empty database to the newest schema.

        Raises WrongDatabase or WrongEncoding. If the service's version table is missing, drops nothing, because the
        tables may belong to another application.
        """
        with self._turn(database):
            with database.write() as tx:
                _allow_long_statements(tx)
                if self._state(tx) is not _State.EMPTY:
                    for name, _ in reversed(inspect(tx).get_sorted_table_and_fkc_names()):
                        if name is not None:
                            tx.execute(DropTable(Table(name, MetaData())))
            self._upgrade(database, "head")

    def revisions(self) -> list[str]:
        """Return all revisions, oldest first."""
        return [script.revision for script in self._scripts().walk_revisions()][::-1]

    def check(self, database: Database) -> None:
        """Check that the code can run on the schema. A newer schema is fine.

        Raises SchemaTooOld, WrongDatabase or WrongEncoding. Raises SchemaError if the database refuses to show its
        schema, and ShopError if the database is unavailable.
        """
        try:
            state = database.query(self._state)
        except (DBAPIError, DatabaseNeedsRepair) as error:
            raise SchemaError(f"the database refuses to show its schema: {cause_of(error)}.") from error
        if state in (_State.EMPTY, _State.OLDER):
            module = self.service.replace("-", "_")
            raise SchemaTooOld(f"the database {state.value}. Run `./task db-init` or `python -m {module} migrate`.")

    def check_or_wait(
        self,
        database: Database,
        *,
        set_ready: Callable[[bool], None],
        on_fatal: Callable[[str, BaseException | None], None],
    ) -> None:
        """Check the schema. If the database is unavailable, report not ready and check again every second.

        So processes may start in any order. Raises the SchemaError of the first check. After a SchemaError of a later
        check, calls `on_fatal`. After a successful check, a thread probes the database every second, and reports not
        ready while the database needs a repair. If the database then becomes unavailable, readiness does not
        change: otherwise all replicas would leave the load balancer, and callers would no longer get the reason.
        """
        causes: set[str] = set()
        try:
            self.check(database)
        except ShopError as error:
            set_ready(False)
            causes.add(cause_of(error))
            _log.warning("the database is unavailable at the start; not ready until it responds", cause=cause_of(error))
        arguments = (database, set_ready, on_fatal, causes)
        threading.Thread(target=self._watch, args=arguments, name="schema", daemon=True).start()

    def _watch(
        self,
        database: Database,
        set_ready: Callable[[bool], None],
        on_fatal: Callable[[str, BaseException | None], None],
        causes: set[str],
    ) -> None:
        if causes:
            self._wait(database, set_ready, on_fatal, causes)
        # This statement is cheap. Alembic's check would use one percent of the CPU time of a busy process.
        version = select(column("version_num", Text)).select_from(TableClause(self.version_table))
        needs_repair = False
        while True:
            time.sleep(CHECK_INTERVAL_SECONDS)
            try:
                database.query(lambda tx: tx.execute(version).all())
            except DatabaseNeedsRepair as error:
                if not needs_repair:
                    needs_repair = True
                    set_ready(False)
                    _log.error("the database needs a repair; not ready until then", cause=cause_of(error))
            except (ShopError, DBAPIError):
                pass  # calls fail with the same error and log it
            else:
                if needs_repair:
                    needs_repair = False
                    _log.info("the database has been repaired")
                    set_ready(True)

    def _wait(
        self,
        database: Database,
        set_ready: Callable[[bool], None],
        on_fatal: Callable[[str, BaseException | None], None],
        causes: set[str],
    ) -> None:
        while True:
            time.sleep(CHECK_INTERVAL_SECONDS)
            try:
                self.check(database)
            except ShopError as error:
                # Log each cause once, because two servers behind one name may cause two errors in turn.
                if cause_of(error) not in causes:
                    causes.add(cause_of(error))
                    _log.warning("the database is still unavailable", cause=cause_of(error))
                continue
            except SchemaError as error:
                on_fatal(str(error), None)
            _log.info("the database is available")
            set_ready(True)
            return

    def drift(self, database: Database) -> list[str]:
        """Return the differences between the migrated database and the declared tables, empty if there are none."""
        return database.query(self._drift)

    @contextmanager
    def _turn(self, database: Database) -> Iterator[None]:
        """Allow one migration at a time. Raises Contention if another one takes longer than TURN_TIMEOUT_SECONDS."""
        if database.is_sqlite:
            yield  # each revision starts with BEGIN IMMEDIATE, which already excludes other writers
            return
        deadline = time.monotonic() + TURN_TIMEOUT_SECONDS
        # Hold the advisory lock on a separate connection, because a revision with `online_ddl` commits in between.
        with closing(Database(database.engine.url, connections_max=1)) as other, other.write() as tx:
            while not self._has_turn(tx):
                if time.monotonic() > deadline:
                    raise Contention("another migration of this database has not ended in time")
                time.sleep(TURN_POLL_SECONDS)
            yield

    def _has_turn(self, tx: Connection) -> bool:
        # CREATE INDEX CONCURRENTLY waits for every older snapshot. So a transaction that has the advisory lock or waits
        # for it must not keep a snapshot: poll instead of waiting inside a statement, and end with a statement that
        # takes no snapshot.
        turn = {"turn": zlib.crc32(self.version_table.encode())}
        has_turn = bool(tx.execute(text("SELECT pg_try_advisory_xact_lock(:turn)"), turn).scalar_one())
        tx.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        return has_turn

    def _upgrade(self, database: Database, to: str) -> None:
        if database.query(self._state) not in (_State.EMPTY, _State.OLDER):
            return
        known = self.revisions()
        for revision in known if to == "head" else known[: known.index(to) + 1]:
            with database.write() as tx:
                _allow_long_statements(tx)
                command.upgrade(self._config(tx), revision)  # does nothing if the database already has the revision

    def _state(self, tx: Connection) -> _State:
        _check_encoding(tx)
        others = [
            name
            for name in inspect(tx).get_table_names()
            if name.endswith(_VERSION_TABLE_SUFFIX) and name != self.version_table
        ]
        if others:
            owner = others[0].removesuffix(_VERSION_TABLE_SUFFIX).replace("_", "-")
            raise WrongDatabase(f"the database belongs to {owner}, not to {self.service}. Check DATABASE_URL.")
        version = self._alembic(tx).get_current_revision()
        if version is None:
            return _State.EMPTY
        known = self.revisions()
        if version == known[-1]:
            return _State.CURRENT
        return _State.OLDER if version in known else _State.NEWER

    def _drift(self, tx: Connection) -> list[str]:
        # Alembic compares tables, columns, types, indexes and keys, but not CHECK constraints.
        differences = [str(difference) for difference in compare_metadata(self._alembic(tx), self.metadata)]
        checks = inspect(tx).get_multi_check_constraints()
        for table in self.metadata.sorted_tables:
            declared = {str(c.name) for c in table.constraints if isinstance(c, CheckConstraint)}
            found = {str(c["name"]) for c in checks.get((None, table.name), ())}
            differences += [f"check constraint {name} of {table.name}" for name in sorted(declared ^ found)]
        return differences

    def _alembic(self, tx: Connection) -> MigrationContext:
        return MigrationContext.configure(tx, opts={"version_table": self.version_table})

    def _scripts(self) -> ScriptDirectory:
        return ScriptDirectory.from_config(self._config())

    def _config(self, tx: Connection | None = None) -> Config:
        config = Config(attributes={"connection": tx, "version_table": self.version_table})
        config.set_main_option("script_location", str(self.migrations).replace("%", "%%"))
        return config


def _check_encoding(tx: Connection) -> None:
    if tx.dialect.name != "postgresql":
        return
    encoding = tx.execute(text("SELECT current_setting('server_encoding')")).scalar_one()
    if encoding != "UTF8":
        raise WrongEncoding(
            f"the database has the encoding {encoding}, but must have UTF8: "
            "create it with `CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0`."
        )


def _allow_long_statements(tx: Connection) -> None:
    """Disable the statement timeout for backfills. Keep a lock timeout: later statements wait behind a waiting one."""
    if tx.dialect.name == "postgresql":
        tx.execute(text("SET LOCAL statement_timeout = 0"))
        tx.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))


def run_migrations() -> None:
    """Run the requested migrations in the transaction that `Schema` opened. Each service's `env.py` calls this."""
    attributes: dict[str, Any] = context.config.attributes
    context.configure(connection=attributes["connection"], version_table=attributes["version_table"])
    context.run_migrations()


def main(argv: Sequence[str], schema: Schema, database_url: str) -> int:
    """Run the `migrate` command. `argv` has its arguments. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {schema.service.replace('-', '_')} migrate",
        description=f"Upgrade the database of {schema.service} (DATABASE_URL) to the newest schema.",
    )
    parser.add_argument("--reset", action="store_true", help="drop all of its tables and data first")
    reset = parser.parse_args(argv).reset
    startup.is_over()  # a migration has no time limit
    database = Database(database_url, connections_max=1)
    try:
        (schema.reset if reset else schema.upgrade)(database)
    except SchemaError as error:
        return _refused(schema, str(error))
    except (DBAPIError, DatabaseNeedsRepair) as error:
        return _refused(schema, f"the database was not migrated; its error: {cause_of(error)}.")
    except ShopError as error:
        return _refused(schema, f"the database was not migrated: {cause_of(error)}. Try again.")
    finally:
        database.close()
    sys.stdout.write(f"{schema.service}: the database {_State.CURRENT.value}\n")
    return 0


def _refused(schema: Schema, why: str) -> int:
    sys.stderr.write(f"{schema.service}: {why}\n")
    return 1
