"""Structured logs: JSON for machines, aligned text for a terminal. Each line has the current trace and span id."""

import json
import logging
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version

import orjson
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from shop_common.environment import startup
from shop_common.environment.process_settings import CommonSettings, LogFormat
from shop_common.telemetry import metrics

Log = FilteringBoundLogger


_lost = metrics.counter(
    __name__,
    "shop_log_lines_lost_total",
    "Log lines that could not be written: the disk is full, or the pipe is closed or not read",
)


def get(name: str) -> Log:
    """Return the logger of a module. Safe to call at import: the logger is configured when it writes its first line."""
    log: Log = structlog.get_logger(module=name)
    return log


def start(process: str, settings: CommonSettings) -> None:
    """Configure logging to standard output, including the lines that libraries write through `logging`."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    as_json = settings.log_format is LogFormat.JSON or (
        settings.log_format is LogFormat.AUTO and not sys.stdout.isatty()
    )
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S.%f", utc=as_json),
        _add_trace,
    ]
    if as_json:
        common += [_Stamp(process), structlog.processors.format_exc_info]
        render: list[Processor] = [structlog.processors.JSONRenderer(serializer=_dumps)]
    else:
        render = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            )
        ]
    structlog.configure(
        processors=[*common, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    _route_libraries(level, common, render)
    startup.count_lost_with(_lost().inc)  # creates the counter now, so that it is exported as 0


class LogRateLimiter:
    """Limits how many lines per second are written for the same event. Safe to share between threads."""

    def __init__(self, lines_per_second: int = 20) -> None:
        self._lines_max = lines_per_second
        self._lock = threading.Lock()
        self._second = 0
        self._lines: dict[str, int] = {}
        self._unwritten: dict[str, int] = {}

    def admit(self, event: str) -> int | None:
        """Return None if the line must be dropped, else the number of lines dropped since the last one written."""
        with self._lock:
            second = int(time.monotonic())
            if second != self._second:
                self._second = second
                self._lines.clear()
            lines = self._lines.get(event, 0)
            if lines >= self._lines_max:
                self._unwritten[event] = self._unwritten.get(event, 0) + 1
                return None
            self._lines[event] = lines + 1
            return self._unwritten.pop(event, 0)


class _Stamp:
    """Adds the name and version of the process to each line."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._version = version_of(process)

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = self._process
        event["version"] = self._version
        return event


def version_of(process: str) -> str:
    """Return the installed version of the package, or `unknown`."""
    try:
        return version(process)
    except PackageNotFoundError:
        return "unknown"


def _add_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
        event["span_id"] = trace.format_span_id(span.span_id)
    return event


def _route_libraries(level: int, common: list[Processor], render: list[Processor]) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *common],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # Alembic logs two lines at INFO whenever the schema's version is read.
    logging.getLogger("alembic").setLevel(max(level, logging.WARNING))


def _dumps(event: EventDict, default: object = None, **_options: object) -> str:
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        # orjson rejects lone surrogates (as in file names) and integers over 64 bits. Write the line anyway.
        return json.dumps(event, default=str, skipkeys=True)
