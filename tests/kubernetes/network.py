"""The network flows that NetworkPolicies allow and those that the settings need, in the same form.

A flow is (port, protocol, peer). A peer is the name of one of our workloads, `anywhere`, or the selectors of other pods
as JSON text.
"""

import json
from collections.abc import Iterator

from tests.kubernetes.processes import PROCESSES, addresses
from tests.kubernetes.rendered import Cluster, Labels, Object, Workload, selects

Flow = tuple[int, str, str]

ANYWHERE = "anywhere"
BROKER = "kafka"
OURS = {"app.kubernetes.io/part-of": "shop"}


def _others(pods: Labels | None = None, namespaces: Labels | None = None) -> str:
    return json.dumps({"namespaces": namespaces, "pods": pods}, sort_keys=True)


NAME_SERVER = _others(namespaces={"kubernetes.io/metadata.name": "kube-system"})
PROMETHEUS = _others(namespaces={"shop-monitoring": "true"}, pods={"app.kubernetes.io/name": "prometheus"})


def _clients(workload: Workload) -> str:
    """The clients of one process. The label of their namespace is needed too: a pod's creator chooses its labels."""
    return _others(namespaces={"shop-clients": "true"}, pods={f"{workload.name}-client": "true"})


def is_ours(workload: Workload) -> bool:
    return OURS.items() <= workload.labels.items()


def allowed(cluster: Cluster, workload: Workload, direction: str) -> set[Flow]:
    """The flows from (`egress`) or to (`ingress`) the workload's pods that the policies allow."""
    return {flow for policy in _policies(cluster, workload, direction) for flow in _flows(cluster, policy, direction)}


def is_restricted(cluster: Cluster, workload: Workload, direction: str) -> bool:
    """True if flows that no policy allows are blocked: at least one policy applies."""
    return any(True for _ in _policies(cluster, workload, direction))


def needed_egress(cluster: Cluster, workload: Workload) -> set[Flow]:
    """DNS, and the addresses in the workload's settings."""
    flows = {(53, "UDP", NAME_SERVER), (53, "TCP", NAME_SERVER)}
    for host, port in addresses(cluster.environment(workload.container)):
        flows |= {(port, "TCP", peer) for peer in _behind(cluster, host)}
    return flows


def needed_ingress(cluster: Cluster, workload: Workload) -> set[Flow]:
    """Connections from our workloads according to their settings, calls from clients, and Prometheus."""
    flows: set[Flow] = set()
    if workload.name in PROCESSES:
        flows.add((workload.ports["metrics"], "TCP", PROMETHEUS))
    for served in {"grpc", "http"} & workload.ports.keys():
        flows.add((workload.ports[served], "TCP", _clients(workload)))
    if workload.name == BROKER:  # it connects to itself by its Service
        flows.add((workload.ports[BROKER], "TCP", BROKER))
    for other in filter(is_ours, cluster.workloads()):
        for port, protocol, peer in needed_egress(cluster, other):
            if peer == workload.name:
                flows.add((port, protocol, other.name))
    return flows


def _policies(cluster: Cluster, workload: Workload, direction: str) -> Iterator[Object]:
    for policy in cluster.of_kind("NetworkPolicy"):
        spec = policy["spec"]
        if direction.capitalize() in spec["policyTypes"] and selects(spec["podSelector"], workload.labels):
            yield spec


def _flows(cluster: Cluster, policy: Object, direction: str) -> Iterator[Flow]:
    for rule in policy.get(direction, []):
        peers = rule.get("to" if direction == "egress" else "from")
        names = [ANYWHERE] if peers is None else [name for peer in peers for name in _peers(cluster, peer)]
        # KeyError for a rule without ports: it would allow all ports, which none of our rules may do.
        for port in rule["ports"]:
            yield from ((port["port"], port.get("protocol", "TCP"), name) for name in names)


def _peers(cluster: Cluster, peer: Object) -> list[str]:
    if set(peer) == {"podSelector"}:
        return cluster.selected(peer["podSelector"])
    assert set(peer) <= {"podSelector", "namespaceSelector"}, f"unsupported peer: {peer}"
    return [_others(*(peer[kind].get("matchLabels", {}) if kind in peer else None for kind in _KINDS))]


_KINDS = ("podSelector", "namespaceSelector")


def _behind(cluster: Cluster, host: str) -> list[str]:
    """The workloads that a rendered Service of this name selects, or `anywhere` without one."""
    for service in cluster.of_kind("Service"):
        if service["metadata"]["name"] == host:
            return cluster.selected({"matchLabels": service["spec"]["selector"]})
    return [ANYWHERE]
