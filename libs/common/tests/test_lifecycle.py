"""The life of a real process: started, signalled, drained, ended."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import grpc
import psutil
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from devstack.ports import free_ports
from devstack.process import Process
from libs.common.tests.echo_service import echo_stub
from shopctl.system.grpc_health import health
from testkit.eventually import eventually

PROGRAM = str(Path(__file__).with_name("echo_service.py"))

Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the echo process, with these settings, and ends it after the test."""
    with ExitStack() as after:

        def start_process(*, wait: bool = True, **settings: object) -> Process:
            environment = {"LISTEN_HOST": "127.0.0.1", "DRAIN_SECONDS": "0", "LOG_FORMAT": "json"}
            environment |= {name.upper(): str(value) for name, value in settings.items()}
            environment.setdefault("GRPC_PORT", str(free_ports(1)[0]))
            environment.setdefault("HEALTH_PORT", str(free_ports(1)[0]))  # the default may be a port of the test
            address = f"127.0.0.1:{environment['GRPC_PORT']}"
            process = Process("echo", [sys.executable, PROGRAM], environment, health_address=address)
            after.callback(process.stop)
            process.start()
            if wait:
                process.wait_ready(20)
            return process

        yield start_process


def test_sigterm_drains_in_order_and_ends_well(start: Start) -> None:
    process = start(drain_seconds=1.5)
    address = _address(process)
    with grpc.insecure_channel(address) as channel:
        running = echo_stub(channel).future(StringValue(value="sleep 3"), timeout=20)
        process.wait_for_line("asleep", 10)
        process.terminate()

        # First the process reports NOT_SERVING, but still serves new calls ...
        eventually(lambda: health(address) == "NOT_SERVING")
        assert health(address, "liveness") == "SERVING"
        assert _say(address, "pid") == str(process.pid)
        # ... then it finishes the running calls ...
        assert running.result().value == "sleep 3"
    # ... and at last it runs the functions of `on_stop`.
    assert process.wait(10) == 0
    places = [process.log.index(step) for step in ('"stopping"', "awake", "flushed first", '"stopped"')]
    assert places == sorted(places)


def test_ctrl_c_ends_it_well_even_if_it_arrives_twice(start: Start) -> None:
    process = start(drain_seconds=0.5)

    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.terminate()

    assert process.wait(10) == 0
    assert "Traceback" not in process.log


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    process = start(drain_seconds=60)
    process.terminate()
    process.wait_for_line('"stopping"', 10)

    def insist() -> bool:
        process.terminate()
        return not process.alive

    eventually(insist)

    assert process.wait(1) == 128 + signal.SIGTERM
    assert "flushed" not in process.log


def test_a_signal_to_a_frozen_process_is_handled_after_it_thaws(start: Start) -> None:
    process = start()

    with process.frozen():
        process.terminate()

    assert process.wait(10) == 0


def test_a_call_that_outlasts_the_grace_is_cancelled(start: Start) -> None:
    process = start(grace_seconds=0.5)
    with grpc.insecure_channel(_address(process)) as channel:
        running = echo_stub(channel).future(StringValue(value="sleep 30"), timeout=60)
        process.wait_for_line("asleep", 10)
        process.terminate()

        assert process.wait(10) == 0
        assert running.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


def test_a_failed_on_stop_function_is_logged_and_the_later_ones_still_run(start: Start) -> None:
    process = start(echo_flush="fails")
    process.terminate()

    assert process.wait(10) == 1
    assert "nowhere to flush to" in process.log
    assert "a function of on_stop failed" in process.log


def test_fatal_ends_the_process(start: Start) -> None:
    process = start()
    with grpc.insecure_channel(_address(process)) as channel:
        call = echo_stub(channel).future(StringValue(value="fatal"), timeout=60)

        assert process.wait(10) == 1
        assert call.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, "who waited for an answer is told at once"
    (line,) = [line for line in _lines(process) if line["event"] == "a flusher failed"]
    assert line["level"] == "critical"
    assert "it failed" in str(line["exception"])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_busy_port_is_reported_in_one_sentence(start: Start, workers: int) -> None:
    first = start()
    port = int(_address(first).rpartition(":")[2])

    second = start(wait=False, grpc_port=port, workers=workers)

    assert second.wait(20) == 1
    assert second.log.count("\n") == 0
    assert f"cannot listen on 127.0.0.1:{port} (address already in use)" in second.log
    assert "GRPC_PORT" in second.log
    assert health(_address(first)) == "SERVING"


def test_it_starts_again_on_the_port_it_has_just_left(start: Start) -> None:
    process = start()
    with grpc.insecure_channel(_address(process)) as channel:
        echo_stub(channel)(StringValue(value="hello"), timeout=10)
        process.terminate()
        assert process.wait(10) == 0

        process.start().wait_ready(20)


