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


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = probe.main(arguments)
    return code, capsys.readouterr().out


def test_a_ready_process_is_healthy(server: HealthServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, f"127.0.0.1:{server.port}") == (0, "SERVING\n")


def test_a_process_without_its_database_is_alive_but_not_ready(
    server: HealthServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.health.set_ready("database", False)

    assert run(capsys, f"127.0.0.1:{server.port}") == (1, "NOT_SERVING\n")
    assert run(capsys, f"127.0.0.1:{server.port}", "--service", "liveness") == (0, "SERVING\n")


def test_an_unknown_service_is_named(server: HealthServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = run(capsys, f"127.0.0.1:{server.port}", "--service", "shop.nobody")

    assert (code, printed) == (1, "NOT_FOUND: no service 'shop.nobody' here\n")


def test_a_process_that_does_not_listen_is_unhealthy_and_the_reason_is_printed(
    server: HealthServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stop(0)

    code, printed = run(capsys, f"127.0.0.1:{server.port}")

    assert code == 1
    assert printed.startswith("UNAVAILABLE: ")
    assert "refused" in printed


def test_an_address_without_a_port_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        probe.main(["localhost"])

    assert exited.value.code == 2
    assert "must be HOST:PORT" in capsys.readouterr().err


def test_it_is_a_program_of_its_own_that_loads_only_grpc(server: HealthServer) -> None:
    loaded = (
        "import sys; from shop_common.process import probe; "
        f"code = probe.main(['127.0.0.1:{server.port}']); "
        "heavy = {'sqlalchemy', 'pydantic', 'opentelemetry', 'confluent_kafka'} & set(sys.modules); "
        "sys.exit(f'loads {heavy}' if heavy else code)"
    )

    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")
