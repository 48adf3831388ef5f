"""docs/metrics.md, made from the metrics as they are declared in the code.

    python -m devstack.tools.metrics_reference generate
    python -m devstack.tools.metrics_reference check       # does the file say what the code says?

Part of ./task lint.
"""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shop_common.telemetry import metrics
from shop_common.telemetry.metrics import Declaration
from shopctl.system.layout import INVENTORY_API, ORDER_API, REAPER, RELAY

FILE = Path("docs/metrics.md")

_APIS = (INVENTORY_API, ORDER_API)

# Who has what is declared there: a package of one process, or a module of what they share.
PROCESSES = {
    "inventory_api": (INVENTORY_API,),
    "order_api": (ORDER_API,),
    "event_relay": (RELAY,),
    "reservation_reaper": (REAPER,),
    "shop_common.batching.coalescer_telemetry": _APIS,
    "shop_common.events.consumer_metrics": _APIS,
    "shop_common.db.database": (*_APIS, RELAY),
    "shop_common.rpc.client": (ORDER_API, REAPER),
    "shop_common.rpc.method": _APIS,
    "shop_common.identity.key_set": _APIS,
    "shop_common.rpc.health": (*_APIS, RELAY, REAPER),
    "shop_common.telemetry.logs": (*_APIS, RELAY, REAPER),
    "shop_common.events.outbox": _APIS,
}

_INTRODUCTION = """\
# Metrics

Made by `python -m devstack.tools.metrics_reference generate` from the declarations in the code; do not edit.

Every process answers Prometheus at `http://HOST:METRICS_PORT/metrics`; with `METRICS_PORT` unset there are none. With
`WORKERS` > 1 the port is the parent's, and what it shows is of all workers together. Durations are in seconds. The
histograms of calls carry exemplars with `trace_id` in the OpenMetrics format. Labels have few values: an id is never
one. A metric appears when it is first counted. Besides these there are `process_*` and `python_*` of the Prometheus
client. Exemplars and these are missing with `WORKERS` > 1.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, or compare it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m devstack.tools.metrics_reference", description=__doc__)
    parser.add_argument("action", choices=["generate", "check"])
    action = parser.parse_args(argv).action
    wanted = "\n".join(reference())
    if action == "generate":
        FILE.write_text(wanted)
        return 0
    if not FILE.is_file() or FILE.read_text() != wanted:
        sys.stderr.write(
            f"{FILE} is not what the code declares: run `python -m devstack.tools.metrics_reference generate`\n"
        )
        return 1
    return 0


def reference() -> Iterator[str]:
    """The lines of the file."""
    yield _INTRODUCTION
    found = sorted(declarations(), key=lambda one: one.name)
    yield from _section("What several processes have in common", filter(_is_common, found), with_processes=True)
    for process in (INVENTORY_API, ORDER_API, RELAY, REAPER):
        own = [one for one in found if not _is_common(one) and process in processes_of(one)]
        if own:
            yield from _section(process, own, with_processes=False)


def declarations() -> Sequence[Declaration]:
    """All metrics of the four deployables."""
    packages = {module.partition(".")[0] for module in PROCESSES}
    for package in packages:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not _runs_by_itself(module.name):
                importlib.import_module(module.name)
    return [one for one in metrics.declared() if one.module.partition(".")[0] in packages]


def processes_of(declaration: Declaration) -> Sequence[str]:
    """The processes that have it. Raises KeyError for a module that PROCESSES does not name."""
    package = declaration.module.partition(".")[0]
    return PROCESSES[declaration.module if _is_common(declaration) else package]


def _section(title: str, listed: Iterable[Declaration], *, with_processes: bool) -> Iterator[str]:
    columns = ["metric", "type", "labels", *(["processes"] if with_processes else []), "meaning"]
    yield f"## {title}\n"
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for one in listed:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        processes = [", ".join(processes_of(one))] if with_processes else []
        yield f"| {' | '.join([f'`{one.name}`', one.kind, labels, *processes, one.meaning])} |"
    yield ""


def _is_common(declaration: Declaration) -> bool:
    return declaration.module.startswith("shop_common.")


def _runs_by_itself(module: str) -> bool:
    return module.endswith("__main__") or ".migrations" in module


if __name__ == "__main__":
    raise SystemExit(main())
