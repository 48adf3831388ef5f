"""Limits the concurrent calls of inventory-api that change the reservations of one order each."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from shop_common.batching.coalescer import time_to_wait
from shop_common.errors import QueueFull, ShopError

CALLS_MAX = 64
"""The maximum number of concurrent calls of inventory-api. The time limit of a call begins when the call is sent. Until
then, the caller waits for its turn, up to its own deadline. After the deadline it gets QUEUE_FULL."""

_Answer = TypeVar("_Answer")


class StockCalls:
    """Makes calls of inventory-api, at most CALLS_MAX at a time."""

    def __init__(self) -> None:
        self._turns = threading.BoundedSemaphore(CALLS_MAX)

    def answer(self, call: Callable[[float], _Answer], name: str, deadline: float) -> _Answer | ShopError:
        """Return what the call returns, or the ShopError that it raises. The call gets the seconds that are left.

        Raises QueueFull, with this name of the operation, if the call was not started before the deadline.
        """
        if not self._turns.acquire(timeout=time_to_wait(deadline)):
            raise QueueFull(f"{name}: the call was not started before its deadline; nothing was done")
        try:
            return call(deadline - time.monotonic())
        except ShopError as refusal:
            return refusal
        finally:
            self._turns.release()
