"""WORKERS > 1: a parent process, and several worker processes that run the same program and share its port.

Each worker is a new process that starts the program again, because gRPC does not survive a fork. The parent serves the
metrics and the health of all workers, and forwards signals. If a worker ends unexpectedly, the parent stops all others
and exits with code 1, so that its supervisor restarts it.

Each worker has a socket to its parent. Every second the worker sends a heartbeat with its readiness. The socket closes
when the parent ends, even if the parent was killed.
"""

import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from shop_common.environment import startup
from shop_common.environment.process_settings import CommonSettings
from shop_common.rpc.health import Health, HealthServer
from shop_common.telemetry import logs, metrics_server

_log = logs.get(__name__)

_STOP = (signal.SIGTERM, signal.SIGINT)

SAME_SIGNAL_SECONDS = 1.0
"""One Ctrl-C may arrive twice: from the terminal and from the parent process. Any later signal is a second request."""

HEARTBEAT_SECONDS = 1.0
SILENT_SECONDS_MAX = 5.0
"""A worker without a heartbeat for this time is not alive."""

_READY, _NOT_READY = b"1", b"0"

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the folder in it gets an unpredictable name

_EXTRA_SECONDS = 15.0
"""Time limit for a worker to end after its drain and grace periods, before it is killed."""


def supervise(count: int, settings: CommonSettings) -> int:
    """Run the workers until a stop signal arrives or one of them ends. Returns the exit code after all have ended."""
    if not settings.metrics_port:
        return _Parent(count, settings, {}).run()
    with _metrics_folder() as folder:
        # In prometheus_client's multiprocess mode, each worker writes its values to files, and the parent sums them.
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]  # has no types
        metrics_server.serve(settings, registry)
        return _Parent(count, settings, {"PROMETHEUS_MULTIPROC_DIR": folder}).run()


def _metrics_folder() -> "tempfile.TemporaryDirectory[str]":
    """Create a temporary folder for a `with` block. If that is not possible, the process exits with code 1."""
    # A container with a read-only root may have no temporary folder, but it has shared memory.
    reason = None
    for parent in (None, _SHARED_MEMORY):
        try:
            return tempfile.TemporaryDirectory(prefix="metrics-", dir=parent, ignore_cleanup_errors=True)
        except OSError as error:
            reason = error.strerror
    sentence = f"there is no folder for the metrics of several workers ({reason}): set TMPDIR to a writable folder"
    raise SystemExit(f"{sentence}, or set WORKERS=1 or METRICS_PORT=0")


def follow_parent(settings: CommonSettings, is_ready: Callable[[], bool]) -> None:
    """Send a worker's heartbeats to the parent. If the parent has ended, stop as after SIGTERM."""
    pipe = getattr(settings, "worker_pipe", None)
    if pipe is None:
        return

    def follow() -> None:
        with socket.socket(fileno=pipe) as parent:
            parent.settimeout(HEARTBEAT_SECONDS)
            try:
                while True:
                    parent.sendall(_READY if is_ready() else _NOT_READY)
                    with suppress(TimeoutError):
                        if not parent.recv(1):  # an empty result: the parent has closed its end
                            break
            except OSError as error:
                _log.warning("the parent is gone", error=str(error))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="parent", daemon=True).start()


class _Heartbeats:
    """Receives the heartbeats of the workers, and reports one health status for all of them."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._last_heartbeats: dict[socket.socket, float] = {}
        self._is_ready: dict[socket.socket, bool] = {}
        self._stopped = threading.Event()
        health.set_live(False)
        health.set_ready("server", True)
        health.set_ready("workers", False)

    def start(self, workers: Sequence[socket.socket]) -> None:
        """Receive heartbeats from these sockets."""
        self._last_heartbeats = dict.fromkeys(workers, -math.inf)
        threading.Thread(target=self._run, name="heartbeats", daemon=True).start()

    def stop(self) -> None:
        """Report not ready. Liveness stays as it is while the workers end."""
        self._stopped.set()
        self._health.drain()

    def _run(self) -> None:
        while not self._stopped.is_set():
            for worker in select.select(list(self._last_heartbeats), [], [], HEARTBEAT_SECONDS)[0]:
                received = worker.recv(4096)
                if not received:  # the worker ended; the main thread handles that
                    return
                self._last_heartbeats[worker], self._is_ready[worker] = time.monotonic(), received[-1:] == _READY
            if not self._stopped.is_set():
                live = min(self._last_heartbeats.values()) > time.monotonic() - SILENT_SECONDS_MAX
                self._health.set_live(live)
                self._health.set_ready("workers", live and all(self._is_ready.values()))


class _Parent:
    """Waits for signals and for the end of workers, on the main thread."""

    def __init__(self, count: int, settings: CommonSettings, environment: dict[str, str]) -> None:
        self._count = count
        self._stop_seconds = settings.drain_seconds + settings.grace_seconds + _EXTRA_SECONDS
        self._environment = environment
        self._workers: list[subprocess.Popen[bytes]] = []
        health = Health()
        self._heartbeats = _Heartbeats(health)
        self._health_server = HealthServer(settings.health_port, listen_host=settings.listen_host, health=health)
        self._signals, self._wake_write_end = os.pipe()
        # Python writes the number of each signal to this pipe. A signal handler that took locks could deadlock.
        os.set_blocking(self._wake_write_end, False)

    def run(self) -> int:
        signal.set_wakeup_fd(self._wake_write_end)
        for handled in (*_STOP, signal.SIGCHLD):
            signal.signal(handled, _ignore)
        self._start()
        self._health_server.start()
        startup.is_over()
        stop_requested = self._wait()
        succeeded = self._stop()
        return 0 if stop_requested and succeeded else 1

    def _wait(self) -> bool:
        """Wait for a stop signal (returns True) or for the unexpected end of a worker (returns False)."""
        while True:
            for worker in self._workers:
                if worker.poll() is not None:
                    _log.error(
                        "a worker ended unexpectedly; stopping all workers", pid=worker.pid, exit_code=worker.returncode
                    )
                    return False
            if self._next_signal(None) in _STOP:
                return True

    def _stop(self) -> bool:
        """Stop all workers. Returns whether they ended in time and without an error."""
        _log.info("stopping", workers=len(self._workers))
        self._heartbeats.stop()
        self._send(signal.SIGTERM)
        started_at = time.monotonic()
        while any(worker.poll() is None for worker in self._workers):
            elapsed = time.monotonic() - started_at
            number = self._next_signal(max(0.0, self._stop_seconds - elapsed))
            is_second_signal = number in _STOP and elapsed > SAME_SIGNAL_SECONDS
            if is_second_signal or number is None:
                _log.error("killing the workers: a second signal arrived, or they took too long")
                self._send(signal.SIGKILL)
                for worker in self._workers:
                    worker.wait()
        # SIGTERM itself ends a worker that does not handle signals yet.
        return all(worker.returncode in {0, -signal.SIGTERM, 128 + signal.SIGTERM} for worker in self._workers)

    def _start(self) -> None:
        # The workers inherit the environment. The parent reads nothing from it here.
        inherited = os.environ  # noqa: TID251
        ends = []
        for _ in range(self._count):
            ours, theirs = socket.socketpair()
            environment = {**inherited, **self._environment, "WORKER_PIPE": str(theirs.fileno())}
            with theirs:
                self._workers.append(
                    subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment, pass_fds=[theirs.fileno()])
                )
            ends.append(ours)
        self._heartbeats.start(ends)
        _log.info("workers started", pids=[worker.pid for worker in self._workers])

    def _next_signal(self, timeout: float | None) -> int | None:
        """Return the next signal, or None if none arrives in time."""
        ready, _, _ = select.select([self._signals], [], [], timeout)
        return os.read(self._signals, 1)[0] if ready else None

    def _send(self, number: int) -> None:
        for worker in self._workers:
            worker.send_signal(number)  # does nothing if the worker has ended


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing. Python itself writes the number of the signal to the pipe."""
