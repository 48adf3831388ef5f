"""Starts the load generator process and runs jobs in it."""

import json
import subprocess
import sys
from dataclasses import asdict
from types import TracebackType
from typing import Self

from benchmarks.generator import Job, Outcome
from benchmarks.http2 import LoadError
from devstack import watchdog

STOP_SECONDS = 5


class Generator:
    """The load generator process. It has one thread, so it uses at most one processor."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.generator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        watchdog.watch(self._child.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._child.kill()
        self._child.communicate(timeout=STOP_SECONDS)
        watchdog.forget(self._child.pid)

    def run(self, job: Job) -> Outcome:
        """Run a job. Raises LoadError if no call succeeded or the connection ended."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(asdict(job)) + "\n")
        self._child.stdin.flush()
        answer = json.loads(self._child.stdout.readline() or '{"error": "the load generator ended"}')
        if "error" in answer:
            raise LoadError(answer["error"])
        return Outcome(**answer)
