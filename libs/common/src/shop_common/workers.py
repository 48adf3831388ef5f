"""WORKERS > 1: one parent, several processes that run the same program and share its port.

Each worker is a fresh start of the program, since gRPC does not survive a fork. The parent opens nothing but the
metrics; it passes signals on, and when one worker ends unasked, it ends them all and says so: what started it
starts it again.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from types import FrameType

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from shop_common import listen, logs
from shop_common.settings import CommonSettings

_log = logs.get(__name__)

_EXTRA_SECONDS = 15.0
"""What a worker may take to end beyond draining and grace, before it is killed."""

_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def supervise(count: int, settings: CommonSettings) -> int:
    """Run that many workers until a signal comes or one ends; the exit code when all have ended."""
    folder = tempfile.mkdtemp(prefix="metrics-")
    try:
        if settings.metrics_port:
            _serve_metrics(settings, folder)
        return _Parent(count, settings, folder).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def follow_parent(settings: CommonSettings) -> None:
    """In a worker: stop as if by SIGTERM when the parent is gone, however it went."""
    pipe = getattr(settings, "worker_pipe", None)
    if pipe is None:
        return

    def wait() -> None:
        os.read(pipe, 1)  # returns when the parent's end is closed; nothing is ever written
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


class _Parent:
    """Waits for signals and for children, all on the main thread."""

    def __init__(self, count: int, settings: CommonSettings, metrics_folder: str) -> None:
        self._count = count
        self._stop_seconds = settings.drain_seconds + settings.grace_seconds + _EXTRA_SECONDS
        self._metrics_folder = metrics_folder
        self._workers: list[subprocess.Popen[bytes]] = []
        self._signals, self._wake_write_end = os.pipe()
        # Python writes each signal's number there; a handler that takes locks could meet its own thread's.
        os.set_blocking(self._wake_write_end, False)

    def run(self) -> int:
        signal.set_wakeup_fd(self._wake_write_end)
        for handled in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(handled, _ignore)
        self._start()
        stopping_since: float | None = None
        asked = False
        while any(worker.poll() is None for worker in self._workers):
            ended = [worker for worker in self._workers if worker.poll() is not None]
            if ended and stopping_since is None:
                _log.error("a worker ended unasked; ending all", pid=ended[0].pid, exit_code=ended[0].returncode)
                stopping_since = time.monotonic()
                self._send(signal.SIGTERM)
            number = self._next_signal(stopping_since)
            if number in (signal.SIGTERM, signal.SIGINT):
                if stopping_since is None:
                    _log.info("stopping", workers=len(self._workers))
                    stopping_since, asked = time.monotonic(), True
                    self._send(signal.SIGTERM)
                elif time.monotonic() - stopping_since > 1.0:
                    self._send(signal.SIGKILL)
            elif number is None:
                _log.error("workers took too long to end and are killed")
                self._send(signal.SIGKILL)
        codes = [worker.returncode for worker in self._workers]
        # A worker that was stopped before it took signals was ended by this one.
        return 0 if asked and all(code in (0, -signal.SIGTERM, 128 + signal.SIGTERM) for code in codes) else 1

    def _start(self) -> None:
        worker_end, self._parent_end = os.pipe()
        # Handed on, with two more; nothing is read from it here.
        environment = {**os.environ, "WORKER_PIPE": str(worker_end), _METRICS_FOLDER: self._metrics_folder}  # noqa: TID251
        for _ in range(self._count):
            self._workers.append(
                subprocess.Popen(
                    [sys.executable, *sys.orig_argv[1:]],
                    env=environment,
                    pass_fds=[worker_end],
                    # A group of their own: Ctrl-C reaches them through the parent only, once.
                    process_group=0,
                )
            )
        os.close(worker_end)
        _log.info("workers started", pids=[worker.pid for worker in self._workers])

    def _next_signal(self, stopping_since: float | None) -> int | None:
        """Wait for a signal. None: the time to stop has run out."""
        timeout = None if stopping_since is None else max(0.0, stopping_since + self._stop_seconds - time.monotonic())
        ready, _, _ = select.select([self._signals], [], [], timeout)
        return os.read(self._signals, 1)[0] if ready else None

    def _send(self, number: int) -> None:
        for worker in self._workers:
            worker.send_signal(number)  # does nothing to one that has ended


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Nothing to do here: the number has been written to the pipe."""


def _serve_metrics(settings: CommonSettings, folder: str) -> None:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    start_http_server(settings.metrics_port, listen.python_host(settings.listen_host), registry)
