"""The commands of docs/kubernetes.md run as written, and the system works after them."""

import subprocess
import sys

import pytest
import yaml

from devstack.ports import free_ports
from shop_protos.order.v1 import order_pb2
from shopctl.client import Shop
from tests.cluster import documented
from tests.cluster.cluster import ADDRESSES, CALLER, CLIENTS, Cluster, Object
from tests.cluster.conftest import CHANGED, TWO_REPLICAS
from tests.cluster.load import load

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1800)]

APIS = ("inventory-api", "order-api")
CHANGED_GRACE = "9"


def test_every_rpc_can_be_called_through_the_services(system: Cluster) -> None:
    inventory, orders = ADDRESSES
    command = ["python", "-m", "shopctl", "test-grpc", "--inventory", inventory, "--orders", orders]

    assert "All checks passed" in system.kubectl("exec", "-n", CLIENTS, CALLER, "--", *command)


def test_the_task_deploys_the_system_again(system: Cluster) -> None:
    """The images are on the nodes already, so the command of --load has nothing to do."""
    before = {pod["metadata"]["name"] for name in APIS for pod in system.pods(name)}
    options = ["--no-build", "--load", "true", "--overlay", TWO_REPLICAS]
    command = [sys.executable, "-m", "devstack", "cluster-deploy", *options]
    done = subprocess.run(
        command, cwd=system.folder, env=system.environment(), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert set(ADDRESSES) <= set(done.stdout.split())
    # The images have the same tags as before, but may be new.
    assert before.isdisjoint(pod["metadata"]["name"] for name in APIS for pod in system.pods(name))


def test_the_forwarded_port_reaches_the_api(system: Cluster) -> None:
    (port,) = free_ports(1)
    command = documented.port_forward()
    assert command.endswith(" 50054")
    words = [*command.removesuffix("50054").split(), f"{port}:50054"]
    with subprocess.Popen(words, env=system.environment(), stdout=subprocess.PIPE, text=True) as forward:
        try:
            assert forward.stdout is not None
            assert "Forwarding from" in forward.stdout.readline()
            with Shop.connect(f"127.0.0.1:{port}", f"127.0.0.1:{port}") as shop:
                shop.call(shop.orders.ListOrders, order_pb2.ListOrdersRequest())
        finally:
            forward.terminate()


def test_no_call_fails_in_an_upgrade_and_a_rollback(system: Cluster) -> None:
    with load(system) as upgraded:
        system.shell(documented.upgrade(CHANGED))

    assert upgraded.failed == [], upgraded.report("upgrade of every process")
    assert _grace_settings(system) == {CHANGED_GRACE}
    upgraded.report("upgrade of every process")

    with load(system) as rolled_back:
        system.shell(documented.rollback(TWO_REPLICAS))

    assert rolled_back.failed == [], rolled_back.report("rollback of every process")
    assert CHANGED_GRACE not in _grace_settings(system)
    rolled_back.report("rollback of every process")


def test_a_failed_migration_stops_the_deployment_and_its_log_has_the_reason(system: Cluster) -> None:
    job = _migration(system)
    name = job["metadata"]["name"] = "inventory-api-migration-of-an-absent-database"
    job["spec"]["backoffLimit"] = 0
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["env"].append({"name": "DATABASE_URL", "value": "postgresql://inventory@postgresql:5432/absent"})
    labels = "app.kubernetes.io/component=migration"
    try:
        system.apply([job])
        system.kubectl("wait", f"job/{name}", "--for=condition=failed", "--timeout=10m")

        assert system.fails("wait", "job", "-l", labels, "--for=condition=complete", "--timeout=1s")
        log = system.kubectl("logs", "-l", labels, "--tail=-1")
        assert 'database "absent" does not exist' in log.replace("\\", ""), log
    finally:
        system.kubectl("delete", "job", name)


def _grace_settings(system: Cluster) -> set[str]:
    """Return the setting GRACE_SECONDS of every process."""
    shown = [system.kubectl("exec", f"deployment/{name}", "--", "printenv", "GRACE_SECONDS") for name in APIS]
    return {value.strip() for value in shown}


def _migration(system: Cluster) -> Object:
    rendered = system.kubectl("kustomize", TWO_REPLICAS)
    jobs = [each for each in yaml.safe_load_all(rendered) if each["metadata"]["name"] == "inventory-api-migration"]
    (job,) = jobs
    found: Object = job
    return found
