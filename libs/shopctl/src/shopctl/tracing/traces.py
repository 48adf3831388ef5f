"""What happened to an order, as trees of spans: each of its traces, and in them the batches that acted for it.

Calls are coalesced, so their work is done in batches, which act for many traces and lie in one of them. Links lead
there: from a span that waits to the batches that it waited for, and from a batch to the spans that it acts for. Here a
batch is shown below the span that it acted for, wherever it lies. What it did for others is left out.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shopctl.tracing.span_store import SpanStore
from shopctl.tracing.spans import Span, SpanId

QUIET_SECONDS = 2.0
"""After which no more is expected: a relay that idles, a consumer and the sending of spans take less together."""

CALL_SECONDS_MAX = 30.0
"""After which a span that others name as their parent is not expected any more: it was lost."""

_READS = ("Check", "Get", "List")


@dataclass
class Node:
    """A span in the tree, with all that is shown below it."""

    span: Span
    is_linked: bool = False
    """Whether a link leads here from the span above; else that one is its parent, or there is none."""
    children: list["Node"] = field(default_factory=list)
    shown_elsewhere: list[Span] = field(default_factory=list)
    """Batches that acted for it, shown below another span that they acted for as well."""
    spans_of_others: int = 0
    """So many spans below it are about other orders alone, and left out."""

    def walk(self) -> Iterator["Node"]:
        """It and all below it, as they are shown."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Tree:
    """A trace. It has several roots when the span above them was not told of."""

    trace_id: str
    roots: Sequence[Node]

    def walk(self) -> Iterator[Node]:
        for root in self.roots:
            yield from root.walk()


@dataclass(frozen=True)
class Story:
    """The traces asked for, in the sequence in which they began."""

    trees: Sequence[Tree]
    reads_left_out: int
    is_complete: bool
    """Whether no more spans are expected."""


def of_order(store: SpanStore, order_id: str, *, reads: bool = False) -> Story:
    """What happened to an order; calls that only read it are left out unless asked for."""
    return _Telling(store, order_id, reads=reads).story(store.traces_of(order_id))


def of_trace(store: SpanStore, trace_id: str) -> Story:
    """What happened in a trace."""
    return _Telling(store, None, reads=True).story([trace_id])


class _Telling:
    """One story being put together. Shows each span once."""

    def __init__(self, store: SpanStore, order_id: str | None, *, reads: bool) -> None:
        self._store = store
        self._order_id = order_id
        self._reads = reads
        self._traces: dict[str, _Trace] = {}
        self._shown: set[SpanId] = set()

    def story(self, trace_ids: Sequence[str]) -> Story:
        traces = [self._trace(trace_id) for trace_id in trace_ids]
        told = [trace for trace in traces if trace.spans and (self._reads or not trace.only_reads)]
        # First the calls about the order: what others began is shown below them as far as it acted for them.
        told.sort(key=lambda trace: not trace.begins_with_order)
        trees = [Tree(trace.id, list(self._roots(trace))) for trace in told if not self._has_shown(trace)]
        trees.sort(key=lambda tree: self._trace(tree.trace_id).began_ns)
        return Story(trees, len(traces) - len(told), _is_complete(told))

    def _has_shown(self, trace: "_Trace") -> bool:
        """All that is of interest in it."""
        return self._shown.issuperset(trace.about_order or [root.id for root in trace.roots])

    def _roots(self, trace: "_Trace") -> Iterator[Node]:
        for root in trace.roots:
            if root.id not in self._shown:
                yield self._node(root)

    def _trace(self, trace_id: str) -> "_Trace":
        if trace_id not in self._traces:
            self._traces[trace_id] = _Trace(trace_id, self._store, self._order_id)
        return self._traces[trace_id]

    def _node(self, span: Span, *, is_linked: bool = False) -> Node:
        node = Node(span, is_linked)
        self._shown.add(span.id)
        trace = self._trace(span.id[0])
        children = trace.children(span)
        # They are shown below who waited for them.
        awaited = {batch for child in children for batch in _awaited(child)}
        for child in children:
            if child.id in awaited or child.id in self._shown:
                continue
            if trace.is_of_others(child):
                node.spans_of_others += trace.size(child)
            else:
                node.children.append(self._node(child))
        self._add_batches(node)
        node.children.sort(key=lambda child: child.span.start_ns)
        return node

    def _add_batches(self, node: Node) -> None:
        span = node.span
        for trace_id, span_id in _awaited(span):
            batch = self._trace(trace_id).spans.get((trace_id, span_id))
            if batch is None:
                continue  # not told of, or not yet
            if batch.id in self._shown:
                node.shown_elsewhere.append(batch)
            else:
                node.children.append(self._node(batch, is_linked=True))
        for batch in self._trace(span.id[0]).batches_for(span):
            if batch.id not in self._shown:
                node.children.append(self._node(batch, is_linked=True))


