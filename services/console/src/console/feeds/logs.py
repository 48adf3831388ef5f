"""The log lines that `dev` has stored: the newest ones that match a filter. Only a bounded part is ever in memory."""

import asyncio
import os
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from shopctl.system import log_book
from shopctl.system.log_book import LEVELS, Line

LINES_MAX = 200
CHARACTERS_MAX = 2_000
_BYTES_MAX = 64 * 1024
"""A longer line of a file is left out."""


@dataclass(frozen=True)
class LogFilter:
    """The filters of the lines: an empty `process` or `words` matches every line. Upper and lower case are the same."""

    process: str = ""
    level: str = LEVELS[0]
    words: str = ""

    def matches(self, line: Line) -> bool:
        return (
            self.process in ("", line.process)
            and line.level in LEVELS[LEVELS.index(self.level) :]
            and self.words.casefold() in line.line.casefold()
        )


@dataclass(frozen=True)
class Lines:
    """The newest lines that match, oldest first. `has_older` is true if older ones were left out."""

    rows: tuple[Line, ...]
    has_older: bool


class LogTail:
    """Follows the two newest files of a log book, about 20 MB, from their beginning. Use it for one filter.

    Each read continues where the read before has ended, so it costs nothing while no line is added.
    """

    def __init__(self, path: Path, chosen: LogFilter) -> None:
        self._path = path
        self._chosen = chosen
        self._found: deque[Line] = deque(maxlen=LINES_MAX + 1)
        self._read_bytes: dict[int, int] = {}
        """How much of each file has been read, by inode, since a file keeps its inode when it is rotated."""

    async def read(self) -> Lines:
        """Return the newest lines that match. Raises OSError if a file cannot be read."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Lines:
        with ExitStack() as open_files:
            # Open the newer file first: if the files are rotated meanwhile, the same file is opened twice, and no line
            # is missed or read twice.
            newer, older = (_opened(log_book.numbered(self._path, number), open_files) for number in (0, 1))
            before, self._read_bytes = self._read_bytes, {}
            for file in (older, newer):
                if file is not None:
                    self._continue(file, before)
        found = tuple(self._found)
        return Lines(found[-LINES_MAX:], has_older=len(found) > LINES_MAX)

    def _continue(self, file: BinaryIO, before: Mapping[int, int]) -> None:
        status = os.fstat(file.fileno())
        start = self._read_bytes.get(status.st_ino, before.get(status.st_ino, 0))
        # A file that is shorter now is another one.
        position = start if start <= status.st_size else 0
        file.seek(position)
        for text in file:
            if not text.endswith(b"\n"):
                break  # it is being written
            position += len(text)
            line = log_book.parsed(text) if len(text) <= _BYTES_MAX else None
            if line is not None and self._chosen.matches(line):
                self._found.append(replace(line, line=line.line[:CHARACTERS_MAX]))
        self._read_bytes[status.st_ino] = position


def _opened(path: Path, open_files: ExitStack) -> BinaryIO | None:
    try:
        return open_files.enter_context(path.open("rb"))
    except FileNotFoundError:
        return None
