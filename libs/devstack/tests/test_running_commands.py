"""Commands for the processes of a running `dev`, from another terminal."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields

import psutil
import pytest

from devstack.dev.options import port_option
from devstack.ports import free_ports
from devstack.process import Process
from devstack.stack import Ports
from shopctl.system import runfile
from shopctl.system.grpc_health import health
from shopctl.system.runfile import RunFile
from testkit.tasks import main

HEALTHY_SECONDS = 180
PORTS = [port_option(field.name) for field in fields(Ports) if not field.name.endswith("_metrics")]
PORT_OPTIONS = [*PORTS, "--kafka-port"]


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    ports = zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS)), strict=True)
    options = ["--no-metrics", "--no-console", *(f"{option}={port}" for option, port in ports)]
    folder = tmp_path_factory.mktemp("dev")
    dev = Process("dev", [sys.executable, "-m", "devstack.dev", *options], folder=folder).start()
    try:
        dev.wait_for_line("next: ", HEALTHY_SECONDS)
        yield dev
    finally:
        dev.kill()


@pytest.fixture(autouse=True)
def in_its_folder(dev: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(psutil.Process(dev.pid).cwd())


@pytest.mark.parametrize(("word", "end"), [("kill", "was ended by SIGKILL"), ("restart", "ended with exit code 0")])
def test_a_process_is_ended_and_serves_again(
    dev: Process, word: str, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _run().processes["order-api"]

    assert main([word, "order-api"]) == 0

    after = _run().processes["order-api"]
    assert f"order-api {end}; restarting it" in dev.log
    assert f"(pid {after.pid})" in capsys.readouterr().out
    assert (after.pid != before.pid, after.address) == (True, before.address)
    assert health(after.address) == "SERVING"
    assert main(["logs", "dev", "--level", "error"]) == 0
    assert f"order-api {end}" in capsys.readouterr().out


def test_a_frozen_process_stands_still_until_it_is_thawed(capsys: pytest.CaptureFixture[str]) -> None:
    process = psutil.Process(_run().processes["event-relay"].pid)

    assert main(["freeze", "event-relay"]) == 0
    assert process.status() == psutil.STATUS_STOPPED
    assert main(["freeze", "event-relay"]) == 0

    assert main(["thaw", "event-relay"]) == 0
    assert process.status() != psutil.STATUS_STOPPED
    assert "./task thaw event-relay" in capsys.readouterr().out


def test_a_frozen_process_can_be_restarted(dev: Process) -> None:
    before = _run().processes["reservation-reaper"].pid
    assert main(["freeze", "reservation-reaper"]) == 0

    assert main(["restart", "reservation-reaper"]) == 0

    assert _run().processes["reservation-reaper"].pid != before


def test_the_broker_is_never_restarted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restart", "broker"]) == 1
    assert "it would lose its events" in capsys.readouterr().err


def test_an_unknown_process_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["kill", "order-apy"])

    assert ended.value.code == 2
    assert "order-api" in capsys.readouterr().err


def test_the_address_of_the_broker_is_printed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kafka-address"]) == 0
    assert capsys.readouterr().out == f"{_run().bootstrap}\n"


def test_logs_are_shown_by_process_level_time_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> str:
        assert main(["logs", *words]) == 0
        return capsys.readouterr().out

    assert re.search(r"^order-api +│ .*serving", shown(), re.MULTILINE)
    assert {line.split()[0] for line in shown("event-relay", "dev").splitlines()} == {"event-relay", "dev"}
    assert all("serving" in line for line in shown("--grep", "serv.ng").splitlines())
    assert " [info" not in shown("--level", "warning")
    assert shown("--level", "WARNING") == shown("--level", "warning")
    assert shown("--since", "2999-01-01") == ""
    first, *_ = map(json.loads, shown("dev", "--json").splitlines())
    assert (first["process"], first["level"]) == ("dev", "info")
    assert first["line"].startswith("starting")


def test_logs_of_nobody_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "order-apy"]) == 1
    assert "there is no process order-apy; there are broker, inventory-api" in capsys.readouterr().err


def test_stop_says_what_it_waits_for_and_leaves_the_logs(dev: Process, capsys: pytest.CaptureFixture[str]) -> None:
    everyone = psutil.Process(dev.pid).children(recursive=True)
    # dev thaws a frozen process and waits for it, too.
    os.killpg(_run().processes["inventory-api"].pid, signal.SIGSTOP)

    assert main(["stop"]) == 0

    said = capsys.readouterr().out
    assert "finishing the work in progress first" in said
    assert said.splitlines()[-1] == "ended"
    assert dev.wait(HEALTHY_SECONDS) == 0
    _, left = psutil.wait_procs(everyone, timeout=HEALTHY_SECONDS)
    assert left == []
    assert main(["logs", "dev", "-f"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("ended")
    for words in (["stop"], ["kill", "order-api"], ["freeze", "order-api"], ["kafka-address"]):
        assert main(words) == 1
        assert "dev is not running here" in capsys.readouterr().err


def _run() -> RunFile:
    return runfile.read()