class _Trace:
    """The spans of one trace, and the batches that act for them."""

    def __init__(self, trace_id: str, store: SpanStore, order_id: str | None) -> None:
        self.id = trace_id
        self.spans = {span.id: span for span in store.trace(trace_id)}
        self.roots = [span for span in self.spans.values() if span.parent not in self.spans]
        self._children: dict[SpanId, list[Span]] = defaultdict(list)
        self._batches: dict[SpanId, list[Span]] = defaultdict(list)
        self._order_id = order_id
        self.about_order: set[SpanId] = set()
        self._leads_to_order: set[SpanId] = set()
        for span in self.spans.values():
            if span.parent is not None:
                self._children[span.parent].append(span)
            if order_id in span.orders:
                self.about_order.add(span.id)
                self._mark(span)
        for span in store.linking_to(trace_id):
            if _is_batch(span):
                for member in span.links:
                    self._batches[member].append(span)

    @property
    def began_ns(self) -> int:
        return min(span.start_ns for span in self.spans.values())

    @property
    def begins_with_order(self) -> bool:
        return any(root.id in self.about_order for root in self.roots)

    @property
    def only_reads(self) -> bool:
        """Whether it is a call that changes nothing."""
        return all(root.kind == "SERVER" and root.name.rpartition("/")[2].startswith(_READS) for root in self.roots)

    def children(self, span: Span) -> list[Span]:
        return self._children[span.id]

    def batches_for(self, span: Span) -> list[Span]:
        """Those that name it among what they act for."""
        return self._batches[span.id]

    def is_of_others(self, span: Span) -> bool:
        """Whether it is about other orders, and all below it too."""
        return self._order_id is not None and bool(span.orders) and span.id not in self._leads_to_order

    def size(self, span: Span) -> int:
        """The number of spans from this one down."""
        return 1 + sum(self.size(child) for child in self.children(span))

    def _mark(self, span: Span | None) -> None:
        while span is not None and span.id not in self._leads_to_order:
            self._leads_to_order.add(span.id)
            span = self.spans.get(span.parent) if span.parent else None


def _is_batch(span: Span) -> bool:
    """Whether its links name what it acts for: it lies below the first of them."""
    return span.parent in span.links


def _awaited(span: Span) -> Sequence[SpanId]:
    """The batches that it waited for."""
    return () if _is_batch(span) else span.links


def _is_complete(traces: Sequence[_Trace]) -> bool:
    spans = [span for trace in traces for span in trace.spans.values()]
    if not spans:
        return False
    silent_seconds = time.time() - max(span.end_ns for span in spans) / 1e9
    # A call from outside may have a parent that is never told of: its client's.
    awaits_parent = any(root.parent and root.kind != "SERVER" for trace in traces for root in trace.roots)
    return silent_seconds > (CALL_SECONDS_MAX if awaits_parent else QUIET_SECONDS)
