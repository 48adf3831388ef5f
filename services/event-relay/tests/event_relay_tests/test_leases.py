"""Who ships which shards: fair shares, one owner at a time, and a way on when an owner dies."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Connection, MetaData, select, update

from event_relay.leases import Held, Leases
from shop_common.db.database import Database
from shop_common.events.outbox import SHARDS, Outbox
from testkit.eventually import eventually


class Table:
    """The leases of one database, and processes that want some."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        metadata = MetaData()
        self._leases = Outbox(metadata).leases
        metadata.create_all(self._database.engine)

    def process(self, name: str, seconds: float = 60) -> "Process":
        return Process(self._database, Leases(self._leases, name, seconds))

    def set_clock_back(self, hours: int) -> None:
        """As a clock that is set back makes leases look: all of them end so much later."""
        ends = self._leases.c.expires_at

        def move(tx: Connection) -> None:
            for shard, at in tx.execute(select(self._leases.c.shard, ends)).all():
                moved = update(self._leases).where(self._leases.c.shard == shard)
                tx.execute(moved.values(expires_at=at + timedelta(hours=hours)))

        self._database.transact(move)

    def close(self) -> None:
        self._database.close()


class Process:
    def __init__(self, database: Database, leases: Leases) -> None:
        self._database = database
        self._leases = leases

    def hold(self) -> Held:
        return self._database.transact(self._leases.hold)

    def shards(self) -> set[int]:
        return set(self.hold().shards)

    def release(self) -> None:
        self._database.transact(self._leases.release)


@pytest.fixture
def table(database_url: str) -> Iterator[Table]:
    table = Table(database_url)
    yield table
    table.close()


ALL = set(range(SHARDS))


def after_rounds(count: int, processes: list[Process]) -> list[set[int]]:
    """The shards of each when all have renewed that often."""
    return [[process.shards() for process in processes] for _ in range(count)][-1]


def test_one_process_holds_all_shards_until_two_thirds_of_its_lease(table: Table) -> None:
    held = table.process("a", seconds=60).hold()
    assert set(held.shards) == ALL
    assert held.ends - held.produce_until == pytest.approx(20)


@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_processes_share_the_shards_as_equally_as_can_be(table: Table, count: int) -> None:
    processes = [table.process(f"process-{number}") for number in range(count)]
    # The last one takes its seat in the first round, the others make room in the second, it takes it in the third.
    shares = after_rounds(3, processes)

    assert set.union(*shares) == ALL
    assert sum(map(len, shares)) == SHARDS
    assert {len(share) for share in shares} <= {SHARDS // count, -(-SHARDS // count)}
    assert [process.shards() for process in processes] == shares


def test_one_process_more_than_shards_waits_for_a_seat(table: Table) -> None:
    processes = [table.process(f"process-{number}") for number in range(SHARDS + 1)]
    shares = after_rounds(3, processes)
    assert [len(share) for share in shares] == [1] * SHARDS + [0]

    processes[3].release()
    eventually(lambda: len(processes[-1].shards()) == 1)


def test_a_shard_has_one_owner_at_a_time(table: Table) -> None:
    first, second = table.process("first"), table.process("second")
    assert first.shards() == ALL
    assert second.shards() == set()
    kept = first.shards()
    assert len(kept) == 8
    assert second.shards() == ALL - kept


def test_what_is_released_is_free_at_once(table: Table) -> None:
    first, second = table.process("first"), table.process("second")
    first.hold()
    first.release()
    assert second.shards() == ALL


def test_the_shards_of_a_dead_process_go_to_another_when_its_lease_has_run_out(table: Table) -> None:
    table.process("dead", seconds=1).hold()
    heir = table.process("heir")
    assert heir.shards() == set()
    eventually(lambda: heir.shards() == ALL)


def test_an_owner_that_was_away_too_long_has_lost_what_others_took(table: Table) -> None:
    frozen, heir = table.process("frozen", seconds=1), table.process("heir")
    frozen.hold()
    eventually(lambda: heir.shards() == ALL)

    assert frozen.shards() == set()
    assert len(heir.shards()) == 8
    assert len(frozen.shards()) == 8


def test_a_lease_that_ends_later_than_any_can_is_void(table: Table) -> None:
    table.process("dead", seconds=60).hold()
    table.set_clock_back(hours=1)

    assert table.process("heir").shards() == ALL


def test_an_owner_that_lives_renews_its_lease_when_the_clock_was_set_back(table: Table) -> None:
    owner, other = table.process("owner"), table.process("other")
    assert owner.shards() == ALL
    table.set_clock_back(hours=1)
    assert owner.shards() == ALL

    assert other.shards() == set()


def test_when_the_clock_leaps_forward_an_owner_learns_at_its_next_renewal_what_it_has_lost(table: Table) -> None:
    owner, other = table.process("owner"), table.process("other")
    assert owner.shards() == ALL
    table.set_clock_back(hours=-1)

    assert other.shards() == ALL

    assert owner.shards() == set()
    assert after_rounds(2, [owner, other]) == [owner.shards(), ALL - owner.shards()]
    assert len(owner.shards()) == 8


def test_an_owner_that_was_away_keeps_what_nobody_took(table: Table) -> None:
    alone = table.process("alone", seconds=0.001)
    assert alone.shards() == ALL
    assert alone.shards() == ALL
