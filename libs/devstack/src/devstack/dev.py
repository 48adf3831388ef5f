"""`./task dev`: the whole system on this machine, in one terminal, until Ctrl-C.

    python -m devstack.dev [--database sqlite|postgresql://USER:PASSWORD@HOST:PORT] [--data-dir run/data]

Makes what is missing, starts the embedded broker and the four processes, shows their logs, and ends all of
it: when asked to, after every event was acted upon; when one of them ends by itself, at once and with exit
code 1. Spans are collected for `./task trace`; the OTEL_* variables of its environment are for the four processes.
"""

import argparse
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import psutil
import psycopg
from confluent_kafka import KafkaException
from psycopg import sql
from rich import box
from rich.table import Table
from rich.text import Text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from devstack import collector, kafka, runfile
from devstack.colours import BROKER, COLOURS
from devstack.drain import drain
from devstack.kafka import Kafka
from devstack.ports import busy_ports
from devstack.process import Process, ProcessEnded, health
from devstack.runfile import Endpoint, RunFile
from devstack.screen import Screen
from devstack.stack import Databases, Options, Ports, Stack

DRAIN_SECONDS = 15
_POLL_SECONDS = 0.2
# One Ctrl-C may reach us twice: from the terminal, and again from whoever started us.
_SAME_CTRL_C_SECONDS = 1.0

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
# Whoever places an order here looks at its trace at once.
_SPANS_WAIT = {"OTEL_BSP_SCHEDULE_DELAY": "200"}


class CannotStart(Exception):
    """What is in the way, in one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal (0) or until something ends that should not (1)."""
    options = _parser().parse_args(arguments)
    screen = Screen()
    try:
        with _signals_interrupt():
            return Dev(options, screen).run()
    except KeyboardInterrupt:
        screen.say("interrupted: ended at once", "bold red")
        return 1
    except CannotStart as refusal:
        screen.say(str(refusal), "bold red")
        return 1


