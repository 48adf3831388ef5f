import subprocess
import sys
from collections.abc import Iterator

import pytest

from shop_common.process import probe
from shop_common.rpc.health import HealthServer


@pytest.fixture
def server() -> Iterator[HealthServer]:
    server = HealthServer(0, listen_host="127.0.0.1")
    server.start()
    yield server
    server.stop(0)


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = probe.main(words)
    return code, capsys.readouterr().out


def test_who_is_ready_is_healthy(server: HealthServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(capsys, f"127.0.0.1:{server.port}") == (0, "SERVING\n")


def test_who_waits_lives_but_is_not_ready(server: HealthServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.health.set_ready("database", False)

    assert say(capsys, f"127.0.0.1:{server.port}") == (1, "NOT_SERVING\n")
    assert say(capsys, f"127.0.0.1:{server.port}", "--service", "liveness") == (0, "SERVING\n")


def test_it_asks_about_a_service_by_its_name(server: HealthServer) -> None:
    address = f"127.0.0.1:{server.port}"
    server.health.set_ready("database", False)

    assert probe.is_serving(address, "liveness")
    assert not probe.is_serving(address)
    assert not probe.is_serving(address, "shop.nobody")


def test_a_service_that_is_not_there_is_named(server: HealthServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = say(capsys, f"127.0.0.1:{server.port}", "--service", "shop.nobody")

    assert (code, said) == (1, "NOT_FOUND: no service 'shop.nobody' here\n")


def test_who_does_not_listen_is_unhealthy_and_the_reason_is_said(
    server: HealthServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stop(0)

    code, said = say(capsys, f"127.0.0.1:{server.port}")

    assert code == 1
    assert said.startswith("UNAVAILABLE: ")
    assert "refused" in said


def test_it_is_a_program_of_its_own_that_loads_little(server: HealthServer) -> None:
    loaded = (
        "import sys; from shop_common.process import probe; "
        f"code = probe.main(['127.0.0.1:{server.port}']); "
        "heavy = {'grpc', 'google', 'sqlalchemy', 'pydantic', 'opentelemetry', 'confluent_kafka'} & set(sys.modules); "
        "sys.exit(f'loads {heavy}' if heavy else code)"
    )

    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")
