"""The system in containers: the containers of the local docker-compose.yml and their addresses.

The state is read from Docker each time. A file with the state could be out of date.
"""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from sqlalchemy import URL

from shop_common.events.kafka_connection import KafkaConnection, Login, SaslMechanism, SecurityProtocol
from shopctl.system import docker, private_file
from shopctl.system.layout import CONSOLE, INVENTORY_API, ORDER_API, REAPER, RELAY, Databases
from shopctl.system.runfile import NotRunning
from shopctl.terminal.failures import CommandFailed

FILE = Path("docker-compose.yml")

CA_FILE = Path("run/containers/ca.crt")
"""A copy of the CA's certificate. The clients of PostgreSQL and Kafka read it from a file."""

_KAFKA_USER = "shopctl"

_COMMAND_SECONDS = 60
_PROCESSES = [INVENTORY_API, ORDER_API, REAPER, RELAY]
# The container and the inner port that publish each service. The user chooses the outer port.
_PUBLISHED = {
    INVENTORY_API: ("gateway", 50053),
    ORDER_API: ("gateway", 50054),
    "kafka": ("kafka", 9093),
    "postgres": ("postgres", 5432),
    CONSOLE: (CONSOLE, 50080),
    "grafana": ("grafana", 3000),
    "prometheus": ("prometheus", 9090),
    "jaeger": ("jaeger", 16686),
}


@dataclass(frozen=True)
class Container:
    """One container, running or stopped. `published` maps its inner ports to ports on this machine."""

    name: str
    service: str
    state: str
    image: str
    published: Mapping[int, int]

    @property
    def runs(self) -> bool:
        return self.state == "running"

    @property
    def version(self) -> str:
        return self.image.rpartition(":")[2]

    def health(self, service: str = "") -> str:
        """Return the health status from the image's probe, or the state of a stopped container, such as EXITED."""
        if not self.runs:
            return self.state.upper()
        probe = f'exec python -m shop_common.process.probe "localhost:$HEALTH_PORT" --service "{service}"'
        probed = _run(["docker", "exec", self.name, "sh", "-c", probe])
        # The probe prints the status, a colon and the reason.
        return probed.stdout.partition(":")[0].strip() or "UNAVAILABLE"


@dataclass(frozen=True)
class Containers:
    """All containers of the project; at least one is running."""

    all: tuple[Container, ...]

    @property
    def processes(self) -> list[Container]:
        """Return the containers of the four deployables, including every replica."""
        return [one for service in _PROCESSES for one in self.all if one.service == service]

    @property
    def apis(self) -> tuple[str, str]:
        """Return the addresses of inventory-api and order-api. Raises NotRunning."""
        return self.address(INVENTORY_API), self.address(ORDER_API)

    @property
    def bootstrap(self) -> str:
        """Return the address of the broker. Raises NotRunning."""
        return self.address("kafka")

    @property
    def kafka(self) -> KafkaConnection:
        """Return a connection to the published port. Raises NotRunning or CommandFailed."""
        if not _kafka_demands_a_login():
            return KafkaConnection(self.bootstrap)
        login = Login(SaslMechanism.SCRAM_SHA_512, _KAFKA_USER, _passwords().kafka)
        return KafkaConnection(self.bootstrap, SecurityProtocol.SASL_SSL, login, ca_path=CA_FILE.absolute())

    @property
    def databases(self) -> Databases:
        """Return the URLs of the roles for people, which only read. Raises NotRunning or CommandFailed."""
        server = self.address("postgres")
        passwords = _passwords()
        return Databases(
            _console_url("inventory", passwords.inventory, server), _console_url("orders", passwords.orders, server)
        )

    def address(self, name: str) -> str:
        """Return the address on this machine of `name`: an API, `kafka`, `postgres`, … Raises NotRunning."""
        service, port = _PUBLISHED[name]
        for one in self.all:
            if one.service == service and port in one.published:
                return f"127.0.0.1:{one.published[port]}"
        raise NotRunning(f"the container {service} is not running; ./task docker-run starts it")

    @classmethod
    def of(cls, listed: str) -> Self:
        """Parse the output of `docker compose ps --format json`: one object per line."""
        found = [_container(json.loads(line)) for line in listed.splitlines()]
        return cls(tuple(sorted(found, key=lambda one: one.name)))


def running() -> Containers | None:
    """Return the containers; None without a compose file, without Docker, or if no container is running."""
    if not is_here() or docker.engine() is None:
        return None
    listed = _run(["docker", "compose", "ps", "--all", "--format", "json"])
    containers = Containers.of(listed.stdout) if listed.returncode == 0 else Containers(())
    return containers if any(one.runs for one in containers.all) else None


