"""The settings that processes have in common: ports, addresses, logs, traces, TLS, and the limits of an API.

The settings class of a service inherits from the classes that it needs, and declares its own defaults:

    class InventorySettings(ApiSettings, DatabaseSettings, KafkaSettings):
        grpc_port: GrpcPort = 50053
"""

import os
import re
from collections.abc import Iterator
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shop_common.environment import otel_settings
from shop_common.environment.certificates import CertificateFiles
from shop_common.environment.listen import is_loopback
from shop_common.environment.settings import INTERNAL, Settings

PORT_MAX = 65_535
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
    """The settings of a process that calls an API. A subclass whose process may call none overrides `calls_apis`."""

    tls_ca_path: Path | None = Field(
        default=None, description="file with the CAs of the APIs that this process calls; when set, calls use TLS"
    )

    @property
    def calls_apis(self) -> bool:
        return True

    @property
    def client_certificate_files(self) -> CertificateFiles:
        return CertificateFiles(self.tls_cert_path, self.tls_key_path, self.tls_ca_path, "TLS_CA_PATH")

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.calls_apis and self.tls_cert_path and not self.tls_ca_path:
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
