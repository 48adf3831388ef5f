"""The operations of a container, with an image that starts quickly."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from devstack.ports import free_ports
from devstack.postgres import IMAGE
from devstack.servers.containers import Container, ContainerUnavailable

pytestmark = pytest.mark.usefixtures("docker_engine")

INSIDE = 5432
PASSWORD = {"POSTGRES_PASSWORD": "only here"}


@pytest.fixture
def container() -> Iterator[Container]:
    (port,) = free_ports(1)
    started = Container.start(IMAGE, port, PASSWORD, ["sleep", "600"], inside=INSIDE)
    yield started
    started.stop()


def test_it_is_reached_from_this_machine_alone(container: Container) -> None:
    published = docker("inspect", "--format", "{{json .HostConfig.PortBindings}}", container.name)

    assert '"HostIp":"127.0.0.1"' in published
    assert published.count("HostIp") == 1


def test_execute_returns_the_output_or_raises(container: Container) -> None:
    assert container.execute("echo", "here") == "here\n"
    with pytest.raises(RuntimeError, match="false failed"):
        container.execute("false")


def test_its_data_outlive_a_kill_and_end_with_it(container: Container) -> None:
    container.execute("sh", "-c", "echo kept > /tmp/file")

    container.kill()
    assert not container.alive
    container.kill()
    container.start_again()

    assert container.execute("cat", "/tmp/file") == "kept\n"
    container.stop()
    container.stop()
    assert container.name not in docker("ps", "--all", "--quiet", "--no-trunc")


def test_a_frozen_one_is_removed_all_the_same(container: Container) -> None:
    container.freeze()

    container.stop()

    assert container.name not in docker("ps", "--all", "--quiet", "--no-trunc")


def test_it_goes_when_the_process_that_started_it_is_killed() -> None:
    (port,) = free_ports(1)
    program = (
        "import time; from devstack.servers.containers import Container;"
        f"print(Container.start({IMAGE!r}, {port}, {PASSWORD!r}, ['sleep', '600'], inside={INSIDE}).name, flush=True);"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        name = parent.stdout.readline().strip()
        assert name in docker("ps", "--quiet", "--no-trunc")
        parent.kill()

    deadline = time.monotonic() + 30
    while name in docker("ps", "--all", "--quiet", "--no-trunc"):
        assert time.monotonic() < deadline


def test_a_port_that_is_taken_leaves_nothing_behind() -> None:
    never_started = ("ps", "--all", "--quiet", "--filter", f"ancestor={IMAGE}", "--filter", "status=created")
    before = docker(*never_started)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ContainerUnavailable, match=IMAGE):
        Container.start(IMAGE, taken.getsockname()[1], PASSWORD, ["sleep", "600"], inside=INSIDE)

    assert set(docker(*never_started).split()) <= set(before.split())


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout
