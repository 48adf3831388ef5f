"""WORKERS > 1: one parent, several processes that run the same program and share its port.

Each worker is a fresh start of the program, since gRPC does not survive a fork. The parent serves the metrics and the
health of all; it passes signals on, and when one worker ends unasked, it ends them all and says so: what started it
starts it again.

Each worker holds one end of a pair of sockets. By it the worker says every second that it works and whether it is
ready, and learns of the end of its parent, however that came.
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
from shop_common.environment.settings import CommonSettings
from shop_common.rpc.health import Health, HealthServer
from shop_common.telemetry import logs, metrics_server

_log = logs.get(__name__)

_STOP = (signal.SIGTERM, signal.SIGINT)

SAME_SIGNAL_SECONDS = 1.0
"""One Ctrl-C may arrive twice, from the terminal and from who started us. What comes later is a second one."""

BEAT_SECONDS = 1.0
SILENT_SECONDS_MAX = 5.0
"""A worker that has said nothing for so long does not work."""

_READY, _NOT_READY = b"1", b"0"

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the folder in it gets a name that nobody can guess

_EXTRA_SECONDS = 15.0
"""What a worker may take to end beyond draining and grace, before it is killed."""


def supervise(count: int, settings: CommonSettings) -> int:
    """Run that many workers until a signal comes or one ends; the exit code when all have ended."""
    if not settings.metrics_port:
        return _Parent(count, settings, {}).run()
    with _metrics_folder() as folder:
        # prometheus_client's way to sum over processes: each writes to files there, the parent reads them.
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]  # has no types
        metrics_server.serve(settings, registry)
        return _Parent(count, settings, {"PROMETHEUS_MULTIPROC_DIR": folder}).run()


def _metrics_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder that ends with its block. Ends the process with one sentence if there is no place for it."""
    # A container whose root is read-only has no temporary folder unless it is given one, but it has shared memory.
    reason = None
    for parent in (None, _SHARED_MEMORY):
        try:
            return tempfile.TemporaryDirectory(prefix="metrics-", dir=parent, ignore_cleanup_errors=True)
        except OSError as error:
            reason = error.strerror
    sentence = (
        f"there is no folder for the metrics of several workers ({reason}): let TMPDIR name one that can be written"
    )
    raise SystemExit(f"{sentence}, or set WORKERS=1 or METRICS_PORT=0")


def follow_parent(settings: CommonSettings, is_ready: Callable[[], bool]) -> None:
    """In a worker: tell the parent again and again how it is here, and stop as if by SIGTERM when it is gone."""
    pipe = getattr(settings, "worker_pipe", None)
    if pipe is None:
        return

    def follow() -> None:
        with socket.socket(fileno=pipe) as parent:
            parent.settimeout(BEAT_SECONDS)
            try:
                while True:
                    parent.sendall(_READY if is_ready() else _NOT_READY)
                    with suppress(TimeoutError):
                        if not parent.recv(1):  # nothing is ever sent: the parent's end is closed
                            break
            except OSError as error:
                _log.warning("the parent is gone", error=str(error))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="parent", daemon=True).start()


class _Beats:
    """Hears what the workers say, and tells the health of them all."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._heard_at: dict[socket.socket, float] = {}
        self._is_ready: dict[socket.socket, bool] = {}
        self._stopped = threading.Event()
        health.set_live(False)
        health.set_ready("server", True)
        health.set_ready("workers", False)

    def start(self, workers: Sequence[socket.socket]) -> None:
        """Listen to these from now on."""
        self._heard_at = dict.fromkeys(workers, -math.inf)
        threading.Thread(target=self._run, name="beats", daemon=True).start()

    def stop(self) -> None:
        """Not ready any more, and no less alive than now while the workers end."""
        self._stopped.set()
        self._health.drain()

    def _run(self) -> None:
        while not self._stopped.is_set():
            for worker in select.select(list(self._heard_at), [], [], BEAT_SECONDS)[0]:
                said = worker.recv(4096)
                if not said:  # it ended; the main thread sees to that
                    return
                self._heard_at[worker], self._is_ready[worker] = time.monotonic(), said[-1:] == _READY
            if not self._stopped.is_set():
                live = min(self._heard_at.values()) > time.monotonic() - SILENT_SECONDS_MAX
                self._health.set_live(live)
                self._health.set_ready("workers", live and all(self._is_ready.values()))


class _Parent:
    """Waits for signals and for children, all on the main thread."""

    def __init__(self, count: int, settings: CommonSettings, environment: dict[str, str]) -> None:
        self._count = count
        self._stop_seconds = settings.drain_seconds + settings.grace_seconds + _EXTRA_SECONDS
        self._environment = environment
        self._workers: list[subprocess.Popen[bytes]] = []
        health = Health()
        self._beats = _Beats(health)
        self._health_server = HealthServer(settings.health_port, listen_host=settings.listen_host, health=health)
        self._signals, self._wake_write_end = os.pipe()
        # Python writes each signal's number there; a handler that takes locks could meet its own thread's.
        os.set_blocking(self._wake_write_end, False)

    def run(self) -> int:
        signal.set_wakeup_fd(self._wake_write_end)
        for handled in (*_STOP, signal.SIGCHLD):
            signal.signal(handled, _ignore)
        self._start()
        self._health_server.start()
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
        self._beats.stop()
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
        # Handed on; nothing is read from it here.
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
        self._beats.start(ends)
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
