"""Print events with time, type, tenant, key and data. With --json, each event is one line, with its headers.

By default the command prints new events until Ctrl-C. With --from-beginning it prints the existing events and ends.
With both --from-beginning and --follow it prints the existing events and continues with new ones. Events are in order
within a partition. The command joins no consumer group, so consumers still get all events.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.text import Text

from shop_common.events.broker import Broker, Event, text
from shopctl.events.connection import add_broker, connection
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, console, printable, time_of, timestamp

_TYPE_WIDTH = 28
_TENANT_WIDTH = 8
_KEY_WIDTH = 36


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from-beginning", action="store_true", help="start with the oldest event")
    parser.add_argument("--follow", action="store_true", help="continue with new events, until Ctrl-C")
    parser.add_argument("--limit", type=int, metavar="N", help="end after N events")
    add_broker(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with Broker(connection(options)) as broker:
        try:
            for event in itertools.islice(_events(broker, options), options.limit):
                if options.json:
                    print(as_json(event), flush=True)
                else:
                    _print_line(event)
        except KeyboardInterrupt:
            return 0  # the normal end of --follow
    return 0


def as_json(event: Event) -> str:
    """Return the event as one line of JSON.

    `value` has exactly the digits that were sent. If it is not a JSON object, `value` is null and `raw` is its text.
    """
    head = {
        "topic": event.topic,
        "partition": event.partition,
        "offset": event.offset,
        "timestamp": timestamp(event.time),
        "key": None if event.key is None else text(event.key),
        "headers": {name: text(value) for name, value in event.headers},
    }
    if event.json() is None:
        return json.dumps(head | {"value": None, "raw": text(event.value)}, ensure_ascii=False)
    # Insert the text unparsed: parsing would turn exact amounts into floats. A line end can be replaced by a space,
    # because JSON allows line ends only between tokens.
    value = text(event.value).replace("\n", " ").replace("\r", " ")
    return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "value": {value}}}'


def _events(broker: Broker, options: argparse.Namespace) -> Iterator[Event]:
    bounds = broker.bounds(options.topic)
    if not bounds:
        raise CommandFailed(f"there is no topic {options.topic} yet; ./task kafka-create-topics creates it")
    if options.from_beginning and not options.follow:
        return broker.read(options.topic, bounds)
    start = {number: bound.first if options.from_beginning else bound.end for number, bound in bounds.items()}
    return broker.follow(options.topic, start)


def _event_time(event: Event) -> datetime:
    """Return the time in the event's ce_time header, or else its Kafka timestamp."""
    try:
        return datetime.fromisoformat(event.header("ce_time")).astimezone(UTC)
    except (ValueError, OverflowError):
        return event.time


def _print_line(event: Event) -> None:
    value = event.json()
    data = text(event.value) if value is None else json.dumps(value.get("data"), ensure_ascii=False)
    line = Text.assemble(
        (time_of(_event_time(event)), "dim"),
        "  ",
        (f"{printable(event.header('ce_type')) or '(no type)':<{_TYPE_WIDTH}}", "bold"),
        f" {printable(event.tenant):<{_TENANT_WIDTH}} {printable(text(event.key)):<{_KEY_WIDTH}} ",
        printable(data),
    )
    console().print(line, no_wrap=True, overflow="ellipsis", crop=True)
