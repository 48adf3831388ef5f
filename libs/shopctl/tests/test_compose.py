import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shopctl.system.compose import Containers
from shopctl.system.docker import engine
from shopctl.system.runfile import NotRunning
from testkit.tasks import main

LISTED = [
    {
        "Name": "shop-order-api-2",
        "Service": "order-api",
        "State": "exited",
        "Image": "shop/order-api:1.2",
        "Publishers": [],
    },
    {
        "Name": "shop-order-api-1",
        "Service": "order-api",
        "State": "running",
        "Image": "shop/order-api:1.2",
        "Publishers": None,
    },
    {
        "Name": "shop-gateway-1",
        "Service": "gateway",
        "State": "running",
        "Image": "shop/gateway:1.2",
        "Publishers": [
            {"URL": "127.0.0.1", "TargetPort": 50053, "PublishedPort": 50053, "Protocol": "tcp"},
            {"URL": "127.0.0.1", "TargetPort": 50054, "PublishedPort": 7777, "Protocol": "tcp"},
            {"URL": "", "TargetPort": 9464, "PublishedPort": 0, "Protocol": "tcp"},
        ],
    },
]


@pytest.fixture
def containers() -> Containers:
    return Containers.of("\n".join(map(json.dumps, LISTED)))


def test_the_apis_are_where_the_gateway_publishes_them(containers: Containers) -> None:
    assert containers.apis == ("127.0.0.1:50053", "127.0.0.1:7777")


def test_an_error_names_the_container_that_is_not_running(containers: Containers) -> None:
    with pytest.raises(NotRunning, match=r"container kafka is not running; \./task docker-run"):
        _ = containers.bootstrap


def test_every_replica_is_a_process_and_a_stopped_one_is_reported_so(containers: Containers) -> None:
    assert [(one.name, one.version) for one in containers.processes] == [
        ("shop-order-api-1", "1.2"),
        ("shop-order-api-2", "1.2"),
    ]
    assert containers.processes[1].health() == "EXITED"


@pytest.fixture
def no_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    engine.cache_clear()
    yield
    engine.cache_clear()


@pytest.mark.usefixtures("no_docker")
@pytest.mark.parametrize("command", ["docker-build", "docker-run", "docker-stop"])
def test_without_docker_the_error_is_one_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 1

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"{command}: Docker is not installed; ./task dev runs everything without Docker\n"


@pytest.mark.usefixtures("no_docker")
def test_without_a_running_system_the_error_names_both_ways_to_start_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docker-compose.yml").touch()

    assert main(["health"]) == 1

    expected = "health: dev is not running here; start it with ./task dev, or in containers with ./task docker-run\n"
    assert capsys.readouterr().err == expected
