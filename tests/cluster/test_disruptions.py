"""No call of a client fails while pods are replaced, evicted, killed or stopped."""

import pytest

from testkit.eventually import eventually
from tests.cluster.cluster import PROCESSES, STRANGERS, Cluster, Object, pod
from tests.cluster.load import load

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1800)]

APIS = ("inventory-api", "order-api")

WAIT_SECONDS = 5.0
"""A call that takes longer has waited for a process that does not respond: the channel's pings end it."""
LEFT_SECONDS = 15.0

LOCKED = "CONTENTION"
"""The database ends the transaction of a stopped process after 5 seconds. Until then, a call that needs its rows may
fail with this reason, and may be repeated."""


def test_no_call_fails_in_a_rolling_restart_of_every_process(system: Cluster) -> None:
    with load(system) as calls:
        system.kubectl("rollout", "restart", "deployment", "-l", PROCESSES)
        system.wait_until_ready()

    assert calls.failed == [], calls.report("rolling restart")
    calls.report("rolling restart of every process")


def test_no_call_fails_when_each_node_is_drained(system: Cluster) -> None:
    """The database and the broker are not moved, because the trial has only one of each."""
    nodes = [node["metadata"]["name"] for node in system.objects("nodes")]
    if len(nodes) < 2:
        pytest.skip("the cluster has one node, so evicted pods have no other")
    with load(system) as calls:
        for node in nodes:
            options = [f"--pod-selector={PROCESSES}", "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=10m"]
            try:
                system.kubectl("drain", node, *options)
                system.wait_until_ready()
            finally:
                system.kubectl("uncordon", node)

    assert calls.failed == [], calls.report("drain")
    calls.report(f"drain of {len(nodes)} nodes, one after the other")


def test_no_call_fails_when_a_pod_of_each_api_is_deleted_by_force(system: Cluster) -> None:
    with load(system) as calls:
        for name in APIS:
            victim = system.pods(name)[0]["metadata"]["name"]
            system.kubectl("delete", "pod", victim, "--force", "--grace-period=0")
            system.wait_until_ready()

    assert calls.failed == [], calls.report("forced deletion")
    calls.report("forced deletion of a pod of each API")


def test_callers_leave_a_stopped_process_within_15_seconds(system: Cluster) -> None:
    victim = system.pods("inventory-api")[0]
    name = victim["metadata"]["name"]
    stopper = _stopper(victim["spec"]["nodeName"])
    system.apply([stopper])
    system.kubectl("wait", "-n", STRANGERS, "--for=condition=ready", "pod/stopper", "--timeout=10m")
    (status,) = victim["status"]["containerStatuses"]
    container = status["containerID"].rpartition("/")[2]

    def restarts() -> int:
        (found,) = (each for each in system.pods("inventory-api") if each["metadata"]["name"] == name)
        return int(found["status"]["containerStatuses"][0]["restartCount"])

    try:
        with load(system) as calls:
            stopped, processes = system.run_python(STRANGERS, "stopper", "stop_process.py", container)
            assert processes > 0
            # The kubelet ends the process and starts it again.
            eventually(lambda: restarts() > status["restartCount"], within_seconds=180)
            system.wait_until_ready()
    finally:
        system.kubectl("delete", "-n", STRANGERS, "pod", "stopper")

    report = calls.report("stopped process")
    waited = [call for call in calls.all if call.ended > stopped and call.seconds > WAIT_SECONDS]
    left = max((call.ended for call in waited), default=stopped) - stopped
    print(f"stopped process: {len(waited)} calls waited for it, the last of them until {left:.1f} s after the stop")
    assert [call for call in calls.failed if call.reason != LOCKED or call.began > stopped + LEFT_SECONDS] == [], report
    assert [call for call in waited if call.began > stopped + LEFT_SECONDS] == []


def _stopper(node: str) -> Object:
    """Return a pod of root that sees all processes of the node."""
    stopper = pod("stopper", STRANGERS, {})
    stopper["spec"] |= {"nodeName": node, "hostPID": True, "securityContext": {"runAsUser": 0}}
    stopper["spec"]["containers"][0]["securityContext"] = {}
    return stopper
