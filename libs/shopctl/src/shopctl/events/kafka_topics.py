"""List the topics with their partitions and the number of events in them."""

import argparse

from shop_common.events.broker import Broker, count
from shopctl.events.connection import add_broker, connection
from shopctl.terminal.output import add_json, number, print_json, print_table


def configure(parser: argparse.ArgumentParser) -> None:
    add_broker(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with Broker(connection(options)) as broker:
        found = {topic: broker.bounds(topic) for topic in broker.topics()}
    if options.json:
        print_json(
            [
                {
                    "topic": topic,
                    "events": count(bounds.values()),
                    "partitions": [
                        {"partition": partition, "first_offset": bound.first, "next_offset": bound.end}
                        for partition, bound in bounds.items()
                    ],
                }
                for topic, bounds in found.items()
            ]
        )
    else:
        rows = [
            (topic, len(bounds), count(bounds.values()), ", ".join(f"{b.first}…{b.end}" for b in bounds.values()))
            for topic, bounds in found.items()
        ]
        print_table("topics", ["topic", number("partitions"), number("events"), "first…next offset of each"], rows)
    return 0
