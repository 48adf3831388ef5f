"""Makes calls idempotent: a call inserts its `request_id` as a claim, in the transaction that also makes its change.

Only one of two calls with the same id can insert the claim. The later call waits for the transaction of the earlier
one, finds its claim, and returns the resources that the earlier call created. A refused call has no effect, so its
claim is deleted, and a repeat of the call is decided anew.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

import orjson
from sqlalchemy import Column, Connection, Index, MetaData, Table, Text, delete, select, tuple_, update

from shop_common.db.sql import Clock, Statement, Timestamp, in_rows, insert_into, is_each
from shop_common.errors import InvalidInput, ShopError, Violation
from shop_common.identity.tenant import DEFAULT

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

Key = tuple[str, str, str, str]
"""The tenant, the method, the scope and the request id. The scope is the user's id, a caller's name, or empty."""

_KEY = ("tenant", "method", "scope", "request_id")


class RequestIdReused(InvalidInput):
    """An earlier call used the same request_id with different content."""

    reason: ClassVar[str] = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__([Violation("request_id", "was used before for a call with other content")])
        self.request_id = request_id

    def metadata(self) -> dict[str, str]:
        return {"request_id": self.request_id}


@dataclass(frozen=True, slots=True)
class Claim:
    """A call's key, the `fingerprint` of its content, and the ids of the `resources` that it creates."""

    method: str
    scope: str
    request_id: str
    fingerprint: str
    resources: tuple[str, ...]
    tenant: str = DEFAULT

    @property
    def key(self) -> Key:
        return (self.tenant, self.method, self.scope, self.request_id)


def fingerprint(*content: object) -> str:
    """Return a digest of a call's content. Calls with different content have different digests."""
    return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()


