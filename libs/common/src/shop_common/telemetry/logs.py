"""Log lines: JSON for machines, aligned text for people, with the trace they belong to in each."""

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
from shop_common.environment.settings import CommonSettings, LogFormat
from shop_common.telemetry import metrics

Log = FilteringBoundLogger


_lost = metrics.counter(
    __name__, "shop_log_lines_lost_total", "Log lines that could not be written: full disk, closed pipe, nobody reads"
)


def get(name: str) -> Log:
    """The log of a module. May be taken at import: it is set up at its first line."""
    log: Log = structlog.get_logger(module=name)
    return log


def start(process: str, settings: CommonSettings) -> None:
    """Write lines to standard output from now on, those of libraries (by `logging`) too."""
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
    startup.count_lost_with(_lost().inc)  # made here, so that it reads 0 until the first


class Flood:
    """Keeps a storm of equal events from becoming a storm of lines. Safe to share between threads."""

    def __init__(self, lines_per_second: int = 20) -> None:
        self._lines_max = lines_per_second
        self._lock = threading.Lock()
        self._second = 0
        self._lines: dict[str, int] = {}
        self._unwritten: dict[str, int] = {}

    def admit(self, event: str) -> int | None:
        """None: write no line. Else write one, which speaks also for so many earlier ones that were not written."""
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
    """Adds which process wrote the line."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._version = version_of(process)

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = self._process
        event["version"] = self._version
        return event


def version_of(process: str) -> str:
    """The version of the installed package of that name."""
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
    # It greets at INFO each time a schema is looked at.
    logging.getLogger("alembic").setLevel(max(level, logging.WARNING))


def _dumps(event: EventDict, default: object = None, **_options: object) -> str:
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        # Half a surrogate pair, as in the name of a file, or a number of more than 64 bits. The line is worth more.
        return json.dumps(event, default=str, skipkeys=True)
