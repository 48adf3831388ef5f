"""The load generator as its user sees it: give it a job, get the outcome."""

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
    """The generator's process. It has one thread, so it takes at most one of the machine's processors."""

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
        """Raises LoadError when there is nothing to tell: no call succeeded, or the server went away."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(asdict(job)) + "\n")
        self._child.stdin.flush()
        answer = json.loads(self._child.stdout.readline() or '{"error": "the load generator died"}')
        if "error" in answer:
            raise LoadError(answer["error"])
        return Outcome(**answer)
