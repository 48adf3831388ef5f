"""The life of a process: limits, ports, signals, serving, draining, and the exit code.

    settings = load(InventorySettings)
    lifecycle.begin("inventory-api", settings)
    telemetry.start("inventory-api", settings)
    ...
    lifecycle.serve(server, settings, on_stop=[consumer.stop, reserve.close, database.close, telemetry.shutdown])

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
from shop_common.environment.settings import CommonSettings
from shop_common.process import workers
from shop_common.process.unknown_settings import unknown
from shop_common.process.workers import SAME_SIGNAL_SECONDS
from shop_common.rpc.health import Health
from shop_common.telemetry import logs

SWITCH_INTERVAL_SECONDS = 0.05
GARBAGE_THRESHOLD = 20_000

FLUSH_SECONDS_MAX = 10.0
"""What runs after the last call has this long together; then the process ends without it."""

_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

_log = logs.get(__name__)


class Serving(Protocol):
    """What answers calls: the server of an API, or the HealthServer of a process without one."""

    health: Health
    port: int

    def start(self) -> None: ...

    def stop(self, grace_seconds: float) -> None: ...


class _Life:
    """The one life that a process has."""

    process = ""
    serving: Serving | None = None
    stop_asked = threading.Event()


def begin(process: str, settings: CommonSettings) -> None:
    """Start logs, make sure that the ports are free, raise the limit of open files, take signals.

    With WORKERS > 1 this process becomes the parent of that many others, which run the same program, and does not
    come back from here. Ends the process with one sentence and exit code 1 when a port is busy.
    """
    _Life.process = process
    logs.start(process, settings)
    _raise_file_limit()
    if not settings.is_worker:
        environment = os.environ  # noqa: TID251 - not read, but looked through for what nobody reads
        for name, nearest in unknown(type(settings), environment):
            _log.warning("unknown setting, is it misspelt?", setting=name, nearest=nearest)
        _probe(settings)
        count = getattr(settings, "workers", 1)
        if count > 1:
            raise SystemExit(workers.supervise(count, settings))
    # Blocked here, and so in every thread, all of which start later: signals come to the one that asks for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    threading.Thread(target=_take_signals, name="signals", daemon=True).start()
    workers.follow_parent(settings, is_ready=lambda: _Life.serving is not None and _Life.serving.health.ready)


def serve(server: Serving, settings: CommonSettings, *, on_stop: Sequence[Callable[[], object]] = ()) -> None:
    """Serve until a signal comes, then drain. Returns when all has ended well.

    Each of `on_stop` runs, in order, when the last call has ended, even if one before it failed; then the exit code is
    1. To be called from the main thread, after `begin`.
    """
    # Before the start: whoever finds us ready may stop us at once.
    _Life.serving = server
    try:
        server.start()
    except listen.PortBusy as error:
        raise SystemExit(str(error)) from None
    startup.is_over()
    _log.info("serving", port=server.port, version=logs.version_of(_Life.process), **dict(settings.facts()))
    _settle_down()
    _Life.stop_asked.wait()

    _log.info("stopping", drain_seconds=settings.drain_seconds)
    server.health.drain()
    # Calls are still taken here: balancers and clients need a moment to see that we are leaving.
    time.sleep(settings.drain_seconds)
    server.stop(settings.grace_seconds)
    if not _flush(on_stop):
        raise SystemExit(1)
    _log.info("stopped")


def _settle_down() -> None:
    """Tune the interpreter for a process that has all it needs and now serves calls on many threads."""
    # Threads here block often, on sockets and on each other, and pass the interpreter on by that. One that waits for
    # it asks every so often for it to be passed on at once; a hundred that ask every 5 ms do little else.
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    # What was made at start stays: the collector need not look through it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


def die(reason: str, error: BaseException | None = None) -> None:
    """End the process now, from any thread: a part without which it only seems to work has failed.

    It is started again by what watches it; nothing here needs a clean end.
    """
    _log.critical(reason, exc_info=error)
    if _Life.serving is not None:
        _Life.serving.health.drain()
        _Life.serving.health.wait_published(0.2)
    os._exit(1)


def _take_signals() -> None:
    """Wait for signals on a thread of their own.

    Python's handlers run on the main thread, between its instructions: one that waits would miss a signal that the
    system gives to another thread, as it does to a process that was just thawed.
    """
    number = signal.sigwait(_STOP_SIGNALS)
    if _Life.serving is None:
        # Still starting: there is nothing to finish, and unwinding could wait for a thread.
        os._exit(128 + number)
    _Life.stop_asked.set()
    first_at = time.monotonic()
    while True:
        number = signal.sigwait(_STOP_SIGNALS)
        if time.monotonic() - first_at > SAME_SIGNAL_SECONDS:
            _log.error("a second signal: ended without waiting for what runs")
            os._exit(128 + number)


def _flush(on_stop: Sequence[Callable[[], object]]) -> bool:
    overdue = threading.Timer(FLUSH_SECONDS_MAX, die, ["what had to be flushed took too long"])
    overdue.daemon = True
    overdue.start()
    well = True
    for step in on_stop:
        try:
            step()
        except Exception:
            # The steps do not depend on each other: the later ones still have something to save.
            _log.exception("a step of stopping failed", step=getattr(step, "__qualname__", repr(step)))
            well = False
    overdue.cancel()
    return well


def _probe(settings: CommonSettings) -> None:
    for name in ("grpc_port", "health_port", "metrics_port"):
        try:
            listen.probe(settings.listen_host, getattr(settings, name, 0))
        except listen.PortBusy as error:
            raise SystemExit(f"{error} by {name.upper()}") from None


def _raise_file_limit() -> None:
    """Each connection is a file; the usual soft limit of 1,024 is for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:
        # macOS says "unlimited" and takes less. The soft limit stays, and serves fewer clients.
        _log.warning("the limit of open files stays as it is", error=str(error))
