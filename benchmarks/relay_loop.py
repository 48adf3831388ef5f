"""The plain loop for comparison: selects rows, produces them, waits, and deletes them.

See `python -m benchmarks.relay_loop --help`.

Run only one loop per database: two loops would send every event twice. The loop has no leases and no telemetry, and
does not keep the order of events after a failure. It ends if an event cannot be sent.
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
    """Send the oldest rows to Kafka, then delete them. Returns how many. Ends the process at the first failure."""
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
