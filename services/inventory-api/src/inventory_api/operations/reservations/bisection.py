"""Expires or deletes many reservations. If that fails, finds the reservations that cause the failure by bisection.

One reservation that cannot be expired or deleted, for example because its item's counters are wrong, must not stop
the work on all other reservations.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from shop_common.db.database import cause_of, is_statement_error
from shop_common.errors import TIMEOUTS
from shop_common.telemetry import logs

_Row = TypeVar("_Row")

SET_ASIDE_MAX = 20
"""The most reservations that one call sets aside. If more fail, single reservations are not the cause."""

_log = logs.get(__name__)


class Bisection(Generic[_Row]):
    """Runs `act` on rows. If it fails, runs `act` on each half of the rows. Create one instance per call.

    `act` processes all rows and returns how many it changed, or raises and changes no row. `set_aside` is called with
    the id of a row that fails alone.
    """

    def __init__(
        self, act: Callable[[Sequence[_Row]], int], *, id_of: Callable[[_Row], str], set_aside: Callable[[str], None]
    ) -> None:
        self._act = act
        self._id_of = id_of
        self._set_aside = set_aside
        self.set_aside_count = 0

    def run(self, rows: Sequence[_Row]) -> int:
        """Run `act` on these rows. Returns how many rows it changed.

        After a timeout, too, the rows are split in halves. Raises every error that the rows do not cause, the timeout
        of a single row, and the error of a single row if SET_ASIDE_MAX rows were already set aside.
        """
        if not rows:
            return 0
        try:
            return self._act(rows)
        except Exception as error:
            # `act` has changed nothing. An error that neither the rows nor a timeout caused goes to the caller.
            if len(rows) == 1 and is_statement_error(error) and self.set_aside_count < SET_ASIDE_MAX:
                self.set_aside_count += 1
                self._set_aside(self._id_of(rows[0]))
                _log.error(
                    "reservation set aside: it can't be expired or purged",
                    reservation_id=self._id_of(rows[0]),
                    cause=cause_of(error),
                )
                return 0
            if len(rows) == 1 or not (is_statement_error(error) or isinstance(error, TIMEOUTS)):
                raise
        half = len(rows) // 2
        return self.run(rows[:half]) + self.run(rows[half:])
