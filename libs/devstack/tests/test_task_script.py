"""`./task` passes on arguments, signals and exit codes, and leaves no process behind."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import psutil
import pytest

from devstack.dev.options import port_option
from devstack.ports import free_ports
from devstack.process import Process
from devstack.stack import Ports
from shopctl.system import runfile

ROOT = Path(__file__).parents[3]
HEALTHY_SECONDS = 180
END_SECONDS = 120
PORTS = [port_option(field.name) for field in fields(Ports) if not field.name.endswith("_metrics")]
PORT_OPTIONS = [*PORTS, "--kafka-port"]

Start = Callable[..., Process]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the files that `./task` needs, with the environment of this clone."""
    for name in ("task", "Taskfile.yml"):
        shutil.copy2(ROOT / name, tmp_path)
    # Every fresh clone tests the installation, so skip it here.
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "install.py").touch()
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    return tmp_path


@pytest.fixture
def start(clone: Path) -> Iterator[Start]:
    ports = zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS)), strict=True)
    options = ["--no-metrics", *(f"{option}={port}" for option, port in ports)]
    environment = {"PATH": f"{clone / '.venv/bin'}:{os.environ['PATH']}"}
    with ExitStack() as afterwards:

        def start(*command: str) -> Process:
            dev = Process("dev", [*command, *options], environment, folder=clone).start()
            afterwards.callback(dev.kill)
            dev.wait_for_line("next: ", HEALTHY_SECONDS)
            # With the task runner in between, it is not our child.
            afterwards.callback(_kill, runfile.read(clone / runfile.PATH).pid)
            return dev

        yield start


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_it_alone_ends_everything(start: Start, signum: signal.Signals) -> None:
    task = start("./task", "dev")
    everyone = psutil.Process(task.pid).children(recursive=True)

    os.kill(task.pid, signum)

    assert task.wait(END_SECONDS) == 0, task.tail()
    assert _left(everyone) == []


@pytest.mark.parametrize("command", [("./task", "dev"), ("task", "dev", "--")])
def test_nothing_is_left_when_it_is_killed(start: Start, command: tuple[str, ...]) -> None:
    task = start(*command)
    everyone = psutil.Process(task.pid).children(recursive=True)

    os.kill(task.pid, signal.SIGKILL)

    assert task.wait(END_SECONDS) == -signal.SIGKILL
    assert _left(everyone) == []


@pytest.mark.parametrize(
    ("words", "code"), [(["health"], 1), (["logs", "dev"], 1), (["health", "--no-such-option"], 2), (["nonsense"], 200)]
)
def test_only_the_program_reports_a_failure(clone: Path, words: list[str], code: int) -> None:
    done = _run(clone, "./task", *words)

    assert done.returncode == code
    assert "Failed to run task" not in done.stderr


def test_words_reach_the_program_as_they_were_typed(clone: Path) -> None:
    taskfile = clone / "Taskfile.yml"
    taskfile.write_text(taskfile.read_text().replace("cmd: python -m shopctl top ", "cmd: printf '<%s>' "))

    assert _run(clone, "./task", "top", "a b", "*", "$HOME", "").stdout == "<a b><*><$HOME><>"
    assert _run(clone, "./task", "top", "--", "-x").stdout == "<-x>"


def test_a_task_of_several_commands_ends_at_the_first_that_fails(clone: Path) -> None:
    taskfile = clone / "Taskfile.yml"
    taskfile.write_text(
        "version: '3'\n\ntasks:\n  many:\n    cmds:\n      - cd /\n      - pwd\n      - exit 7\n      - pwd\n"
    )

    done = _run(clone, "./task", "many")

    assert (done.returncode, done.stdout) == (7, f"{clone}\n")


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=END_SECONDS, check=False)


def _left(processes: list[psutil.Process]) -> list[psutil.Process]:
    _, left = psutil.wait_procs(processes, timeout=END_SECONDS)
    return list(left)


def _kill(pid: int) -> None:
    if psutil.pid_exists(pid) and "devstack.dev" in psutil.Process(pid).cmdline():
        os.kill(pid, signal.SIGKILL)
