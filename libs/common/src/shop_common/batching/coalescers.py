"""Makes the coalescers of a service. Most of them run each batch in one transaction on the service's database."""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from shop_common.api.command import Command
from shop_common.batching.coalescer import BATCH_WEIGHT_MAX, Coalescer, Limits
from shop_common.db import row_security
from shop_common.db.audit import AuditLog, Entry, entry
from shop_common.db.database import Database
from shop_common.errors import ShopError
from shop_common.identity.tenant import OfTenant

_Request = TypeVar("_Request")
_OfTenant = TypeVar("_OfTenant", bound=OfTenant)
_Command = TypeVar("_Command", bound=Command)
_Result = TypeVar("_Result")

Bulk = Callable[[Connection, Sequence[_Request]], Sequence[_Result | ShopError]]

READS = Limits(max_concurrency=2)
"""Reads do not lock rows, so two batches may run at once."""

ALONE = Limits(requests_max=1)
"""Limits for operations whose single request is already as much work as a batch."""

LISTS = Limits(requests_max=1, max_concurrency=4)
"""Limits for lists: each page is a batch of its own, and four pages may be read at once."""


@dataclass(frozen=True)
class Sizes(Generic[_Request]):
    """Reads from the database how many rows each request works on, because the requests do not contain this number.

    `key` returns the key of the object that a request works on, for example an order. `read` counts the rows of each
    id, for example the lines of each order. It may leave out ids without rows. `size_max` is the largest possible
    count. Nothing is read if a batch has only one id, or fits even if each id has `size_max` rows.
    """

    key: Callable[[_Request], Hashable]
    read: Callable[[Connection, Collection[Any]], Mapping[Any, int]]
    size_max: int = BATCH_WEIGHT_MAX

    def prefix_within(self, tx: Connection, requests: Sequence[_Request], rows_max: int) -> Sequence[_Request]:
        """Return the longest prefix of the requests that works on at most `rows_max` rows, but at least one request.

        The counts are read without a lock, so they may have grown by the time the rows are locked. Use the result only
        to bound a batch, never for a decision.
        """
        keys = [self.key(request) for request in requests]
        distinct = set(keys)
        if len(distinct) == 1 or len(distinct) * self.size_max <= rows_max:
            return requests
        sizes = dict(self.read(tx, distinct))
        rows = 0
        for count, key in enumerate(keys):
            rows += sizes.pop(key, 0)  # requests with the same key work on the same rows: count these rows once
            if count and rows > rows_max:
                return requests[:count]
        return requests


@dataclass(frozen=True)
class Audit(Generic[_Request, _Result]):
    """Describes the audit log's rows for a coalescer: one row per call that is not refused, folded calls included.

    `method` is the name of the RPC. `command` returns the command of a request. `fold` is that of Coalescer.
    `resources` returns the ids of what the request changed, from the request and its result.
    """

    method: str
    command: Callable[[_Request], Command]
    fold: Callable[[_Request, int], _Request]
    resources: Callable[[_Request, _Result], Iterable[str]]

    def audited(self, operation: Bulk[_Request, _Result], log: AuditLog) -> Bulk[_Request, _Result]:
        """Return an operation that also writes the rows, in the same transaction."""

        def run(tx: Connection, requests: Sequence[_Request]) -> Sequence[_Result | ShopError]:
            outcomes = operation(tx, requests)
            log.append(tx, self._entries(requests, outcomes))
            return outcomes

        return run

    def _entries(self, requests: Iterable[_Request], outcomes: Iterable[_Result | ShopError]) -> list[Entry]:
        """Return the rows. `outcomes` are those of the first requests, in order: the others go into another batch."""
        entries: list[Entry] = []
        for request, outcome in zip(requests, outcomes, strict=False):
            if not isinstance(outcome, ShopError):
                command = self.command(request)
                resources = self.resources(request, outcome)
                row = entry(command.caller, self.method, resources, command.request_id)
                entries += [row] * command.calls
        return entries


def audit_of(
    kind: type[_Command], method: str, resources: Callable[[_Command, _Result], Iterable[str]]
) -> Audit[_Command, _Result]:
    """Return the Audit of an operation whose requests are commands of this kind."""
    return Audit(method, lambda command: command, kind.folded, resources)


