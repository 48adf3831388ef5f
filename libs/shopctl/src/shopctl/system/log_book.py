"""Stores the logs of the processes and of `dev` in files of the run folder, which stay there when `dev` ends.

Each line of a file is a JSON object with `time` (when the line arrived, RFC 3339), `process`, `level`, and `line` (the
printed text). A file is rotated at 10 MB, and five files are kept.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TextIO

from shopctl.system import runfile

PATH = runfile.PATH.with_name("logs.jsonl")
LEVELS = ("debug", "info", "warning", "error", "critical")

FILE_BYTES_MAX = 10 * 2**20
FILES_MAX = 5

_POLL_SECONDS = 0.2
# The two formats of shop_common.telemetry.logs: console and JSON.
_LEVEL = re.compile(r'^\d\d:\d\d:\d\d\.\d+ \[(\w+) *\]|"level": ?"(\w+)"')


@dataclass(frozen=True)
class Line:
    """A printed line.

    A line without a level, such as one of a traceback, has the level of the previous line of its process.
    """

    time: str
    process: str
    level: str
    line: str


class LogBook:
    """Writes the logs. Threads can share a LogBook. One process may write the files; any number may read them."""

    def __init__(self, path: Path, on_failure: Callable[[OSError], None]) -> None:
        self._path = path
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._levels: dict[str, str] = {}
        self._file: TextIO | None = None
        self._failed = False

    @classmethod
    @contextmanager
    def opened(cls, on_failure: Callable[[OSError], None], path: Path = PATH) -> Iterator[Self]:
        """Open the files for the block. Calls `on_failure` only for the first line that cannot be stored."""
        book = cls(path, on_failure)
        try:
            yield book
        finally:
            book.close()

    def add(self, process: str, line: str, level: str | None = None) -> None:
        """Store a line. By default, its level is parsed from its text.

        Never raises: a failure to store logs must not stop the processes.
        """
        failure = None
        with self._lock:
            level = level or _level_of(line) or self._levels.get(process, "info")
            self._levels[process] = level
            kept = Line(datetime.now(UTC).isoformat(), process, level, line)
            try:
                self._write(json.dumps(asdict(kept), ensure_ascii=False) + "\n")
            except OSError as error:
                failure, self._failed = (None if self._failed else error), True
        if failure is not None:
            # Report outside the lock, because the report calls `add` again.
            self._on_failure(failure)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, text: str) -> None:
        if self._file is None or self._file.tell() > FILE_BYTES_MAX:
            self._rotate()
        assert self._file is not None
        self._file.write(text)
        self._file.flush()

    def _rotate(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            for number in range(FILES_MAX - 2, -1, -1):
                if (older := numbered(self._path, number)).exists():
                    older.replace(numbered(self._path, number + 1))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # The file contains requests and addresses, so only its owner may read it.
        self._path.touch(mode=0o600)
        self._file = self._path.open("a", encoding="utf-8", errors="replace")


def read(path: Path = PATH, keep_following: Callable[[float], bool] | None = None) -> Iterator[Line]:
    """Yield the stored lines, oldest first. With `keep_following`, continue with new lines until it returns False.

    `keep_following` gets the number of seconds that it should wait before it returns.
    """
    for number in range(FILES_MAX - 1, 0, -1):
        if (file := _opened(numbered(path, number))) is not None:
            with file:
                yield from _lines(file)
    yield from _lines_from(_opened(path), path, keep_following)


def follow(path: Path, keep_following: Callable[[float], bool]) -> Iterator[Line]:
    """Yield the lines that are added after this call, until `keep_following` returns False."""
    if (file := _opened(path)) is not None:
        file.seek(0, os.SEEK_END)
    return _lines_from(file, path, keep_following)


def _lines_from(file: TextIO | None, path: Path, keep_following: Callable[[float], bool] | None) -> Iterator[Line]:
    try:
        more = True
        while more:
            # Check first, then read: lines added before the check must not be missed.
            more = keep_following is not None and keep_following(_POLL_SECONDS)
            is_replaced = file is None or _is_replaced(file, path)
            if file is not None:
                yield from _lines(file)
            if is_replaced:
                if file is not None:
                    file.close()
                file = _opened(path)
                yield from _lines(file) if file else ()
    finally:
        if file is not None:
            file.close()


def _opened(path: Path) -> TextIO | None:
    try:
        return path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _is_replaced(file: TextIO, path: Path) -> bool:
    try:
        return path.stat().st_ino != os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _lines(file: TextIO) -> Iterator[Line]:
    """Yield the complete lines from the current position. An incomplete line is left for the next call."""
    while True:
        began = file.tell()
        text = file.readline()
        if not text.endswith("\n"):
            file.seek(began)
            return
        if (line := parsed(text)) is not None:
            yield line


def parsed(text: str | bytes) -> Line | None:
    """Return the line that a line of a file contains, or None if it is incomplete, for example after a full disk."""
    try:
        return Line(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _level_of(line: str) -> str | None:
    if line.startswith("Traceback "):
        return "error"
    found = _LEVEL.search(line)
    level = (found[1] or found[2]) if found else None
    return level if level in LEVELS else None


def numbered(path: Path, number: int) -> Path:
    """Return the path of a file: 0 is the file that is written now, and FILES_MAX - 1 is the oldest."""
    return path.with_name(f"{path.name}.{number}") if number else path
