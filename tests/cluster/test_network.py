"""The network policies let each pod reach exactly what it needs: each pair of a pod and a port is tried."""

from collections.abc import Iterator, Mapping

import pytest

from testkit.eventually import eventually
from tests.cluster.cluster import CLIENTS, MONITORING, NAMESPACE, STRANGERS, Cluster, pod

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1800)]

PORTS = {
    "inventory-api": (50053, 50063, 9464),
    "order-api": (50054, 50064, 9464),
    "reservation-reaper": (50055, 9464),
    "event-relay": (50056, 9464),
    "postgresql": (5432,),
    "kafka": (9092,),
}
"""The open ports of each workload. The health ports (50063, 50064, 50055, 50056) are only for the kubelet's probes."""

INVENTORY, ORDERS, DATABASE, BROKER = "inventory-api:50053", "order-api:50054", "postgresql:5432", "kafka:9092"

PROCESSES: dict[str, set[str]] = {
    "inventory-api": {ORDERS, DATABASE, BROKER},
    "order-api": {INVENTORY, DATABASE, BROKER},
    "reservation-reaper": {INVENTORY, ORDERS},
    "event-relay": {DATABASE, BROKER},
}
"""Process → what it reaches."""

INVENTORY_CLIENT = {"inventory-api-client": "true"}
ORDERS_CLIENT = {"order-api-client": "true"}
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}

OTHERS: dict[str, tuple[str, Mapping[str, str], set[str]]] = {
    "client-of-inventory": (CLIENTS, INVENTORY_CLIENT, {INVENTORY}),
    "client-of-orders": (CLIENTS, ORDERS_CLIENT, {ORDERS}),
    "without-label": (CLIENTS, {}, set()),
    "prometheus-of-a-client": (CLIENTS, PROMETHEUS, set()),
    "prometheus": (MONITORING, PROMETHEUS, {f"{name}:9464" for name in PROCESSES}),
    "client-in-monitoring": (MONITORING, INVENTORY_CLIENT | ORDERS_CLIENT, set()),
    "stranger-with-labels": (STRANGERS, INVENTORY_CLIENT | ORDERS_CLIENT, set()),
    "neighbour": (NAMESPACE, INVENTORY_CLIENT | ORDERS_CLIENT, set()),
}
"""Pod → its namespace, its labels, and what it reaches."""


@pytest.fixture(scope="module")
def others(system: Cluster) -> Iterator[Cluster]:
    """The cluster with the pods of OTHERS."""
    system.apply([pod(name, namespace, labels) for name, (namespace, labels, _) in OTHERS.items()])
    for name, (namespace, _, _) in OTHERS.items():
        system.kubectl("wait", "-n", namespace, "--for=condition=ready", f"pod/{name}", "--timeout=10m")
    yield system
    for name, (namespace, _, _) in OTHERS.items():
        system.kubectl("delete", "pod", "-n", namespace, name, "--wait=false")


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_reaches_exactly_what_it_needs(system: Cluster, process: str) -> None:
    name = system.pods(process)[0]["metadata"]["name"]

    _check_that_it_reaches(system, (NAMESPACE, name), _targets(system, besides=process), PROCESSES[process])


@pytest.mark.parametrize("name", OTHERS)
def test_another_pod_reaches_only_what_its_labels_allow(others: Cluster, name: str) -> None:
    namespace, _, expected = OTHERS[name]

    _check_that_it_reaches(others, (namespace, name), _targets(others), expected)


def _targets(cluster: Cluster, besides: str = "") -> dict[str, str]:
    """Return the address of each open port, with its name. A pod may always connect to itself, so leave it out."""
    return {
        f"{cluster.pods(name)[0]['status']['podIP']}:{port}": f"{name}:{port}"
        for name, ports in PORTS.items()
        for port in ports
        if name != besides
    }


def _check_that_it_reaches(cluster: Cluster, pod: tuple[str, str], targets: dict[str, str], expected: set[str]) -> None:
    def reached() -> set[str]:
        return {targets[address] for address in cluster.run_python(*pod, "connect.py", *targets)}

    # Network plugins apply the policies of a new pod with a delay.
    eventually(lambda: reached() == expected, describe=lambda: f"it reaches {reached()}, not {expected}")
