"""The roles of a service's database on PostgreSQL, and the rights that each of them has."""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields

import psycopg
from psycopg import sql
from sqlalchemy import URL

from shop_common.db import row_security
from shop_common.db.schema import LOCK_TIMEOUT_SECONDS
from shopctl.terminal.failures import CommandFailed

_CONNECT_SECONDS = 10
_ENCRYPTION = b"scram-sha-256"


@dataclass(frozen=True)
class Roles:
    """The names of the roles.

    `owner` owns the database and its tables. `api` reads and changes rows. `relay` ships the outbox. `console` reads.
    """

    owner: str
    api: str
    relay: str
    console: str

    @property
    def others(self) -> sql.Composed:
        """Return the roles that own nothing, as a list in SQL."""
        return sql.SQL(", ").join(map(sql.Identifier, (self.api, self.relay, self.console)))


@dataclass(frozen=True)
class Report:
    """The result of `create`. `created` names the new roles. `has_tables` is whether the first migration has run."""

    created: frozenset[str]
    has_tables: bool


def create(admin: URL, database: str, roles: Roles, passwords: Mapping[str, str]) -> Report:
    """Create the missing roles and the database, and set passwords and rights. May be repeated.

    `admin` is the URL of an administrator, on any database of the server. `passwords` maps roles to new passwords; the
    other roles keep theirs. Raises CommandFailed if two roles have the same name, or if the database or a table belongs
    to another role, and psycopg.Error.
    """
    if len(set(astuple(roles))) < len(fields(roles)):
        raise CommandFailed("the four roles must have different names")
    # Check everything before the first change: a wrong name could mean another application's role.
    exists = _check_database(admin, database, roles.owner)
    with _connected(admin) as connection:
        created = frozenset(name for name in astuple(roles) if _create_role(connection, name))
        for name, password in passwords.items():
            _set_password(connection, name, password)
        _become_member(connection, roles.owner)
        if not exists:
            create = sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0")
            connection.execute(create.format(sql.Identifier(database), sql.Identifier(roles.owner)))
    with _connected(admin.set(database=database)) as connection, connection.transaction():
        tables = _tables(connection)
        for statement in _rights(database, roles, tables):
            connection.execute(statement)
        # The last statements run as the owner, since `_rights` has set the role.
        for text in row_security.protection(_with_tenants(connection), api=roles.api, console=roles.console):
            connection.execute(text.encode())
        return Report(created, has_tables="outbox" in tables)


def _check_database(admin: URL, database: str, owner: str) -> bool:
    """Return whether the database exists. Raises CommandFailed if it or one of its tables belongs to another role."""
    with _connected(admin) as connection:
        found = connection.execute(
            "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", [database]
        ).fetchone()
    if found is None:
        return False
    if found != (owner,):
        raise CommandFailed(f"the database {database} belongs to the role {found[0]}, not to {owner}; see --owner")
    with _connected(admin.set(database=database)) as connection:
        others = "SELECT tablename, tableowner FROM pg_tables WHERE schemaname = 'public' AND tableowner <> %s LIMIT 1"
        found = connection.execute(others, [owner]).fetchone()
    if found is not None:
        raise CommandFailed(f"the table {found[0]} belongs to the role {found[1]}, not to {owner}; see --owner")
    return True


def _connected(url: URL) -> psycopg.Connection:
    _, options = url.get_dialect()().create_connect_args(url)
    connection = psycopg.connect(**{"connect_timeout": _CONNECT_SECONDS, **options}, autocommit=True)
    connection.execute(sql.SQL("SET lock_timeout = {}").format(f"{LOCK_TIMEOUT_SECONDS}s"))
    return connection


def _create_role(connection: psycopg.Connection, name: str) -> bool:
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is not None:
        return False
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    return True


def _set_password(connection: psycopg.Connection, name: str, password: str) -> None:
    # Encrypt the password here: the server may log statements.
    encrypted = connection.pgconn.encrypt_password(password.encode(), name.encode(), _ENCRYPTION).decode()
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(name), encrypted))