def test_wrong_settings_end_it_with_code_2_before_anything_starts() -> None:
    ended = subprocess.run(
        [sys.executable, PROGRAM],
        env={"GRPC_PORT": "x", "WORKERS": "many"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert ended.returncode == 2
    assert "GRPC_PORT" in ended.stderr
    assert "WORKERS" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_workers_share_the_port_and_end_well_together(start: Start) -> None:
    metrics = free_ports(1)[0]
    process = start(workers=2, metrics_port=metrics)
    workers = {str(child.pid) for child in psutil.Process(process.pid).children()}
    assert len(workers) == 2

    answers: list[str] = []

    def both_answered() -> bool:
        answers.append(_say(_address(process), "pid"))
        return set(answers) == workers

    eventually(both_answered)
    # The parent serves the metrics of both workers together.
    with urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as page:
        counted = [
            line for line in page.read().decode().splitlines() if line.startswith("rpc_server_call_duration_seconds_c")
        ]
    (answered,) = counted
    assert 'rpc_response_status_code="OK"' in answered
    assert float(answered.split()[-1]) == len(answers)
    process.terminate()

    assert process.wait(15) == 0
    assert process.log.count("flushed first") == 2


# Python runs this code when it starts. It simulates a read-only file system.
NO_TEMPORARY_FOLDER = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/nowhere']"
NO_FOLDER_AT_ALL = "import os; os.mkdir = lambda *_: os.rmdir('/nowhere')"


def test_workers_have_metrics_without_a_temporary_folder(start: Start, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_TEMPORARY_FOLDER)
    metrics = free_ports(1)[0]
    process = start(workers=2, metrics_port=metrics, pythonpath=tmp_path)
    assert _say(_address(process), "hello") == "hello"

    with urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as page:
        assert "rpc_server_call_duration_seconds_count" in page.read().decode()


def test_workers_without_any_folder_for_their_metrics_are_refused_with_a_sentence(start: Start, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_FOLDER_AT_ALL)

    process = start(wait=False, workers=2, metrics_port=free_ports(1)[0], pythonpath=tmp_path)

    assert process.wait(60) == 1
    assert process.log.count("\n") == 0
    assert "set TMPDIR to a writable folder, or set WORKERS=1 or METRICS_PORT=0" in process.log


def test_when_one_worker_ends_unexpectedly_all_are_stopped_and_it_is_logged(start: Start) -> None:
    process = start(workers=2)
    victim, survivor = psutil.Process(process.pid).children()

    victim.kill()

    assert process.wait(15) == 1
    assert not survivor.is_running()
    (line,) = [line for line in _lines(process) if line["event"] == "a worker ended unexpectedly; stopping all workers"]
    assert (line["pid"], line["exit_code"]) == (victim.pid, -signal.SIGKILL)


def test_workers_end_when_their_parent_is_killed(start: Start) -> None:
    process = start(workers=2)
    workers = psutil.Process(process.pid).children()

    psutil.Process(process.pid).kill()

    _, left = psutil.wait_procs(workers, timeout=10)
    assert left == []


def test_probes_have_a_port_of_their_own(start: Start) -> None:
    (port,) = free_ports(1)
    process = start(health_port=port)
    probes = f"127.0.0.1:{port}"

    assert [health(probes), health(probes, "liveness")] == ["SERVING"] * 2
    with grpc.insecure_channel(probes) as channel, pytest.raises(grpc.RpcError) as refused:
        echo_stub(channel)(StringValue(value="pid"), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    process.terminate()
    assert process.wait(20) == 0


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_parent_is_ready_only_if_every_worker_is(start: Start, frozen: int) -> None:
    (port,) = free_ports(1)
    process = start(workers=2, health_port=port)
    probes = f"127.0.0.1:{port}"
    eventually(lambda: [health(probes), health(probes, "liveness")] == ["SERVING"] * 2, within_seconds=60)

    worker = psutil.Process(process.pid).children()[frozen]
    worker.suspend()
    try:
        eventually(lambda: [health(probes), health(probes, "liveness")] == ["NOT_SERVING"] * 2, within_seconds=60)
    finally:
        worker.resume()
    eventually(lambda: [health(probes), health(probes, "liveness")] == ["SERVING"] * 2, within_seconds=60)

    process.terminate()
    assert process.wait(20) == 0
    assert "Traceback" not in process.log


def test_the_limit_of_open_files_is_raised(start: Start) -> None:
    process = start()

    soft, hard = psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE)

    assert soft == hard


def test_an_unavailable_collector_does_not_delay_the_end(start: Start) -> None:
    process = start(otel_exporter_otlp_endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
    assert _say(_address(process), "hello") == "hello"
    process.terminate()

    assert process.wait(5) == 0


def test_lines_name_the_process_and_the_trace_they_belong_to(start: Start) -> None:
    process = start()
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with grpc.insecure_channel(_address(process)) as channel:
        metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
        with pytest.raises(grpc.RpcError):
            echo_stub(channel)(StringValue(value="fail badly"), timeout=10, metadata=metadata)

    line = json.loads(process.wait_for_line("call failed", 10))
    assert (line["service"], line["level"]) == ("echo", "error")
    assert line["trace_id"] == trace_id
    assert "RuntimeError: badly" in line["exception"]


def test_on_a_console_lines_are_for_people(start: Start) -> None:
    process = start(log_format="console")

    line = process.wait_for_line("serving", 10)

    assert "{" not in line
    assert "info" in line


def _address(process: Process) -> str:
    assert process.health_address is not None
    return process.health_address


def _say(address: str, text: str) -> str:
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return echo_stub(channel)(StringValue(value=text), timeout=10).value


def _lines(process: Process) -> list[dict[str, object]]:
    return [json.loads(line) for line in process.log.splitlines() if line.startswith("{")]
