"""The operations of a service behind coalescers: each runs in one transaction on the service's database."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from shop_common.batching.coalescer import BATCH_WEIGHT_MAX, Coalescer, Limits
from shop_common.db.database import Database
from shop_common.errors import ShopError

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

Bulk = Callable[[Connection, Sequence[_Request]], Sequence[_Result | ShopError]]

READS = Limits(max_concurrency=2)
"""Reads need no turn: several batches run at once."""

ALONE = Limits(requests_max=1)
"""For operations whose single request is already as much work as a batch."""

LISTS = Limits(requests_max=1, max_concurrency=4)
"""A page is a batch by itself; several run at once."""


@dataclass(frozen=True)
class Sizes(Generic[_Request]):
    """How many rows a request works on, where the request does not say it, but only the database.

    `of` names what a request works on, and `read` counts its rows: of an order, say, its lines. What is missing has
    none. `most` is the largest size there is: a batch that is small enough in any case is not measured.
    """

    key: Callable[[_Request], str | int]
    read: Callable[[Connection, Collection[Any]], Mapping[Any, int]]
    size_max: int = BATCH_WEIGHT_MAX

    def prefix_within(self, tx: Connection, requests: Sequence[_Request], rows_max: int) -> Sequence[_Request]:
        """As many of the requests as work on so many rows together, from the first on; at least one.

        Sizes are read without a lock and may have grown when the rows are locked: this bounds a batch, it decides
        nothing.
        """
        named = [self.key(request) for request in requests]
        distinct = set(named)
        if len(distinct) == 1 or len(distinct) * self.size_max <= rows_max:
            return requests
        sizes = dict(self.read(tx, distinct))
        rows = 0
        for count, name in enumerate(named):
            rows += sizes.pop(name, 0)  # what several requests name is worked on once
            if count and rows > rows_max:
                return requests[:count]
        return requests


class Coalescers:
    """Makes coalescers over one database, and closes them together."""

    def __init__(self, database: Database, die: Callable[[str, BaseException], None]) -> None:
        self._database = database
        self._die = die
        self._made: list[Coalescer[Any, Any]] = []

    def writes(
        self,
        name: str,
        operation: Bulk[_Request, _Result],
        *,
        key: Callable[[_Request], Hashable | None] | None = None,
        weigh: Callable[[_Request], int] | None = None,
        sizes: Sizes[_Request] | None = None,
        limits: Limits | None = None,
    ) -> Coalescer[_Request, _Result]:
        """The operation, one batch at a time in a transaction that commits. `key` and `weigh`: see Coalescer.

        `sizes` is for requests that do not say how much they weigh.
        """
        bounded = _bounded(operation, sizes)
        return self.own(
            name,
            lambda requests: self._database.transact(lambda tx: bounded(tx, requests)),
            key=key,
            weigh=weigh,
            limits=limits,
        )

    def reads(
        self,
        name: str,
        operation: Bulk[_Request, _Result],
        *,
        sizes: Sizes[_Request] | None = None,
        limits: Limits = READS,
    ) -> Coalescer[_Request, _Result]:
        """The operation in read-only transactions. `sizes`: see `writes`."""
        bounded = _bounded(operation, sizes)
        return self.own(name, lambda requests: self._database.query(lambda tx: bounded(tx, requests)), limits=limits)

    def pages(self, name: str, operation: Callable[[Connection, _Request], _Result]) -> Coalescer[_Request, _Result]:
        """An operation that reads one page: a batch by itself, in a read-only transaction; several run at once."""
        return self.reads(name, lambda tx, requests: [operation(tx, request) for request in requests], limits=LISTS)

    def alone(self, name: str, operation: Callable[[_Request], _Result]) -> Coalescer[_Request, _Result]:
        """An operation on one request that opens its own transactions: one request at a time."""
        return self.own(name, lambda requests: [operation(request) for request in requests], limits=ALONE)

    def own(
        self,
        name: str,
        bulk: Callable[[Sequence[_Request]], Sequence[_Result | ShopError]],
        *,
        key: Callable[[_Request], Hashable | None] | None = None,
        weigh: Callable[[_Request], int] | None = None,
        limits: Limits | None = None,
    ) -> Coalescer[_Request, _Result]:
        """A coalescer over what opens its own transactions, or calls another service."""
        coalescer = Coalescer(name, bulk, key=key, weigh=weigh, limits=limits, die=self._die)
        self._made.append(coalescer)
        return coalescer

    def close(self) -> None:
        """Finish what waits in each, in the order in which they were made, then end their threads."""
        for coalescer in self._made:
            coalescer.close()


def _bounded(operation: Bulk[_Request, _Result], sizes: Sizes[_Request] | None) -> Bulk[_Request, _Result]:
    """The operation on as many of the requests as are not too much for one transaction."""
    if sizes is None:
        return operation
    return lambda tx, requests: operation(tx, sizes.prefix_within(tx, requests, BATCH_WEIGHT_MAX))
