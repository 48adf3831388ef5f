"""Parses the command line of `./task dev`, and checks the options before anything starts."""

import argparse
import ipaddress
import socket
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from devstack import certificates
from devstack.ports import is_busy, listener
from devstack.stack import Databases, Ports
from shop_common.environment.listen import is_loopback

_KAFKA_PORT = "--kafka-port"
_TRACES_PORT = "--traces-port"
_PORT_MAX = 65_535
_CONNECT_SECONDS = 5

_SET_BY_OPTIONS = {
    "LISTEN_HOST": "--listen",
    "GRPC_PORT": "--inventory-port or --order-port",
    "HTTP_PORT": "--console-port",
    "PROCESSES": "--inventory-health-port and the like",
    "SIGN_IN": "--secure",
    "HEALTH_PORT": "--reaper-port, --relay-port, --inventory-health-port or --order-health-port",
    "METRICS_PORT": "--inventory-metrics-port and the like",
    "INVENTORY_TARGET": "--inventory-port",
    "ORDER_TARGET": "--order-port",
    "KAFKA_BOOTSTRAP_SERVERS": "--kafka-port",
    "DATABASE_URL": "--database or --data-dir",
    "INVENTORY_DATABASE_URL": "--database or --data-dir",
    "ORDERS_DATABASE_URL": "--database or --data-dir",
    "INSECURE": "--secure",
    "TLS_CERT_PATH": "--secure",
    "TLS_KEY_PATH": "--secure",
    "TLS_CA_PATH": "--secure",
    "TLS_CLIENT_CA_PATH": "--secure",
    "GRANTS_PATH": "--secure",
    "OIDC_ISSUER": "--secure",
    "OIDC_AUDIENCE": "--secure",
}
"""The settings that --env must not set, each with the option that sets it."""


class CannotStart(Exception):
    """The system cannot start; the message is one sentence that names the option to change."""


@dataclass(frozen=True)
class DevOptions:
    """The options. Each is valid by itself. `listen` is an address in gRPC's form, with an IPv6 address in brackets."""

    database: str
    data_folder: Path
    listen: str
    ports: Ports
    kafka_port: int
    traces_port: int
    environment: Mapping[str, str]
    is_secure: bool
    has_console: bool

    @property
    def is_open(self) -> bool:
        """True if other machines can reach the ports."""
        return not is_loopback(self.listen)


def parse(arguments: Sequence[str] | None) -> DevOptions:
    """Parse the options. Exits with code 2 if an option is invalid by itself."""
    parser = _parser()
    words = parser.parse_args(arguments)
    ports = {name: getattr(words, name) for name in _port_names()}
    if words.no_metrics:
        ports |= {name: 0 for name in ports if name.endswith("_metrics")}
    return DevOptions(
        database=words.database,
        data_folder=words.data_dir,
        listen=words.listen,
        ports=Ports(**ports),
        kafka_port=words.kafka_port,
        traces_port=words.traces_port,
        environment=dict(words.env),
        is_secure=words.secure,
        has_console=not words.no_console,
    )


def check(options: DevOptions) -> Databases:
    """Check that the options work on this machine, and create missing databases. Returns the databases.

    Raises CannotStart.
    """
    _check_address(options.listen)
    _check_ports(options)
    if options.database == "sqlite":
        return _in_folder(options.data_folder)
    return _on_server(options.database)


def _check_address(listen: str) -> None:
    host = listen.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as any_port:
            any_port.bind((host, 0))
    except OSError as failure:
        raise CannotStart(f"--listen {host}: this machine has no such address ({failure.strerror})") from failure


def _check_ports(options: DevOptions) -> None:
    ports = vars(options.ports)
    chosen = {port_option(name): port for name, port in ports.items() if port and _is_used(name, options)}
    chosen |= {_KAFKA_PORT: options.kafka_port, **({_TRACES_PORT: options.traces_port} if options.traces_port else {})}
    counts = Counter(chosen.values())
    if twice := [option for option, port in chosen.items() if counts[port] > 1]:
        raise CannotStart(f"{' and '.join(twice)} name the same port: choose different ones")
    busy = [f"{option} {port}: {_taken(port)}" for option, port in chosen.items() if is_busy(port)]
    if busy:
        raise CannotStart(f"{'; '.join(busy)}. Choose other ports with these options, or end what uses them")


def _is_used(port_name: str, options: DevOptions) -> bool:
    return options.has_console or not port_name.startswith("console")


def _taken(port: int) -> str:
    who = listener(port)
    return f"in use by {who}" if who else "in use, or not permitted"


def _in_folder(folder: Path) -> Databases:
    try:
        databases = Databases.in_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            return databases
    except OSError as failure:
        raise CannotStart(f"--data-dir {folder}: cannot create files there ({failure.strerror})") from failure


