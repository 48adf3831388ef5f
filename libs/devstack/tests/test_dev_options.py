import os
import socket
from dataclasses import fields
from pathlib import Path

import pytest

from devstack import postgres
from devstack.dev import options as dev_options
from devstack.dev.options import CannotStart, port_option
from devstack.ports import free_ports
from devstack.stack import Ports

NAMES = [field.name for field in fields(Ports)]
METRICS = [port_option(name) for name in NAMES if name.endswith("_metrics")]
PORTS = [*(port_option(name) for name in NAMES if not name.endswith("_metrics")), "--kafka-port", "--traces-port"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--inventory-port=99999"], "--inventory-port: must be a port, from 1 to 65535"),
        (["--order-port=0"], "--order-port: must be a port"),
        (["--relay-metrics-port=-1"], "--relay-metrics-port: must be a port, from 0 to 65535"),
        (["--listen=everywhere"], "--listen: must be an IP address"),
        (["--database=mysql://localhost"], "--database: must be sqlite or postgresql://"),
        (["--database=postgresql://shop@localhost:many"], "--database: must be sqlite or postgresql://"),
        (["--env=RESERVATION_TTL"], "--env: must be NAME=VALUE"),
        (["--env=LISTEN_HOST=0.0.0.0"], "LISTEN_HOST is set by dev itself; use --listen"),
        (["--env=DATABASE_URL_FILE=/x"], "DATABASE_URL_FILE is set by dev itself; use --database or --data-dir"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_an_option_that_is_wrong_by_itself_is_one_sentence(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        dev_options.parse(words)

    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("./task dev: ")
    assert named in line


def test_ports_of_everything_can_be_chosen() -> None:
    words = [f"{port_option(name)}={port}" for port, name in enumerate(NAMES, 20_001)]

    options = dev_options.parse([*words, "--kafka-port=20101", "--traces-port=20102"])

    assert list(vars(options.ports).values()) == list(range(20_001, 20_001 + len(NAMES)))
    assert (options.kafka_port, options.traces_port) == (20_101, 20_102)
    assert {"--inventory-port", "--order-metrics-port", "--relay-port"} <= {port_option(name) for name in NAMES}


@pytest.mark.parametrize(
    ("address", "is_open"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("::", True)],
)
def test_whether_other_machines_reach_it_is_known(address: str, is_open: bool) -> None:
    assert dev_options.parse(["--listen", address]).is_open is is_open


def test_no_metrics_is_no_metrics_port() -> None:
    ports = dev_options.parse(["--no-metrics"]).ports

    assert {ports.inventory_metrics, ports.orders_metrics, ports.reaper_metrics, ports.relay_metrics} == {0}


def test_a_port_that_is_taken_is_named_with_its_option_and_who_has_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(CannotStart, match=rf"^--relay-metrics-port {port}: in use by pid {os.getpid()} \("):
            _check("--data-dir", str(tmp_path), f"--relay-metrics-port={port}", metrics=True)


def test_two_options_with_one_port_are_named_both(tmp_path: Path) -> None:
    (port,) = free_ports(1)

    with pytest.raises(CannotStart, match=r"^--inventory-port and --reaper-port name the same port"):
        _check("--data-dir", str(tmp_path), f"--inventory-port={port}", f"--reaper-port={port}")


@pytest.mark.parametrize("folder", ["/proc/x", "/dev/null/x"])
def test_a_data_folder_that_cannot_be_made_is_named(folder: str) -> None:
    with pytest.raises(CannotStart, match=rf"^--data-dir {folder}: cannot create files there \("):
        _check("--data-dir", folder)


def test_an_address_that_this_machine_has_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"^--listen 192\.0\.2\.1: this machine has no such address"):
        _check("--data-dir", str(tmp_path), "--listen=192.0.2.1")


def test_a_database_server_that_is_away_is_named() -> None:
    with pytest.raises(CannotStart, match=r"^--database: PostgreSQL at 127\.0\.0\.1: "):
        _check("--database=postgresql://shop@127.0.0.1:1")


def test_databases_are_made_on_a_server_once() -> None:
    with postgres.provide() as server:
        first = _check(f"--database={server.url}")

        assert _check(f"--database={server.url}") == first


def _check(*words: str, metrics: bool = False) -> object:
    """Return options with free ports, unless `words` set them."""
    names = [*PORTS, *METRICS] if metrics else PORTS
    ports = [f"{option}={port}" for option, port in zip(names, free_ports(len(names)), strict=True)]
    return dev_options.check(dev_options.parse([*([] if metrics else ["--no-metrics"]), *ports, *words]))
