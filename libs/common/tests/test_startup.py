"""A process whose output cannot be written, or that gets a signal while it starts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import grpc
import psutil
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from devstack.ports import free_ports
from devstack.process import Process, inherited_environment
from libs.common.tests.echo_service import echo_stub
from shopctl.system.grpc_health import health

PROGRAM = str(Path(__file__).with_name("echo_service.py"))
SECONDS = 60

# Simulates a disk on which an import takes longer than any test waits. Python runs this when it starts.
SLOW_IMPORTS = """
import sys
import time


class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print("importing", flush=True)
            time.sleep(60)


sys.meta_path.insert(0, Slow())
"""


@pytest.fixture
def at_the_end() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def slow_imports(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORTS)
    return {"PYTHONPATH": str(tmp_path)}


# Redirections of a shell that start a program with outputs that cannot be written.
UNWRITABLE = {
    "a full disk": ">/dev/full 2>/dev/full",
    "closed": ">&- 2>&-",
    "a closed pipe": "> >(exec true) 2>&1",
}


@contextmanager
def echo(outputs: str, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The echo process with these outputs, and its address."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    settings = {"LISTEN_HOST": "127.0.0.1", "GRPC_PORT": address.rpartition(":")[2], "DRAIN_SECONDS": "0"}
    command = ["bash", "-c", f"exec {sys.executable} {PROGRAM} {outputs}"]
    with subprocess.Popen(command, env=inherited_environment() | settings | environment) as process:
        try:
            yield process, address
        finally:
            process.kill()


def wait_ready(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(SECONDS)
    assert health(address, timeout_seconds=SECONDS) == "SERVING"


@pytest.mark.parametrize("outputs", UNWRITABLE.values(), ids=UNWRITABLE.keys())
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_cannot_be_logged_changes_no_outcome(outputs: str, log_format: str) -> None:
    with echo(outputs, {"LOG_FORMAT": log_format}) as (process, address):
        wait_ready(address)
        with grpc.insecure_channel(address) as channel:
            for _ in range(3):
                with pytest.raises(grpc.RpcError) as failed:  # and is logged with its traceback
                    echo_stub(channel)(StringValue(value="fail badly"), timeout=SECONDS)
                assert failed.value.code() is grpc.StatusCode.INTERNAL
            assert echo_stub(channel)(StringValue(value="hello"), timeout=SECONDS).value == "hello"

        process.terminate()

        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("outputs", UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_a_vital_part_that_dies_ends_the_process_though_it_cannot_say_so(outputs: str) -> None:
    with echo(outputs, {}) as (process, address):
        wait_ready(address)
        with grpc.insecure_channel(address) as channel:
            # Keep a reference to the call, because grpcio cancels a call without one.
            _call = echo_stub(channel).future(StringValue(value="fatal"), timeout=SECONDS)
            assert process.wait(SECONDS) == 1


@pytest.mark.parametrize("outputs", UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_wrong_settings_end_it_with_code_2_though_it_cannot_say_so(outputs: str) -> None:
    with echo(outputs, {"WORKERS": "many"}) as (process, _):
        assert process.wait(SECONDS) == 2


def test_lost_lines_are_counted() -> None:
    port = free_ports(1)[0]
    with echo(UNWRITABLE["a full disk"], {"METRICS_PORT": str(port)}) as (_, address):
        wait_ready(address)
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as page:
            lines = page.read().decode().splitlines()

    (lost,) = [line for line in lines if line.startswith("shop_log_lines_lost_total ")]
    assert float(lost.split()[1]) >= 1


def test_a_pipe_that_nobody_reads_holds_up_no_call() -> None:
    reader, writer = os.pipe()
    address = f"127.0.0.1:{free_ports(1)[0]}"
    settings = {"LISTEN_HOST": "127.0.0.1", "GRPC_PORT": address.rpartition(":")[2], "DRAIN_SECONDS": "0"}
    with subprocess.Popen(
        [sys.executable, PROGRAM], env=inherited_environment() | settings, stdout=writer, stderr=writer
    ) as process:
        try:
            wait_ready(address)
            with grpc.insecure_channel(address) as channel:
                for _ in range(100):  # their tracebacks are more than the buffer of a pipe can hold
                    with pytest.raises(grpc.RpcError) as failed:
                        echo_stub(channel)(StringValue(value=f"fail {'x' * 1000}"), timeout=SECONDS)
                    assert failed.value.code() is grpc.StatusCode.INTERNAL
            process.terminate()
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
            os.close(reader)
            os.close(writer)


def test_an_output_that_is_closed_is_never_the_number_of_another_file() -> None:
    with echo(UNWRITABLE["closed"], {}) as (process, address):
        wait_ready(address)

        found = {file: str(Path(f"/proc/{process.pid}/fd/{file}").readlink()) for file in (1, 2)}

    assert found == {1: os.devnull, 2: os.devnull}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["inventory_api", "order_api", "reservation_reaper", "event_relay"])
def test_a_signal_during_the_imports_is_heard(
    slow_imports: dict[str, str], name: str, signum: signal.Signals, at_the_end: ExitStack
) -> None:
    process = Process(name, [sys.executable, "-m", name], slow_imports)
    at_the_end.callback(process.kill)
    process.start()
    process.wait_for_line("importing", SECONDS)

    # Without a handler, process 1 of a container would never get the signal.
    process.send_signal(signum)

    assert process.wait(SECONDS) == 128 + signum
    assert process.log == "importing"


def test_a_signal_during_the_imports_of_workers_is_heard(at_the_end: ExitStack) -> None:
    port = free_ports(1)[0]
    environment = {"LISTEN_HOST": "127.0.0.1", "GRPC_PORT": str(port), "WORKERS": "2", "LOG_FORMAT": "json"}
    process = Process("echo", [sys.executable, PROGRAM], environment)
    at_the_end.callback(process.kill)
    process.start()
    process.wait_for_line("workers started", SECONDS)
    workers = psutil.Process(process.pid).children()

    process.terminate()

    assert process.wait(SECONDS) == 0
    assert not [worker for worker in workers if worker.is_running()]


def test_a_start_that_takes_too_long_shows_the_stacks_of_its_threads_once(
    slow_imports: dict[str, str], at_the_end: ExitStack
) -> None:
    port = free_ports(1)[0]
    ready = Process("echo", [sys.executable, PROGRAM], {"GRPC_PORT": str(port), "LOG_FORMAT": "json"})
    slow = Process("slow", [sys.executable, "-m", "reservation_reaper"], slow_imports)
    for process in (ready, slow):
        at_the_end.callback(process.kill)
        process.start()
    ready.wait_for_line('"serving"', SECONDS)
    slow.wait_for_line("importing", SECONDS)

    slow.wait_for_line("most recent call first", SECONDS)

    slow.wait_for_line("in find_spec", SECONDS)
    assert slow.log.count("Timeout") == 1
    assert "Timeout" not in ready.log


def test_a_crash_in_native_code_prints_a_traceback() -> None:
    program = (
        "from shop_common.environment import startup\nstartup.prepare()\nimport faulthandler\nfaulthandler._sigsegv()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert "most recent call first" in done.stderr
