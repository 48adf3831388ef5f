"""List and redrive dead letters: events that a consumer set aside. The dead letters of TOPIC are in TOPIC.dlq.

  dlq [list]    lists dead letters with position (partition:offset), event, reason and origin
  dlq redrive   sends dead letters to their original topic again, after the cause has been fixed

A redriven event has its original key, ce_id and headers, without the dlq_ headers. It goes to its original partition,
but after newer events. A consumer checks the current state, and applies or ignores the event. An event that fails again
becomes a new dead letter. The dead-letter topic itself does not change.

The broker records redriven letters as offsets of the consumer group dlq-redrive. --all skips recorded letters; --offset
redrives a letter even if it is recorded. After an interruption, the next redrive may send up to 100 letters again.
Apache Kafka keeps the record of an idle group for 7 days by default. The embedded broker keeps it until it stops.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from itertools import islice

from confluent_kafka import Producer
from rich.table import Column

from shop_common.events.broker import Broker, Event, text
from shop_common.events.dead_letter_topic import GROUP
from shop_common.events.dead_letters import SUFFIX
from shopctl.events.connection import add_broker, connection
from shopctl.events.dead_letters import DeadLetters, new_producer
from shopctl.events.topics import TOPICS
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, console, print_json, print_table, time_of, timestamp, whole

LETTERS_MAX = 1_000
"""The largest number of letters in one list."""

_ORIGINALS = [topic for topic in TOPICS if not topic.endswith(SUFFIX)]
_LIST, _REDRIVE = "list", "redrive"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=[_LIST, _REDRIVE], default=_LIST, help="default: list")
    parser.add_argument("--topic", type=_topic, metavar="TOPIC", help=f"{' or '.join(_ORIGINALS)} (list: default both)")
    parser.add_argument("--waiting", action="store_true", help="list: only letters that were not redriven")
    parser.add_argument(
        "--offset",
        action="append",
        type=_position,
        metavar="PARTITION:OFFSET",
        help="redrive: the letter at this position; may be repeated",
    )
    parser.add_argument("--all", action="store_true", help="redrive: all letters that were not redriven")
    parser.set_defaults(refuse=parser.error)
    add_broker(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """List or redrive letters. Raises CommandFailed if a chosen letter does not exist or cannot be redriven."""
    if options.action == _REDRIVE and not (options.topic and bool(options.offset) != options.all):
        options.refuse("redrive needs --topic, and either --offset or --all")
    if options.action == _LIST and (options.offset or options.all):
        options.refuse("--offset and --all are only for redrive")
    kafka = connection(options)
    with Broker(kafka, GROUP) as broker:
        if options.action == _REDRIVE:
            _redrive(options, broker, new_producer(kafka))
        else:
            _list(options, broker)
    return 0


def _list(options: argparse.Namespace, broker: Broker) -> None:
    found = (
        letter
        for topic in ([options.topic] if options.topic else _ORIGINALS)
        for letter in DeadLetters(broker, topic).letters(waiting=options.waiting)
    )
    letters = list(islice(found, LETTERS_MAX))
    if options.json:
        for event, redriven in letters:
            print_json(_as_json(event) | {"redriven": redriven})
        return
    columns: list[str | Column] = [
        "topic",
        whole("offset"),
        "time",
        whole("event"),
        "type",
        "tenant",
        "reason",
        "error",
        "from",
    ]
    rows = [(*_cells(event), redriven) for event, redriven in letters]
    print_table("dead letters", [*columns, "redriven"], rows)
    if len(letters) == LETTERS_MAX:
        console().print(f"Only the first {LETTERS_MAX:,} are shown.", style="dim")


def _redrive(options: argparse.Namespace, broker: Broker, producer: Producer) -> None:
    dead = DeadLetters(broker, options.topic)
    letters = (letter for letter, _ in dead.letters(waiting=True)) if options.all else _named(dead, options.offset)
    lost = 0

    def events() -> Iterator[Event]:
        nonlocal lost
        for letter in letters:
            if event := dead.whole(letter):
                yield event
            else:
                lost += 1

    count = dead.redrive(producer, events())
    if options.json:
        print_json({"topic": dead.original, "redriven": count, "lost": lost})
    else:
        print(f"{count:,} {'letter' if count == 1 else 'letters'} redriven to {dead.original}")
    if lost:
        why = f"truncated and no longer in {dead.original}, or not as its headers state"
        raise CommandFailed(f"cannot redrive {lost} {'letter' if lost == 1 else 'letters'}: {why}")


def _named(dead: DeadLetters, positions: Sequence[tuple[int, int]]) -> list[Event]:
    """Return the letters at these positions, sorted by position. Raises CommandFailed if one does not exist."""
    existing = {(event.partition, event.offset): event for event, _ in dead.letters()}
    for partition, offset in positions:
        if (partition, offset) not in existing:
            raise CommandFailed(f"there is no dead letter {partition}:{offset} in {dead.topic}; nothing was redriven")
    return [existing[position] for position in sorted(set(positions))]


def _as_json(event: Event) -> dict[str, object]:
    return {
        "topic": event.topic,
        "partition": event.partition,
        "offset": event.offset,
        "timestamp": timestamp(event.time),
        "event_id": event.header("ce_id"),
        "type": event.header("ce_type"),
        "tenant": event.tenant,
        "key": None if event.key is None else text(event.key),
        "reason": event.header("dlq_reason"),
        "error": event.header("dlq_error"),
        "from": _origin(event),
    }


def _cells(event: Event) -> list[str]:
    position = f"{event.partition}:{event.offset}"
    what = [event.header("ce_id"), event.header("ce_type"), event.tenant]
    why = [event.header("dlq_reason"), event.header("dlq_error")]
    return [event.topic, position, time_of(event.time), *what, *why, _origin(event)]


def _origin(event: Event) -> str:
    return ":".join(event.header(f"dlq_{name}") for name in ("topic", "partition", "offset"))


def _topic(name: str) -> str:
    original = name.removesuffix(SUFFIX)
    if original not in _ORIGINALS:
        raise argparse.ArgumentTypeError(f"must be {' or '.join(_ORIGINALS)}")
    return original


def _position(text_: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d{1,9}:\d{1,18}", text_):
        raise argparse.ArgumentTypeError("must be PARTITION:OFFSET, such as 0:17")
    partition, offset = text_.split(":")
    return int(partition), int(offset)
