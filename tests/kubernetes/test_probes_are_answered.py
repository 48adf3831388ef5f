"""What the probes of the rendered Deployments ask is asked of the real processes."""

from collections.abc import Iterator

import pytest

from devstack import kafka
from devstack.stack import Databases, Stack
from shopctl.system import grpc_health
from tests.kubernetes.checks import of_processes
from tests.kubernetes.processes import PROCESSES
from tests.kubernetes.rendered import Rendered

FOLDER = "deploy/kubernetes/base"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The four processes; what they keep their rows in does not matter here."""
    # A broker of its own: other stacks' consumers are of the same groups.
    with kafka.provide() as broker, Stack(Databases.in_folder(tmp_path_factory.mktemp("data")), broker) as stack:
        yield stack


def _addresses(running: Stack) -> dict[str, str]:
    ports = running.ports
    health_ports = (ports.inventory_health, ports.orders_health, ports.reaper, ports.relay)
    return {each.name: f"127.0.0.1:{port}" for each, port in zip(running.processes, health_ports, strict=True)}


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_every_probe_gets_the_answer_that_it_hopes_for(running: Stack, rendered: Rendered, probe: str) -> None:
    for workload in of_processes(rendered(FOLDER)):
        service = workload.container[probe]["grpc"].get("service", "")

        assert grpc_health.health(_addresses(running)[workload.name], service) == "SERVING", (
            f"{workload} {probe} {service!r}"
        )


def test_a_name_that_nobody_serves_is_no_success(running: Stack) -> None:
    """Otherwise the test above could not fail."""
    answers = {name: grpc_health.health(address, "shop.Nobody") for name, address in _addresses(running).items()}

    assert answers == dict.fromkeys(PROCESSES, "NOT_FOUND")
