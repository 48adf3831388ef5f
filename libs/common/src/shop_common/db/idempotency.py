"""Idempotent calls: a `request_id` is claimed by an INSERT in the same transaction as its effect.

Two calls with one id can't both win the INSERT: the later one waits for the earlier one's transaction, then
finds the claim and answers with the resources that the first call made. A refused call takes its claim back, since
it had no effect, and is decided anew when it is repeated.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

import orjson
from sqlalchemy import Column, Connection, Index, MetaData, Table, Text, delete, select, tuple_

from shop_common.db.sql import Clock, Statement, Timestamp, in_rows, insert_into
from shop_common.errors import InvalidInput, ShopError, Violation

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

Key = tuple[str, str, str]
"""Method, scope (the user's id where ids are theirs, else empty), request id."""


class RequestIdReused(InvalidInput):
    """The same request_id came before with other content."""

    reason: ClassVar[str] = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__([Violation("request_id", "was used before for a call with other content")])
        self.request_id = request_id

    def metadata(self) -> dict[str, str]:
        return {"request_id": self.request_id}


@dataclass(frozen=True, slots=True)
class Claim:
    """A call's id, what it asks for (`fingerprint`), and the ids of what it is about to make."""

    method: str
    scope: str
    request_id: str
    fingerprint: str
    resources: tuple[str, ...]

    @property
    def key(self) -> Key:
        return (self.method, self.scope, self.request_id)


def fingerprint(*content: object) -> str:
    """A digest of a call's content, equal for equal content only."""
    return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()


class IdempotencyKeys:
    """The idempotency table of one service's database."""

    def __init__(self, metadata: MetaData) -> None:
        self.table = table = Table(
            "idempotency_keys",
            metadata,
            # The request id leads: a batch has many, and the index is searched by what differs most.
            Column("request_id", Text, primary_key=True),
            Column("scope", Text, primary_key=True),
            Column("method", Text, primary_key=True),
            Column("fingerprint", Text, nullable=False),
            Column("resources", Text, nullable=False),
            Column("created_at", Timestamp, nullable=False, server_default=Clock()),
            Index("ix_idempotency_keys_created_at", "created_at"),
        )
        key = (table.c.method, table.c.scope, table.c.request_id)
        names = ("method", "scope", "request_id")
        types = {column.name: column.type for column in key}
        self._insert = insert_into(table, *names, "fingerprint", "resources", or_ignore=True, returning=key)
        self._find = Statement(
            lambda given: select(*key, table.c.fingerprint, table.c.resources).where(
                in_rows(table.c.request_id, given.c.request_id),
                tuple_(*key).in_(select(*(given.c[name] for name in names))),
            ),
            **types,
        )
        self._delete = Statement(
            lambda given: delete(table).where(
                in_rows(table.c.request_id, given.c.request_id),
                tuple_(*key).in_(select(*(given.c[name] for name in names))),
            ),
            **types,
        )

    def claim(
        self, tx: Connection, requests: Sequence[_Request], claims: Sequence[Claim | None]
    ) -> "Claimed[_Request]":
        """Claim the key of each request, and separate what is new from what earlier calls decided.

        `claims` has one entry per request, None for a request without a request_id, which is always new. A batch
        contains a request_id at most once: the coalescer folds repeats. Call this before taking any other lock.
        """
        present = [claim for claim in claims if claim is not None]
        earlier = self.insert(tx, present)  # failpoint: idempotency-claim
        claimed = Claimed(self, requests, claims)
        for index, claim in enumerate(claims):
            stored = earlier.get(claim.key) if claim is not None else None
            if claim is None or stored is None:
                claimed.new_indexes.append(index)
            elif stored.fingerprint == claim.fingerprint:
                claimed.replays.append(stored)
                claimed.replay_indexes.append(index)
            else:
                claimed.outcomes[index] = RequestIdReused(claim.request_id)
        return claimed

    def insert(self, tx: Connection, claims: Sequence[Claim]) -> dict[Key, Claim]:
        """Insert the claims, one per key; return those that earlier calls hold, by key, as those calls stored them."""
        if not claims:
            return {}
        if len({claim.key for claim in claims}) < len(claims):
            raise ValueError("a batch contains a request_id twice: each request would be performed")
        # Sorted, so that two batches with the same keys wait for each other and do not deadlock.
        rows = [
            {
                **_key_row(claim.key),
                "fingerprint": claim.fingerprint,
                "resources": orjson.dumps(claim.resources).decode(),
            }
            for claim in sorted(claims, key=lambda claim: claim.key)
        ]
        inserted = {tuple(row) for row in self._insert(tx, rows)}
        return self.find(tx, [claim.key for claim in claims if claim.key not in inserted])

    def find(self, tx: Connection, keys: Sequence[Key]) -> dict[Key, Claim]:
        """The claims stored under these keys."""
        if not keys:
            return {}
        return {
            (row.method, row.scope, row.request_id): Claim(
                row.method, row.scope, row.request_id, row.fingerprint, tuple(orjson.loads(row.resources))
            )
            for row in self._find(tx, [_key_row(key) for key in keys])
        }

    def take_back(self, tx: Connection, keys: Sequence[Key]) -> None:
        """Give up keys claimed in this transaction, for calls that were refused."""
        if keys:
            self._delete(tx, [_key_row(key) for key in keys])

    def purge(self, tx: Connection, before: datetime, max_count: int) -> int:
        """Forget up to `max_count` keys claimed before that moment, the oldest first; returns how many."""
        key = (self.table.c.method, self.table.c.scope, self.table.c.request_id)
        oldest = select(*key).where(self.table.c.created_at < before).order_by(self.table.c.created_at).limit(max_count)
        return len(tx.execute(delete(self.table).where(tuple_(*key).in_(oldest)).returning(key[2])).all())


class Claimed(Generic[_Request]):
    """The requests of one batch, after their keys were claimed.

    `new` are the requests to perform; `replays` are the claims of earlier calls with the same content, to be answered
    with what those calls made, as it is now. Both keep the order of the batch.
    """

    def __init__(self, keys: IdempotencyKeys, requests: Sequence[_Request], claims: Sequence[Claim | None]) -> None:
        self._keys = keys
        self._requests = requests
        self._claims = claims
        self.outcomes: dict[int, Any] = {}
        self.new_indexes: list[int] = []
        self.replay_indexes: list[int] = []
        self.replays: list[Claim] = []

    @property
    def new(self) -> list[_Request]:
        return [self._requests[index] for index in self.new_indexes]

    def settle(
        self,
        tx: Connection,
        *,
        replayed: Sequence[_Result | ShopError],
        new: Sequence[_Result | ShopError],
    ) -> list[_Result | ShopError]:
        """Return one outcome per request of the batch, in order, from the outcomes of `replays` and of `new`.

        A refusal has no effect, so its claim is deleted, and a repeat of that request is decided anew.
        """
        self.outcomes.update(zip(self.replay_indexes, replayed, strict=True))
        self.outcomes.update(zip(self.new_indexes, new, strict=True))
        refused = [self._claims[index] for index in self.new_indexes if isinstance(self.outcomes[index], ShopError)]
        self._keys.take_back(tx, [claim.key for claim in refused if claim is not None])
        return [self.outcomes[index] for index in range(len(self._requests))]


def _key_row(key: Key) -> dict[str, str]:
    method, scope, request_id = key
    return {"method": method, "scope": scope, "request_id": request_id}
