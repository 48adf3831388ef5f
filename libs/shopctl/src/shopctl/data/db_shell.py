"""Open an SQL shell on a database.

PostgreSQL opens in psql. SQLite opens in the sqlite3 program, or in the shell of Python's sqlite3 module (3.12 and
newer). Without any of these, a plain prompt runs statements that end in ';'.

Do not change data: each table has only one writer, its service. On SQLite, times are microseconds since 1970.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator

from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from shop_common.db.address import parse
from shop_common.db.database import plain_engine
from shopctl.system import target
from shopctl.terminal import failures
from shopctl.terminal.output import print_table

ROWS_MAX = 1_000


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("database", choices=["inventory", "orders"], help="the database to open")
    target.add_databases(parser)


def run(options: argparse.Namespace) -> int:
    """Replace this process by a shell program. Returns only if none is installed, after the plain prompt has ended."""
    databases = target.databases(options)
    address = databases.inventory if options.database == "inventory" else databases.orders
    url = parse(address)
    if url.get_backend_name() == "sqlite":
        target.require(address)
        _hand_over(_sqlite_shell(url.database or ""), {})
    else:
        _hand_over(*_psql(url))
    return prompt(url, options.database)


def _sqlite_shell(path: str) -> list[str]:
    if program := shutil.which("sqlite3"):
        return [program, "-header", "-column", path]
    if sys.version_info >= (3, 12):
        return [sys.executable, "-m", "sqlite3", path]
    return []


def _psql(url: URL) -> tuple[list[str], dict[str, str]]:
    program = shutil.which("psql")
    if program is None:
        return [], {}
    arguments, options = url.get_dialect()().create_connect_args(url)
    # Pass the password in the environment: every user of the machine can see a command line.
    password = options.pop("password", None)
    environment = {"PGTZ": "UTC"} | ({"PGPASSWORD": str(password)} if password else {})
    return [program, make_conninfo(*arguments, **options)], environment


def _hand_over(command: list[str], environment: dict[str, str]) -> None:
    if command:
        sys.stdout.flush()
        # Use exec, not a child process, so that Ctrl-C and the terminal belong to the shell.
        os.execve(command[0], command, os.environ | environment)  # noqa: S606 - the command contains no foreign input


def prompt(url: str | URL, name: str) -> int:
    """Run statements from standard input until it ends. Returns the exit code."""
    engine = plain_engine(url)
    failed = False
    with engine.connect() as connection:
        for statement in _statements(name):
            try:
                result = connection.exec_driver_sql(statement)
            except DBAPIError as error:
                print(failures.sentence(error), file=sys.stderr)
                failed = True
                continue
            if result.returns_rows:
                rows = result.fetchmany(ROWS_MAX)
                print_table("", list(result.keys()), [[_cell(value) for value in row] for row in rows])
            else:
                print(f"{result.rowcount} rows")
    # The exit code reports failures of a piped script. An interactive user has already seen them.
    return 1 if failed and not sys.stdin.isatty() else 0


def _cell(value: object) -> object:
    # Show numbers as stored, without thousands separators: users paste them into statements.
    return value if value is None else str(value)


def _statements(name: str) -> Iterator[str]:
    interactive = sys.stdin.isatty()
    lines: list[str] = []
    while True:
        try:
            lines.append(input(f"{name}{'...' if lines else '>'} ") if interactive else input())
        except EOFError:
            if statement := "\n".join(lines).strip():
                yield statement
            return
        if lines[-1].rstrip().endswith(";"):
            yield "\n".join(lines)
            lines = []
