"""The probes of the rendered Deployments succeed with the real processes."""

from collections.abc import Iterator

import pytest

from devstack import kafka
from devstack.stack import Databases, Stack
from shopctl.system import grpc_health
from tests.kubernetes.checks import deployments
from tests.kubernetes.processes import PROCESSES
from tests.kubernetes.rendered import Rendered

FOLDER = "deploy/kubernetes/base"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The four processes on SQLite: the kind of database does not matter for probes."""
    # A broker of its own: the consumer groups of two stacks have the same names.
    with kafka.provide() as broker, Stack(Databases.in_folder(tmp_path_factory.mktemp("data")), broker) as stack:
        yield stack


def _addresses(running: Stack) -> dict[str, str]:
    ports = running.ports
    health_ports = (ports.inventory_health, ports.orders_health, ports.reaper, ports.relay)
    return {each.name: f"127.0.0.1:{port}" for each, port in zip(running.processes, health_ports, strict=True)}


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_every_probe_succeeds(running: Stack, rendered: Rendered, probe: str) -> None:
    for workload in deployments(rendered(FOLDER)):
        service = workload.container[probe]["grpc"].get("service", "")

        assert grpc_health.health(_addresses(running)[workload.name], service) == "SERVING", (
            f"{workload} {probe} {service!r}"
        )


def test_an_unknown_service_name_is_not_found(running: Stack) -> None:
    """Shows that the test above can fail."""
    statuses = {name: grpc_health.health(address, "shop.Nobody") for name, address in _addresses(running).items()}

    assert statuses == dict.fromkeys(PROCESSES, "NOT_FOUND")