def _on_server(database: str) -> Databases:
    server = make_url(database).set(drivername="postgresql")
    try:
        with psycopg.connect(
            server.set(database=server.database or "postgres").render_as_string(hide_password=False),
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
        ) as connection:
            for name in ("inventory", "orders"):
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
                if known is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.Error as failure:
        reason = " ".join(str(failure).split())
        raise CannotStart(f"--database: PostgreSQL at {server.host or 'the default host'}: {reason}") from failure
    urls = [
        server.set(drivername="postgresql+psycopg", database=name).render_as_string(hide_password=False)
        for name in ("inventory", "orders")
    ]
    return Databases(*urls)


def port_option(name: str) -> str:
    """Return the option for a field of Ports, such as --inventory-metrics-port for `inventory_metrics`."""
    process, *use = name.replace("orders", "order").split("_")
    return "--" + "-".join([process, *use, "port"])


def _port_names() -> list[str]:
    return [field.name for field in fields(Ports)]


class _Parser(argparse.ArgumentParser):
    """Prints errors without the usage text: its many options would hide the message."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help shows all options\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="./task dev", description="Run the whole system on this machine.")
    parser.add_argument(
        "--database",
        default="sqlite",
        type=_database,
        metavar="sqlite|URL",
        help="SQLite files, or a PostgreSQL server (postgresql://USER:PASSWORD@HOST:PORT) with the databases"
        " `inventory` and `orders`, which are created if missing (default: sqlite)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("run/data"),
        help="the folder of the SQLite files (default: %(default)s)",
    )
    parser.add_argument(
        "--listen",
        type=_address,
        default="127.0.0.1",
        metavar="ADDRESS",
        help="the address on which the four processes listen; 0.0.0.0 means all addresses of this machine. Without"
        " --secure, anyone who reaches a port can call it. The broker always listens on 127.0.0.1"
        " (default: %(default)s)",
    )
    for field in fields(Ports):
        parser.add_argument(
            port_option(field.name),
            dest=field.name,
            type=_port_or_none if field.name.endswith("_metrics") else _port,
            default=field.default,
            metavar="PORT",
            help="default: %(default)s" + (", 0 means none" if field.name.endswith("_metrics") else ""),
        )
    parser.add_argument(
        _KAFKA_PORT, type=_port, default=9092, metavar="PORT", help="port of the embedded broker (default: %(default)s)"
    )
    parser.add_argument(
        _TRACES_PORT,
        type=_port_or_none,
        default=0,
        metavar="PORT",
        help="port of the span collector, OTLP/gRPC (default: a free one)",
    )
    parser.add_argument(
        "--secure",
        action="store_true",
        help="use mutual TLS between the processes, and check the caller's permission for each call. Clients need a"
        " certificate, and users also need a token. Each start makes new certificates and tokens in"
        f" {certificates.FOLDER.parent}",
    )
    parser.add_argument("--no-console", action="store_true", help="do not start the console, the page for browsers")
    parser.add_argument("--no-metrics", action="store_true", help="open no metrics ports")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        type=_variable,
        metavar="NAME=VALUE",
        help="a setting for all processes, such as RESERVATION_TTL=60; may be repeated",
    )
    return parser


def _database(value: str) -> str:
    try:
        scheme = make_url(value).drivername if value != "sqlite" else ""
    except (ArgumentError, ValueError):
        scheme = "none"
    if scheme not in ("", "postgresql", "postgresql+psycopg", "postgres"):
        raise argparse.ArgumentTypeError("must be sqlite or postgresql://USER:PASSWORD@HOST:PORT")
    return value


def _address(value: str) -> str:
    try:
        found = ipaddress.ip_address("127.0.0.1" if value == "localhost" else value.strip("[]"))
    except ValueError:
        raise argparse.ArgumentTypeError("must be an IP address, such as 127.0.0.1 or 0.0.0.0") from None
    return f"[{found}]" if found.version == 6 else str(found)


def _port(value: str) -> int:
    return _number(value, lowest=1)


def _port_or_none(value: str) -> int:
    return _number(value, lowest=0)


def _number(value: str, *, lowest: int) -> int:
    if not value.isdecimal() or not lowest <= int(value) <= _PORT_MAX:
        raise argparse.ArgumentTypeError(f"must be a port, from {lowest} to {_PORT_MAX}")
    return int(value)


def _variable(value: str) -> tuple[str, str]:
    name, equals, content = value.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    if option := _SET_BY_OPTIONS.get(name.upper().removesuffix("_FILE")):
        # With another value, a process would not listen at the printed address, or would not find the others.
        raise argparse.ArgumentTypeError(f"{name} is set by dev itself; use {option}")
    return name, content
