"""The log lines that the view of logs shows."""

import asyncio
from pathlib import Path

import pytest

from console.feeds.logs import CHARACTERS_MAX, LINES_MAX, LogFilter, LogTail
from console.settings import ConsoleSettings
from shopctl.system import log_book
from shopctl.system.log_book import LogBook


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs.jsonl"


def _shown(tail: LogTail) -> list[str]:
    return [line.line for line in asyncio.run(tail.read()).rows]


def _fail(error: OSError) -> None:
    raise error


def test_there_are_no_lines_before_the_first_is_stored(path: Path) -> None:
    assert _shown(LogTail(path, LogFilter())) == []


def test_each_read_adds_the_new_lines_and_the_newest_is_last(path: Path) -> None:
    tail = LogTail(path, LogFilter())
    with LogBook.opened(_fail, path) as book:
        book.add("order-api", "first")
        assert _shown(tail) == ["first"]
        book.add("order-api", "second")
        assert _shown(tail) == ["first", "second"]
        assert _shown(tail) == ["first", "second"]


def test_the_filters_select_by_process_level_and_text(path: Path) -> None:
    with LogBook.opened(_fail, path) as book:
        book.add("order-api", "Slow call", level="warning")
        book.add("event-relay", "slow broker", level="error")
        book.add("order-api", "a slow start", level="info")

    assert _shown(LogTail(path, LogFilter(process="order-api"))) == ["Slow call", "a slow start"]
    assert _shown(LogTail(path, LogFilter(level="warning"))) == ["Slow call", "slow broker"]
    assert _shown(LogTail(path, LogFilter(words="SLOW C"))) == ["Slow call"]


def test_no_line_is_missed_or_repeated_when_the_files_are_rotated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_book, "FILE_BYTES_MAX", 1)
    tail, fresh = LogTail(path, LogFilter()), LogTail(path, LogFilter())
    with LogBook.opened(_fail, path) as book:
        for number in range(1, 6):
            book.add("dev", f"line {number}")
            assert _shown(tail) == [f"line {each}" for each in range(1, number + 1)]

    assert _shown(fresh) == ["line 4", "line 5"]


def test_the_lines_in_memory_are_bounded(path: Path) -> None:
    with LogBook.opened(_fail, path) as book:
        for number in range(LINES_MAX + 50):
            book.add("dev", f"{number} " + "x" * 2 * CHARACTERS_MAX)
        book.add("dev", "y" * 100_000)

    found = asyncio.run(LogTail(path, LogFilter()).read())

    assert found.has_older
    assert len(found.rows) == LINES_MAX
    assert found.rows[-1].line.startswith(f"{LINES_MAX + 49} x")
    assert max(len(line.line) for line in found.rows) == CHARACTERS_MAX


def test_a_line_that_is_being_written_is_shown_when_it_is_complete(path: Path) -> None:
    tail = LogTail(path, LogFilter())
    stored = '{"time": "2026-01-01T00:00:00+00:00", "process": "dev", "level": "info", "line": "whole"}\n'
    path.write_text(stored[:40])
    assert _shown(tail) == []

    path.write_text(stored)

    assert _shown(tail) == ["whole"]


@pytest.mark.parametrize("setting", ["logs_path", "run_file_path"])
def test_viewers_who_sign_in_never_get_the_logs_or_the_processes_of_dev(setting: str, path: Path) -> None:
    (fault,) = ConsoleSettings.model_validate({setting: path, "sign_in": True}).contradictions()

    assert fault.startswith(f"{setting.upper()}: must not be set")
