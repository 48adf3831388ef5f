"""The panels of deploy/grafana, and how Grafana fills in their queries and links."""

import json
import re
import urllib.parse
from typing import Any

from tests.observability.prometheus import ROOT

Json = dict[str, Any]


def panels() -> list[Json]:
    """The panels of all dashboards."""
    dashboards = [json.loads(path.read_text()) for path in sorted((ROOT / "deploy/grafana/dashboards").iterdir())]
    return [panel for dashboard in dashboards for panel in dashboard["panels"] if panel["type"] != "row"]


def targets() -> list[Json]:
    """The Prometheus queries of all panels."""
    return [target for panel in panels() for target in panel["targets"]]


def query_of(target: Json) -> str:
    """The query of a panel with Grafana's rate interval set to 10 s, which is ten scrapes."""
    return str(target["expr"]).replace("$__rate_interval", "10s")


def search_of(url: str) -> Json:
    """The Jaeger search that a link opens."""
    (panes,) = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["panes"]
    (search,) = json.loads(panes)["t"]["queries"]
    return dict(search)


def filled(text: str, series: Json) -> str:
    """Replace the labels in a link by those of a series, as Grafana does."""
    return re.sub(r"\$\{__field\.labels\.(\w+):percentencode\}", lambda found: series["metric"][found[1]], text)


def tags_of(logfmt: str) -> dict[str, str]:
    """Parse tags as Grafana does before it calls Jaeger."""
    return dict(part.split("=", 1) for part in logfmt.split())
