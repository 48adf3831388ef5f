"""Runs an operation on many reservations, and finds by bisection the reservations that make it fail.

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
    """Runs `act` on rows, and on halves of them if it fails. Create one for each call.

    `act` changes all of its rows, or none if it raises. It returns the number of changed rows. `set_aside` is called
    with the id of a row that fails alone.
    """

    def __init__(
        self, act: Callable[[Sequence[_Row]], int], *, id_of: Callable[[_Row], str], set_aside: Callable[[str], None]
    ) -> None:
        self._act = act
        self._id_of = id_of
        self._set_aside = set_aside
        self.set_aside_count = 0

    def run(self, rows: Sequence[_Row]) -> int:
        """Run `act` on these rows. Returns the total number of changed rows.

        Also retries with half of the rows after a timeout. Raises an error that the rows did not cause, an error of a
        single row if SET_ASIDE_MAX rows were already set aside, and a timeout of a single row.
        """
        if not rows:
            return 0
        try:
            return self._act(rows)
        except Exception as error:
            # `act` has changed nothing. An error that is neither caused by the rows nor a timeout goes to the caller.
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
