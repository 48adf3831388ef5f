"""WORKERS > 1: one parent, several processes that run the same program and share its port.

Each worker is a fresh start of the program, since gRPC does not survive a fork. The parent opens nothing but the
metrics; it passes signals on, and when one worker ends unasked, it ends them all and says so: what started it
starts it again.
"""

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from types import FrameType

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from shop_common import logs, startup, telemetry
from shop_common.settings import CommonSettings

_log = logs.get(__name__)

_STOP = (signal.SIGTERM, signal.SIGINT)

SAME_SIGNAL_SECONDS = 1.0
"""One Ctrl-C may arrive twice, from the terminal and from who started us. What comes later is a second one."""

_EXTRA_SECONDS = 15.0
"""What a worker may take to end beyond draining and grace, before it is killed."""


def supervise(count: int, settings: CommonSettings) -> int:
    """Run that many workers until a signal comes or one ends; the exit code when all have ended."""
    if not settings.metrics_port:
        return _Parent(count, settings, {}).run()
    with tempfile.TemporaryDirectory(prefix="metrics-", ignore_cleanup_errors=True) as folder:
        # prometheus_client's way to sum over processes: each writes to files there, the parent reads them.
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]  # has no types
        telemetry.serve_metrics(settings, registry)
        return _Parent(count, settings, {"PROMETHEUS_MULTIPROC_DIR": folder}).run()


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

    def __init__(self, count: int, settings: CommonSettings, environment: dict[str, str]) -> None:
        self._count = count
        self._stop_seconds = settings.drain_seconds + settings.grace_seconds + _EXTRA_SECONDS
        self._environment = environment
        self._workers: list[subprocess.Popen[bytes]] = []
        self._signals, self._wake_write_end = os.pipe()
        # Python writes each signal's number there; a handler that takes locks could meet its own thread's.
        os.set_blocking(self._wake_write_end, False)

    def run(self) -> int:
        signal.set_wakeup_fd(self._wake_write_end)
        for handled in (*_STOP, signal.SIGCHLD):
            signal.signal(handled, _ignore)
        self._start()
        startup.is_over()
        asked = self._wait()
        ended_well = self._stop()
        return 0 if asked and ended_well else 1

    def _wait(self) -> bool:
        """Until it is time to stop. Whether that was asked for."""
        while True:
            for worker in self._workers:
                if worker.poll() is not None:
                    _log.error("a worker ended unasked; ending all", pid=worker.pid, exit_code=worker.returncode)
                    return False
            if self._next_signal(None) in _STOP:
                return True

    def _stop(self) -> bool:
        """Stop all workers; whether they ended well and in time."""
        _log.info("stopping", workers=len(self._workers))
        self._send(signal.SIGTERM)
        begun = time.monotonic()
        while any(worker.poll() is None for worker in self._workers):
            elapsed = time.monotonic() - begun
            number = self._next_signal(max(0.0, self._stop_seconds - elapsed))
            impatient = number in _STOP and elapsed > SAME_SIGNAL_SECONDS
            if impatient or number is None:
                _log.error("workers are killed: a second signal came, or they took too long")
                self._send(signal.SIGKILL)
                for worker in self._workers:
                    worker.wait()
        # One that was stopped before it took signals was ended by this one.
        return all(worker.returncode in {0, -signal.SIGTERM, 128 + signal.SIGTERM} for worker in self._workers)

    def _start(self) -> None:
        worker_end, self._parent_end = os.pipe()
        # Handed on; nothing is read from it here.
        inherited = os.environ  # noqa: TID251
        environment = {**inherited, **self._environment, "WORKER_PIPE": str(worker_end)}
        for _ in range(self._count):
            self._workers.append(
                subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment, pass_fds=[worker_end])
            )
        os.close(worker_end)
        _log.info("workers started", pids=[worker.pid for worker in self._workers])

    def _next_signal(self, timeout: float | None) -> int | None:
        """The next signal, or None if there is none in time."""
        ready, _, _ = select.select([self._signals], [], [], timeout)
        return os.read(self._signals, 1)[0] if ready else None

    def _send(self, number: int) -> None:
        for worker in self._workers:
            worker.send_signal(number)  # does nothing to one that has ended


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Nothing to do here: the number has been written to the pipe."""
