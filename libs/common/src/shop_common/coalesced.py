"""The operations of a service behind coalescers: each runs in one transaction on the service's database."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection

from shop_common.coalescer import Coalescer, Limits
from shop_common.database import Database
from shop_common.errors import ShopError

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

Bulk = Callable[[Connection, Sequence[_Request]], Sequence[_Result | ShopError]]

READS = Limits(flights_max=2)
"""Reads need no turn: several batches run at once."""

ALONE = Limits(requests_max=1)
"""For what is as much work as a batch already."""

LISTS = Limits(requests_max=1, flights_max=4)
"""A page is a batch by itself; several run at once."""


class Coalesced:
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
        limits: Limits | None = None,
    ) -> Coalescer[_Request, _Result]:
        """The operation, one batch at a time in a transaction that commits. `key` and `weigh`: see Coalescer."""
        return self.own(
            name,
            lambda requests: self._database.transact(lambda tx: operation(tx, requests)),
            key=key,
            weigh=weigh,
            limits=limits,
        )

    def reads(
        self, name: str, operation: Bulk[_Request, _Result], *, limits: Limits = READS
    ) -> Coalescer[_Request, _Result]:
        """The operation in read-only transactions."""
        return self.own(name, lambda requests: self._database.query(lambda tx: operation(tx, requests)), limits=limits)

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


def one_by_one(
    operation: Callable[[Connection, _Request], _Result],
) -> Callable[[Connection, Sequence[_Request]], list[_Result]]:
    """A bulk operation out of one that is a batch by itself."""
    return lambda tx, requests: [operation(tx, request) for request in requests]