class Dev:
    """One run of the system."""

    def __init__(self, options: argparse.Namespace, screen: Screen) -> None:
        self._options = options
        self._screen = screen
        self._environment = _otel_variables() | dict(options.env)
        self._collects = _ENDPOINT not in self._environment
        self._ports = Ports(
            inventory=options.inventory_port,
            orders=options.order_port,
            reaper=options.reaper_port,
            relay=options.relay_port,
            **{f"{name}_metrics": 0 for name in ("inventory", "orders", "reaper", "relay") if options.no_metrics},
        )

    def run(self) -> int:
        """Until a signal or a death. Nothing of it runs afterwards."""
        self._refuse_busy_ports()
        databases = _databases(self._options.database, self._options.data_dir)
        # Around all of it: what the processes tell of last, while they end, is collected too.
        with self._collected():
            return self._run(databases)

    def _run(self, databases: Databases) -> int:
        self._screen.say("starting, this takes a few seconds; Ctrl-C ends everything")
        address_file = runfile.PATH.with_name("broker")
        broker = kafka.embedded(address_file, lambda line: self._screen.log(BROKER, line))
        stack = None
        try:
            stack = self._stack(databases, kafka.start(broker, address_file))
            stack.migrate()
            stack.start()
            self._tell_where(stack)
            dead = self._first_to_end([broker, *stack.processes])
            self._screen.say(
                f"{dead.name} ended by itself with exit code {dead.exit_code}; ending the rest", "bold red"
            )
            return 1
        except (ProcessEnded, TimeoutError) as failure:
            # The rest of the message is what the screen has shown already.
            self._screen.say(str(failure).partition("\n")[0], "bold red")
            return 1
        except KeyboardInterrupt:
            return 0 if self._drain(stack) else 1
        finally:
            runfile.remove()
            if stack is not None:
                stack.stop()
            if broker.alive:
                broker.stop()
            self._screen.say("ended")

    def _refuse_busy_ports(self) -> None:
        if busy := busy_ports(self._ports.all()):
            taken = f"ports {', '.join(map(str, busy))} are" if len(busy) > 1 else f"port {busy[0]} is"
            raise CannotStart(f"{taken} in use, perhaps by another dev: end it, or choose others (--help)")

    @contextmanager
    def _collected(self) -> Iterator[None]:
        """Keep the spans of the processes, unless the user wants them elsewhere."""
        if not self._collects:
            yield
            return
        with ExitStack() as ending:
            try:
                endpoint = ending.enter_context(collector.collecting(lambda said: self._screen.say(said, "bold red")))
            except (OSError, sqlite3.Error) as failure:
                raise CannotStart(f"the traces can't be kept: {failure}") from failure
            self._environment = {_ENDPOINT: endpoint} | _SPANS_WAIT | self._environment
            yield

    def _stack(self, databases: Databases, broker: Kafka) -> Stack:
        options = Options(environment=self._environment)
        return Stack(databases, broker, self._ports, options, self._screen.log)

    def _tell_where(self, stack: Stack) -> None:
        endpoints = _endpoints(stack)
        me = psutil.Process()
        # Empty when the user has turned them off.
        traces_elsewhere = None if self._collects else self._environment[_ENDPOINT]
        runfile.write(
            RunFile(me.pid, me.create_time(), stack.kafka.bootstrap, stack.databases, endpoints, traces_elsewhere)
        )
        table = Table(title="all healthy", title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("process", "address", "health", "metrics"):
            table.add_column(column, no_wrap=True)
        for name, endpoint in endpoints.items():
            metrics = f"{endpoint.metrics}/metrics" if endpoint.metrics else "off"
            table.add_row(Text(name, COLOURS[name]), endpoint.address, health(endpoint.address), metrics)
        table.add_row(Text(BROKER, COLOURS[BROKER]), stack.kafka.bootstrap, "", "")
        self._screen.table(table)
        self._screen.say("next: ./task test-grpc, then ./task trace --last, or ./task top")

    def _first_to_end(self, processes: list[Process]) -> Process:
        while True:
            for process in processes:
                if not process.alive:
                    return process
            time.sleep(_POLL_SECONDS)

    def _drain(self, stack: Stack | None) -> bool:
        """Whether nothing was left undone."""
        if stack is None or not all(process.alive for process in stack.processes):
            return True
        self._screen.say("ending: no new work; what was begun is finished first (Ctrl-C again: at once)")
        try:
            return drain(stack, DRAIN_SECONDS, self._screen.say)
        except KeyboardInterrupt:
            for process in stack.processes:
                process.kill()
            raise
        except (KafkaException, SQLAlchemyError) as failure:
            self._screen.say(f"can't tell whether all events were acted upon: {failure}", "bold red")
            return False


def _endpoints(stack: Stack) -> dict[str, Endpoint]:
    ports = stack.ports
    metrics = (ports.inventory_metrics, ports.orders_metrics, ports.reaper_metrics, ports.relay_metrics)
    return {
        process.name: Endpoint(process.pid, process.health_address or "", f"localhost:{port}" if port else None)
        for process, port in zip(stack.processes, metrics, strict=True)
    }


def _databases(database: str, data_folder: Path) -> Databases:
    """Where the data lies; databases that are missing are made. Raises CannotStart."""
    if database == "sqlite":
        return Databases.in_folder(data_folder)
    server = make_url(database).set(drivername="postgresql")
    try:
        with psycopg.connect(
            server.set(database=server.database or "postgres").render_as_string(hide_password=False),
            autocommit=True,
            connect_timeout=5,
        ) as connection:
            for name in ("inventory", "orders"):
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
                if known is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.Error as failure:
        raise CannotStart(f"PostgreSQL at {server.host}: {str(failure).strip()}") from failure
    urls = [
        server.set(drivername="postgresql+psycopg", database=name).render_as_string(hide_password=False)
        for name in ("inventory", "orders")
    ]
    return Databases(*urls)


def _otel_variables() -> dict[str, str]:
    """Those of OpenTelemetry, which are meant for every process of a user's."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM, and a terminal that is closed, are a Ctrl-C. Echoes of one are not a second."""
    last = float("-inf")

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal last
        echo = time.monotonic() - last < _SAME_CTRL_C_SECONDS
        last = time.monotonic()
        if not echo:
            raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./task dev --", description="Run the whole system on this machine.")
    parser.add_argument(
        "--database",
        default="sqlite",
        type=_database,
        metavar="sqlite|URL",
        help="SQLite files, or a PostgreSQL server (postgresql://USER:PASSWORD@HOST:PORT), on which the"
        " databases `inventory` and `orders` are used, and made if missing (default: sqlite)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("run/data"),
        help="where the SQLite files lie (default: %(default)s)",
    )
    defaults = Ports()
    for option, default in [
        ("--inventory-port", defaults.inventory),
        ("--order-port", defaults.orders),
        ("--reaper-port", defaults.reaper),
        ("--relay-port", defaults.relay),
    ]:
        parser.add_argument(option, type=int, default=default, help="default: %(default)s")
    parser.add_argument("--no-metrics", action="store_true", help="open no metrics ports")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        type=_variable,
        metavar="NAME=VALUE",
        help="a setting for all four processes, RESERVATION_TTL=60 for example; may be repeated",
    )
    return parser


def _database(value: str) -> str:
    if value != "sqlite" and not value.startswith(("postgresql://", "postgresql+psycopg://", "postgres://")):
        raise argparse.ArgumentTypeError("must be sqlite or postgresql://USER:PASSWORD@HOST:PORT")
    return value


def _variable(value: str) -> tuple[str, str]:
    name, equals, content = value.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    return name, content


if __name__ == "__main__":
    sys.exit(main())
