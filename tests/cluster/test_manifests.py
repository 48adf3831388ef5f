"""The API server accepts every folder of deploy/kubernetes, with strict validation and Pod Security `restricted`."""

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import NAMESPACE, Cluster
from tests.cluster.documented import ROOT, SECURED

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1800)]

OF_OPERATORS = {
    "optional/cert-manager": ("certificates.cert-manager.io", "issuers.cert-manager.io"),
    "optional/pod-monitor": ("podmonitors.monitoring.coreos.com",),
}
"""Folder → its resource kinds of an operator, which an empty cluster does not know."""

OPTIONS = ("--server-side", "--dry-run=server", "--validate=strict", "--warnings-as-errors")

KUBERNETES = ROOT / "deploy" / "kubernetes"
FOLDERS = sorted(
    {str(file.parent.relative_to(KUBERNETES)) for file in KUBERNETES.rglob("kustomization.yaml")} - OF_OPERATORS.keys()
)


@pytest.fixture
def namespace(system: Cluster) -> Iterator[str]:
    """An empty namespace with the labels of the system's namespace."""
    name = "shop-test-manifests"
    system.kubectl("create", "namespace", name)
    labels = system.objects("namespaces", f"--field-selector=metadata.name={NAMESPACE}")[0]["metadata"]["labels"]
    restricted = [f"{key}={value}" for key, value in labels.items() if key.startswith("pod-security")]
    assert restricted
    system.kubectl("label", "namespace", name, *restricted)
    yield name
    system.kubectl("delete", "namespace", name)


def test_the_api_server_accepts_every_folder_without_a_warning(system: Cluster, namespace: str) -> None:
    assert {"base", "overlays/local", "overlays/production"} <= set(FOLDERS)
    for folder in (*(f"deploy/kubernetes/{each}" for each in FOLDERS), SECURED):
        system.kubectl("apply", "-n", namespace, "-k", folder, *OPTIONS)


@pytest.mark.parametrize("folder", OF_OPERATORS)
def test_the_api_server_accepts_the_objects_for_an_operator(system: Cluster, namespace: str, folder: str) -> None:
    """The cluster needs only the resource kinds of the operator, not the operator itself."""
    if system.fails("get", "customresourcedefinition", *OF_OPERATORS[folder]):
        pytest.skip(f"the cluster has no {' or '.join(OF_OPERATORS[folder])}")
    system.kubectl("apply", "-n", namespace, "-k", f"deploy/kubernetes/{folder}", *OPTIONS)
