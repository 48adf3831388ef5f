"""The settings of the console."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from shop_client.settings import Settings as ClientSettings
from shop_client.settings import Tls
from shop_common.environment.listen import is_loopback
from shop_common.environment.process_settings import CallerSettings, CommonSettings, HealthPort, Target, addresses
from shop_common.events.kafka_connection import KafkaConnection
from shop_common.events.kafka_settings import KafkaSettings

_PROCESSES = (
    "inventory-api=localhost:50063,order-api=localhost:50064,"
    "reservation-reaper=localhost:50055,event-relay=localhost:50056"
)


@dataclass(frozen=True)
class Watched:
    """A process that the console watches: its address for health checks and, if it has one, for metrics."""

    name: str
    health: str
    metrics: str | None


def _processes(value: str) -> str:
    for part in value.split(","):
        name, equals, found = part.partition("=")
        if not (name and equals):
            raise ValueError("must be NAME=HOST:PORT or NAME=HOST:PORT/HOST:PORT, several separated by commas")
        for address in found.split("/", 1):
            addresses(address)
    return value


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/"):
        raise ValueError("must be https://HOST or http://HOST:PORT")
    return value.rstrip("/")


class ConsoleSettings(CommonSettings, CallerSettings, KafkaSettings):
    """The console's settings."""

    health_port: HealthPort = 50057
    http_port: int = Field(default=50080, ge=0, le=65_535, description="port of the page; 0 lets the system choose")
    inventory_target: Target = Field(default="localhost:50053", description="address of inventory-api")
    order_target: Target = Field(default="localhost:50054", description="address of order-api")
    processes: Annotated[str, AfterValidator(_processes)] = Field(
        default=_PROCESSES,
        description="processes to watch: NAME=HEALTH_ADDRESS, or NAME=HEALTH_ADDRESS/METRICS_ADDRESS, separated by "
        "commas",
    )
    sign_in: bool = Field(
        default=False,
        description="viewers sign in with an API key or a token, which the console sends to the APIs with each call. "
        "Without it, everyone who reaches the page may do everything",
    )
    public_url: Annotated[str, AfterValidator(_url)] | None = Field(
        default=None,
        description="address of the page for browsers, if it is not http://LISTEN_HOST:HTTP_PORT, such as the "
        "https address of a proxy. Required to listen beyond loopback",
    )
    logs_path: Path | None = Field(
        default=None,
        description="file in which dev stores the logs of the processes, to show them. dev sets it. Impossible with "
        "SIGN_IN, because the logs concern all tenants",
    )

    run_file_path: Path | None = Field(
        default=None,
        description="file with the processes of dev, to kill, freeze and restart them. dev sets it. Impossible with "
        "SIGN_IN, because everyone who signs in could do it",
    )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.http_port and self.http_port in (self.health_port, self.metrics_port):
            yield f"HTTP_PORT: must differ from HEALTH_PORT and METRICS_PORT, but is {self.http_port}"
        if self.tls_cert_path and not self.sign_in:
            # Without a token, the APIs would use the identity of the console's own certificate for every viewer.
            yield "SIGN_IN: must be true when TLS_CERT_PATH is set"
        if self.logs_path and self.sign_in:
            yield "LOGS_PATH: must not be set when SIGN_IN is true, because the logs concern all tenants"
        if self.run_file_path and self.sign_in:
            yield "RUN_FILE_PATH: must not be set when SIGN_IN is true, because all viewers could end processes"
        if not is_loopback(self.listen_host):
            if not self.public_url:
                yield f"PUBLIC_URL: must be set, because other machines reach {self.listen_host!r}"
            if not self.sign_in:
                yield f"SIGN_IN: must be true, because other machines reach {self.listen_host!r}"

    @property
    def watched(self) -> list[Watched]:
        """Return the processes of PROCESSES, in their order."""
        found = []
        for part in self.processes.split(","):
            name, _, both = part.partition("=")
            health, _, metrics = both.partition("/")
            found.append(Watched(name, health, metrics or None))
        return found

    @property
    def broker(self) -> KafkaConnection | None:
        """Return the connection to the broker, or None if KAFKA_BOOTSTRAP_SERVERS is not set."""
        return self.kafka if "kafka_bootstrap_servers" in self.model_fields_set else None

    def client(self, token: str) -> ClientSettings:
        """Return the settings of a client that calls the APIs for the owner of this token. An empty token is none."""
        tls = Tls(self.tls_ca_path, self.tls_cert_path, self.tls_key_path) if self.tls_ca_path else None
        return ClientSettings(
            inventory_target=self.inventory_target,
            order_target=self.order_target,
            timeout_seconds=5,
            token=token,
            tls=tls,
        )
