"""The panels of deploy/grafana, and what Grafana makes of them when somebody looks."""

import json
import re
import urllib.parse
from typing import Any

from tests.observability.prometheus import ROOT

Json = dict[str, Any]


def panels() -> list[Json]:
    """Of all dashboards."""
    dashboards = [json.loads(path.read_text()) for path in sorted((ROOT / "deploy/grafana/dashboards").iterdir())]
    return [panel for dashboard in dashboards for panel in dashboard["panels"] if panel["type"] != "row"]


def targets() -> list[Json]:
    """Every question to Prometheus."""
    return [target for panel in panels() for target in panel["targets"]]


def as_grafana_asks(target: Json) -> str:
    """Over ten scrapes."""
    return str(target["expr"]).replace("$__rate_interval", "10s")


def search_of(url: str) -> Json:
    """The search in Jaeger that a link opens."""
    (panes,) = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["panes"]
    (search,) = json.loads(panes)["t"]["queries"]
    return dict(search)


def filled(text: str, series: Json) -> str:
    """As Grafana puts the labels of a series into its links."""
    return re.sub(r"\$\{__field\.labels\.(\w+):percentencode\}", lambda found: series["metric"][found[1]], text)


def tags_of(logfmt: str) -> dict[str, str]:
    """As Grafana hands them to Jaeger."""
    return dict(part.split("=", 1) for part in logfmt.split())
