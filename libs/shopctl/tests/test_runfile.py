import json
import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from devstack.stack import Databases
from shopctl.system import runfile
from shopctl.system.runfile import Endpoint, NotRunning, RunFile

MINE = RunFile(
    pid=os.getpid(),
    started=psutil.Process().create_time(),
    bootstrap="127.0.0.1:9092",
    databases=Databases("sqlite:///inventory.db", "postgresql+psycopg://shop:secret@localhost/orders"),
    processes={"inventory-api": Endpoint(17, "localhost:50053", None, "localhost:50063")},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "devstack.json"


def test_it_is_read_back_as_it_was_written(path: Path) -> None:
    runfile.write(MINE, path)

    assert runfile.read(path) == MINE


def test_the_passwords_in_it_are_for_its_owner_alone(path: Path) -> None:
    runfile.write(MINE, path)

    assert path.stat().st_mode & 0o077 == 0


def test_without_a_file_the_error_says_how_to_start_dev(path: Path) -> None:
    with pytest.raises(NotRunning, match=r"\./task dev"):
        runfile.read(path)


def test_a_left_over_file_is_not_trusted(path: Path) -> None:
    gone = psutil.Popen(["true"])
    gone.wait()
    runfile.write(replace(MINE, pid=gone.pid), path)

    with pytest.raises(NotRunning, match="no longer running"):
        runfile.read(path)


def test_another_process_with_the_same_number_is_not_taken_for_dev(path: Path) -> None:
    runfile.write(replace(MINE, started=MINE.started - 60), path)

    with pytest.raises(NotRunning, match="no longer running"):
        runfile.read(path)


def test_the_file_is_plain_json_for_programs_in_other_languages(path: Path) -> None:
    runfile.write(MINE, path)

    assert json.loads(path.read_text())["processes"]["inventory-api"]["address"] == "localhost:50053"


def test_removing_it_may_be_repeated(path: Path) -> None:
    runfile.write(MINE, path)
    runfile.remove(path)
    runfile.remove(path)

    assert not path.exists()
