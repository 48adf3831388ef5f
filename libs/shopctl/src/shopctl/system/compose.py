"""The system in containers: what `docker compose` runs of the docker-compose.yml here, and where it listens.

Docker itself is asked each time: there is no file of ours that could be out of date.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shopctl.system import docker
from shopctl.system.layout import INVENTORY_API, ORDER_API, REAPER, RELAY, Databases
from shopctl.system.runfile import NotRunning
from shopctl.terminal.failures import CommandFailed

FILE = Path("docker-compose.yml")

_ANSWER_SECONDS = 60
_PROCESSES = [INVENTORY_API, ORDER_API, REAPER, RELAY]
# Where each is published: by which container, from which port inside it. Outside, the port is the user's choice.
_PUBLISHED = {
    INVENTORY_API: ("gateway", 50053),
    ORDER_API: ("gateway", 50054),
    "kafka": ("kafka", 9093),
    "postgres": ("postgres", 5432),
    "grafana": ("grafana", 3000),
    "prometheus": ("prometheus", 9090),
    "jaeger": ("jaeger", 16686),
}


@dataclass(frozen=True)
class Container:
    """One container, stopped ones included. `published` is inner port → port on this machine."""

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
        """What its process says of itself, by the image's own probe; EXITED and the like when there is none."""
        if not self.runs:
            return self.state.upper()
        probe = f'exec python -m shop_common.process.probe "localhost:$HEALTH_PORT" --service "{service}"'
        said = _run(["docker", "exec", self.name, "sh", "-c", probe])
        # The status comes first, its reason after a colon.
        return said.stdout.partition(":")[0].strip() or "UNAVAILABLE"


@dataclass(frozen=True)
class Containers:
    """All containers of the project, of which at least one runs."""

    all: tuple[Container, ...]

    @property
    def processes(self) -> list[Container]:
        """Those of the four deployables, each replica."""
        return [one for service in _PROCESSES for one in self.all if one.service == service]

    @property
    def apis(self) -> tuple[str, str]:
        """The addresses of inventory-api and order-api. Raises NotRunning."""
        return self.address(INVENTORY_API), self.address(ORDER_API)

    @property
    def bootstrap(self) -> str:
        """The broker. Raises NotRunning."""
        return self.address("kafka")

    @property
    def databases(self) -> Databases:
        """With the passwords that were made at the first start. Raises NotRunning or CommandFailed."""
        server = self.address("postgres")
        files = [f"/run/secrets/{name}/password" for name in ("inventory", "orders")]
        # A container of its own, so that it makes no difference which of the others run.
        asked = call("run", "--rm", "--no-deps", "--no-TTY", "--entrypoint", "cat", "secrets", *files)
        inventory, orders = asked.split()
        return Databases(
            f"postgresql+psycopg://inventory:{inventory}@{server}/inventory",
            f"postgresql+psycopg://orders:{orders}@{server}/orders",
        )

    def address(self, name: str) -> str:
        """Where `name` (an API, `kafka`, `postgres`) is reached from this machine. Raises NotRunning."""
        service, port = _PUBLISHED[name]
        for one in self.all:
            if one.service == service and port in one.published:
                return f"127.0.0.1:{one.published[port]}"
        raise NotRunning(f"the container {service} does not run; ./task docker-run starts what is missing")

    @classmethod
    def of(cls, listed: str) -> Self:
        """From what `docker compose ps --format json` writes: an object a line."""
        found = [_container(json.loads(line)) for line in listed.splitlines()]
        return cls(tuple(sorted(found, key=lambda one: one.name)))


def running() -> Containers | None:
    """What runs of the file here; None where there is no such file, no Docker, or nothing of it runs."""
    if not is_here() or docker.engine() is None:
        return None
    listed = _run(["docker", "compose", "ps", "--all", "--format", "json"])
    containers = Containers.of(listed.stdout) if listed.returncode == 0 else Containers(())
    return containers if any(one.runs for one in containers.all) else None


def is_here() -> bool:
    """Whether there is a file for `docker compose`, in this folder or as its own variable says."""
    return FILE.is_file() or "COMPOSE_FILE" in os.environ


def call(*arguments: str) -> str:
    """What `docker compose` answers. Raises CommandFailed."""
    require()
    done = _run(["docker", "compose", *arguments])
    if done.returncode != 0:
        raise CommandFailed(f"docker compose {arguments[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def show(*arguments: str, profiles: Sequence[str] = ()) -> None:
    """Let `docker compose` do something that takes its time, its progress on the terminal. Raises CommandFailed.

    With the services of these profiles (`*` is all), too.
    """
    require()
    revision = {"SHOP_REVISION": _revision()} if "SHOP_REVISION" not in os.environ else {}
    with_profiles = {"COMPOSE_PROFILES": ",".join(profiles)} if profiles else {}
    done = subprocess.run(["docker", "compose", *arguments], env=os.environ | revision | with_profiles, check=False)
    if done.returncode != 0:
        more = "`docker compose ps --all` and `docker compose logs` say more"
        raise CommandFailed(f"docker compose {arguments[0]} failed, see above; {more}")


def image_sizes() -> dict[str, int]:
    """Of the images that are built here: name with tag → bytes. Raises CommandFailed."""
    services = json.loads(call("config", "--format", "json"))["services"].values()
    names = sorted(service["image"] for service in services if "build" in service)
    asked = _run(["docker", "image", "inspect", "--format", "{{.Size}}", *names])
    return dict(zip(names, map(int, asked.stdout.split()), strict=True))


def require() -> None:
    """Raises CommandFailed where containers can't run at all."""
    instead = "; ./task dev runs everything without it"
    if shutil.which("docker") is None:
        raise CommandFailed(f"Docker is not installed here{instead}")
    if docker.engine() is None:
        raise CommandFailed(f"Docker does not answer; start it, and see what `docker version` says{instead}")
    if _run(["docker", "compose", "version"]).returncode != 0:
        raise CommandFailed("this Docker has no compose; install its plugin docker-compose-plugin")


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
        asked = _run(["git", "rev-parse", "HEAD"])
    except FileNotFoundError:
        return "unknown"
    return asked.stdout.strip() or "unknown"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
    )
