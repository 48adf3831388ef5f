"""The optional console starts in the cluster, and answers those whom its network policy lets through."""

from collections.abc import Iterator

import pytest

from testkit.eventually import eventually
from tests.cluster import documented
from tests.cluster.cluster import CLIENTS, STRANGERS, Cluster, pod
from tests.cluster.conftest import CONSOLE

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1800)]

ADDRESS = "console.shop:50080"
BROWSER, STRANGER = "browser", "browser-of-a-stranger"
LABELS = {"console-client": "true"}
NAMESPACES = {BROWSER: CLIENTS, STRANGER: STRANGERS}


@pytest.fixture(scope="module")
def console(system: Cluster) -> Iterator[Cluster]:
    """The cluster with the console, and two pods that may, and may not, connect to it."""
    system.apply([pod(name, namespace, LABELS) for name, namespace in NAMESPACES.items()])
    try:
        # The command waits until the probes of the console succeed.
        system.shell(documented.upgrade(CONSOLE))
        for name, namespace in NAMESPACES.items():
            system.kubectl("wait", "-n", namespace, "--for=condition=ready", f"pod/{name}", "--timeout=10m")
        yield system
    finally:
        for name, namespace in NAMESPACES.items():
            system.kubectl("delete", "pod", "-n", namespace, name, "--wait=false")
        system.kubectl("delete", "-k", "deploy/kubernetes/optional/console", "--ignore-not-found")


def test_the_console_asks_viewers_to_sign_in(console: Cluster) -> None:
    def page() -> tuple[int, str]:
        status, url, _ = console.run_python(CLIENTS, BROWSER, "get.py", f"http://{ADDRESS}/")
        return int(status), str(url)

    # Network plugins apply the policies of a new pod with a delay.
    eventually(lambda: console.run_python(CLIENTS, BROWSER, "connect.py", ADDRESS) == [ADDRESS])
    assert page() == (200, f"http://{ADDRESS}/sign-in")


def test_only_clients_of_the_console_reach_it(console: Cluster) -> None:
    eventually(lambda: console.run_python(STRANGERS, STRANGER, "connect.py", ADDRESS) == [])
