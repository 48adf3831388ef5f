"""Typed, immutable settings, read from the environment once. All invalid settings are reported at the same time.

The variable NAME contains the value of the setting NAME. Or NAME_FILE contains the path of a file with the value, for
example a secret that is mounted into a container. The settings class of a service inherits from the classes that it
needs, and declares its own defaults:

    class InventorySettings(ApiSettings, DatabaseSettings, KafkaSettings):
        grpc_port: GrpcPort = 50053
"""

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from shop_common.environment import otel_settings
from shop_common.environment.certificates import CertificateFiles
from shop_common.environment.files import FileUnusable, value_in
from shop_common.environment.listen import is_loopback

# SECRET marks a setting whose value is never shown. INTERNAL marks a setting that is not for users; --help omits it.
SECRET: dict[str, JsonValue] = {"secret": True}
INTERNAL: dict[str, JsonValue] = {"internal": True}

WRONG_SETTINGS_EXIT_CODE = 2

PORT_MAX = 65_535
_FILE_FAULT = "settings_file"
_HOST_PORT = r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s,:/\[\]]+):\d{1,5}"


class LogFormat(StrEnum):
    """The format of log lines. `auto` is `console` on a terminal and `json` elsewhere."""

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


def addresses(value: str) -> str:
    """Validate HOST:PORT, or several of them separated by commas."""
    if not re.fullmatch(f"{_HOST_PORT}(,{_HOST_PORT})*", value) or not _ports_exist(value):
        raise ValueError("must be HOST:PORT, several separated by commas")
    return value


def _target(target: str) -> str:
    # gRPC's own forms are also valid. They can name several addresses or a DNS server.
    forms = f"(dns:(//[^/]*/)?)?{_HOST_PORT}|ipv[46]:{_HOST_PORT}(,{_HOST_PORT})*"
    if not re.fullmatch(forms, target) or not _ports_exist(target):
        raise ValueError("must be HOST:PORT")
    return target


def _ports_exist(addresses: str) -> bool:
    return all(0 < int(address.rpartition(":")[2]) <= PORT_MAX for address in addresses.split(","))


def _http_url(url: str) -> str:
    if not re.match(r"https?://[^/]", url):
        raise ValueError("must be http://HOST:PORT or https://HOST:PORT")
    return url


_PortNumber = Annotated[int, Field(ge=0, le=PORT_MAX)]

GrpcPort = Annotated[_PortNumber, Field(description="port of the gRPC API; 0 lets the system choose")]
HealthPort = Annotated[
    _PortNumber,
    Field(description="port for probes, with grpc.health.v1 only; clients must not reach it. 0 lets the system choose"),
]
HEALTH_PORT_DISTANCE = 10
MetricsPort = Annotated[_PortNumber, Field(description="port of the Prometheus metrics; 0 is off")]
Target = Annotated[str, AfterValidator(_target)]
"""The address of another service. If a host name has several addresses, calls use all of them."""


class Settings(BaseSettings):
    """The root of all settings classes. Instances are immutable. Names of variables are case-insensitive."""

    # docker compose passes an unset variable as an empty one, so an empty variable also means the default.
    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True, case_sensitive=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _EnvironmentAndFiles(settings_cls)

    @field_validator("*", mode="before")
    @classmethod
    def _was_read(cls, value: object) -> object:
        if isinstance(value, _Unreadable):
            raise PydanticCustomError(_FILE_FAULT, "{why}", {"why": value.why})
        return value

    def contradictions(self) -> Iterator[str]:
        """Yield an error message for each invalid combination of valid values. Subclasses add their own."""
        yield from ()

    def start_faults(self) -> Iterator[str]:
        """Yield an error message for each reason not to serve with these settings, such as an unusable file.

        Commands that do not serve, such as `migrate`, do not call this method. Subclasses add their own reasons.
        """
        yield from ()

    def facts(self) -> Iterator[tuple[str, object]]:
        """Yield the fields that a process logs when it starts to serve, without secrets. Subclasses add their own."""
        yield from ()


class _Unreadable:
    """Replaces a value that could not be read, until validation reports it."""

    def __init__(self, why: str) -> None:
        self.why = why


class _FileContent(str):
    """A value from a file. Errors do not quote the value: the path may be wrong, and the file may contain a secret."""

    __slots__ = ()


