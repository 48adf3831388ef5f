"""Panels as Grafana reads them: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

Json: TypeAlias = dict[str, Any]

SCHEMA_VERSION = 41  # Grafana 12
COLUMNS = 24
ROW_HEIGHT = 8

_PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
_JAEGER = {"type": "jaeger", "uid": "jaeger"}


@dataclass(frozen=True)
class Query:
    """A PromQL query. `exemplars` shows single calls as points with links to their traces."""

    expr: str
    legend: str
    exemplars: bool = False


@dataclass(frozen=True)
class TracesOf:
    """A search in Jaeger for the traces of a series. Its fields may contain labels of the series."""

    service: str
    operation: str
    tags: str = ""

    def link(self) -> Json:
        """Return a link for the series, with the time range of the panel."""
        search = {
            "refId": "A",
            "datasource": _JAEGER,
            "queryType": "search",
            "service": self.service,
            "operation": self.operation,
            "tags": self.tags,
            "limit": 20,
        }
        panes = {"t": {"datasource": "jaeger", "queries": [search], "range": {"from": "${__from}", "to": "${__to}"}}}
        return {
            "title": "Traces",
            "url": f"/explore?schemaVersion=1&panes={_encoded(json.dumps(panes, separators=(',', ':')))}",
            "targetBlank": True,
        }


@dataclass(frozen=True)
class Panel:
    """A panel. `lines` are thresholds, drawn as horizontal lines."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    width: int
    kind: Literal["timeseries", "stat"] = "timeseries"
    height: int = ROW_HEIGHT
    traces: TracesOf | None = None
    lines: Sequence[float] = ()

    def json(self, number: int, x: int, y: int) -> Json:
        """Return the panel as JSON, at this position of the grid."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": _PROMETHEUS,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [
                {
                    "refId": chr(ord("A") + position),
                    "datasource": _PROMETHEUS,
                    "expr": query.expr,
                    "legendFormat": query.legend,
                    "exemplar": query.exemplars,
                }
                for position, query in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": self._options(),
        }

    def _defaults(self) -> Json:
        defaults: Json = {"unit": self.unit, "min": 0, "links": [self.traces.link()] if self.traces else []}
        steps: list[Json] = [{"color": "green", "value": None}]
        if self.kind == "timeseries":
            defaults["custom"] = {"fillOpacity": 8, "showPoints": "auto", "spanNulls": False}
            if self.lines:
                defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
                steps += [{"color": "red", "value": line} for line in sorted(self.lines)]
        else:
            # A stat counts errors, so any value above 0 is red.
            steps.append({"color": "red", "value": 1})
        return defaults | {"thresholds": {"mode": "absolute", "steps": steps}}

    def _options(self) -> Json:
        if self.kind == "stat":
            return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }


@dataclass(frozen=True)
class Row:
    """Panels under a heading, side by side as far as they fit."""

    title: str
    panels: Sequence[Panel]


def dashboard(uid: str, title: str, rows: Sequence[Row]) -> Json:
    """Return a dashboard as JSON, with its panels laid out in rows."""
    return {
        "uid": uid,
        "title": title,
        "tags": ["shop"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,  # all panels share the cursor's time
        "refresh": "10s",
        "time": {"from": "now-15m", "to": "now"},
        "links": [
            {"type": "dashboards", "title": "Shop", "tags": ["shop"], "includeVars": True, "keepTime": True},
        ],
        "panels": list(_placed(rows)),
    }


def _placed(rows: Sequence[Row]) -> Iterator[Json]:
    number, y = 1, 0
    for row in rows:
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        number, x, y, height = number + 1, 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            yield panel.json(number, x, y)
            number, x, height = number + 1, x + panel.width, max(height, panel.height)
        y += height


def _encoded(text: str) -> str:
    """Encode text for a URL. Grafana's placeholders stay as they are; Grafana encodes their values."""
    parts = re.split(r"(\$\{[^}]+\})", text)
    return "".join(part.replace("}", ":percentencode}") if part.startswith("${") else quote(part) for part in parts)
