import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from shopctl.system import log_book
from shopctl.system.log_book import FILES_MAX, LogBook

Add = Callable[..., None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "logs.jsonl"


def test_a_line_is_kept_with_its_process_its_time_and_its_level(path: Path) -> None:
    with LogBook.opened(_fail, path) as book:
        book.add("order-api", "12:30:00.000000 [warning  ] slow work=confirm")
        book.add("event-relay", '{"event": "stopped", "level": "error"}')
        book.add("dev", "starting")

    lines = list(log_book.read(path))

    assert [(line.process, line.level) for line in lines] == [
        ("order-api", "warning"),
        ("event-relay", "error"),
        ("dev", "info"),
    ]
    assert lines[0].line == "12:30:00.000000 [warning  ] slow work=confirm"
    assert lines[0].time <= lines[2].time


def test_the_lines_of_a_traceback_have_the_level_of_their_log_line(path: Path) -> None:
    with LogBook.opened(_fail, path) as book:
        book.add("a", "12:30:00.000000 [error    ] a defect")
        book.add("b", "12:30:00.000000 [info     ] serving")
        book.add("a", "  File x, line 1")
        book.add("b", "Traceback (most recent call last):")
        book.add("b", "ValueError: no")

    assert [line.level for line in log_book.read(path)] == ["error", "info", "error", "error", "error"]


def test_the_newest_are_kept_and_the_oldest_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_book, "FILE_BYTES_MAX", 1_000)
    with LogBook.opened(_fail, path) as book:
        for number in range(200):
            book.add("a", f"line {number}")

    kept = [line.line for line in log_book.read(path)]

    assert kept == [f"line {number}" for number in range(200 - len(kept), 200)]
    assert len(list(path.parent.iterdir())) == FILES_MAX
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < FILES_MAX * 1_200


def test_following_continues_across_a_rotation(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_book, "FILE_BYTES_MAX", 1_000)
    with LogBook.opened(_fail, path) as book:
        book.add("a", "before")
        written = 0

        def write_more(_: float) -> bool:
            nonlocal written
            book.add("a", f"line {written}")
            written += 1
            return written < 50

        followed = [line.line for line in log_book.follow(path, write_more)]

    assert followed == [f"line {number}" for number in range(50)]


def test_a_failure_to_store_lines_is_reported_once_and_stops_nothing(path: Path) -> None:
    failures: list[OSError] = []
    with LogBook.opened(failures.append, path) as book:
        book.add("a", "kept")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
        try:
            book.add("a", "lost")
            book.add("a", "lost")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        book.add("a", "kept again")

    assert len(failures) == 1
    kept = [line.line for line in log_book.read(path)]
    assert (kept[0], kept[-1]) == ("kept", "kept again")


def test_only_its_owner_may_read_it(path: Path) -> None:
    with LogBook.opened(_fail, path) as book:
        book.add("a", "a name and an address")

    assert path.stat().st_mode & 0o077 == 0


def _fail(failure: OSError) -> None:
    raise failure
