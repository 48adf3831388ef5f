"""The real Jaeger, in a container: takes spans by OTLP, and answers as it answers Grafana."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Self
from uuid import uuid4

from devstack import watchdog
from devstack.ports import free_ports
from shopctl.system import docker
from tests.observability.prometheus import REQUEST_SECONDS, wait_for

IMAGE = "jaegertracing/jaeger:2.13.0"
START_SECONDS = 120


class Jaeger:
    """Entering starts it; leaving removes it and its traces."""

    def __init__(self) -> None:
        self._name = f"shop-test-jaeger-{uuid4().hex[:8]}"
        self._otlp_port, self._query_port = free_ports(2)

    def __enter__(self) -> Self:
        watchdog.run(self._name, ["docker", "rm", "--force", "--volumes", self._name])
        ports = [f"127.0.0.1:{self._otlp_port}:4317", f"127.0.0.1:{self._query_port}:16686"]
        published = [word for port in ports for word in ("--publish", port)]
        # Else it may take spans from its own container only.
        listen = ["--env", "JAEGER_LISTEN_HOST=0.0.0.0"]
        docker.run("run", "--detach", "--name", self._name, *published, *listen, IMAGE)
        try:
            wait_for("Jaeger answers", self._answers, START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        docker.run("rm", "--force", "--volumes", self._name)
        watchdog.forget(self._name)

    @property
    def endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self._otlp_port}"

    def has(self, trace_id: str) -> bool:
        """Whether it knows the trace."""
        try:
            return bool(self._ask(f"traces/{trace_id}"))
        except urllib.error.HTTPError as refusal:
            if refusal.code == 404:
                return False
            raise

    def trace(self, trace_id: str) -> dict[str, Any]:
        """All that it knows of the trace, as its API has it."""
        (found,) = self._ask(f"traces/{trace_id}")
        return dict(found)

    def search(
        self, service: str, operation: str, tags: dict[str, str], *, since: float | None = None
    ) -> list[dict[str, Any]]:
        """Traces of the last minutes, or since a moment, as Grafana's data source asks for them."""
        end = int(time.time() * 1_000_000)
        question = {
            "service": service,
            "operation": operation,
            "tags": json.dumps(tags),
            "start": end - 600_000_000 if since is None else int(since * 1_000_000),
            "end": end,
            "limit": 20,
        }
        found: list[dict[str, Any]] = self._ask(f"traces?{urllib.parse.urlencode(question)}")
        return found

    def _answers(self) -> bool:
        try:
            self._ask("services")
        except OSError:
            return False
        return True

    def _ask(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self._query_port}/api/{path}"
        with urllib.request.urlopen(url, timeout=REQUEST_SECONDS) as answer:
            return json.load(answer)["data"]
