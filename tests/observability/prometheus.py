"""A real Prometheus in a container on the host's network, and its promtool."""

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import yaml

from devstack import watchdog
from devstack.ports import free_ports
from shopctl.system import docker
from testkit.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
DEPLOYED = ROOT / "deploy" / "prometheus"
IMAGE = "prom/prometheus:v3.5.0"
FOLDER = "/etc/prometheus"
START_SECONDS = 120
REQUEST_SECONDS = 30
_POLL_SECONDS = 0.2

Json = dict[str, Any]


class Prometheus:
    """A running Prometheus. Entering starts it with the configuration in a folder; leaving removes it."""

    def __init__(self, configuration: Path) -> None:
        self._configuration = configuration
        self._name = f"shop-test-prometheus-{uuid4().hex[:8]}"
        (self._port,) = free_ports(1)

    def __enter__(self) -> Self:
        watchdog.run(self._name, ["docker", "rm", "--force", "--volumes", self._name])
        arguments = [
            f"--config.file={FOLDER}/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            "--enable-feature=exemplar-storage",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        docker.run("create", "--name", self._name, "--network", "host", IMAGE, *arguments)
        try:
            docker.run("cp", f"{self._configuration}/.", f"{self._name}:{FOLDER}")
            docker.run("start", self._name)
            self._wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        docker.run("rm", "--force", "--volumes", self._name)
        watchdog.forget(self._name)

    def query(self, expr: str) -> list[Json]:
        """The series that the expression returns now, without those whose value is NaN."""
        series: list[Json] = self._get("query", query=expr)["result"]
        return [one for one in series if one["value"][1] != "NaN"]

    def exemplars(self, expr: str) -> list[Json]:
        """The exemplars of the expression's series from the last ten minutes."""
        now = time.time()
        results: list[Json] = self._get("query_exemplars", query=expr, start=now - 600, end=now)
        return [exemplar for series in results for exemplar in series["exemplars"]]

    def names(self) -> set[str]:
        """The names of all metrics scraped so far."""
        return set(self._get("label/__name__/values"))

    def targets(self) -> dict[str, str]:
        """The health of each job's target: up, down or unknown."""
        return {one["labels"]["job"]: one["health"] for one in self._get("targets")["activeTargets"]}

    def rules(self) -> list[Json]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[tuple[str, str]]:
        """(alert, label) for each firing alert. The label is its job, its database or its periodic task."""
        alerts = [one["labels"] for one in self._get("alerts")["alerts"] if one["state"] == "firing"]
        return {
            (labels["alertname"], labels.get("job") or labels.get("database") or labels.get("task", ""))
            for labels in alerts
        }

    def _get(self, path: str, **parameters: object) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=REQUEST_SECONDS) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from error

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=REQUEST_SECONDS).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    log = docker.run("logs", "--tail", "20", self._name, errors_too=True)
                    raise TimeoutError(f"Prometheus is not ready: {error}\n{log}") from error
                time.sleep(_POLL_SECONDS)


def promtool(*arguments: str) -> str:
    """Run promtool on deploy/prometheus. Returns its output; raises AssertionError if it fails."""
    name = f"shop-test-promtool-{uuid4().hex[:8]}"
    docker.run("create", "--name", name, "--entrypoint", "promtool", "--workdir", FOLDER, IMAGE, *arguments)
    try:
        docker.run("cp", f"{DEPLOYED}/.", f"{name}:{FOLDER}")
        return docker.run("start", "--attach", name, errors_too=True)
    finally:
        docker.run("rm", "--force", name)


def configure(
    folder: Path, ports: Mapping[str, int], *, speedup: int = 1, thresholds: Mapping[str, str] | None = None
) -> None:
    """Write the configuration of deploy/prometheus, changed to scrape processes on this machine every second.

    All durations in the rules are divided by `speedup`: with 60, a minute becomes a second. `thresholds` replaces texts
    in the alerts: old → new. Each old text must occur exactly once.
    """
    config: Json = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    # The console is optional, and does not run here.
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] in ports]
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]
    (folder / "rules").mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for path in (DEPLOYED / "rules").iterdir():
        text = path.read_text()
        for before, after in (thresholds or {}).items():
            if path.name == "alerts.yml":
                assert text.count(before) == 1, f"{before!r} does not occur exactly once in the alerts"
            text = text.replace(before, after)
        content: Json = yaml.safe_load(text)
        for rule in (rule for group in content["groups"] for rule in group["rules"]):
            rule["expr"] = _shorten_ranges(rule["expr"], speedup)
            if "for" in rule:
                rule["for"] = _shorten(rule["for"], speedup)
        (folder / "rules" / path.name).write_text(yaml.safe_dump(content))


def wait_for(description: str, condition: Any, within_seconds: float) -> None:
    """Wait until the condition is true. Raises AssertionError with the description if it is not in time."""
    eventually(condition, within_seconds, lambda: description)


def metrics_in(expressions: Iterable[str]) -> set[str]:
    """The names of our own metrics in the expressions."""
    return {name for expr in expressions for name in re.findall(r"\b(?:shop|rpc|db)_[a-z_]+(?=[\[{ )]|$)", expr)}


def _shorten_ranges(expr: str, speedup: int) -> str:
    ranges = re.compile(r"(?<=\[)\d+[smhd](?::\d+[smhd])?(?=\])|(?<=offset )\d+[smhd]")
    return ranges.sub(lambda match: ":".join(_shorten(part, speedup) for part in match[0].split(":")), expr)


def _shorten(duration: str, speedup: int) -> str:
    number, unit = int(duration[:-1]), duration[-1]
    return f"{number * {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}[unit] * 1000 // speedup}ms"
