"""Leases of shards: equal shares, one owner at a time, and other owners after a crash."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Connection, MetaData, select, update

from event_relay.leases import Held, Leases
from shop_common.db.database import Database
from shop_common.events.outbox import SHARDS, Outbox
from testkit.eventually import eventually


class Table:
    """The leases of one database, and the processes that share them."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        metadata = MetaData()
        self._leases = Outbox(metadata).leases
        metadata.create_all(self._database.engine)

    def process(self, name: str, seconds: float = 60) -> "Process":
        return Process(self._database, Leases(self._leases, name, seconds))

    def set_clock_back(self, hours: int) -> None:
        """Move the end of all leases into the future, as if the database's clock had been set back."""
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
    """The shards of each process after all have renewed their leases this many times."""
    return [[process.shards() for process in processes] for _ in range(count)][-1]


def test_one_process_has_all_shards_and_may_produce_for_two_thirds_of_its_lease(table: Table) -> None:
    held = table.process("a", seconds=60).hold()
    assert set(held.shards) == ALL
    assert held.ends - held.produce_until == pytest.approx(20)


@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_processes_share_the_shards_equally(table: Table, count: int) -> None:
    processes = [table.process(f"process-{number}") for number in range(count)]
    # Round 1: the last process takes its membership slot. Round 2: the others release shards. Round 3: it takes them.
    shares = after_rounds(3, processes)

    assert set.union(*shares) == ALL
    assert sum(map(len, shares)) == SHARDS
    assert {len(share) for share in shares} <= {SHARDS // count, -(-SHARDS // count)}
    assert [process.shards() for process in processes] == shares


def test_more_processes_than_shards_wait_for_a_membership_slot(table: Table) -> None:
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


def test_released_leases_are_free_at_once(table: Table) -> None:
    first, second = table.process("first"), table.process("second")
    first.hold()
    first.release()
    assert second.shards() == ALL


def test_the_shards_of_a_dead_process_go_to_another_when_its_leases_have_expired(table: Table) -> None:
    table.process("dead", seconds=1).hold()
    successor = table.process("successor")
    assert successor.shards() == set()
    eventually(lambda: successor.shards() == ALL)


def test_an_owner_that_was_frozen_too_long_loses_its_shards(table: Table) -> None:
    frozen, successor = table.process("frozen", seconds=1), table.process("successor")
    frozen.hold()
    eventually(lambda: successor.shards() == ALL)

    assert frozen.shards() == set()
    assert len(successor.shards()) == 8
    assert len(frozen.shards()) == 8


def test_a_lease_that_ends_later_than_any_lease_can_is_void(table: Table) -> None:
    table.process("dead", seconds=60).hold()
    table.set_clock_back(hours=1)

    assert table.process("successor").shards() == ALL


def test_a_running_owner_keeps_its_leases_when_the_clock_is_set_back(table: Table) -> None:
    owner, other = table.process("owner"), table.process("other")
    assert owner.shards() == ALL
    table.set_clock_back(hours=1)
    assert owner.shards() == ALL

    assert other.shards() == set()


def test_when_the_clock_jumps_forward_an_owner_notices_its_losses_at_its_next_renewal(table: Table) -> None:
    owner, other = table.process("owner"), table.process("other")
    assert owner.shards() == ALL
    table.set_clock_back(hours=-1)

    assert other.shards() == ALL

    assert owner.shards() == set()
    assert after_rounds(2, [owner, other]) == [owner.shards(), ALL - owner.shards()]
    assert len(owner.shards()) == 8


def test_an_owner_renews_expired_leases_that_no_other_process_took(table: Table) -> None:
    alone = table.process("alone", seconds=0.001)
    assert alone.shards() == ALL
    assert alone.shards() == ALL
