"""The autoscaler adds and removes pods of an API by the CPU that they use, and no call fails."""

from collections.abc import Iterator

import pytest
import yaml

from testkit.eventually import eventually
from tests.cluster import documented
from tests.cluster.cluster import Cluster, Object
from tests.cluster.conftest import TWO_REPLICAS
from tests.cluster.load import load

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1800)]

NAME = "order-api"
METRICS = "/apis/metrics.k8s.io/v1beta1/nodes"
SCALED_SECONDS = 300
"""The metrics and the autoscaler have a delay of about a minute."""

NEVER_REACHED = 100_000
"""A target in percent of the requested CPU."""


@pytest.fixture
def autoscaler(system: Cluster) -> Iterator[Object]:
    """Return the object of the autoscaler of order-api, without pauses between changes. The trial has no autoscaler."""
    if system.fails("get", "--raw", METRICS):
        pytest.skip("the cluster has no metrics server")
    objects = yaml.safe_load_all((documented.ROOT / "deploy/kubernetes/base/order-api.yaml").read_text())
    (found,) = (each for each in objects if each["kind"] == "HorizontalPodAutoscaler")
    found["spec"]["behavior"]["scaleUp"]["stabilizationWindowSeconds"] = 0
    found["spec"]["behavior"]["scaleDown"] = {"stabilizationWindowSeconds": 0}
    yield found
    system.kubectl("delete", "horizontalpodautoscaler", NAME, "--ignore-not-found")
    system.shell(documented.rollback(TWO_REPLICAS))


def test_no_call_fails_while_the_api_is_scaled_up_and_down(system: Cluster, autoscaler: Object) -> None:
    spec = autoscaler["spec"]
    (metric,) = spec["metrics"]
    with load(system) as calls:
        system.apply([autoscaler])
        _wait_for(system, spec["maxReplicas"])

        metric["resource"]["target"]["averageUtilization"] = NEVER_REACHED
        system.apply([autoscaler])
        _wait_for(system, spec["minReplicas"])

    report = calls.report(f"{spec['maxReplicas']} pods instead of {spec['minReplicas']}, and back")
    assert calls.failed == [], report


def _wait_for(system: Cluster, replicas: int) -> None:
    """Wait until the autoscaler has set this number of pods, and they are ready."""

    def wanted() -> int:
        (found,) = system.objects("deployments", "-l", f"app.kubernetes.io/name={NAME}")
        return int(found["spec"]["replicas"])

    def state() -> str:
        return system.kubectl("describe", "horizontalpodautoscaler", NAME, check=False)

    eventually(lambda: wanted() == replicas, SCALED_SECONDS, describe=state)
    system.wait_until_ready()
