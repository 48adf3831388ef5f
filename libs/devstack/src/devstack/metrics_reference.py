"""docs/metrics.md, made from the metrics as they are declared in the code.

    python -m devstack.metrics_reference generate
    python -m devstack.metrics_reference check       # does the file say what the code says?

Part of ./task lint.
"""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from shop_common import metrics
from shop_common.metrics import Declaration

FILE = Path("docs/metrics.md")

PACKAGES = {
    "shop_common": "What several processes have in common",
    "inventory_api": "inventory-api",
    "order_api": "order-api",
    "event_relay": "event-relay",
    "reservation_reaper": "reservation-reaper",
}

_INTRODUCTION = """\
# Metrics

Made by `python -m devstack.metrics_reference generate` from the declarations in the code; do not edit.

Every process answers Prometheus at `http://HOST:METRICS_PORT/metrics`; with `METRICS_PORT` unset there are none. With
`WORKERS` > 1 the port is the parent's, and what it shows is of all workers together. Durations are in seconds. The
histograms of calls carry exemplars with `trace_id` in the OpenMetrics format (not with `WORKERS` > 1). Labels have few
values: an id is never one. A metric appears when it is first counted. Besides these there are `process_*` and
`python_*` of the Prometheus client.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, or compare it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m devstack.metrics_reference", description=__doc__)
    parser.add_argument("action", choices=["generate", "check"])
    action = parser.parse_args(argv).action
    wanted = "\n".join(reference())
    if action == "generate":
        FILE.write_text(wanted)
        return 0
    if not FILE.is_file() or FILE.read_text() != wanted:
        sys.stderr.write(f"{FILE} is not what the code declares: run `python -m devstack.metrics_reference generate`\n")
        return 1
    return 0


def reference() -> Iterator[str]:
    """The lines of the file."""
    yield _INTRODUCTION
    found = declarations()
    for package, title in PACKAGES.items():
        own = [one for one in found if one.module.partition(".")[0] == package]
        if not own:
            continue
        yield f"## {title}\n"
        yield "| metric | type | labels | meaning |"
        yield "|---|---|---|---|"
        for one in sorted(own, key=lambda one: one.name):
            labels = ", ".join(f"`{label}`" for label in one.labels)
            yield f"| `{one.name}` | {one.kind} | {labels} | {one.meaning} |"
        yield ""


def declarations() -> Sequence[Declaration]:
    """All metrics of the four deployables."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not _runs_by_itself(module.name):
                importlib.import_module(module.name)
    return [one for one in metrics.declared() if one.module.partition(".")[0] in PACKAGES]


def _runs_by_itself(module: str) -> bool:
    return module.endswith("__main__") or ".migrations" in module


if __name__ == "__main__":
    raise SystemExit(main())
