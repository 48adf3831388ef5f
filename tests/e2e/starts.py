"""Real processes started by name, each on good settings except for what a test is about."""

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
_POLL_SECONDS = 0.05

SCHEMAS = {INVENTORY_API: inventory_api.migrations.SCHEMA, ORDER_API: order_api.migrations.SCHEMA}
DATABASE_SETTING = {INVENTORY_API: "DATABASE_URL", ORDER_API: "DATABASE_URL", RELAY: "ORDERS_DATABASE_URL"}
PORT_SETTING = {INVENTORY_API: "GRPC_PORT", ORDER_API: "GRPC_PORT", REAPER: "HEALTH_PORT", RELAY: "HEALTH_PORT"}

NOBODY = "no-such-host.invalid"
"""By RFC 6761 no name server knows it."""

Start = Callable[..., Process]


@contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """Starts a process by its name, with these settings and words, in the folder; all end with the block."""
    with ExitStack() as at_the_end:

        def start(name: str, settings: Mapping[str, str], *words: str) -> Process:
            (port,) = free_ports(1)
            good = {"HEALTH_PORT": "0", PORT_SETTING[name]: str(port), "DRAIN_SECONDS": "0", "LOG_FORMAT": "json"}
            program = [sys.executable, "-m", name.replace("-", "_"), *words]
            process = Process(name, program, good | dict(settings), health_address=f"localhost:{port}", folder=folder)
            process.start()
            at_the_end.callback(process.kill)
            return process

        yield start


def migrate(schema: Schema, url: str, to: str = "head") -> None:
    """Bring that database to a revision."""
    with closing(Database(url)) as database:
        schema.upgrade(database, to=to)


def complaints(process: Process) -> list[dict[str, Any]]:
    """The lines of its log that speak of trouble. It writes no others than log lines."""
    lines = [json.loads(line) for line in process.log.splitlines()]
    return [line for line in lines if line["level"] not in ("debug", "info")]
