"""Replaces the connections of a pool after the server has failed, and removes data of callers from errors.

When a server shuts down, disappears or becomes read-only, no connection that was opened before is of use. So each
connection has a generation number. A failure begins a new generation, and at checkout the pool replaces connections of
earlier generations. So one failure causes one error, not one error per idle connection.
"""

from collections.abc import MutableMapping
from typing import Any

from sqlalchemy import Engine, event, exc
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from shop_common.db.errors import is_end_of_connections, without_rows

_GENERATION = "shop_generation"


class PoolInvalidator:
    """Invalidates the connections of one engine's pool. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._current = 0
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "checkout", self._checked_out)
        event.listen(engine, "handle_error", self._failed)

    def end(self, info: MutableMapping[Any, Any]) -> None:
        """End the generation of a connection, so that the pool replaces all connections of that generation.

        `info` is the `info` of the failed connection. Does nothing if the generation has already ended, because an old
        connection's failure does not show that newer connections are useless.
        """
        if info.get(_GENERATION) == self._current:
            self._current += 1

    def _connected(self, _: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        entry.info[_GENERATION] = self._current

    def _checked_out(self, _: DBAPIConnection, entry: ConnectionPoolEntry, __: object) -> None:
        if entry.info[_GENERATION] != self._current:
            # The pool handles this error: it opens and returns a new connection.
            raise exc.DisconnectionError("the connection is older than a failure of its server")

    def _failed(self, context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        if not isinstance(error, exc.DBAPIError):
            return
        without_rows(error)
        if context.connection is None:
            return  # the connection attempt itself failed
        if context.is_disconnect or is_end_of_connections(error):
            self.end(context.connection.info)
            context.is_disconnect = True
            # SQLAlchemy would compare times of the host's clock to find older connections. That clock may be set back.
            context.invalidate_pool_on_disconnect = False
