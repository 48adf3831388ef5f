"""The operator's command line.

    ./task COMMAND [OPTION ...]

Tables are for people; with --json a command writes JSON alone to standard output, its keys stable. A failure is one
sentence on standard error and exit code 1 (2: the command line itself is wrong).
"""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from devstack.commands import failures

INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """A word of the command line, and the module of devstack.commands that has its `configure` and its `run`."""

    summary: str
    module: str
    settled: Mapping[str, object] = field(default_factory=dict)
    """Options that the word itself decides."""


COMMANDS = {
    "health": Command("succeed only when every process serves", "health"),
    "stop": Command("end the dev that runs here, as Ctrl-C in its terminal does", "stop"),
    "restart": Command("end a process in its own time, and wait until it serves again", "restart", {"gently": True}),
    "kill": Command("kill a process, and wait until it serves again", "restart", {"gently": False}),
    "freeze": Command("stop a process in the middle of what it does", "freeze", {"freezes": True}),
    "thaw": Command("let a frozen process go on", "freeze", {"freezes": False}),
    "logs": Command("show what the processes printed, filtered, also after dev has ended", "logs"),
    "status": Command("show processes, row counts, outbox backlog and consumer lag", "status"),
    "trace": Command("print what happened to an order, as trees of spans", "trace"),
    "top": Command("show live rates, latencies, backlog and lag of the running processes", "top"),
    "test-grpc": Command("call every RPC of the running system in a story, and check the answers", "grpc_story"),
    "db-init": Command("bring both databases to the newest schema", "db_init"),
    "db-reset": Command("drop everything in both databases and bring them to the newest schema", "db_reset"),
    "db-shell": Command("open an SQL shell on a database", "db_shell"),
    "seed-data": Command("add a catalogue through the API", "seed_data"),
    "load": Command("let shoppers come at a steady rate, for a while", "load"),
    "query-inventory": Command("show items", "query_inventory"),
    "query-orders": Command("show orders", "query_orders"),
    "kafka-address": Command("print the address of the broker", "kafka_address"),
    "kafka-topics": Command("list the topics with their partitions and events", "kafka_topics"),
    "kafka-create-topics": Command("create the topics that are missing", "kafka_create_topics"),
    "kafka-consume-orders": Command("print order events", "kafka_consume", {"topic": "order-events"}),
    "kafka-consume-inventory": Command("print inventory events", "kafka_consume", {"topic": "inventory-events"}),
    "dlq": Command("list dead letters with their reasons, and redrive chosen ones", "dlq"),
    "docker-build": Command("build the images, and show their sizes", "docker_build"),
    "docker-run": Command("start everything in containers", "docker_run"),
    "docker-stop": Command("stop the containers; the data stay", "docker_stop"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser, module = _parser(words[0] if words else "")
    options = parser.parse_args(words)
    if module is None:
        parser.error("COMMAND is missing")
    try:
        code: int = module.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who reads us (`| head`) has seen enough. Python flushes once more at its exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # The last line of defence: an operator gets a sentence, never a traceback. Nothing goes on after it.
        print(f"{words[0]}: {failures.sentence(error)}", file=sys.stderr)
        return 1
    return code


def _parser(word: str) -> tuple[argparse.ArgumentParser, ModuleType | None]:
    """The parser of all words, and the module behind the one that is used: no other is loaded."""
    parser = argparse.ArgumentParser(prog="./task", description="Look after the system that runs here.")
    words = parser.add_subparsers(metavar="COMMAND", title="commands")
    chosen = None
    for name, command in COMMANDS.items():
        sub = words.add_parser(name, help=command.summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == word:
            chosen = importlib.import_module(f"devstack.commands.{command.module}")
            sub.description = chosen.__doc__
            sub.set_defaults(**command.settled)
            chosen.configure(sub)
    return parser, chosen


if __name__ == "__main__":
    sys.exit(main())
