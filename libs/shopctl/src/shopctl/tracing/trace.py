"""Print the traces of an order as trees of spans, from the spans that `dev` collects.

  ⇢           a batch that is linked to the span above: that span waited for the batch, or the batch acted for that span
  +12.30 ms   the start of the span, relative to the start of the trace; its duration follows

Calls are processed in batches. If another call started a batch, the batch belongs to the trace of that call. Its spans
are shown here, too. The exit code is 1 if no trace is found.
"""

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from shopctl.system import runfile
from shopctl.system.runfile import NotRunning, RunFile
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, console, error_console, print_json
from shopctl.tracing import span_store, trace_picture, traces
from shopctl.tracing.span_store import SPANS_MAX, SpanStore
from shopctl.tracing.traces import Node, Traces

WAIT_SECONDS = 6.0
"""How long to wait for spans that may still arrive; longer than QUIET_SECONDS."""

_POLL_SECONDS = 0.2
_TRACE_ID = re.compile("[0-9a-f]{32}")
_NOTHING = Traces((), 0, is_complete=False)


def configure(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", metavar="ORDER_ID|TRACE_ID", help="an order id, or a trace id of 32 digits")
    which.add_argument("--last", action="store_true", help="the order that was created last")
    parser.add_argument("--reads", action="store_true", help="also show calls that only read the order")
    parser.add_argument("--sql", action="store_true", help="show complete SQL statements")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    dev = _dev()
    found = _wait_for_traces(options, dev)
    if not found.trees and not found.reads_left_out:
        raise CommandFailed(_why_nothing(options, dev))
    may_come = dev is not None and not found.is_complete
    if options.json:
        spans = [{"trace_id": tree.trace_id, "spans": list(_spans(tree.roots))} for tree in found.trees]
        print_json({"complete": not may_come, "traces": spans})
        return 0
    screen = console()
    for tree in found.trees:
        trace_picture.draw(screen, tree, sql=options.sql)
        screen.print()
    if found.reads_left_out:
        screen.print(f"Calls that only read the order are left out: {found.reads_left_out} (--reads shows them).")
    if may_come:
        error_console().print("More spans may still arrive; repeat the command shortly.", style="yellow")
    return 0


def _dev() -> RunFile | None:
    try:
        return runfile.read()
    except NotRunning:
        return None


def _wait_for_traces(options: argparse.Namespace, dev: RunFile | None) -> Traces:
    """Wait until the traces are complete, and return them. They may be incomplete without `dev` or after a timeout."""
    deadline = time.monotonic() + (WAIT_SECONDS if dev is not None and dev.traces_elsewhere is None else 0)
    while True:
        found = _load(options)
        if found.is_complete or time.monotonic() > deadline:
            return found
        time.sleep(_POLL_SECONDS)


def _load(options: argparse.Namespace) -> Traces:
    try:
        with SpanStore.to_read() as store:
            if options.last:
                newest = store.newest_order()
                return traces.of_order(store, newest, reads=options.reads) if newest else _NOTHING
            if _TRACE_ID.fullmatch(options.id) and store.trace(options.id):
                return traces.of_trace(store, options.id)
            return traces.of_order(store, options.id, reads=options.reads)
    except FileNotFoundError:
        return _NOTHING


def _why_nothing(options: argparse.Namespace, dev: RunFile | None) -> str:
    wanted = "any order" if options.last else options.id
    if dev is None:
        return f"no trace of {wanted} in {span_store.PATH}; dev collects traces, but is not running here"
    if dev.traces_elsewhere:
        return f"no trace of {wanted}: dev sends all traces to the collector {dev.traces_elsewhere}; look there"
    if dev.traces_elsewhere is not None:
        return f"no trace of {wanted}: dev was started with OTEL_EXPORTER_OTLP_ENDPOINT empty, so it traces nothing"
    return f"no trace of {wanted}: it is unknown, was not sampled, or is older than the last {SPANS_MAX:,} spans"


def _spans(nodes: Sequence[Node], linked_from: Node | None = None) -> Iterator[dict[str, Any]]:
    for node in nodes:
        yield _span(node, linked_from if node.is_linked else None)
        yield from _spans(node.children, node)


def _span(node: Node, linked_from: Node | None) -> dict[str, Any]:
    span = node.span
    return {
        "trace_id": span.id[0],
        "span_id": span.id[1],
        "parent_id": span.parent and span.parent[1],
        "linked_from": linked_from and linked_from.span.id[1],
        "name": span.name,
        "kind": span.kind,
        "process": span.process,
        "instance": span.instance,
        "start": datetime.fromtimestamp(span.start_ns / 1e9, UTC),
        "duration_ms": (span.end_ns - span.start_ns) / 1e6,
        "reason": span.reason,
        "attributes": span.attributes,
        "events": [{"name": event.name, "attributes": event.attributes} for event in span.events],
        "links": [{"trace_id": trace_id, "span_id": span_id} for trace_id, span_id in span.links],
    }