def _become_member(connection: psycopg.Connection, owner: str) -> None:
    """Let an administrator who is not a superuser act as the owner."""
    row = connection.execute("SELECT pg_has_role(%s, 'USAGE')", [owner]).fetchone()
    if row != (True,):
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(owner)))


def _tables(connection: psycopg.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]


def _with_tenants(connection: psycopg.Connection) -> list[str]:
    columns = (
        "SELECT table_name FROM information_schema.columns WHERE table_schema = 'public' AND column_name = 'tenant'"
    )
    return [name for (name,) in connection.execute(columns)]


def _rights(database: str, roles: Roles, tables: list[str]) -> Iterator[sql.Composed]:
    """Yield the statements for one transaction. They first revoke all rights, so that no old one stays."""
    names = {
        "database": sql.Identifier(database),
        "owner": sql.Identifier(roles.owner),
        "api": sql.Identifier(roles.api),
        "relay": sql.Identifier(roles.relay),
        "console": sql.Identifier(roles.console),
        "others": roles.others,
    }
    # Before PostgreSQL 15, every role may create tables in the schema `public`.
    yield sql.SQL("REVOKE CREATE ON SCHEMA public FROM PUBLIC, {others}").format(**names)
    yield sql.SQL("GRANT USAGE, CREATE ON SCHEMA public TO {owner}").format(**names)
    yield sql.SQL("GRANT USAGE ON SCHEMA public TO {others}").format(**names)
    # A session that leaves a transaction open would block vacuum.
    yield sql.SQL("ALTER ROLE {console} SET idle_in_transaction_session_timeout = '60s'").format(**names)
    yield sql.SQL("ALTER ROLE {console} SET default_transaction_read_only = on").format(**names)
    yield sql.SQL("SET LOCAL ROLE {owner}").format(**names)
    yield sql.SQL("REVOKE ALL ON DATABASE {database} FROM PUBLIC, {others}").format(**names)
    yield sql.SQL("GRANT CONNECT ON DATABASE {database} TO {others}").format(**names)
    yield sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, {others}").format(**names)
    yield sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {api}").format(**names)
    yield sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {console}").format(**names)
    yield sql.SQL("REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM PUBLIC, {others}").format(**names)
    yield sql.SQL("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {api}").format(**names)
    # For tables of later migrations. The default rights let the new code of an API work at once.
    later = sql.SQL("ALTER DEFAULT PRIVILEGES FOR ROLE {owner} ").format(**names)
    yield later + sql.SQL("REVOKE ALL ON TABLES FROM {others}").format(**names)
    yield later + sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {api}").format(**names)
    yield later + sql.SQL("GRANT SELECT ON TABLES TO {console}").format(**names)
    yield later + sql.SQL("GRANT USAGE ON SEQUENCES TO {api}").format(**names)
    # The API only appends to the outbox, the audit log and the movements, does not touch the leases, and only reads
    # the version of the schema.
    for table in tables:
        names["table"] = sql.Identifier(table)
        if table == "outbox":
            yield sql.SQL("REVOKE SELECT, UPDATE, DELETE ON {table} FROM {api}").format(**names)
            yield sql.SQL("GRANT SELECT, DELETE ON {table} TO {relay}").format(**names)
        elif table == "audit_log":
            yield sql.SQL("REVOKE SELECT, UPDATE, DELETE ON {table} FROM {api}").format(**names)
        elif table == "stock_movements":
            yield sql.SQL("REVOKE UPDATE, DELETE ON {table} FROM {api}").format(**names)
        elif table == "relay_lease":
            yield sql.SQL("REVOKE ALL ON {table} FROM {api}").format(**names)
            yield sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {relay}").format(**names)
        elif table.endswith("_schema_version"):
            yield sql.SQL("REVOKE INSERT, UPDATE, DELETE ON {table} FROM {api}").format(**names)
