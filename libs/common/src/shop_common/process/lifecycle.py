"""The lifecycle of a process: limits, ports, signals, serving, draining, and the exit code.

    settings = load(InventorySettings)
    lifecycle.begin("inventory-api", settings)
    tracing.start("inventory-api", settings)
    metrics_server.start(settings)
    ...
    lifecycle.serve(server, settings, on_stop=[consumer.stop, operations.close, database.close, tracing.shutdown])

SIGTERM and SIGINT: report NOT_SERVING, wait `drain_seconds`, let running calls finish, run `on_stop`, exit 0. A second
signal ends the process at once.
"""

import gc
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from shop_common.environment import listen, startup
from shop_common.environment.process_settings import CommonSettings
from shop_common.environment.settings import refusal
from shop_common.process import workers
from shop_common.process.unknown_settings import unknown
from shop_common.process.workers import SAME_SIGNAL_SECONDS
from shop_common.rpc.health import Health
from shop_common.telemetry import logs

SWITCH_INTERVAL_SECONDS = 0.05
GARBAGE_THRESHOLD = 20_000

FLUSH_SECONDS_MAX = 10.0
"""Time limit for all `on_stop` functions together. After it the process exits without waiting for the rest."""

_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

_log = logs.get(__name__)


class Serving(Protocol):
    """The server of an API, or the HealthServer of a process without an API."""

    health: Health
    port: int

    def start(self) -> None: ...

    def stop(self, grace_seconds: float) -> None: ...


class _State:
    """The state of this process."""

    process = ""
    serving: Serving | None = None
    stop_requested = threading.Event()


def begin(process: str, settings: CommonSettings) -> None:
    """Configure logging, check that the ports are free, raise the limit of open files, start handling signals.

    With WORKERS > 1 this process becomes the parent of that many workers, which run the same program, and this
    function does not return. If the settings do not allow the process to serve, it prints why and exits with code 2. If
    a port is in use, it prints an error message and exits with code 1.
    """
    if faults := list(dict.fromkeys(settings.start_faults())):
        raise refusal(faults)
    _State.process = process
    logs.start(process, settings)
    _raise_file_limit()
    if not settings.is_worker:
        environment = os.environ  # noqa: TID251 - searched for unknown names only
        for name, nearest in unknown(type(settings), environment):
            _log.warning("unknown setting, is it misspelt?", setting=name, nearest=nearest)
        _probe(settings)
        count = getattr(settings, "workers", 1)
        if count > 1:
            raise SystemExit(workers.supervise(count, settings))
    # All threads start later and inherit this mask. Only the signal thread, in sigwait, receives these signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    threading.Thread(target=_take_signals, name="signals", daemon=True).start()
    workers.follow_parent(settings, is_ready=lambda: _State.serving is not None and _State.serving.health.ready)


def serve(server: Serving, settings: CommonSettings, *, on_stop: Sequence[Callable[[], object]] = ()) -> None:
    """Serve until a stop signal arrives, then drain and return.

    After the last call has ended, runs each function in `on_stop`, in order, even if an earlier one failed. If one
    failed, the process exits with code 1. Call it from the main thread, after `begin`.
    """
    # Set this before the start: the process may get a stop signal as soon as it reports ready.
    _State.serving = server
    try:
        server.start()
    except listen.PortBusy as error:
        raise SystemExit(str(error)) from None
    startup.is_over()
    _log.info("serving", port=server.port, version=logs.version_of(_State.process), **dict(settings.facts()))
    _settle_down()
    _State.stop_requested.wait()

    _log.info("stopping", drain_seconds=settings.drain_seconds)
    server.health.drain()
    # Calls are still accepted: load balancers and clients need time to see NOT_SERVING.
    time.sleep(settings.drain_seconds)
    server.stop(settings.grace_seconds)
    if not _flush(on_stop):
        raise SystemExit(1)
    _log.info("stopped")


def _settle_down() -> None:
    """Tune the interpreter for serving calls on many threads, after everything is loaded."""
    # Our threads block often, and release the interpreter lock when they do. A thread that waits for the lock requests
    # a switch at each interval; with 100 threads and the default of 5 ms, switching takes most of the time.
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    # Objects created at start live forever. Freezing them spares the collector from scanning them again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


def fatal(reason: str, error: BaseException | None = None) -> None:
    """Log the reason and exit with code 1 at once. Use it for a failure after which the process cannot do its work.

    May be called from any thread. The supervisor restarts the process; nothing depends on a clean shutdown.
    """
    _log.critical(reason, exc_info=error)
    if _State.serving is not None:
        _State.serving.health.drain()
        _State.serving.health.wait_published(0.2)
    os._exit(1)


def _take_signals() -> None:
    """Wait for signals on a dedicated thread.

    Python runs signal handlers on the main thread, between instructions. A blocked main thread would miss a signal
    that the operating system delivers to another thread. This happens when a frozen process resumes.
    """
    number = signal.sigwait(_STOP_SIGNALS)
    if _State.serving is None:
        # The process is still starting: no call is running, and a normal exit could block on a thread.
        os._exit(128 + number)
    _State.stop_requested.set()
    first_at = time.monotonic()
    while True:
        number = signal.sigwait(_STOP_SIGNALS)
        if time.monotonic() - first_at > SAME_SIGNAL_SECONDS:
            _log.error("a second signal: the process ends without waiting for running calls")
            os._exit(128 + number)


def _flush(on_stop: Sequence[Callable[[], object]]) -> bool:
    overdue = threading.Timer(FLUSH_SECONDS_MAX, fatal, ["the functions of on_stop took too long"])
    overdue.daemon = True
    overdue.start()
    succeeded = True
    for function in on_stop:
        try:
            function()
        except Exception:
            # The functions do not depend on each other: later ones may still have data to save.
            _log.exception("a function of on_stop failed", function=getattr(function, "__qualname__", repr(function)))
            succeeded = False
    overdue.cancel()
    return succeeded


def _probe(settings: CommonSettings) -> None:
    for name in ("grpc_port", "health_port", "metrics_port"):
        try:
            listen.probe(settings.listen_host, getattr(settings, name, 0))
        except listen.PortBusy as error:
            raise SystemExit(f"{error} by {name.upper()}") from None


def _raise_file_limit() -> None:
    """Raise the soft limit of open files: each connection is a file. The usual limit, 1,024, exists for select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:
        # macOS reports "unlimited" but accepts less. The soft limit stays low, and allows fewer connections.
        _log.warning("could not raise the limit of open files", error=str(error))
