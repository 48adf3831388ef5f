"""Print events: time, type, key and data; with --json the whole of each on a line, headers included.

From now on and until Ctrl-C; with --from-beginning what is there already, and only that unless --follow is said too.
Order holds within a partition. Joins no consumer group: nobody else misses what is printed here.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.text import Text

from shopctl.events.topics import Broker, Event, text
from shopctl.system import target
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, console, printable, time_of, timestamp

_TYPE_WIDTH = 28
_KEY_WIDTH = 36


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from-beginning", action="store_true", help="begin with the oldest event")
    parser.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("--limit", type=int, metavar="N", help="end after so many events")
    target.add_broker(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    with Broker(target.bootstrap(options)) as broker:
        try:
            for event in itertools.islice(_events(broker, options), options.limit):
                if options.json:
                    print(as_json(event), flush=True)
                else:
                    _print_line(event)
        except KeyboardInterrupt:
            # How following ends.
            return 0
    return 0


def as_json(event: Event) -> str:
    """The whole event on a line. `value` is what was sent, digit for digit; null with the text in `raw` if no JSON."""
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
    # Decoding and encoding it again would make floats of exact amounts. JSON has line ends only between its parts.
    value = text(event.value).replace("\n", " ").replace("\r", " ")
    return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "value": {value}}}'


def _events(broker: Broker, options: argparse.Namespace) -> Iterator[Event]:
    bounds = broker.bounds(options.topic)
    if not bounds:
        raise CommandFailed(f"there is no topic {options.topic} yet; ./task kafka-create-topics makes it")
    if options.from_beginning and not options.follow:
        return broker.read(options.topic, bounds)
    start = {number: bound.first if options.from_beginning else bound.end for number, bound in bounds.items()}
    return broker.follow(options.topic, start)


def _said_at(event: Event) -> datetime:
    """When it happened, as the event says; else when it reached the broker."""
    try:
        return datetime.fromisoformat(event.header("ce_time")).astimezone(UTC)
    except (ValueError, OverflowError):
        return event.time


def _print_line(event: Event) -> None:
    value = event.json()
    data = text(event.value) if value is None else json.dumps(value.get("data"), ensure_ascii=False)
    line = Text.assemble(
        (time_of(_said_at(event)), "dim"),
        "  ",
        (f"{printable(event.header('ce_type')) or '(no type)':<{_TYPE_WIDTH}}", "bold"),
        f" {printable(text(event.key)):<{_KEY_WIDTH}} ",
        printable(data),
    )
    console().print(line, no_wrap=True, overflow="ellipsis", crop=True)
