"""The driver of these tests: runs docker-compose.yml as a user does, with its own project name, image tag and ports."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from devstack import watchdog
from devstack.ports import free_ports
from shopctl.system import docker
from testkit import tasks
from testkit.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"

REPLICAS = {"inventory-api": 3, "order-api": 3, "reservation-reaper": 1, "event-relay": 2}
SERVICES = [*REPLICAS, "gateway", "postgres", "kafka"]

# Long enough to build every image on a busy machine.
UP_SECONDS = 600
COMMAND_SECONDS = 120


class Composition:
    """A running composition. Entering starts everything; leaving removes containers, volumes and images."""

    def __init__(self, folder: Path) -> None:
        self.name = f"shop-test-{uuid4().hex[:8]}"
        self._folder = folder
        self._environment = os.environ | {
            "COMPOSE_FILE": str(FILE),
            "COMPOSE_PROJECT_NAME": self.name,
            "SHOP_VERSION": self.name,
        }

    def __enter__(self) -> Self:
        watchdog.run(
            self.name, ["docker", "compose", "--project-name", self.name, "--profile", "*", "down", "--volumes"]
        )
        try:
            self.compose("build", seconds=UP_SECONDS)
            # Choose the ports after the build. It takes long, and other tests could take the free ports in the
            # meantime.
            self.inventory_port, self.orders_port, self.postgres_port, self.kafka_port, *others = free_ports(7)
            self.prometheus_port, self.jaeger_port, self.console_port = others
            self._environment |= {
                "SHOP_INVENTORY_PORT": str(self.inventory_port),
                "SHOP_ORDERS_PORT": str(self.orders_port),
                "SHOP_POSTGRES_PORT": str(self.postgres_port),
                "SHOP_KAFKA_PORT": str(self.kafka_port),
                "SHOP_PROMETHEUS_PORT": str(self.prometheus_port),
                "SHOP_JAEGER_PORT": str(self.jaeger_port),
                "SHOP_CONSOLE_PORT": str(self.console_port),
            }
            self.up()
        except BaseException:
            print(self.compose("logs", "--tail", "30", check=False))
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def up(self) -> None:
        """Start every replica that does not run, and wait until all are healthy."""
        eventually(self._is_up, within_seconds=UP_SECONDS, describe=lambda: self.compose("ps", "--all", check=False))

    def _is_up(self) -> bool:
        scale = [option for service, count in REPLICAS.items() for option in ("--scale", f"{service}={count}")]
        try:
            self.compose("up", "--wait", *scale, seconds=UP_SECONDS)
        except AssertionError as failure:
            # A process that kept running is unhealthy for a moment if all replicas that it calls were replaced.
            if "is unhealthy" not in str(failure):
                raise
            return False
        return True

    def compose(self, *arguments: str, check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
        """Run `docker compose`. Returns its output; fails with all of it unless `check` is False."""
        return self._run(["docker", "compose", *arguments], check, seconds)

    def task(self, *arguments: str, check: bool = True) -> str:
        """Run the command of a task in this composition's folder. Returns its output."""
        package = tasks.package_of(arguments[0])
        return self._run([sys.executable, "-m", package, *arguments], check, COMMAND_SECONDS)

    def calling_inside(self, *words: str, **environment: str) -> str:
        """Run a command of shopctl as the workload `load`, inside the network, with changed settings.

        Returns its output, also that of a failure.
        """
        changed = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
        command = ["docker", "compose", "run", "--rm", "--no-deps", "--no-TTY", *changed, "load", *words]
        return self._run(command, check=False, seconds=COMMAND_SECONDS, with_errors=True)

    def secret(self, name: str) -> str:
        """The content of a file that the service `secrets` has made."""
        path = f"/run/secrets/authority/{name}"
        return self.compose("run", "--rm", "--no-deps", "--no-TTY", "--entrypoint", "cat", "secrets", path).strip()

    def setting(self, **environment: str) -> None:
        """Set variables of the compose file for later commands."""
        self._environment |= environment

    def containers(self) -> list[dict[str, Any]]:
        """`docker inspect` of all long-running containers, stopped ones included."""
        ids = self.compose("ps", "--all", "--quiet", *SERVICES).split()
        containers: list[dict[str, Any]] = json.loads(docker.run("inspect", *ids))
        return containers

    def of(self, service: str) -> list[str]:
        """The names of the service's containers."""
        return sorted(one["Name"].lstrip("/") for one in self.containers() if service_of(one) == service)

    def health(self) -> dict[str, str]:
        """Replica → its readiness: SERVING, EXITED, …"""
        health = json.loads(self.task("health", "--json", check=False))
        return {one["name"]: one["ready"] for one in health["processes"]}

    def all_serve(self) -> bool:
        return list(self.health().values()) == ["SERVING"] * sum(REPLICAS.values())

    def _remove(self) -> None:
        self._environment["COMPOSE_PROFILES"] = "*"
        built = json.loads(self.compose("config", "--format", "json"))["services"].values()
        self.compose("down", "--volumes", "--timeout", "1", check=False)
        docker.run(
            "image", "rm", "--force", *{service["image"] for service in built if "build" in service}, check=False
        )
        watchdog.forget(self.name)

    def _run(self, command: Sequence[str], check: bool, seconds: float, *, with_errors: bool = False) -> str:
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        output = f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0 or not check, output
        return done.stdout + done.stderr if with_errors else done.stdout


def service_of(container: dict[str, Any]) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])
