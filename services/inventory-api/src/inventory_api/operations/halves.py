"""Work on many rows of different owners: one that fails is found by halves and set aside, and the others are done."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from shop_common.db.database import cause_of, is_own_fault
from shop_common.errors import TIMEOUTS
from shop_common.telemetry import logs

_Row = TypeVar("_Row")

SET_ASIDE_MAX = 20
"""By one call. More than that is not a matter of single rows."""

_log = logs.get(__name__)


class Halves(Generic[_Row]):
    """For one call. `act` does all of some rows or, when it raises, none; `set_aside` gets the id of a bad one."""

    def __init__(
        self, act: Callable[[Sequence[_Row]], int], *, id_of: Callable[[_Row], str], set_aside: Callable[[str], None]
    ) -> None:
        self._act = act
        self._id_of = id_of
        self._set_aside = set_aside
        self.bad = 0
        """How many were set aside."""

    def do(self, rows: Sequence[_Row]) -> int:
        """What `act` returns for these rows, or for their parts in sum.

        After a timeout, fewer rows are tried at once. Raises an error that no single row causes, and one that more than
        SET_ASIDE_MAX rows cause.
        """
        if not rows:
            return 0
        try:
            return self._act(rows)
        except Exception as error:
            if len(rows) == 1 and is_own_fault(error) and self.bad < SET_ASIDE_MAX:
                self.bad += 1
                self._set_aside(self._id_of(rows[0]))
                _log.error(
                    "reservation set aside: it can't be expired or purged",
                    reservation_id=self._id_of(rows[0]),
                    cause=cause_of(error),
                )
                return 0
            if len(rows) == 1 or not (is_own_fault(error) or isinstance(error, TIMEOUTS)):
                raise
        half = len(rows) // 2
        return self.do(rows[:half]) + self.do(rows[half:])
