"""No call of a client fails while one of two nodes is cut off from the network."""

import json

import pytest

from tests.cluster.cluster import CLIENTS, STRANGERS, Cluster, Object, pod, python_command
from tests.cluster.load import load

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1800)]

APIS = ("inventory-api", "order-api")
SINGLE = ("postgresql", "kafka")
"""The trial has one pod of each, so they must be on another node."""

CUT_SECONDS = 90
"""Kubernetes notices after 50 seconds, and then takes the pods of the node out of the Services."""

OBSERVER = "caller-elsewhere"
CUTTER = "cutter"


def test_no_call_fails_while_a_node_is_cut_off(system: Cluster) -> None:
    nodes = {node["metadata"]["name"]: node for node in system.objects("nodes")}
    candidates = [name for name, node in nodes.items() if _address(node) not in _addresses_of_the_api_server(system)]
    if len(nodes) < 2 or not candidates:
        pytest.skip("the cluster has no second node that could be cut off")
    victim = min(candidates, key=lambda name: name in _nodes(system, *SINGLE))
    others = [name for name in nodes if name != victim]
    _spread(system, victim, others)
    observer = pod(OBSERVER, CLIENTS, {"inventory-api-client": "true", "order-api-client": "true"})
    observer["spec"]["nodeName"] = others[0]
    try:
        system.apply([observer])
        system.kubectl("wait", "-n", CLIENTS, "--for=condition=ready", f"pod/{OBSERVER}", "--timeout=10m")
        with load(system, OBSERVER) as calls:
            system.apply([_cutter(victim, _address(nodes[victim]))])
            # Until the node is back, its kubelet cannot report that the pod has ended.
            ended = "--for=jsonpath={.status.phase}=Succeeded"
            system.kubectl("wait", "-n", STRANGERS, ended, f"pod/{CUTTER}", "--timeout=10m")
            system.wait_until_ready()
        began, end = json.loads(system.kubectl("logs", "-n", STRANGERS, CUTTER))
    finally:
        system.kubectl("delete", "pod", "-n", STRANGERS, CUTTER, "--ignore-not-found")
        system.kubectl("delete", "pod", "-n", CLIENTS, OBSERVER, "--ignore-not-found")

    report = calls.report(f"a node cut off for {end - began:.0f} s")
    during = [call for call in calls.all if began < call.began < end]
    assert during
    assert calls.failed == [], report


def _spread(system: Cluster, victim: str, others: list[str]) -> None:
    """Put a pod of each API on the node and one elsewhere, and the database and the broker elsewhere."""
    with system.without(victim):
        for name in SINGLE:
            if victim in _nodes(system, name):
                system.kubectl("delete", "pod", f"{name}-0")
                system.kubectl("rollout", "status", f"statefulset/{name}", "--timeout=10m")
        system.wait_until_ready()
    for name in APIS:
        on = _nodes(system, name)
        closed = [] if len(on) > 1 else [victim] if victim in on else others
        if closed:
            with system.without(*closed):
                system.kubectl("delete", "pod", system.pods(name)[0]["metadata"]["name"])
                system.wait_until_ready()
        assert len(_nodes(system, name)) > 1


def _nodes(system: Cluster, *names: str) -> set[str]:
    """Return the nodes of the pods of these workloads."""
    return {each["spec"]["nodeName"] for name in names for each in system.pods(name)}


def _address(node: Object) -> str:
    return next(str(each["address"]) for each in node["status"]["addresses"] if each["type"] == "InternalIP")


def _addresses_of_the_api_server(system: Cluster) -> set[str]:
    slices = system.objects("endpointslices", "-n", "default", "-l", "kubernetes.io/service-name=kubernetes")
    return {address for each in slices for endpoint in each["endpoints"] for address in endpoint["addresses"]}


def _cutter(node: str, address: str) -> Object:
    """Return a pod that cuts its node off as soon as it starts, and ends the cut after CUT_SECONDS."""
    cutter = pod(CUTTER, STRANGERS, {})
    cutter["spec"] |= {
        "nodeName": node,
        "hostNetwork": True,
        "restartPolicy": "Never",
        "securityContext": {"runAsUser": 0},
    }
    (container,) = cutter["spec"]["containers"]
    container["command"] = python_command("cut_off_node.py", address, str(CUT_SECONDS))
    container["securityContext"] = {"capabilities": {"add": ["NET_ADMIN"]}}
    return cutter