class Coalescers:
    """Makes coalescers that run on one database, and closes them together. Without `audit_log`, nothing is audited."""

    def __init__(
        self,
        database: Database,
        on_fatal: Callable[[str, BaseException], None],
        audit_log: AuditLog | None = None,
    ) -> None:
        self._database = database
        self._on_fatal = on_fatal
        self._audit_log = audit_log
        self._made: list[Coalescer[Any, Any]] = []

    def writes(
        self,
        name: str,
        operation: Bulk[_OfTenant, _Result],
        *,
        key: Callable[[_OfTenant], Hashable | None] | None = None,
        weigh: Callable[[_OfTenant], int] | None = None,
        sizes: Sizes[_OfTenant] | None = None,
        limits: Limits | None = None,
        audit: Audit[_OfTenant, _Result] | None = None,
    ) -> Coalescer[_OfTenant, _Result]:
        """Make a coalescer that runs each batch in a write transaction, one batch at a time by default.

        The transaction may access rows of the tenants of its requests only.

        `key` and `weigh` are those of Coalescer. `sizes` bounds a batch whose requests do not contain their weight.
        With `audit`, the transaction also writes the rows of the audit log.
        """
        bounded = _bounded(operation, sizes)
        fold = None
        if audit is not None and self._audit_log is not None:
            bounded = audit.audited(bounded, self._audit_log)
            fold = audit.fold
        return self.own(
            name,
            lambda requests: self._database.transact(lambda tx: bounded(tx, requests), row_security.of(requests)),
            key=key,
            weigh=weigh,
            fold=fold,
            limits=limits,
        )

    def reads(
        self,
        name: str,
        operation: Bulk[_OfTenant, _Result],
        *,
        sizes: Sizes[_OfTenant] | None = None,
        limits: Limits = READS,
    ) -> Coalescer[_OfTenant, _Result]:
        """Make a coalescer that runs each batch in a read-only transaction. `sizes` is as in `writes`."""
        bounded = _bounded(operation, sizes)
        return self.own(
            name,
            lambda requests: self._database.query(lambda tx: bounded(tx, requests), row_security.of(requests)),
            limits=limits,
        )

    def pages(self, name: str, operation: Callable[[Connection, _OfTenant], _Result]) -> Coalescer[_OfTenant, _Result]:
        """Make a coalescer for an operation that reads one page. Each request is a batch. Up to 4 run at once."""
        return self.reads(name, lambda tx, requests: [operation(tx, request) for request in requests], limits=LISTS)

    def alone(self, name: str, operation: Callable[[_Request], _Result]) -> Coalescer[_Request, _Result]:
        """Make a coalescer for an operation that opens its own transactions. It runs one request at a time."""
        return self.own(name, lambda requests: [operation(request) for request in requests], limits=ALONE)

    def own(
        self,
        name: str,
        bulk: Callable[[Sequence[_Request]], Sequence[_Result | ShopError]],
        *,
        key: Callable[[_Request], Hashable | None] | None = None,
        weigh: Callable[[_Request], int] | None = None,
        fold: Callable[[_Request, int], _Request] | None = None,
        limits: Limits | None = None,
    ) -> Coalescer[_Request, _Result]:
        """Make a coalescer for a bulk operation that opens its own transactions or calls another service."""
        coalescer = Coalescer(name, bulk, key=key, weigh=weigh, fold=fold, limits=limits, on_fatal=self._on_fatal)
        self._made.append(coalescer)
        return coalescer

    def close(self) -> None:
        """Close the coalescers in the order in which they were made. Each coalescer first finishes its queue."""
        for coalescer in self._made:
            coalescer.close()


def _bounded(operation: Bulk[_Request, _Result], sizes: Sizes[_Request] | None) -> Bulk[_Request, _Result]:
    """Limit the operation to as many requests of a batch as fit into one transaction."""
    if sizes is None:
        return operation
    return lambda tx, requests: operation(tx, sizes.prefix_within(tx, requests, BATCH_WEIGHT_MAX))