class _EnvironmentAndFiles(EnvSettingsSource):
    """Reads the variable NAME, or the file whose path NAME_FILE contains."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, key, is_complex = super().get_field_value(field, field_name)
        path = self.env_vars.get(f"{field_name}_file")
        if path is not None:
            both = f"must not be set together with {field_name.upper()}"
            value = _content(Path(path)) if value is None else _Unreadable(both)
        return value, key, is_complex


def _content(path: Path) -> _FileContent | _Unreadable:
    try:
        return _FileContent(value_in(path))
    except FileUnusable as error:
        return _Unreadable(str(error))


class CommonSettings(Settings):
    """The settings of every process. The subclass declares the default of `health_port`."""

    health_port: HealthPort = 0
    listen_host: str = Field(
        default="localhost",
        description="address to listen on; an IPv6 address needs brackets. [::] is every address of the machine",
    )
    metrics_port: MetricsPort = 0
    drain_seconds: float = Field(
        default=1.0,
        ge=0,
        le=300,
        description="seconds between reporting NOT_SERVING and refusing calls, for load balancers to notice",
    )
    grace_seconds: float = Field(
        default=10.0,
        ge=0,
        le=300,
        description="seconds for running calls to finish after DRAIN_SECONDS, before they are cancelled",
    )
    log_format: Annotated[LogFormat, BeforeValidator(_lower)] = Field(
        default=LogFormat.AUTO, description="console, json or auto (console on a terminal)"
    )
    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = Field(
        default=LogLevel.INFO, description="debug, info, warning or error"
    )
    otel_exporter_otlp_endpoint: Annotated[str, AfterValidator(_http_url)] | None = Field(
        default=None,
        description="collector of traces, over OTLP/gRPC (http://localhost:4317); unset turns tracing off. "
        "OpenTelemetry reads the other OTEL_* variables itself",
    )

    @property
    def is_worker(self) -> bool:
        """Whether this process is one of several workers with a common parent and port."""
        return False

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.otel_exporter_otlp_endpoint:
            yield from otel_settings.faults(os.environ)
        ports = {name: getattr(self, name, 0) for name in ("grpc_port", "health_port", "metrics_port")}
        for one, other in combinations(ports, 2):
            if ports[one] == ports[other] != 0:
                yield f"{other.upper()}: must differ from {one.upper()}, but both are {ports[one]}"

    def facts(self) -> Iterator[tuple[str, object]]:
        yield from super().facts()
        for name in ("health_port", "metrics_port", "workers"):
            if value := getattr(self, name, 0):
                yield name, value


class TlsSettings(Settings):
    """The certificate that a process presents to its peers. A changed file is read again."""

    tls_cert_path: Path | None = Field(
        default=None, description="file with the certificate of this process and its chain, in PEM format"
    )
    tls_key_path: Path | None = Field(default=None, description="file with the private key of TLS_CERT_PATH")

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.tls_cert_path and not self.tls_key_path:
            yield "TLS_KEY_PATH: must be set when TLS_CERT_PATH is set"
        if self.tls_key_path and not self.tls_cert_path:
            yield "TLS_CERT_PATH: must be set when TLS_KEY_PATH is set"

    def facts(self) -> Iterator[tuple[str, object]]:
        yield from super().facts()
        yield "tls", self.tls_cert_path is not None


class CallerSettings(TlsSettings):
    """The settings of a process that calls an API."""

    tls_ca_path: Path | None = Field(
        default=None, description="file with the CAs of the APIs that this process calls; when set, calls use TLS"
    )

    @property
    def client_certificate_files(self) -> CertificateFiles:
        return CertificateFiles(self.tls_cert_path, self.tls_key_path, self.tls_ca_path, "TLS_CA_PATH")

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.tls_cert_path and not self.tls_ca_path:
            yield "TLS_CA_PATH: must be set when TLS_CERT_PATH is set, or calls would be sent in plain text"

    def start_faults(self) -> Iterator[str]:
        yield from super().start_faults()
        yield from self.client_certificate_files.faults()


class ApiSettings(CommonSettings, TlsSettings):
    """The settings of a process with a gRPC API. The subclass declares the default of `grpc_port`.

    If only GRPC_PORT is set, HEALTH_PORT is ten above it, so that a second process on a machine needs one setting.
    """

    grpc_port: GrpcPort
    grpc_threads: int = Field(
        default=1000,
        ge=1,
        le=10_000,
        description="threads that run calls; with fewer than twice the largest batch, batches stay smaller",
    )
    calls_max: int = Field(
        default=2000,
        ge=1,
        le=100_000,
        description="limit on calls that run or wait; further calls fail with RESOURCE_EXHAUSTED",
    )
    connections_max: int = Field(
        default=2000, ge=1, le=1_000_000, description="limit on open connections; further connections are closed"
    )
    streams_max: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="limit on concurrent calls of one connection; clients wait before they send more",
    )
    reflection: bool = Field(
        default=False, description="serve grpc.reflection, so that grpcurl needs no proto files; for development"
    )
    tls_client_ca_path: Path | None = Field(
        default=None,
        description="file with the CAs of clients; when set, a client needs a certificate from one of these CAs",
    )
    insecure: bool = Field(
        default=False,
        description="serve the API in plain text to other machines. Without INSECURE and TLS_CERT_PATH, the process "
        "starts on a loopback address only",
    )
    workers: int = Field(default=1, ge=1, le=64, description="processes that share the port")
    worker_pipe: int | None = Field(
        default=None,
        ge=0,
        description="set by the parent: when this pipe closes, the worker notices that the parent has ended",
        json_schema_extra=INTERNAL,
    )

    @model_validator(mode="after")
    def _place_health_port(self) -> Self:
        if "grpc_port" in self.model_fields_set and "health_port" not in self.model_fields_set:
            above = self.grpc_port + HEALTH_PORT_DISTANCE
            beside = above if above <= PORT_MAX else self.grpc_port - HEALTH_PORT_DISTANCE
            # Bypass the immutability of settings: this instance is still being created.
            object.__setattr__(self, "health_port", beside if self.grpc_port else 0)
        return self

    @property
    def is_worker(self) -> bool:
        return self.worker_pipe is not None

    @property
    def server_certificate_files(self) -> CertificateFiles:
        return CertificateFiles(self.tls_cert_path, self.tls_key_path, self.tls_client_ca_path, "TLS_CLIENT_CA_PATH")

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.tls_client_ca_path and not self.tls_cert_path:
            yield "TLS_CERT_PATH: must be set when TLS_CLIENT_CA_PATH is set: plain text has no client certificates"
        if self.workers > 1 and not self.grpc_port:
            yield f"WORKERS: must be 1 with GRPC_PORT 0, but is {self.workers}: each worker would get a different port"

    def start_faults(self) -> Iterator[str]:
        yield from super().start_faults()
        if not (self.tls_cert_path or self.insecure or is_loopback(self.listen_host)):
            yield (
                f"LISTEN_HOST: other machines reach {self.listen_host!r}, so TLS_CERT_PATH and TLS_KEY_PATH must be "
                "set; INSECURE=true allows plain text"
            )
        yield from self.server_certificate_files.faults()


_Settings = TypeVar("_Settings", bound=Settings)


class WrongSettings(Exception):
    """Settings are invalid. Each error is one line that begins with the name of a setting."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("these settings are wrong: " + "; ".join(errors))
        self.errors = errors


