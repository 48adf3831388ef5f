"""Does work on many reservations, and finds by bisection the ones that make it fail.

One reservation that cannot be expired or deleted, for example because its item's counters are wrong, must not stop
the work on all others.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from shop_common.db.database import cause_of, is_statement_error
from shop_common.errors import TIMEOUTS
from shop_common.telemetry import logs

_Row = TypeVar("_Row")

SET_ASIDE_MAX = 20
"""Reservations that one call sets aside. If more fail, the cause is not a single row."""

_log = logs.get(__name__)


class Bisection(Generic[_Row]):
    """Runs `act` on rows, and halves of them when it fails. For one call.

    `act` does all of the rows or, when it raises, none; it returns how many it has changed. `set_aside` gets the id of
    a row that fails alone.
    """

    def __init__(
        self, act: Callable[[Sequence[_Row]], int], *, id_of: Callable[[_Row], str], set_aside: Callable[[str], None]
    ) -> None:
        self._act = act
        self._id_of = id_of
        self._set_aside = set_aside
        self.set_aside_count = 0

    def run(self, rows: Sequence[_Row]) -> int:
        """Run `act` on these rows; returns the sum of what it returns.

        A timeout, too, is answered by trying half as many rows at once. Raises an error that is not the fault of the
        rows, an error of a single row when SET_ASIDE_MAX rows were set aside already, and a timeout of a single row.
        """
        if not rows:
            return 0
        try:
            return self._act(rows)
        except Exception as error:
            # `act` has done nothing. What is neither a fault of the rows nor a timeout goes to the caller.
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
