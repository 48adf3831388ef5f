"""Create a database on PostgreSQL and its four roles, with the rights that each of them needs and no others.

  DATABASE_owner     owns the database and its tables: for migrations
  DATABASE_api       reads and changes the tables, appends to the outbox and the audit log: for the API
  DATABASE_relay     reads and deletes rows of the outbox, and keeps the leases: for event-relay
  DATABASE_console   reads all tables: for people

DATABASE_URL must be that of an administrator, such as postgresql://postgres@db:5432/postgres, with its password in
DATABASE_PASSWORD_FILE. The new passwords of the roles come from OWNER_PASSWORD_FILE, API_PASSWORD_FILE,
RELAY_PASSWORD_FILE and CONSOLE_PASSWORD_FILE. Without a file, a role keeps its password; a new role then has none.

Run the command before the first migration, and again after it: the rights on the outbox need the table. The command may
be repeated at any time, for example to set new passwords.
"""

import argparse

from pydantic import Field

from shop_common.db.address import parse
from shop_common.db.password import without_file
from shop_common.db.settings import DatabaseSettings, DatabaseUrl
from shop_common.environment.settings import SECRET, read
from shopctl.data import postgres_roles
from shopctl.data.postgres_roles import Roles
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, print_json, print_table

_RIGHTS = {
    "owner": "owns the database and its tables",
    "api": "reads and changes the tables, appends to the outbox and the audit log",
    "relay": "ships the outbox",
    "console": "reads all tables",
}


class RoleSettings(DatabaseSettings):
    """The administrator's connection, and the new passwords of the roles."""

    database_url: DatabaseUrl
    owner_password: str | None = Field(None, description="new password of the owner", json_schema_extra=SECRET)
    api_password: str | None = Field(None, description="new password of the API", json_schema_extra=SECRET)
    relay_password: str | None = Field(None, description="new password of the relay", json_schema_extra=SECRET)
    console_password: str | None = Field(None, description="new password of the console", json_schema_extra=SECRET)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("database", help="the database to create, such as inventory")
    for kind, rights in _RIGHTS.items():
        parser.add_argument(f"--{kind}", metavar="ROLE", help=f"the role that {rights} (default: DATABASE_{kind})")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Raises WrongSettings, CommandFailed and psycopg.Error. May be repeated."""
    settings = read(RoleSettings)
    admin = without_file(parse(settings.database_url))
    if admin.get_backend_name() != "postgresql":
        raise CommandFailed("DATABASE_URL must be the URL of an administrator of a PostgreSQL server")
    names = {kind: getattr(options, kind) or f"{options.database}_{kind}" for kind in _RIGHTS}
    passwords = {kind: getattr(settings, f"{kind}_password") for kind in _RIGHTS}
    report = postgres_roles.create(
        admin,
        options.database,
        Roles(**names),
        {names[kind]: password for kind, password in passwords.items() if password is not None},
    )
    lines = [
        {
            "role": name,
            "rights": _RIGHTS[kind],
            "outcome": "created" if name in report.created else "there already",
            "password": "set" if passwords[kind] is not None else "unchanged",
        }
        for kind, name in names.items()
    ]
    if options.json:
        print_json({"roles": lines, "migrated": report.has_tables})
        return 0
    print_table(f"roles of the database {options.database}", list(lines[0]), [list(line.values()) for line in lines])
    if not report.has_tables:
        print("The database has no tables yet. Run its migrations as the owner, then run this command again.")
    return 0