class IdempotencyKeys:
    """The idempotency table of one service's database."""

    def __init__(self, metadata: MetaData) -> None:
        self.table = table = Table(
            "idempotency_keys",
            metadata,
            # The request id comes first in the index because it is the most selective column.
            Column("request_id", Text, primary_key=True),
            Column("tenant", Text, primary_key=True, server_default=DEFAULT),
            Column("scope", Text, primary_key=True),
            Column("method", Text, primary_key=True),
            Column("fingerprint", Text, nullable=False),
            Column("resources", Text, nullable=False),
            Column("created_at", Timestamp, nullable=False, server_default=Clock()),
            Index("ix_idempotency_keys_created_at", "created_at"),
        )
        self._key = key = tuple(table.c[name] for name in _KEY)
        types = {column.name: column.type for column in key}
        self._insert = insert_into(table, *_KEY, "fingerprint", "resources", or_ignore=True, returning=key)
        self._find = Statement(
            lambda given: select(*key, table.c.fingerprint, table.c.resources).where(
                in_rows(table.c.request_id, given.c.request_id),
                tuple_(*key).in_(select(*(given.c[name] for name in _KEY))),
            ),
            **types,
        )
        self._replace_resources = Statement(
            lambda given: update(table).values(resources=given.c.resources).where(*is_each(table, given, *_KEY)),
            **types,
            resources=Text(),
        )
        self._delete = Statement(
            lambda given: delete(table).where(
                in_rows(table.c.request_id, given.c.request_id),
                tuple_(*key).in_(select(*(given.c[name] for name in _KEY))),
            ),
            **types,
        )

    def claim(
        self, tx: Connection, requests: Sequence[_Request], claims: Sequence[Claim | None]
    ) -> "Claimed[_Request]":
        """Claim the key of each request, and separate new requests from repeats of earlier calls.

        `claims` has one entry per request. It is None for a request without a request_id: such a request is always new.
        A batch contains a request_id at most once, because the coalescer folds repeats. Call this method before you
        take any other lock.
        """
        present = [claim for claim in claims if claim is not None]
        earlier = self.insert(tx, present)  # failpoint: idempotency-claim
        return Claimed(self, requests, claims, earlier)

    def insert(self, tx: Connection, claims: Sequence[Claim]) -> dict[Key, Claim]:
        """Insert the claims, one per key. Returns the claims that earlier calls stored under the same keys, by key."""
        if not claims:
            return {}
        if len({claim.key for claim in claims}) < len(claims):
            raise ValueError("a batch contains a request_id twice: each request would be performed")
        # Sort the keys, so that two batches with the same keys wait for each other and do not deadlock.
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

    def are_repeats(self, tx: Connection, claims: Sequence[Claim | None]) -> list[bool]:
        """Return, for each claim, whether an earlier call has stored its key. A claim of None is no repeat.

        Locks nothing, so the answer may change until `claim` is called.
        """
        stored = self.find(tx, [claim.key for claim in claims if claim is not None])
        return [claim is not None and claim.key in stored for claim in claims]

    def find(self, tx: Connection, keys: Sequence[Key]) -> dict[Key, Claim]:
        """Return the stored claims with these keys, by key."""
        if not keys:
            return {}
        claims = [
            Claim(
                row.method, row.scope, row.request_id, row.fingerprint, tuple(orjson.loads(row.resources)), row.tenant
            )
            for row in self._find(tx, [_key_row(key) for key in keys])
        ]
        return {claim.key: claim for claim in claims}

    def take_back(self, tx: Connection, keys: Sequence[Key]) -> None:
        """Delete keys that this transaction has claimed for requests that were refused later."""
        if keys:
            self._delete(tx, [_key_row(key) for key in keys])

    def replace_resources(self, tx: Connection, claims: Sequence[Claim]) -> None:
        """Replace the resources of claims that this transaction inserted before it knew what it would create."""
        if claims:
            rows = [{**_key_row(claim.key), "resources": orjson.dumps(claim.resources).decode()} for claim in claims]
            self._replace_resources(tx, rows)

    def purge(self, tx: Connection, before: datetime, max_count: int) -> int:
        """Delete up to `max_count` keys that were claimed before `before`, oldest first. Returns the number of them."""
        created_at, request_id = self.table.c.created_at, self.table.c.request_id
        oldest = select(*self._key).where(created_at < before).order_by(created_at).limit(max_count)
        return len(tx.execute(delete(self.table).where(tuple_(*self._key).in_(oldest)).returning(request_id)).all())


class Claimed(Generic[_Request]):
    """The requests of one batch, after their keys were claimed.

    `new` has the requests to perform. `replays` has the stored claims of requests that earlier calls have already
    performed. The outcome of a replay is the current state of the resources that the earlier call created. `new` and
    `replays` keep the order of the batch.
    """

    def __init__(
        self,
        keys: IdempotencyKeys,
        requests: Sequence[_Request],
        claims: Sequence[Claim | None],
        earlier: Mapping[Key, Claim],
    ) -> None:
        self._keys = keys
        self._claims = claims
        self._outcomes: dict[int, Any] = {}
        self._new: list[int] = []
        self._replays: list[int] = []
        self.replays: list[Claim] = []
        for index, claim in enumerate(claims):
            stored = earlier.get(claim.key) if claim is not None else None
            if claim is None or stored is None:
                self._new.append(index)
            elif stored.fingerprint == claim.fingerprint:
                self._replays.append(index)
                self.replays.append(stored)
            else:
                self._outcomes[index] = RequestIdReused(claim.request_id)
        self.new = [requests[index] for index in self._new]

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
        outcomes = self._outcomes
        outcomes.update(zip(self._replays, replayed, strict=True))
        outcomes.update(zip(self._new, new, strict=True))
        refused = [self._claims[index] for index in self._new if isinstance(outcomes[index], ShopError)]
        self._keys.take_back(tx, [claim.key for claim in refused if claim is not None])
        return [outcomes[index] for index in range(len(self._claims))]


def _key_row(key: Key) -> dict[str, str]:
    return dict(zip(_KEY, key, strict=True))
