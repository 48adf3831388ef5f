"""The plain loop for comparison: selects, produces, waits, deletes. See `python -m benchmarks.relay_loop --help`.

Run only one per database: two would ship everything twice. It has no leases, keeps no order after a failure, and has no
telemetry. An event that cannot be shipped stops it.
"""

import argparse
import sys
import time

import psycopg
from confluent_kafka import KafkaError, Message, Producer

from shop_common.events.kafka_connection import KafkaConnection

ROWS = 2000
POLL_SECONDS = 0.01
_SELECT = "SELECT id, event_id::text, topic, key, type, payload FROM outbox ORDER BY id LIMIT %s"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay_loop", description=__doc__)
    parser.add_argument("database", help="postgresql://USER:PASSWORD@HOST:PORT/NAME")
    parser.add_argument("brokers", help="HOST:PORT,…")
    options = parser.parse_args()
    own = {"enable.idempotence": True, "linger.ms": 1, "partitioner": "murmur2"}
    producer = Producer(KafkaConnection(options.brokers).configuration(own))
    with psycopg.connect(options.database, autocommit=True) as connection:
        while True:
            if not ship(connection, producer):
                time.sleep(POLL_SECONDS)


def ship(connection: psycopg.Connection, producer: Producer) -> int:
    """Ship the oldest rows, in a loop. Ends the process at the first failure."""
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    rows = connection.execute(_SELECT, [ROWS]).fetchall()
    for _, event_id, topic, key, kind, payload in rows:
        headers: list[tuple[str, str | bytes | None]] = [("id", event_id), ("type", kind)]
        producer.produce(topic, payload, key, headers=headers, on_delivery=delivered)
    producer.flush()
    if failures:
        sys.exit(str(failures[0]))
    if rows:
        connection.execute("DELETE FROM outbox WHERE id = ANY (%s)", [[row[0] for row in rows]])
    return len(rows)


if __name__ == "__main__":
    main()
