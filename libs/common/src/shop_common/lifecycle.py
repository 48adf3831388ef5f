"""The life of a process: limits, ports, signals, serving, draining, and the exit code.

    settings = load(InventorySettings)
    lifecycle.begin("inventory-api", settings)
    telemetry.start("inventory-api", settings)
    ...
    lifecycle.serve(server, settings, on_stop=[consumer.stop, reserve.close, database.close, telemetry.shutdown])

SIGTERM and SIGINT: report NOT_SERVING, wait `drain_seconds`, let running calls finish, run `on_stop`, exit 0. A second
signal ends the process at once.
"""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

from shop_common import listen, logs, workers
from shop_common.health import Health
from shop_common.settings import CommonSettings
from shop_common.workers import SAME_SIGNAL_SECONDS

FLUSH_SECONDS_MAX = 10.0
"""What runs after the last call has this long together; then the process ends without it."""

_log = logs.get(__name__)


class Serving(Protocol):
    """What answers calls: the server of an API, or the HealthServer of a process without one."""

    health: Health
    port: int

    def start(self) -> None: ...

    def stop(self, grace_seconds: float) -> None: ...


class _Life:
    """The one life that a process has. Changed by the main thread only, where Python runs signal handlers."""

    wake_write_end = -1
    wake_read_end = -1
    serving: Serving | None = None
    signalled_at: float | None = None


def begin(process: str, settings: CommonSettings) -> None:
    """Start logs, make sure that the ports are free, raise the limit of open files, take signals.

    With WORKERS > 1 this process becomes the parent of that many others, which run the same program, and does not
    come back from here. Ends the process with one sentence and exit code 1 when a port is busy.
    """
    logs.start(process, settings)
    _raise_file_limit()
    if not settings.is_worker:
        _probe(settings)
        count = getattr(settings, "workers", 1)
        if count > 1:
            raise SystemExit(workers.supervise(count, settings))
    else:
        workers.follow_parent(settings)
    _Life.wake_read_end, _Life.wake_write_end = os.pipe()
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)


def serve(server: Serving, settings: CommonSettings, *, on_stop: Sequence[Callable[[], object]] = ()) -> None:
    """Serve until a signal comes, then drain. Returns when all has ended well.

    Each of `on_stop` runs, in order, when the last call has ended, even if one before it failed; then the exit code is
    1. To be called from the main thread, after `begin`.
    """
    try:
        server.start()
    except listen.PortBusy as error:
        raise SystemExit(str(error)) from None
    _Life.serving = server
    _log.info("serving", port=server.port)
    os.read(_Life.wake_read_end, 1)

    _log.info("stopping", drain_seconds=settings.drain_seconds)
    server.health.drain()
    # Calls are still taken here: balancers and clients need a moment to see that we are leaving.
    time.sleep(settings.drain_seconds)
    server.stop(settings.grace_seconds)
    if not _flush(on_stop):
        raise SystemExit(1)
    _log.info("stopped")


def die(reason: str, error: BaseException | None = None) -> None:
    """End the process now, from any thread: a part without which it only seems to work has failed.

    It is started again by what watches it; nothing here needs a clean end.
    """
    _log.critical(reason, exc_info=error)
    if _Life.serving is not None:
        # On a thread, as a client that does not read could hold this up.
        told = threading.Thread(target=_Life.serving.health.drain, daemon=True)
        told.start()
        told.join(timeout=0.2)
    os._exit(1)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    # No log and no lock in here: the main thread may be holding it.
    now = time.monotonic()
    if _Life.serving is None:
        raise SystemExit(128 + number)
    if _Life.signalled_at is None:
        _Life.signalled_at = now
        os.write(_Life.wake_write_end, b"!")
    elif now - _Life.signalled_at > SAME_SIGNAL_SECONDS:
        os.write(2, b"second signal: ended without waiting for what runs\n")
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
