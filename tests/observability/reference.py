"""Reads the metrics of a process from docs/metrics.md and from its metrics endpoint, so that they can be compared."""

import re
import urllib.request
from collections.abc import Mapping

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.observability.prometheus import REQUEST_SECONDS, ROOT

PROCESSES = ("inventory-api", "order-api", "event-relay", "reservation-reaper")

_OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
_OURS = ("shop_", "rpc_", "db_")
_ROW = re.compile(r"\| `(?P<name>\w+)` \| \w+ \| (?P<labels>[^|]*) \|(?: (?P<processes>[a-z, -]+) \|)? [^|]+ \|")


def documented(process: str) -> dict[str, set[str]]:
    """Metric → labels for a process, from docs/metrics.md."""
    found: dict[str, set[str]] = {}
    for section in (ROOT / "docs" / "metrics.md").read_text().split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        for line in body.splitlines()[3:]:
            row = _ROW.fullmatch(line)
            assert row, f"docs/metrics.md: not a row of the table: {line!r}"
            if process in (row["processes"] or title).split(", "):
                found[row["name"]] = set(re.findall(r"`(\w+)`", row["labels"]))
    return found


def scraped(port: int) -> dict[str, list[Mapping[str, str]]]:
    """Metric → labels of each series, for our own metrics, from the process on this metrics port."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": _OPEN_METRICS})
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as response:
        text = response.read().decode()
    families = list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # has no types
    return {
        f"{family.name}_total" if family.type == "counter" else family.name: [
            {label: value for label, value in sample.labels.items() if label != "le"} for sample in family.samples
        ]
        for family in families
        if family.name.startswith(_OURS) and family.samples
    }