def is_here() -> bool:
    """Return whether there is a compose file, in this folder or named by COMPOSE_FILE."""
    return FILE.is_file() or "COMPOSE_FILE" in os.environ


def call(*arguments: str) -> str:
    """Run `docker compose` and return its output. Raises CommandFailed."""
    require()
    done = _run(["docker", "compose", *arguments])
    if done.returncode != 0:
        raise CommandFailed(f"docker compose {arguments[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def show(*arguments: str, profiles: Sequence[str] = ()) -> None:
    """Run `docker compose` with its output on the terminal. `profiles` are activated; `*` means all.

    Raises CommandFailed.
    """
    require()
    revision = {"SHOP_REVISION": _revision()} if "SHOP_REVISION" not in os.environ else {}
    with_profiles = {"COMPOSE_PROFILES": ",".join(profiles)} if profiles else {}
    done = subprocess.run(["docker", "compose", *arguments], env=os.environ | revision | with_profiles, check=False)
    if done.returncode != 0:
        more = "for details, run `docker compose ps --all` and `docker compose logs`"
        raise CommandFailed(f"docker compose {arguments[0]} failed, see above; {more}")


def image_sizes() -> dict[str, int]:
    """Return the size in bytes of each image that we build, by name and tag. Raises CommandFailed."""
    services = json.loads(call("config", "--format", "json"))["services"].values()
    names = sorted(service["image"] for service in services if "build" in service)
    inspected = _run(["docker", "image", "inspect", "--format", "{{.Size}}", *names])
    return dict(zip(names, map(int, inspected.stdout.split()), strict=True))


def require() -> None:
    """Raise CommandFailed if containers cannot run on this machine."""
    instead = "; ./task dev runs everything without Docker"
    if shutil.which("docker") is None:
        raise CommandFailed(f"Docker is not installed{instead}")
    if docker.engine() is None:
        raise CommandFailed(f"Docker does not respond; start it and check `docker version`{instead}")
    if _run(["docker", "compose", "version"]).returncode != 0:
        raise CommandFailed("Docker Compose is missing; install the package docker-compose-plugin")


@dataclass(frozen=True)
class _Passwords:
    """The passwords of the roles and the user for operators."""

    inventory: str
    orders: str
    kafka: str


@cache
def _kafka_demands_a_login() -> bool:
    """Return whether SHOP_KAFKA_PROTOCOL, which may be set in the file .env, demands a login at the published port."""
    kafka = json.loads(call("config", "--format", "json"))["services"]["kafka"]
    return "HOST:PLAINTEXT" not in kafka["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"]


_reading = threading.Lock()


def _passwords() -> _Passwords:
    """Return the passwords, and write CA_FILE, which may still be that of an earlier system."""
    # Several threads need the passwords, and reading them takes a second.
    with _reading:
        return _read_passwords()


@cache
def _read_passwords() -> _Passwords:
    names = ("postgres-inventory-console", "postgres-orders-console", f"kafka-{_KAFKA_USER}")
    files = [f"/run/secrets/authority/{name}" for name in (*names, "ca.crt")]
    # Read them in a new container, because the containers that have them may not be running.
    content = call("run", "--rm", "--no-deps", "--no-TTY", "--entrypoint", "cat", "secrets", *files)
    *passwords, certificate = content.split("\n", len(names))
    CA_FILE.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    private_file.replace(CA_FILE, certificate.encode())
    return _Passwords(*passwords)


def _console_url(name: str, password: str, server: str) -> str:
    host, _, port = server.partition(":")
    tls = {"sslmode": "verify-full", "sslrootcert": str(CA_FILE.absolute())}
    url = URL.create("postgresql+psycopg", f"{name}_console", password, host, int(port), name, tls)
    return url.render_as_string(hide_password=False)


def _container(listed: dict[str, object]) -> Container:
    publishers = listed["Publishers"] or []
    assert isinstance(publishers, list)
    return Container(
        name=str(listed["Name"]),
        service=str(listed["Service"]),
        state=str(listed["State"]),
        image=str(listed["Image"]),
        published={one["TargetPort"]: one["PublishedPort"] for one in publishers if one["PublishedPort"]},
    )


def _revision() -> str:
    try:
        revision = _run(["git", "rev-parse", "HEAD"])
    except FileNotFoundError:
        return "unknown"
    return revision.stdout.strip() or "unknown"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
    )
