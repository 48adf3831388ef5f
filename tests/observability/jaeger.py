"""A real Jaeger in a container, with the API that Grafana calls."""

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
    """A running Jaeger. Entering starts it; leaving removes it with its traces."""

    def __init__(self) -> None:
        self._name = f"shop-test-jaeger-{uuid4().hex[:8]}"
        self._otlp_port, self._query_port = free_ports(2)

    def __enter__(self) -> Self:
        watchdog.run(self._name, ["docker", "rm", "--force", "--volumes", self._name])
        ports = [f"127.0.0.1:{self._otlp_port}:4317", f"127.0.0.1:{self._query_port}:16686"]
        published = [option for port in ports for option in ("--publish", port)]
        # Its default is loopback, where only its own container could send spans.
        listen = ["--env", "JAEGER_LISTEN_HOST=0.0.0.0"]
        docker.run("run", "--detach", "--name", self._name, *published, *listen, IMAGE)
        try:
            wait_for("Jaeger responds", self._responds, START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        docker.run("rm", "--force", "--volumes", self._name)
        watchdog.forget(self._name)

    @property
    def endpoint(self) -> str:
        """The value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self._otlp_port}"

    def has(self, trace_id: str) -> bool:
        """True if Jaeger has at least one span of the trace."""
        try:
            return bool(self._get(f"traces/{trace_id}"))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise

    def trace(self, trace_id: str) -> dict[str, Any]:
        """The trace so far, as Jaeger's API returns it."""
        (trace,) = self._get(f"traces/{trace_id}")
        return dict(trace)

    def search(
        self, service: str, operation: str, tags: dict[str, str], *, since: float | None = None
    ) -> list[dict[str, Any]]:
        """The traces of the last ten minutes, or since a Unix time, from the endpoint that Grafana calls."""
        end = int(time.time() * 1_000_000)
        parameters = {
            "service": service,
            "operation": operation,
            "tags": json.dumps(tags),
            "start": end - 600_000_000 if since is None else int(since * 1_000_000),
            "end": end,
            "limit": 20,
        }
        traces: list[dict[str, Any]] = self._get(f"traces?{urllib.parse.urlencode(parameters)}")
        return traces

    def _responds(self) -> bool:
        try:
            self._get("services")
        except OSError:
            return False
        return True

    def _get(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self._query_port}/api/{path}"
        with urllib.request.urlopen(url, timeout=REQUEST_SECONDS) as response:
            return json.load(response)["data"]
