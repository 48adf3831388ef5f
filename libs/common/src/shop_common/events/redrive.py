"""RedriveDeadLetters of a service: sends dead letters of the topic that it consumes to this topic again.

The caller names the positions of letters. The service reads the letters from the dead-letter topic, so that no caller
can inject an event, and writes their events to its outbox, since only the relay writes to topics. Then it records in
the broker which letters were redriven.

    a crash before the transaction commits        nothing was done
    a crash before the letters are recorded       a repeat writes the events again, which consumers recognize
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Protocol

from confluent_kafka import KafkaException
from sqlalchemy import Connection

from shop_common.api.command import Command
from shop_common.api.valid import INT64_MAX, Fields
from shop_common.db import row_security, sql
from shop_common.db.audit import AuditLog, entry
from shop_common.db.database import Database
from shop_common.environment.files import FileUnusable
from shop_common.errors import BrokerUnavailable
from shop_common.events import dead_letters
from shop_common.events.broker import Broker, Event
from shop_common.events.dead_letter_topic import GROUP, DeadLetterTopic, RecordFull, Redriven
from shop_common.events.kafka_connection import KafkaConnection, text_of
from shop_common.events.outbox import Outbox, Record
from shop_common.identity.caller import Caller
from shop_common.telemetry import logs

LETTERS_MAX = 20
"""The number of letters that one call redrives. Each is read from Kafka by itself."""

METHOD = "RedriveDeadLetters"
_INT32_MAX = 2**31 - 1
_ID_LENGTH_MAX = 64

_BUFFER_KILOBYTES = 1024

_log = logs.get(__name__)


class Outcome(StrEnum):
    """What became of a letter."""

    REDRIVEN = "REDRIVEN"
    ALREADY_REDRIVEN = "ALREADY_REDRIVEN"
    NOT_FOUND = "NOT_FOUND"
    NOT_REDRIVABLE = "NOT_REDRIVABLE"


class Letter(Protocol):
    """The position of a letter, in the request of either service."""

    @property
    def partition(self) -> int: ...

    @property
    def offset(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Redrive(Command):
    """Redrive the letters at these positions, which are pairs of partition and offset."""

    positions: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RedriveResult:
    """What became of a letter, and the id of its event; empty if there is no such letter."""

    outcome: Outcome
    event_id: str = ""


def parse(letters: Collection[Letter], caller: Caller) -> Redrive:
    """Check the field `letters` of a request. Raises InvalidInput."""
    positions: dict[tuple[int, int], None] = {}
    with Fields() as check:
        for number, letter in enumerate(letters if check.size("letters", letters, 1, LETTERS_MAX) else ()):
            at = check.at(f"letters[{number}]")
            partition = at.between("partition", letter.partition, 0, _INT32_MAX)
            position = partition, at.between("offset", letter.offset, 0, INT64_MAX)
            if position in positions:
                at.violate("offset", "must not be that of a letter that the request already has")
            positions[position] = None
    return Redrive(tuple(positions), caller=caller)


class Redriving:
    """Redrives dead letters of one topic through the outbox of a service."""

    def __init__(
        self,
        kafka: KafkaConnection,
        topic: str,
        *,
        database: Database,
        outbox: Outbox,
        audit_log: AuditLog | None = None,
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._database = database
        self._outbox = outbox
        self._audit_log = audit_log

    def redrive(self, command: Redrive) -> list[RedriveResult]:
        """Redrive the letters of the caller's tenant at these positions. Returns one result per position, in order.

        Emits the events of the letters again. May be repeated: a letter that is recorded as redriven is not sent again.

        The events of all letters are written in one transaction. Raises BrokerUnavailable and DatabaseUnavailable.
        Nothing was done then, unless the transaction may have committed.
        """
        try:
            with Broker(self._kafka, GROUP, buffer_kilobytes=_BUFFER_KILOBYTES) as broker:
                return self._redrive(command, broker, DeadLetterTopic(broker, self._topic))
        except (KafkaException, FileUnusable) as error:
            _log.warning("cannot read dead letters", topic=self._topic, error=text_of(error))
            raise BrokerUnavailable("the dead letters cannot be read from Kafka") from error

    def _redrive(self, command: Redrive, broker: Broker, topic: DeadLetterTopic) -> list[RedriveResult]:
        bounds = topic.bounds()
        if not bounds:
            # The broker also hides topics that this process may not read.
            raise BrokerUnavailable(f"{topic.topic} does not exist, or Kafka does not let this process read it")
        redriven = topic.redriven(bounds)
        results: list[RedriveResult] = []
        written: list[tuple[Event, Record]] = []
        for partition, offset in command.positions:
            bound = bounds.get(partition)
            is_there = bound is not None and bound.first <= offset < bound.end
            letter = broker.at(topic.topic, partition, offset) if is_there else None
            if letter is None or letter.tenant != command.tenant:
                results.append(RedriveResult(Outcome.NOT_FOUND))
                continue
            record = dead_letters.redriven(letter, self._topic)
            if offset in redriven[partition]:
                outcome = Outcome.ALREADY_REDRIVEN
            elif record is None or not _has_room(redriven[partition].adding([offset])):
                outcome = Outcome.NOT_REDRIVABLE
            else:
                outcome = Outcome.REDRIVEN
                redriven[partition] = redriven[partition].adding([offset])
                written.append((letter, record))
            results.append(
                RedriveResult(outcome, letter.header("ce_id")[:_ID_LENGTH_MAX] if record is None else record.event_id)
            )
        if written:
            records = [record for _, record in written]
            write = partial(self._write, command=command, records=records)
            self._database.transact(write, row_security.only([command.tenant]))
            self._record(broker, topic, [letter for letter, _ in written])
        return results

    def _write(self, tx: Connection, *, command: Redrive, records: Sequence[Record]) -> None:
        now = sql.now(tx)
        self._outbox.append_records(tx, [replace(record, created_at=now) for record in records])
        if self._audit_log is not None:
            event_ids = [record.event_id for record in records]
            self._audit_log.append(tx, [entry(command.caller, METHOD, event_ids)])

    def _record(self, broker: Broker, topic: DeadLetterTopic, letters: Sequence[Event]) -> None:
        """Record that the letters were redriven. If that fails, they stay waiting, and can be redriven again."""
        try:
            for partition, commit in topic.commits_after(letters).items():
                broker.commit(topic.topic, partition, commit)
        except (KafkaException, RecordFull) as error:
            _log.warning("cannot record redriven dead letters", topic=self._topic, error=text_of(error))


def _has_room(redriven: Redriven) -> bool:
    try:
        redriven.commit()
    except RecordFull:
        return False
    return True
