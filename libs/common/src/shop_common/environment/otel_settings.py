"""Validates the OTEL_* variables before OpenTelemetry reads them.

OpenTelemetry raises an exception for some malformed variables, and silently uses the default for others.
"""

import math
from collections.abc import Callable, Iterator, Mapping

_QUEUE, _BATCH = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_DEFAULTS = {_QUEUE: 2048, _BATCH: 512}


def faults(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield an error message for each variable that OpenTelemetry would reject or ignore."""
    values = {name: value.strip() for name, value in environment.items() if value and name.startswith("OTEL_")}
    wrong = {name for name, (is_valid, _) in _RULES.items() if name in values and not is_valid(values[name])}
    for name in sorted(wrong):
        yield f"{name}: {_RULES[name][1]}, but is {values[name]!r}"
    if not wrong & {_QUEUE, _BATCH}:
        queue, batch = (int(values.get(name, _DEFAULTS[name])) for name in (_QUEUE, _BATCH))
        if batch > queue:
            yield f"{_BATCH}: must not be greater than {_QUEUE} ({queue}), but is {batch}"


def _is_seconds(value: str) -> bool:
    try:
        return math.isfinite(float(value)) and float(value) > 0
    except ValueError:
        return False


def _is_count(value: str) -> bool:
    return value.isascii() and value.isdecimal() and len(value) < 10 and int(value) > 0


def _is_limit(value: str) -> bool:
    return value.lower() == "unset" or value == "0" or _is_count(value)


def _is_ratio(value: str) -> bool:
    return value == "0" or (_is_seconds(value) and float(value) <= 1)


_SECONDS = (_is_seconds, "must be a number of seconds, without a unit")
_COUNT = (_is_count, "must be a positive integer")
_LIMIT = (_is_limit, "must be an integer, or unset")
_COMPRESSION = (lambda value: value.lower() == "gzip", "must be gzip, or unset")
_SAMPLERS = ("always_on", "always_off", "traceidratio")
_SAMPLER = (
    lambda value: value.lower().removeprefix("parentbased_") in _SAMPLERS,
    f"must be {', '.join(_SAMPLERS)}, or parentbased_ and one of these",
)

_RULES: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "OTEL_EXPORTER_OTLP_TIMEOUT": _SECONDS,
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": _SECONDS,
    "OTEL_EXPORTER_OTLP_COMPRESSION": _COMPRESSION,
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": _COMPRESSION,
    "OTEL_TRACES_SAMPLER": _SAMPLER,
    "OTEL_TRACES_SAMPLER_ARG": (_is_ratio, "must be a number from 0 to 1"),
    _QUEUE: _COUNT,
    _BATCH: _COUNT,
    "OTEL_BSP_SCHEDULE_DELAY": _COUNT,
    "OTEL_BSP_EXPORT_TIMEOUT": _COUNT,
    "OTEL_ATTRIBUTE_COUNT_LIMIT": _LIMIT,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": _LIMIT,
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": _LIMIT,
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": _LIMIT,
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": _LIMIT,
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": _LIMIT,
    "OTEL_SPAN_EVENT_COUNT_LIMIT": _LIMIT,
    "OTEL_SPAN_LINK_COUNT_LIMIT": _LIMIT,
}
