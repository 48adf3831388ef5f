"""Operations behind coalescers, each batch in one transaction."""

import time
from collections.abc import Collection, Iterator, Sequence

import pytest
from sqlalchemy import Connection, text

from devstack.postgres import PostgresServer
from shop_common.batching.coalescers import Coalescers, Sizes
from shop_common.db.database import Database
from shop_common.errors import LockTimeout, QueueFull, Refused, ShopError
from shop_common.identity.tenant import DEFAULT


class TooMany(Refused):
    reason = "TOO_MANY"


class Parcel(int):
    """The number of a parcel of the default tenant."""

    tenant = DEFAULT


def parcels(*numbers: int) -> list[Parcel]:
    return [Parcel(number) for number in numbers]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    with database.write() as tx:
        tx.execute(text("CREATE TABLE parcels (id BIGINT PRIMARY KEY)"))
    yield database
    database.close()


@pytest.fixture
def run(database: Database) -> Iterator[Coalescers]:
    fatal_errors: list[str] = []
    run = Coalescers(database, lambda reason, error: fatal_errors.append(f"{reason}: {error!r}"))
    yield run
    run.close()
    assert fatal_errors == []


def put(tx: Connection, ids: Sequence[Parcel]) -> list[int | ShopError]:
    outcomes: list[int | ShopError] = []
    for each in ids:
        if each > 100:
            outcomes.append(TooMany("too many"))
            continue
        tx.execute(text("INSERT INTO parcels VALUES (:id)"), {"id": each})
        outcomes.append(each)
    return outcomes


def count(tx: Connection, questions: Sequence[Parcel]) -> list[int]:
    return [tx.execute(text("SELECT count(*) FROM parcels")).scalar_one()] * len(questions)


def deadline() -> float:
    return time.monotonic() + 10


def test_a_write_is_committed_and_can_be_read(run: Coalescers) -> None:
    write, read = run.writes("put", put), run.reads("count", count)

    assert write.submit_many(parcels(1, 2, 3), deadline=deadline()) == [1, 2, 3]
    assert read.submit(Parcel(), deadline=deadline()) == 3


def test_a_refused_request_does_not_affect_its_batch(run: Coalescers) -> None:
    write, read = run.writes("put", put), run.reads("count", count)

    first, refused, last = write.submit_many(parcels(1, 101, 2), deadline=deadline())

    assert (first, last) == (1, 2)
    assert isinstance(refused, TooMany)
    assert read.submit(Parcel(), deadline=deadline()) == 2


def test_an_error_caused_by_one_requests_data_fails_only_that_request(run: Coalescers) -> None:
    write, read = run.writes("put", put), run.reads("count", count)
    write.submit(Parcel(7), deadline=deadline())

    with pytest.raises(Exception, match=r"(?i)unique"):
        write.submit_many(parcels(1, 2, 7, 4), deadline=deadline())

    assert read.submit(Parcel(), deadline=deadline()) == 4


def test_a_row_that_another_transaction_has_locked_fails_the_request_that_needs_it_alone(
    postgres_server: PostgresServer,
) -> None:
    database = Database(postgres_server.new_database())
    with database.write() as tx:
        tx.execute(text("CREATE TABLE parcels (id BIGINT PRIMARY KEY)"))
        tx.execute(text("INSERT INTO parcels SELECT generate_series(1, 8)"))

    def touch(tx: Connection, ids: Sequence[Parcel]) -> list[int]:
        for each in ids:
            tx.execute(text("UPDATE parcels SET id = id WHERE id = :id"), {"id": each})
        return list(ids)

    run = Coalescers(database, lambda said, error: None)
    write = run.writes("touch", touch)
    with database.write("; SET LOCAL idle_in_transaction_session_timeout = 0") as other:
        other.execute(text("UPDATE parcels SET id = id WHERE id = 7"))
        outcomes = write.submit_many(parcels(*range(1, 9)), deadline=time.monotonic() + 60)
    run.close()
    database.close()

    assert isinstance(outcomes.pop(6), LockTimeout)
    assert outcomes == [1, 2, 3, 4, 5, 6, 8]


def test_a_batch_holds_as_many_requests_as_are_within_its_limit_of_rows(run: Coalescers) -> None:
    # The name of a parcel is its size. An unknown parcel has no size.
    sizes = Sizes[Parcel](
        key=abs, read=lambda tx, names: {name: name for name in names if name < 10_000}, size_max=1500
    )
    batches: list[list[int]] = []

    def record(tx: Connection, requests: Sequence[Parcel]) -> list[int]:
        batches.append(list(requests))
        return list(requests)

    for coalescer in (run.reads("read", record, sizes=sizes), run.writes("write", record, sizes=sizes)):
        requests = parcels(1500, -1500, 1500, 500, 1, 50_000, 1999, 5000, 7)
        assert coalescer.submit_many(requests, deadline=deadline()) == requests
        assert batches == [[1500, -1500, 1500, 500], [1, 50_000, 1999], [5000], [7]]
        batches.clear()


def test_a_batch_that_is_small_enough_in_any_case_is_not_measured(run: Coalescers) -> None:
    measured: list[int] = []

    def read(tx: Connection, names: Collection[int]) -> dict[int, int]:
        measured.append(len(names))
        return {}

    write = run.writes("put", put, sizes=Sizes[Parcel](key=int, read=read, size_max=1000))
    write.submit_many(parcels(1, 2), deadline=deadline())
    assert measured == []
    write.submit_many(parcels(3, 4, 5), deadline=deadline())
    assert measured == [3]


def test_an_operation_that_takes_one_request_is_a_batch_by_itself(run: Coalescers) -> None:
    sizes: list[int] = []

    def one(request: int) -> int:
        sizes.append(request)
        return -request

    write = run.alone("one", one)

    assert write.submit_many([1, 2], deadline=deadline()) == [-1, -2]
    assert sizes == [1, 2]


def test_closing_closes_all_of_them(run: Coalescers) -> None:
    write, read = run.writes("put", put), run.reads("count", count)

    run.close()

    with pytest.raises(QueueFull):
        write.submit(Parcel(1), deadline=deadline())
    with pytest.raises(QueueFull):
        read.submit(Parcel(), deadline=deadline())
