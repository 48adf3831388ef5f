import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from devstack import __main__ as of_dev
from shopctl import __main__ as of_any_system
from shopctl.watch import health
from testkit.tasks import COMMANDS, main

NOBODY = "localhost:1"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])

    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: ./task {command}")
    assert len(out.split("\n\n")) > 2


@pytest.mark.parametrize("package", [of_dev, of_any_system])
def test_all_commands_are_listed_with_their_summaries(package: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        package.main(["--help"])

    listed = " ".join(capsys.readouterr().out.split())
    for name, command in package.COMMANDS.items():
        assert f"{name} {command.summary}" in listed


@pytest.mark.parametrize(
    "words",
    [[], ["no-such-command"], ["health", "--no-such-option"], ["seed-data", "--products", "0"], ["dlq", "redrive"]],
)
def test_a_wrong_command_line_exits_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)

    assert end.value.code == 2


@pytest.mark.parametrize(
    "command",
    [
        "health",
        "stop",
        "status",
        "test-grpc",
        "seed-data",
        "query-inventory",
        "query-orders",
        "kafka-address",
        "kafka-topics",
        "kafka-create-topics",
        "kafka-create-acls",
        "kafka-consume-orders",
        "kafka-consume-inventory",
        "dlq",
        "verify",
    ],
)
def test_without_a_running_system_the_error_is_one_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 1

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"{command}: dev is not running here; start it with ./task dev\n"


def test_health_names_the_processes_that_do_not_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--process", f"a={NOBODY}", "--process", f"b={NOBODY}", "--json"]) == 1

    output = capsys.readouterr()
    assert json.loads(output.out) == {
        "serving": False,
        "processes": [
            {"name": name, "address": NOBODY, "ready": "UNAVAILABLE", "alive": "UNAVAILABLE"} for name in "ab"
        ],
    }
    assert output.err == "health: a and b do not serve\n"


@pytest.mark.parametrize("command", ["query-inventory", "query-orders", "seed-data", "test-grpc"])
def test_the_error_for_an_unavailable_api_is_one_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--inventory", NOBODY, "--orders", NOBODY]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{command}: ")


def test_the_error_for_an_unavailable_broker_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["kafka-topics", "--bootstrap", NOBODY]) == 1

    (line,) = capfd.readouterr().err.splitlines()
    assert "Kafka does not respond" in line


@pytest.mark.parametrize("show", ["print", "console().print"])
def test_a_closed_pipe_is_not_a_failure(show: str, tmp_path: Path) -> None:
    script = (
        "import sys; from shopctl import __main__; from shopctl.watch import health\n"
        "from shopctl.terminal.output import console\n"
        f"health.run = lambda options: [{show}('x' * 99) for _ in range(99999)] and 0\n"
        "sys.exit(__main__.main(['health']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


def test_an_unexpected_error_is_one_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> int:
        raise KeyError("nobody\nforesaw this")

    monkeypatch.setattr(health, "run", broken)

    assert main(["health"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "KeyError" in line
    assert "test_command_line.py:" in line
