"""Which connections of a pool are still of use after a failure, and what an error may tell of the data.

A server that was shut down, lost or made read-only fails one connection, and all others that were made before are of no
more use. Each connection carries the number of its generation. Such a failure ends the generation: connections of it
are replaced when they are next taken from the pool. So one failure is met once, not once for each idle connection.
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
    """Watches over the pool of an engine. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._current = 0
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "checkout", self._checked_out)
        event.listen(engine, "handle_error", self._failed)

    def end(self, info: MutableMapping[Any, Any]) -> None:
        """Use no connection again that is as old as this one. `info` is the connection's.

        One of an earlier generation says nothing about the current one.
        """
        if info.get(_GENERATION) == self._current:
            self._current += 1

    def _connected(self, _: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        entry.info[_GENERATION] = self._current

    def _checked_out(self, _: DBAPIConnection, entry: ConnectionPoolEntry, __: object) -> None:
        if entry.info[_GENERATION] != self._current:
            # The pool then connects anew, and gives that out instead.
            raise exc.DisconnectionError("the connection is older than a failure of its server")

    def _failed(self, context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception
        if not isinstance(error, exc.DBAPIError):
            return
        without_rows(error)
        if context.connection is None:
            return  # there was no connection yet
        if context.is_disconnect or is_end_of_connections(error):
            self.end(context.connection.info)
            context.is_disconnect = True
            # SQLAlchemy would tell old connections from new ones by the host's clock, which may be set back.
            context.invalidate_pool_on_disconnect = False
