"""No call of a client fails while pods are replaced, evicted, killed or stopped.

Without a database, calls fail, and then succeed again without a restart of a process.
"""

from datetime import datetime

import pytest

from testkit.eventually import eventually
from tests.cluster.cluster import ADDRESSES, CALLER, CLIENTS, PROCESSES, STRANGERS, Cluster, Object, pod
from tests.cluster.load import load

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1800)]

APIS = ("inventory-api", "order-api")

QUERIES = ("query-inventory", "query-orders")
"""Commands of shopctl, one for each API, which read its database."""

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


def test_the_system_is_ready_soon_after_its_database_is_back(system: Cluster) -> None:
    """The volume of the database has a group. PostgreSQL refuses a data folder that this group may write to."""
    system.wait_until_ready()
    before = _restarts(system)
    with load(system) as calls:
        try:
            system.kubectl("scale", "statefulset/postgresql", "--replicas=0")
            system.kubectl("wait", "pod/postgresql-0", "--for=delete", "--timeout=10m")
            eventually(lambda: not any(_succeeds(system, query) for query in QUERIES))
            waiting = [each for name in APIS for each in system.pods(name) if _ready_since(each) is None]
        finally:
            system.kubectl("scale", "statefulset/postgresql", "--replicas=1")
        system.kubectl("rollout", "status", "statefulset/postgresql", "--timeout=10m")
        system.wait_until_ready()
        eventually(lambda: all(_succeeds(system, query) for query in QUERIES))

    accepted = _accepted_connections(system)
    pods = [each for name in APIS for each in system.pods(name)]
    ready = max(since for each in pods if (since := _ready_since(each)) is not None)
    failed = [call for call in calls.failed if call.ended > accepted]
    last_failure = max((call.ended for call in failed), default=accepted)
    report = calls.report("the database away and back")
    print(
        f"the database is back: every API is ready after {max(0.0, ready - accepted):.0f} s, "
        f"and every call succeeds after {last_failure - accepted:.1f} s; "
        f"without the database, {len(waiting)} of {len(pods)} APIs were not ready"
    )
    assert calls.failed, report
    assert _restarts(system) == before
    # As docs/runbook.md says: an API stays ready as long as no event waits to be handled.
    for each in waiting:
        assert "events wait" in system.kubectl("logs", each["metadata"]["name"])


def _succeeds(system: Cluster, query: str) -> bool:
    inventory, orders = ADDRESSES
    words = ["python", "-m", "shopctl", query, "--inventory", inventory, "--orders", orders]
    return not system.fails("exec", "-n", CLIENTS, CALLER, "--", *words)


def _restarts(system: Cluster) -> dict[str, int]:
    """Return how often each process of an API was restarted."""
    return {
        each["metadata"]["name"]: each["status"]["containerStatuses"][0]["restartCount"]
        for name in APIS
        for each in system.pods(name)
    }


def _ready_since(pod: Object) -> float | None:
    """Return the time since which a pod is ready, or None if it is not."""
    (condition,) = (each for each in pod["status"]["conditions"] if each["type"] == "Ready")
    return _time(condition["lastTransitionTime"]) if condition["status"] == "True" else None


def _accepted_connections(system: Cluster) -> float:
    """Return the time since which the database accepts connections."""
    log = system.kubectl("logs", "postgresql-0", "--timestamps").splitlines()
    return max(_time(line.split()[0]) for line in log if "database system is ready to accept connections" in line)


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _stopper(node: str) -> Object:
    """Return a pod of root that sees all processes of the node."""
    stopper = pod("stopper", STRANGERS, {})
    stopper["spec"] |= {"nodeName": node, "hostPID": True, "securityContext": {"runAsUser": 0}}
    stopper["spec"]["containers"][0]["securityContext"] = {}
    return stopper
