"""The command runs the given number of rounds, each with its own seed, and reports their results."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.__main__ import FOLDER

pytestmark = pytest.mark.short

ROUNDS_SECONDS = 280
ROUNDS = 3


@pytest.mark.parametrize("form", [[], ["--short"]], ids=["long", "short"])
def test_each_round_runs_and_is_reported(form: list[str], tmp_path: Path) -> None:
    ended = faults(*form, "--rounds", str(ROUNDS), "--only", "a_correct_history_passes", log=tmp_path / "log")

    assert ended.returncode == 0, ended.stdout
    (row,) = [line for line in ended.stdout.splitlines() if "a_correct_history_passes" in line]
    assert [cell.strip() for cell in row.split("│")[2:4]] == [str(ROUNDS), "0"]


def test_a_command_that_selects_no_test_fails(tmp_path: Path) -> None:
    ended = faults("--only", "no_test_of_this_name", log=tmp_path / "log")

    assert ended.returncode == 1
    assert "NO_TESTS_COLLECTED" in ended.stdout


def faults(*words: str, log: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults", *words, "--log", str(log)]
    return subprocess.run(
        command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False, timeout=ROUNDS_SECONDS
    )
