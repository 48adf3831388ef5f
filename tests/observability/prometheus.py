"""The real Prometheus, in a container on this machine's own network, and its promtool."""

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
    """Entering starts it on the configuration in a folder; leaving removes it."""

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
        """The series that the expression gives now, those without a number left out."""
        series: list[Json] = self._ask("query", query=expr)["result"]
        return [one for one in series if one["value"][1] != "NaN"]

    def exemplars(self, expr: str) -> list[Json]:
        """The exemplars of the last minutes behind the expression's series."""
        now = time.time()
        found: list[Json] = self._ask("query_exemplars", query=expr, start=now - 600, end=now)
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def names(self) -> set[str]:
        """Of all metrics that were ever scraped."""
        return set(self._ask("label/__name__/values"))

    def targets(self) -> dict[str, str]:
        """The health of each job's target: up, down or unknown."""
        return {one["labels"]["job"]: one["health"] for one in self._ask("targets")["activeTargets"]}

    def rules(self) -> list[Json]:
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[tuple[str, str]]:
        """Each alert that fires, with the job, the database or the task that it fires for."""
        alerts = [one["labels"] for one in self._ask("alerts")["alerts"] if one["state"] == "firing"]
        return {
            (labels["alertname"], labels.get("job") or labels.get("database") or labels.get("task", ""))
            for labels in alerts
        }

    def _ask(self, path: str, **parameters: object) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=REQUEST_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as refusal:
            raise AssertionError(f"{path} {parameters}: {refusal.read().decode()}") from refusal

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
    """What it prints about deploy/prometheus. Raises AssertionError when it is not content."""
    name = f"shop-test-promtool-{uuid4().hex[:8]}"
    docker.run("create", "--name", name, "--entrypoint", "promtool", "--workdir", FOLDER, IMAGE, *arguments)
    try:
        docker.run("cp", f"{DEPLOYED}/.", f"{name}:{FOLDER}")
        return docker.run("start", "--attach", name, errors_too=True)
    finally:
        docker.run("rm", "--force", name)


def configure(
    folder: Path, ports: Mapping[str, int], *, quicker: int = 1, lower: Mapping[str, str] | None = None
) -> None:
    """Write what is in deploy/prometheus for processes of this machine, which are scraped each second.

    `quicker` divides every duration of the rules: 60 makes a minute a second. `lower` replaces thresholds, each of
    which must be there.
    """
    config: Json = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]
    (folder / "rules").mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for path in (DEPLOYED / "rules").iterdir():
        text = path.read_text()
        for before, after in (lower or {}).items():
            if path.name == "alerts.yml":
                assert text.count(before) == 1, f"{before!r} is not a threshold of one alert"
            text = text.replace(before, after)
        content: Json = yaml.safe_load(text)
        for rule in (rule for group in content["groups"] for rule in group["rules"]):
            rule["expr"] = _quicker_expr(rule["expr"], quicker)
            if "for" in rule:
                rule["for"] = _quicker(rule["for"], quicker)
        (folder / "rules" / path.name).write_text(yaml.safe_dump(content))


def wait_for(what: str, condition: Any, within_seconds: float) -> None:
    """Poll until it holds. Raises AssertionError."""
    eventually(condition, within_seconds, lambda: what)


def metrics_in(expressions: Iterable[str]) -> set[str]:
    """The names of our own metrics in them."""
    return {name for expr in expressions for name in re.findall(r"\b(?:shop|rpc|db)_[a-z_]+(?=[\[{ )]|$)", expr)}


def _quicker_expr(expr: str, times: int) -> str:
    ranges = re.compile(r"(?<=\[)\d+[smhd](?::\d+[smhd])?(?=\])|(?<=offset )\d+[smhd]")
    return ranges.sub(lambda found: ":".join(_quicker(part, times) for part in found[0].split(":")), expr)


def _quicker(duration: str, times: int) -> str:
    number, unit = int(duration[:-1]), duration[-1]
    return f"{number * {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}[unit] * 1000 // times}ms"