def load(settings: type[_Settings]) -> _Settings:
    """Read the settings. If some are invalid, print one line for each and exit with code 2."""
    try:
        return read(settings)
    except WrongSettings as error:
        raise refusal(error.errors) from None


def read(settings: type[_Settings]) -> _Settings:
    """Read the settings. Raises WrongSettings, which lists all that are invalid."""
    try:
        loaded = settings()
    except ValidationError as error:
        raise WrongSettings(_errors(settings, error)) from None
    # Combinations can be checked only if each value is valid.
    if contradictions := list(loaded.contradictions()):
        raise WrongSettings(contradictions)
    return loaded


def help_text(settings: type[Settings]) -> str:
    """Return the description of each setting with its default, for `--help`."""
    entries = []
    for name, field in sorted(settings.model_fields.items()):
        if _marked(field, INTERNAL):
            continue
        description = textwrap.wrap(field.description or "", 72)
        entries.append("\n".join([f"  {name.upper()}{_default(field)}", *(f"      {line}" for line in description)]))
    title = (
        "settings, read from environment variables: NAME, or NAME_FILE with the path of a file that contains the value"
    )
    return "\n".join([*textwrap.wrap(title, 76), *entries])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return " (required)"
    if field.default is None:
        return ""
    return f" = {str(field.default).lower() if isinstance(field.default, bool) else field.default}"


def refusal(errors: list[str]) -> SystemExit:
    """Print the errors, and return the exception that exits with code 2."""
    lines = ["These settings are wrong; correct them in the environment, or see --help:", *errors]
    sys.stderr.write("\n  ".join(lines) + "\n")
    return SystemExit(WRONG_SETTINGS_EXIT_CODE)


def _errors(settings: type[Settings], error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors():
        name = str(fault["loc"][0])
        if fault["type"] == "missing":
            lines.append(f"{name.upper()}: is required and not set")
        elif fault["type"] == _FILE_FAULT:
            lines.append(f"{name.upper()}_FILE: {fault['msg']}")
        else:
            secret = _marked(settings.model_fields[name], SECRET) or isinstance(fault["input"], _FileContent)
            value = " (value not shown)" if secret else f", but is {fault['input']!r}"
            lines.append(f"{name.upper()}: {_rule(fault['msg'])}{value}")
    return lines


def _rule(message: str) -> str:
    """Reword a message of pydantic: `Input should be a valid integer, unable to …` to `must be a valid integer`."""
    message = message.removeprefix("Value error, ").partition(", unable to ")[0]
    return message.replace("Input should", "must", 1)


def _marked(field: FieldInfo, mark: dict[str, JsonValue]) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and all(extra.get(key) == value for key, value in mark.items())
