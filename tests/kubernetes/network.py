"""Who may speak to whom: what NetworkPolicies allow, and what the settings need, in the same words.

A flow is (port, protocol, peer). A peer is the name of a workload of ours, `anywhere`, or the selectors of a pod that
is not ours, as text.
"""

import json
from collections.abc import Iterator

from tests.kubernetes.processes import PROCESSES, addresses
from tests.kubernetes.rendered import Cluster, Labels, Object, Workload, selects

Flow = tuple[int, str, str]

ANYWHERE = "anywhere"
OURS = {"app.kubernetes.io/part-of": "shop"}


def _others(pods: Labels | None = None, namespaces: Labels | None = None) -> str:
    return json.dumps({"namespaces": namespaces, "pods": pods}, sort_keys=True)


NAME_SERVER = _others(namespaces={"kubernetes.io/metadata.name": "kube-system"})
CLIENTS = _others(namespaces={}, pods={"shop-client": "true"})
PROMETHEUS = _others(namespaces={}, pods={"app.kubernetes.io/name": "prometheus"})


def is_ours(workload: Workload) -> bool:
    return OURS.items() <= workload.labels.items()


def allowed(cluster: Cluster, workload: Workload, direction: str) -> set[Flow]:
    """What the policies let the workload's pods say (`egress`) or hear (`ingress`)."""
    return {flow for policy in _policies(cluster, workload, direction) for flow in _flows(cluster, policy, direction)}


def is_restricted(cluster: Cluster, workload: Workload, direction: str) -> bool:
    """Whether what no policy allows is refused."""
    return any(True for _ in _policies(cluster, workload, direction))


def needed_to_say(cluster: Cluster, workload: Workload) -> set[Flow]:
    """What the workload has to say, by its settings; and everyone asks for names."""
    flows = {(53, "UDP", NAME_SERVER), (53, "TCP", NAME_SERVER)}
    for host, port in addresses(cluster.environment(workload.container)):
        flows |= {(port, "TCP", peer) for peer in _behind(cluster, host)}
    return flows


def needed_to_hear(cluster: Cluster, workload: Workload) -> set[Flow]:
    """What the workload has to hear: calls of ours by their settings, those of clients, and Prometheus."""
    if workload.name not in PROCESSES:
        return set()
    flows = {(workload.ports["metrics"], "TCP", PROMETHEUS)}
    if "grpc" in workload.ports:
        flows.add((workload.ports["grpc"], "TCP", CLIENTS))
    for other in filter(is_ours, cluster.workloads()):
        for port, protocol, peer in needed_to_say(cluster, other):
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
        # A rule without ports means all of them: KeyError, as no rule of ours may.
        for port in rule["ports"]:
            yield from ((port["port"], port.get("protocol", "TCP"), name) for name in names)


def _peers(cluster: Cluster, peer: Object) -> list[str]:
    if set(peer) == {"podSelector"}:
        return cluster.selected(peer["podSelector"])
    assert set(peer) <= {"podSelector", "namespaceSelector"}, f"not known here: {peer}"
    return [_others(*(peer[kind].get("matchLabels", {}) if kind in peer else None for kind in _KINDS))]


_KINDS = ("podSelector", "namespaceSelector")


def _behind(cluster: Cluster, host: str) -> list[str]:
    """The workloads behind a name: those of a Service that is rendered, else it is somewhere."""
    for service in cluster.of_kind("Service"):
        if service["metadata"]["name"] == host:
            return cluster.selected({"matchLabels": service["spec"]["selector"]})
    return [ANYWHERE]
