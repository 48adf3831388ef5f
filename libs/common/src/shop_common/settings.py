"""Settings: read from the environment once, typed, frozen; every wrong one is reported at the same time.

A service's settings class derives from what it needs of the classes here and gives its own defaults:

    class InventorySettings(ApiSettings, DatabaseSettings, KafkaSettings):
        grpc_port: GrpcPort = 50053
"""

import re
import sys
import textwrap
from enum import StrEnum
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

# What a setting is besides its type: its value is never shown; it is none of the user's business.
_SECRET: dict[str, JsonValue] = {"secret": True}
_INTERNAL: dict[str, JsonValue] = {"internal": True}

WRONG_SETTINGS_EXIT_CODE = 2


class LogFormat(StrEnum):
    """How log lines look; `auto` is `console` on a terminal and `json` elsewhere."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    """Lines below this level are not written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _database_url(url: str) -> str:
    if not url.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://", "postgres://")):
        raise ValueError("must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME")
    # SQLAlchemy takes a plain one for psycopg2's.
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def _brokers(addresses: str) -> str:
    if not re.fullmatch(r"[^\s,:]+:\d+(,[^\s,:]+:\d+)*", addresses):
        raise ValueError("must be HOST:PORT, several separated by commas")
    return addresses


def _http_url(url: str) -> str:
    if not re.match(r"https?://[^/]", url):
        raise ValueError("must be http://HOST:PORT or https://HOST:PORT")
    return url


_PortNumber = Annotated[int, Field(ge=0, le=65535)]

GrpcPort = Annotated[_PortNumber, Field(description="port of the gRPC API; 0 lets the system choose")]
HealthPort = Annotated[_PortNumber, Field(description="port of grpc.health.v1; 0 lets the system choose")]
MetricsPort = Annotated[_PortNumber, Field(description="port of the Prometheus metrics; 0 is off")]
DatabaseAddress = Annotated[str, AfterValidator(_database_url)]
DatabaseUrl = Annotated[
    DatabaseAddress,
    Field(
        description="sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME", repr=False, json_schema_extra=_SECRET
    ),
]


class Settings(BaseSettings):
    """The root of all settings classes: frozen, names in any case."""

    # Composition tools pass an unset variable as an empty one: both mean the default.
    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True, case_sensitive=False)


class CommonSettings(Settings):
    """What every process reads."""

    listen_host: str = Field(default="[::]", description="address to open ports on, an IPv6 one in brackets")
    metrics_port: MetricsPort = 0
    drain_seconds: float = Field(
        default=1.0,
        ge=0,
        le=300,
        description="wait between reporting NOT_SERVING and refusing calls: the time that balancers take to notice",
    )
    grace_seconds: float = Field(
        default=10.0, ge=0, le=300, description="time for running calls to finish after that, before they are cancelled"
    )
    log_format: Annotated[LogFormat, BeforeValidator(_lower)] = Field(
        default=LogFormat.AUTO, description="console, json or auto (console on a terminal)"
    )
    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = Field(
        default=LogLevel.INFO, description="debug, info, warning or error"
    )
    otel_exporter_otlp_endpoint: Annotated[str, AfterValidator(_http_url)] | None = Field(
        default=None,
        description="where traces go, over OTLP/gRPC (http://localhost:4317); unset is off. "
        "OpenTelemetry reads the other OTEL_* variables itself",
    )

    @property
    def is_worker(self) -> bool:
        """Whether this process is one of several on the same port, with a parent over them."""
        return False


class ApiSettings(CommonSettings):
    """What a process with a gRPC API reads. The subclass gives `grpc_port` its default."""

    grpc_port: GrpcPort
    grpc_threads: int = Field(
        default=1000,
        ge=1,
        le=10_000,
        description="threads for calls; with less than twice the largest batch, batches can't grow to it",
    )
    calls_max: int = Field(
        default=2000,
        ge=1,
        le=100_000,
        description="calls that run or wait at once; what comes above is answered RESOURCE_EXHAUSTED",
    )
    reflection: bool = Field(default=True, description="offer grpc.reflection, so that grpcurl needs no proto files")
    workers: int = Field(default=1, ge=1, le=64, description="processes that share the port")
    worker_pipe: int | None = Field(
        default=None, ge=0, description="set by the parent: how a worker learns of its end", json_schema_extra=_INTERNAL
    )

    @property
    def is_worker(self) -> bool:
        return self.worker_pipe is not None


class DatabaseSettings(Settings):
    """What a process with a database of its own reads. The subclass gives the default."""

    database_url: DatabaseUrl


class KafkaSettings(Settings):
    """What a process that speaks to Kafka reads."""

    kafka_bootstrap_servers: Annotated[str, AfterValidator(_brokers)] = Field(
        default="localhost:9092", description="brokers to begin with: HOST:PORT, several separated by commas"
    )


_Settings = TypeVar("_Settings", bound=Settings)


def load(settings: type[_Settings]) -> _Settings:
    """The settings as the environment has them. Ends the process with exit code 2 and one line for each wrong one."""
    try:
        return settings()
    except ValidationError as error:
        sys.stderr.write(_complaint(settings, error))
        raise SystemExit(WRONG_SETTINGS_EXIT_CODE) from None


def help_text(settings: type[Settings]) -> str:
    """Every setting with its default and what it means, for `--help`."""
    entries = []
    for name, field in sorted(settings.model_fields.items()):
        if _marked(field, _INTERNAL):
            continue
        meaning = textwrap.wrap(field.description or "", 72)
        entries.append("\n".join([f"  {name.upper()}{_default(field)}", *(f"      {line}" for line in meaning)]))
    return "settings, read from the environment:\n" + "\n".join(entries)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return " (required)"
    if field.default is None:
        return ""
    return f" = {str(field.default).lower() if isinstance(field.default, bool) else field.default}"


def _complaint(settings: type[Settings], error: ValidationError) -> str:
    lines = ["These settings are wrong; correct them in the environment, or see --help:"]
    for fault in error.errors():
        name = str(fault["loc"][0])
        if fault["type"] == "missing":
            lines.append(f"  {name.upper()}: is required and not set")
            continue
        secret = _marked(settings.model_fields[name], _SECRET)
        given = " (value not shown)" if secret else f", but is {fault['input']!r}"
        lines.append(f"  {name.upper()}: {_rule(fault['msg'])}{given}")
    return "\n".join(lines) + "\n"


def _rule(message: str) -> str:
    """pydantic's message, as a rule: `Input should be a valid integer, unable to …` is `must be a valid integer`."""
    message = message.removeprefix("Value error, ").partition(", unable to ")[0]
    return message.replace("Input should", "must", 1)


def _marked(field: FieldInfo, mark: dict[str, JsonValue]) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and all(extra.get(key) == value for key, value in mark.items())
