"""A request_id is claimed once, together with its effect."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Connection, MetaData, func, select, text, update

from shop_common.db.database import Database
from shop_common.db.idempotency import Claim, IdempotencyKeys, Key, RequestIdReused, fingerprint
from shop_common.db.sql import now
from shop_common.errors import Refused, ShopError

METADATA = MetaData()
KEYS = IdempotencyKeys(METADATA)
PATIENCE_SECONDS = 60.0


class TooMany(Refused):
    reason = "TOO_MANY"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    with database.write() as tx:
        METADATA.create_all(tx)
    yield database
    database.close()


def claim(
    request_id: str,
    content: str = "",
    made: str = "first",
    *,
    scope: str = "",
    method: str = "Put",
    tenant: str = "default",
) -> Claim:
    return Claim(method, scope, request_id, content, (made,), tenant)


class Shop:
    """Performs requests `(request_id, content)`, and remembers what it performed."""

    def __init__(self, refusing: Sequence[str] = ()) -> None:
        self.performed: list[str] = []
        self._refusing = refusing

    def __call__(self, tx: Connection, requests: Sequence[tuple[str | None, str]]) -> list[str | ShopError]:
        claims = [
            claim(request_id, content, f"made {content}") if request_id else None for request_id, content in requests
        ]
        claimed = KEYS.claim(tx, requests, claims)
        return claimed.settle(
            tx,
            replayed=[f"again {stored.resources[0]}" for stored in claimed.replays],
            new=self._perform(claimed.new),
        )

    def _perform(self, requests: Sequence[tuple[str | None, str]]) -> list[str | ShopError]:
        self.performed += [content for _, content in requests]
        return [TooMany(content) if content in self._refusing else f"made {content}" for _, content in requests]


def count(database: Database) -> int:
    with database.read() as tx:
        return tx.execute(select(func.count()).select_from(KEYS.table)).scalar_one()


def test_new_calls_are_performed_and_earlier_ones_answered_in_the_order_asked(database: Database) -> None:
    shop = Shop()
    database.transact(lambda tx: shop(tx, [("a", "A"), ("b", "B")]))

    outcomes = database.transact(
        lambda tx: shop(tx, [("c", "C"), ("b", "B"), (None, "N"), ("a", "other"), ("a2", "A")])
    )

    assert outcomes[:3] == ["made C", "again made B", "made N"]
    assert isinstance(outcomes[3], RequestIdReused)
    assert outcomes[3].metadata() == {"request_id": "a"}
    assert outcomes[4] == "made A"
    assert shop.performed == ["A", "B", "C", "N", "A"]


def test_a_refused_call_leaves_no_claim_and_is_decided_anew(database: Database) -> None:
    refusing, willing = Shop(refusing=["A"]), Shop()

    first, neighbour = database.transact(lambda tx: refusing(tx, [("a", "A"), ("b", "B")]))
    assert isinstance(first, TooMany)
    assert (neighbour, count(database)) == ("made B", 1)

    assert database.transact(lambda tx: willing(tx, [("a", "A")])) == ["made A"]
    assert count(database) == 2


def test_a_call_that_fails_leaves_no_claim(database: Database) -> None:
    def claim_and_fail(tx: Connection) -> None:
        KEYS.insert(tx, [claim("r")])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.transact(claim_and_fail)

    assert count(database) == 0


def test_a_request_id_belongs_to_its_method_its_scope_and_its_tenant(database: Database) -> None:
    others = [claim("r"), claim("r", scope="7"), claim("r", method="Take"), claim("s"), claim("r", tenant="acme")]

    assert database.transact(lambda tx: KEYS.insert(tx, others)) == {}
    assert database.transact(lambda tx: KEYS.insert(tx, [claim("r", made="second")])) == {
        ("default", "Put", "", "r"): others[0]
    }
    assert database.transact(lambda tx: KEYS.insert(tx, [])) == {}


@pytest.mark.parametrize("commits", [True, False])
def test_a_claim_waits_for_one_in_flight_and_then_knows_what_became_of_it(
    database: Database, database_url: str, commits: bool
) -> None:
    other_process = Database(database_url)

    def claim_while_another_waits(tx: Connection) -> Future[dict[Key, Claim]]:
        KEYS.insert(tx, [claim("r", made="first")])
        waiting = other.submit(other_process.transact, lambda tx: KEYS.insert(tx, [claim("r", made="second")]))
        _until_another_waits(tx)
        assert not waiting.done()
        if not commits:
            tx.rollback()
        return waiting

    with ThreadPoolExecutor(1) as other:
        earlier = database.transact(claim_while_another_waits).result(PATIENCE_SECONDS)

    assert [stored.resources for stored in earlier.values()] == ([("first",)] if commits else [])
    other_process.close()


def test_keys_that_two_batches_share_in_opposite_order_do_not_deadlock(database: Database, database_url: str) -> None:
    other_process = Database(database_url)
    ids = [f"r-{number}" for number in range(50)]
    with ThreadPoolExecutor(2) as callers:
        outcomes = list(
            callers.map(
                lambda run: run[0].transact(lambda tx: KEYS.insert(tx, [claim(each) for each in run[1]])),
                [(database, ids), (other_process, ids[::-1])],
            )
        )
    other_process.close()

    assert sorted(len(earlier) for earlier in outcomes) == [0, 50]


def test_old_keys_are_purged_oldest_first_up_to_the_limit(database: Database) -> None:
    database.transact(lambda tx: KEYS.insert(tx, [claim(f"r-{days}") for days in range(6)]))
    with database.write() as tx:
        moment = now(tx)
        for days in range(6):
            tx.execute(
                update(KEYS.table)
                .where(KEYS.table.c.request_id == f"r-{days}")
                .values(created_at=moment - timedelta(days=days))
            )
    before = moment - timedelta(days=1, hours=12)

    assert database.transact(lambda tx: KEYS.purge(tx, before, 3)) == 3
    with database.read() as tx:
        left = set(tx.execute(select(KEYS.table.c.request_id)).scalars())
    assert left == {"r-0", "r-1", "r-2"}
    assert database.transact(lambda tx: KEYS.purge(tx, before, 3)) == 1
    assert database.transact(lambda tx: KEYS.purge(tx, before, 3)) == 0


def test_equal_content_has_one_fingerprint_and_other_content_another() -> None:
    contents = [("a", 1), ("a", "1"), ("a", None), ("a1",), ("a", 1, None), (("a", 1),), ("a", [1]), (1, "a")]

    assert fingerprint("a", 1) == fingerprint("a", 1)
    assert len({fingerprint(*content) for content in contents}) == len(contents)


def _until_another_waits(tx: Connection) -> None:
    """Wait until another transaction waits for ours. SQLite does not show which transactions wait."""
    if tx.dialect.name == "sqlite":
        return
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not tx.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one():
        assert time.monotonic() < deadline, "nobody waits"
