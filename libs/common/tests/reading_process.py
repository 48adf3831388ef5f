"""A process with a consumer like that of a service. Its handler copies the events of one type into a table.

    python reading_process.py BOOTSTRAP TOPIC DATABASE_URL

It ends at SIGTERM, and with exit code 1 when the consumer dies.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence

from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, insert

from shop_common.db.database import Database
from shop_common.events.consumer import Consumer, Event
from shop_common.events.kafka_connection import KafkaConnection
from shop_common.events.outbox import Outbox

TYPE = "OPENED"
metadata = MetaData()
outbox = Outbox(metadata)
copied = Table(
    "copied", metadata, Column("id", Integer, primary_key=True), Column("key", Text), sqlite_autoincrement=True
)


def main() -> None:
    """Consume until a signal comes."""
    bootstrap, topic, url = sys.argv[1:]
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    consumer = Consumer(
        kafka=KafkaConnection(bootstrap),
        group=f"reader-of-{topic}",
        topic=topic,
        handlers={TYPE: copy},
        database=Database(url),
        outbox=outbox,
        set_ready=lambda ready: print(f"ready: {ready}", flush=True),
        on_fatal=on_fatal,
        session_seconds=2,
    )
    consumer.start()
    while not ended.wait(1):
        pass
    consumer.stop()


def copy(tx: Connection, events: Sequence[Event]) -> None:
    """Insert one row per event."""
    tx.execute(insert(copied), [{"key": event.key} for event in events])


def on_fatal(why: str, error: BaseException) -> None:
    """Exit at once, as a service does."""
    print(f"{why}: {error!r}", flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()
