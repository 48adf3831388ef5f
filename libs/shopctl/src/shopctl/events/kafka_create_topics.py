"""Create the topics that are missing: order-events, inventory-events and their dead-letter topics.

Existing topics stay as they are, even if their number of partitions differs: a change of that number would move keys to
other partitions. The embedded broker of ./task dev has no administration. It has these topics from the start, and
creates any other topic when a client first uses it, with four partitions.
"""

import argparse

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from shop_common.events.broker import REQUEST_SECONDS, Broker
from shop_common.events.kafka_connection import KafkaConnection
from shopctl.events.connection import add_broker, connection
from shopctl.events.topics import PARTITIONS, TOPICS
from shopctl.terminal.output import add_json, number, print_json, print_table

_BROKERS_DEFAULT = -1
_EXISTS = "already exists"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--partitions", type=int, default=PARTITIONS, help="partitions per new topic (default: %(default)s)"
    )
    parser.add_argument(
        "--replication",
        type=int,
        default=_BROKERS_DEFAULT,
        help="replicas per new topic (default: the broker's)",
    )
    add_broker(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    kafka = connection(options)
    with Broker(kafka) as broker:
        before = broker.topics()
        outcomes = dict.fromkeys(TOPICS, _EXISTS)
        missing = [topic for topic in TOPICS if topic not in before]
        if broker.is_embedded():
            outcomes |= dict.fromkeys(missing, "created at its first use by the embedded broker")
        else:
            new = [
                NewTopic(topic, num_partitions=options.partitions, replication_factor=options.replication)
                for topic in missing
            ]
            outcomes |= _create(kafka, new)
    # The broker's next metadata response may lack a new topic, so do not read the count back.
    partitions = {topic: len(before[topic]) if topic in before else options.partitions for topic in TOPICS}
    if options.json:
        print_json([{"topic": name, "partitions": partitions[name], "outcome": outcomes[name]} for name in TOPICS])
    else:
        rows = [(name, partitions[name], outcomes[name]) for name in TOPICS]
        print_table("topics", ["topic", number("partitions"), "outcome"], rows)
    return 0


def _create(kafka: KafkaConnection, topics: list[NewTopic]) -> dict[str, str]:
    if not topics:
        return {}
    admin = AdminClient(kafka.configuration({"log_level": 0}))
    futures = admin.create_topics(topics, operation_timeout=REQUEST_SECONDS, request_timeout=REQUEST_SECONDS)
    outcomes = {}
    for topic, future in futures.items():
        try:
            future.result()
            outcomes[topic] = "created"
        except KafkaException as failure:
            if failure.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            outcomes[topic] = _EXISTS  # another client created it meanwhile
    return outcomes
