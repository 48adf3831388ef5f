"""Starts real processes by name, each with valid settings except for those that a test sets."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import inventory_api.migrations
import order_api.migrations
from devstack.ports import free_ports
from devstack.process import Process
from shop_common.db.database import Database
from shop_common.db.schema import Schema
from shopctl.system.layout import INVENTORY_API, ORDER_API, REAPER, RELAY

START_SECONDS = 120

SCHEMAS = {INVENTORY_API: inventory_api.migrations.SCHEMA, ORDER_API: order_api.migrations.SCHEMA}
DATABASE_SETTING = {INVENTORY_API: "DATABASE_URL", ORDER_API: "DATABASE_URL", RELAY: "ORDERS_DATABASE_URL"}
PORT_SETTING = {INVENTORY_API: "GRPC_PORT", ORDER_API: "GRPC_PORT", REAPER: "HEALTH_PORT", RELAY: "HEALTH_PORT"}

UNKNOWN_HOST = "no-such-host.invalid"
"""A host name that never resolves (RFC 6761)."""

Start = Callable[..., Process]


@contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """Yields a function that starts a process by name, with settings and arguments. Kills all of them at the end."""
    with ExitStack() as at_the_end:

        def start(name: str, settings: Mapping[str, str], *arguments: str) -> Process:
            (port,) = free_ports(1)
            valid = {"HEALTH_PORT": "0", PORT_SETTING[name]: str(port), "DRAIN_SECONDS": "0", "LOG_FORMAT": "json"}
            program = [sys.executable, "-m", name.replace("-", "_"), *arguments]
            process = Process(name, program, valid | dict(settings), health_address=f"localhost:{port}", folder=folder)
            process.start()
            at_the_end.callback(process.kill)
            return process

        yield start


def migrate(schema: Schema, url: str, to: str = "head") -> None:
    """Migrate the database to this revision."""
    with closing(Database(url)) as database:
        schema.upgrade(database, to=to)


def warnings(process: Process) -> list[dict[str, Any]]:
    """The log lines of level warning and above. Fails if the process printed anything that is not a log line."""
    lines = [json.loads(line) for line in process.log.splitlines()]
    return [line for line in lines if line["level"] not in ("debug", "info")]
