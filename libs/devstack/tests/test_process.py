import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from devstack.ports import busy_ports, free_ports, is_busy
from devstack.process import Process, ProcessEnded
from shopctl.system.grpc_health import health
from testkit.eventually import eventually

Start = Callable[..., Process]

_PARENT_OF_TWO = """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid)
    time.sleep(600)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Python program; kills its processes that still run after the test."""
    with ExitStack() as after_the_test:

        def start(program: str, *args: str, **options: object) -> Process:
            command = [sys.executable, "-c", textwrap.dedent(program), *args]
            process = Process("program", command, **options)  # type: ignore[arg-type]  # options of Process, passed on
            after_the_test.callback(process.kill)
            return process.start()

        yield start


def test_a_process_gets_only_the_given_environment_and_not_the_callers(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_PORT", "1")
    process = start("import os; print(os.environ.get('GRPC_PORT'), os.environ['MINE'])", env={"MINE": "yes"})

    assert process.wait(10) == 0
    assert process.log == "None yes"


def test_every_line_is_kept_and_passed_on_as_it_arrives(start: Start) -> None:
    lines: list[str] = []
    process = start("import sys; print('out'); sys.stderr.write('err\\n')", on_line=lines.append)

    process.wait(10)

    assert process.log.splitlines() == ["out", "err"] == lines


def test_a_process_that_ended_can_be_started_again(start: Start) -> None:
    process = start("print('run')")
    process.wait(10)
    process.start().wait(10)

    assert process.log == "run\nrun"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its output is neither read nor closed
def test_a_process_whose_start_was_interrupted_can_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    process = Process("program", [sys.executable, "-c", "import time; time.sleep(600)"])
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            process.start()

    process.kill()

    assert process.exit_code == -signal.SIGKILL


def test_killing_takes_the_children_along(start: Start) -> None:
    process = start(_PARENT_OF_TWO)
    child = psutil.Process(int(process.wait_for_line("child", 10).split()[1]))

    process.kill()

    assert process.exit_code == -signal.SIGKILL
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_stopping_takes_the_children_along_that_the_process_left_behind(start: Start) -> None:
    process = start(_PARENT_OF_TWO)
    child = psutil.Process(int(process.wait_for_line("child", 10).split()[1]))

    assert process.stop() == -signal.SIGTERM

    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_frozen_process_stands_still_with_its_children(start: Start) -> None:
    process = start(_PARENT_OF_TWO)
    child = psutil.Process(int(process.wait_for_line("child", 10).split()[1]))

    with process.frozen():
        assert child.status() == psutil.Process(process.pid).status() == psutil.STATUS_STOPPED

    eventually(lambda: child.status() == psutil.STATUS_SLEEPING)


def test_stopping_a_frozen_process_lets_it_end_in_its_own_way(start: Start) -> None:
    process = start("""
        import signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        print("ready")
        signal.pause()
    """)
    process.wait_for_line("ready", 10)
    process.freeze()

    assert process.stop() == 7


def test_a_process_that_will_not_end_is_killed_when_its_time_is_up(start: Start) -> None:
    process = start("""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf")
        time.sleep(600)
    """)
    process.wait_for_line("deaf", 10)

    assert process.stop(0.2) == -signal.SIGKILL


def test_waiting_for_a_process_that_has_ended_fails_at_once_and_shows_why(start: Start) -> None:
    process = start("import sys; sys.exit('DATABASE_URL is missing')", health_address="localhost:1")

    began = time.monotonic()
    with pytest.raises(ProcessEnded, match=r"exit code 1\n.*DATABASE_URL is missing"):
        process.wait_ready(60)
    assert time.monotonic() - began < 20


def test_a_process_is_ready_when_its_health_service_reports_it(start: Start) -> None:
    (port,) = free_ports(1)
    address = f"localhost:{port}"
    process = start(
        """
        import signal, sys
        from concurrent.futures import ThreadPoolExecutor
        import grpc
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc

        health_service = health.HealthServicer()
        health_service.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_service.set("liveness", health_pb2.HealthCheckResponse.SERVING)
        be_ready = lambda *_: health_service.set("", health_pb2.HealthCheckResponse.SERVING)
        signal.signal(signal.SIGUSR1, be_ready)
        server = grpc.server(ThreadPoolExecutor(2))
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        server.add_insecure_port(sys.argv[1])
        server.start()
        signal.pause()
        signal.pause()
        """,
        address,
        health_address=address,
    )

    process.wait_ready(20, "liveness")
    with pytest.raises(TimeoutError, match="not ready after"):
        process.wait_ready(0.3)
    os.kill(process.pid, signal.SIGUSR1)
    process.wait_ready(10)
    process.kill()

    assert health(address) == "UNAVAILABLE"


def test_children_end_when_their_parent_is_killed(start: Start) -> None:
    parent = start("""
        import sys, time
        from devstack.process import Process
        child = Process("child", [sys.executable, "-c", "import time; time.sleep(600)"]).start()
        child.freeze()
        print("child", child.pid)
        time.sleep(600)
    """)
    child = psutil.Process(int(parent.wait_for_line("child", 10).split()[1]))

    os.kill(parent.pid, signal.SIGKILL)

    eventually(lambda: not child.is_running())


def test_a_database_server_ends_and_leaves_no_files_when_its_parent_is_killed(start: Start) -> None:
    parent = start("""
        import time
        from devstack import postgres
        with postgres.provide() as server:
            print("postmaster", server.pid)
            time.sleep(600)
    """)
    postmaster = psutil.Process(int(parent.wait_for_line("postmaster", 60).split()[1]))
    folder = Path(postmaster.cwd())
    everyone = [postmaster, *postmaster.children(recursive=True)]

    os.kill(parent.pid, signal.SIGKILL)

    eventually(lambda: not any(process.is_running() for process in everyone) and not folder.exists())


def test_a_port_is_busy_when_someone_listens_on_it_even_if_he_would_share_it() -> None:
    (free,) = free_ports(1)
    program = """
import socket, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            shared = int(child.stdout.readline())
            assert busy_ports([free, shared]) == [shared]
        finally:
            child.kill()
    assert not is_busy(shared)
