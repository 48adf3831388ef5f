"""The cluster that TEST_KUBECONFIG names, and the system in it, which all tests of this folder share."""

import os
import shutil
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from devstack import watchdog
from tests.cluster import documented
from tests.cluster.cluster import (
    CALLER,
    CLIENTS,
    MONITORING,
    NAMESPACE,
    NAMESPACES,
    STRANGERS,
    Cluster,
    namespace,
    pod,
)

VARIABLE = "TEST_KUBECONFIG"
REQUIRE_VARIABLE = "TEST_REQUIRE_CLUSTER"

TWO_REPLICAS = "deploy/kubernetes/overlays/two-replicas"
"""The trial with two replicas of each API. With one replica, the callers notice each restart."""
CHANGED = "deploy/kubernetes/overlays/changed"
"""TWO_REPLICAS with a changed setting, to which every process is upgraded."""
ABSENT_IMAGE = "deploy/kubernetes/overlays/absent-image"
"""TWO_REPLICAS with an image of order-api that does not exist."""
WRONG_SETTING = "deploy/kubernetes/overlays/wrong-setting"
"""TWO_REPLICAS with a setting that every process refuses at its start."""
CONSOLE = "deploy/kubernetes/overlays/console"
"""TWO_REPLICAS with the console, in plain text like the trial."""

_STOPS_SOON = """
patches:
  - target: {kind: Deployment}
    patch: '[{"op": "replace", "path": "/spec/progressDeadlineSeconds", "value": 45}]'
"""
"""A rollout that makes no progress is reported after 45 seconds instead of five minutes."""

_OVERLAYS = {
    TWO_REPLICAS: """
resources: [../local]
replicas: [{name: inventory-api, count: 2}, {name: order-api, count: 2}, {name: event-relay, count: 2}]
""",
    CHANGED: """
resources: [../two-replicas]
configMapGenerator: [{name: shop, behavior: merge, literals: [GRACE_SECONDS=9]}]
""",
    ABSENT_IMAGE: f"""
resources: [../two-replicas]
images: [{{name: shop/order-api, newTag: absent}}]
{_STOPS_SOON}""",
    WRONG_SETTING: f"""
resources: [../two-replicas]
configMapGenerator: [{{name: shop, behavior: merge, literals: [GRACE_SECONDS=soon]}}]
{_STOPS_SOON}""",
    CONSOLE: """
resources: [../two-replicas, ../../optional/console]
configMapGenerator:
  - name: console
    behavior: replace
    literals:
      - INVENTORY_TARGET=inventory-api:50053
      - ORDER_TARGET=order-api:50054
      - SIGN_IN=true
      - PUBLIC_URL=http://console.shop:50080
patches:
  - patch: |
      apiVersion: apps/v1
      kind: Deployment
      metadata: {name: console}
      spec:
        template:
          spec:
            containers: [{name: console, volumeMounts: [{mountPath: /secrets/tls, $patch: delete}]}]
            volumes: [{name: tls, $patch: delete}]
""",
}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Provide the cluster of TEST_KUBECONFIG, and remove the namespaces of the tests from it at the end.

    Without the variable the test is skipped, or fails if TEST_REQUIRE_CLUSTER=1.
    """
    kubeconfig = os.environ.get(VARIABLE)
    if not kubeconfig or shutil.which("kubectl") is None:
        reason = "kubectl is not on the PATH" if kubeconfig else f"{VARIABLE} does not name a cluster"
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_VARIABLE} is set")
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    found = Cluster(with_namespace(kubeconfig, folder / "kubeconfig", NAMESPACE), folder)
    # The tests delete what they find in this namespace, so it must be theirs.
    existing = found.kubectl("get", "namespace", *NAMESPACES, "--ignore-not-found", "-o", "name").split()
    if existing:
        pytest.fail(f"the cluster of {VARIABLE} already has {', '.join(existing)}: delete it, or use another cluster")
    for part in ("deploy", documented.SECURED):
        shutil.copytree(documented.ROOT / part, folder / part)
    for overlay, content in _OVERLAYS.items():
        (folder / overlay).mkdir()
        (folder / overlay / "kustomization.yaml").write_text(content)
    remove = ["delete", "namespace", *NAMESPACES, "--ignore-not-found"]
    watchdog.run(str(folder), ["kubectl", f"--kubeconfig={found.kubeconfig}", *remove, "--wait=false"])
    try:
        yield found
    finally:
        found.kubectl(*remove)
        watchdog.forget(str(folder))


@pytest.fixture(scope="session")
def system(cluster: Cluster) -> Cluster:
    """Return the cluster with the system: deployed by the documented commands, with two replicas of each API.

    The caller, a pod outside the namespace of the system, may call both APIs.
    """
    began = time.monotonic()
    try:
        cluster.shell(documented.try_it())
    except AssertionError:
        print(cluster.state())
        raise
    print(f"fresh install: ready after {time.monotonic() - began:.0f} s")
    cluster.apply(
        [
            namespace(CLIENTS, "shop-clients"),
            namespace(MONITORING, "shop-monitoring"),
            namespace(STRANGERS),
            pod(CALLER, CLIENTS, {"inventory-api-client": "true", "order-api-client": "true"}),
        ]
    )
    cluster.shell(documented.upgrade(TWO_REPLICAS))
    cluster.kubectl("wait", "-n", CLIENTS, "--for=condition=ready", f"pod/{CALLER}", "--timeout=10m")
    return cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the pods and events to the report of a failed test."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for found in item.funcargs.values():
            if isinstance(found, Cluster):
                report.sections.append(("pods and events", found.state()))
    return report


def with_namespace(kubeconfig: str, copy: Path, namespace: str) -> Path:
    """Write a copy of the current context of a kubeconfig, with another default namespace. Returns its path."""
    view = ["kubectl", f"--kubeconfig={kubeconfig}", "config", "view", "--raw", "--flatten", "--minify"]
    copy.touch(mode=0o600)
    copy.write_text(subprocess.run(view, stdout=subprocess.PIPE, text=True, check=True).stdout)
    change = ["kubectl", f"--kubeconfig={copy}", "config", "set-context", "--current", f"--namespace={namespace}"]
    subprocess.run(change, stdout=subprocess.DEVNULL, check=True)
    return copy
