"""Opens connections to PostgreSQL with the password in a file, which may change while the process runs."""

import threading
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, Dialect
from sqlalchemy.pool import ConnectionPoolEntry

from shop_common.environment.files import FileUnusable, value_in
from shop_common.telemetry import logs

_OPTION = "shop_password_file"
"""The option of a database URL with the path of the file. It never reaches the server."""

_log = logs.get(__name__)


def with_file(url: URL, path: Path) -> URL:
    """Return the URL with the path of the file. Its password is the one that the file had at the start."""
    return url.update_query_dict({_OPTION: str(path)})


def without_file(url: URL) -> URL:
    """Return the URL without the path of the file, which PostgreSQL's client library does not know."""
    return url.difference_update_query([_OPTION])


class PasswordFile:
    """Reads the password again for each new connection. Safe to share between threads."""

    def __init__(self, url: URL) -> None:
        self._path = Path(str(url.query[_OPTION]))
        self._accepted = url.password or ""
        self._refused = ""
        self._lock = threading.Lock()

    @classmethod
    def of(cls, url: URL) -> "PasswordFile | None":
        """Return the file that the URL names, or None."""
        return cls(url) if _OPTION in url.query else None

    def connect(
        self, dialect: Dialect, _: ConnectionPoolEntry, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Open a connection with the password in the file, or else with the last one that the server accepted.

        The operator replaces the file first, and then changes the password on the server. Between the two steps, the
        server accepts only the old password. SQLAlchemy calls this method for each new connection.
        """
        options = {name: value for name, value in options.items() if name != _OPTION}
        # The password may change between the read and the login, or between two logins, so try twice.
        for is_last in (False, True):
            passwords = list(dict.fromkeys((self._read(), self._accepted)))
            for password in passwords:
                try:
                    connection = dialect.connect(*arguments, **options | {"password": password})
                except psycopg.OperationalError as error:
                    if not _was_asked_for_password(error) or (is_last and password == passwords[-1]):
                        raise
                else:
                    self._note(password, passwords[0])
                    return connection
        raise AssertionError("unreachable: the last login returns or raises")

    def _read(self) -> str:
        try:
            return value_in(self._path)
        except FileUnusable as error:
            _log.warning("the database password cannot be read; the last one stays in use", error=str(error))
            return self._accepted

    def _note(self, used: str, in_file: str) -> None:
        with self._lock:
            is_new = used == in_file != self._accepted
            is_refused = in_file not in {used, self._refused}
            if used == in_file:
                self._accepted, self._refused = used, ""
            else:
                self._refused = in_file
        if is_new:
            _log.info("a new database password is in use")
        if is_refused:
            _log.warning("the server refuses the new database password; the last one stays in use")


def _was_asked_for_password(error: psycopg.OperationalError) -> bool:
    # The error has no SQLSTATE, and its text is in the language of the server.
    return error.pgconn is not None and bool(error.pgconn.used_password)
