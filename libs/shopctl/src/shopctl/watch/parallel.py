"""Queries several parts of the system in parallel. A part that does not respond does not hide the others."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from shopctl.terminal.failures import sentence
from shopctl.watch.unavailable import Unavailable

_Result = TypeVar("_Result")

SECONDS_MAX = 20.0
"""Time limit for each query. Queries have shorter timeouts of their own, but a frozen server may make these fail."""


class _Query(threading.Thread, Generic[_Result]):
    """A query on its own daemon thread. A query that never returns cannot keep the process from exiting."""

    def __init__(self, name: str, query: Callable[[], _Result]) -> None:
        super().__init__(name=f"query {name}", daemon=True)
        self._query = query
        self.result: _Result | Unavailable = Unavailable(f"no response within {SECONDS_MAX:g} s")

    def run(self) -> None:
        try:
            self.result = self._query()
        except Exception as error:
            # Report any failure as the result of this part. The other parts are still shown.
            self.result = Unavailable(sentence(error))


def query_all(queries: Mapping[str, Callable[[], _Result]]) -> dict[str, _Result | Unavailable]:
    """Run the queries in parallel. Returns the result of each query, or Unavailable with the reason."""
    threads = {name: _Query(name, query) for name, query in queries.items()}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + SECONDS_MAX
    for thread in threads.values():
        thread.join(max(0.0, deadline - time.monotonic()))
    return {name: thread.result for name, thread in threads.items()}
