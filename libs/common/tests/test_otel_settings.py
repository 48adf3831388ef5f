"""OTEL_* variables that OpenTelemetry would reject are reported like other invalid settings."""

import sys
from pathlib import Path

import pytest

from devstack.ports import free_ports
from devstack.process import Process
from shop_common.environment.otel_settings import faults

PROGRAM = str(Path(__file__).with_name("echo_service.py"))
SECONDS = 60


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TIMEOUT: must be a number of seconds, without a"),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4096"}, "must not be greater than OTEL_BSP_MAX_QUEUE_SIZE (2048)"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: must be an integer"),
        ({"OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES": "NO"}, "OTEL_*: OpenTelemetry rejects a value"),
    ],
)
def test_the_process_ends_with_an_error_message(settings: dict[str, str], complaint: str) -> None:
    port = free_ports(1)[0]
    environment = {"GRPC_PORT": str(port), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"} | settings
    process = Process("echo", [sys.executable, PROGRAM], environment).start()

    assert process.wait(SECONDS) == 2, process.tail()
    _, line = process.log.splitlines()
    assert complaint in line


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", ["10s", "-1", "nan", "1e999"], ["10", "0.5"]),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", ["zstd"], ["gzip", "GZIP"]),
        ("OTEL_BSP_MAX_QUEUE_SIZE", ["0", "2k", "1.5", "511", "٣"], ["512", "10000"]),
        ("OTEL_BSP_SCHEDULE_DELAY", ["5s", "0"], ["5000"]),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", ["-1", "all"], ["0", "128", "unset"]),
        ("OTEL_TRACES_SAMPLER", ["sometimes"], ["always_on", "parentbased_traceidratio"]),
        ("OTEL_TRACES_SAMPLER_ARG", ["1 %", "2"], ["0", "0.01", "1"]),
    ],
)
def test_each_wrong_value_is_named(name: str, wrong: list[str], right: list[str]) -> None:
    for value in wrong:
        (fault,) = faults({name: value})
        assert name in fault
    for value in [*right, ""]:
        assert list(faults({name: value})) == []
