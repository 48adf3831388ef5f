"""The traces of an order, as trees of spans. Each tree includes the batches that acted for the order.

Calls are coalesced: a batch acts for many traces, but its span belongs to only one of them. Links connect the spans: a
waiting span links to the batches that it waited for, and a batch links to the spans that it acts for. Here a batch is
shown below the span that it acted for, even if the batch belongs to another trace. Its work for other orders is left
out.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shopctl.tracing.span_store import SpanStore
from shopctl.tracing.spans import Span, SpanId

QUIET_SECONDS = 2.0
"""A trace without a new span for this time is complete: an idle relay, a consumer and the span exporter take less."""

CALL_SECONDS_MAX = 30.0
"""A parent span that has not arrived after this time is considered lost."""

_READS = ("Check", "Get", "List")


@dataclass
class Node:
    """A span in the tree, with everything that is shown below it."""

    span: Span
    is_linked: bool = False
    """Whether a link connects this span to the span above. If not, the span above is its parent, or there is none."""
    children: list["Node"] = field(default_factory=list)
    shown_elsewhere: list[Span] = field(default_factory=list)
    """Batches that acted for this span, but are shown below another span that they also acted for."""
    spans_of_others: int = 0
    """The number of spans below this one that are left out, because they are only about other orders."""

    def walk(self) -> Iterator["Node"]:
        """Yield this node and all nodes below it, in display order."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Tree:
    """A trace. It has several roots if their common parent was not collected."""

    trace_id: str
    roots: Sequence[Node]

    def walk(self) -> Iterator[Node]:
        for root in self.roots:
            yield from root.walk()


@dataclass(frozen=True)
class Traces:
    """The traces of an order, or one trace by its id, sorted by start time."""

    trees: Sequence[Tree]
    reads_left_out: int
    is_complete: bool
    """True if no more spans are expected."""


def of_order(store: SpanStore, order_id: str, *, reads: bool = False) -> Traces:
    """Return the traces of an order. Calls that only read the order are left out, unless `reads` is set."""
    return _TreeBuilder(store, order_id, reads=reads).build(store.traces_of(order_id))


def of_trace(store: SpanStore, trace_id: str) -> Traces:
    """Return one whole trace."""
    return _TreeBuilder(store, None, reads=True).build([trace_id])


class _TreeBuilder:
    """Builds the trees of one result. Adds each span once."""

    def __init__(self, store: SpanStore, order_id: str | None, *, reads: bool) -> None:
        self._store = store
        self._order_id = order_id
        self._reads = reads
        self._traces: dict[str, _Trace] = {}
        self._shown: set[SpanId] = set()

    def build(self, trace_ids: Sequence[str]) -> Traces:
        traces = [self._trace(trace_id) for trace_id in trace_ids]
        chosen = [trace for trace in traces if trace.spans and (self._reads or not trace.only_reads)]
        # The calls about the order come first, so that a batch is shown below them even if another call started it.
        chosen.sort(key=lambda trace: not trace.begins_with_order)
        trees = [Tree(trace.id, list(self._roots(trace))) for trace in chosen if not self._has_shown(trace)]
        trees.sort(key=lambda tree: self._trace(tree.trace_id).began_ns)
        return Traces(trees, len(traces) - len(chosen), _is_complete(chosen))

    def _has_shown(self, trace: "_Trace") -> bool:
        """Return whether the shown trees have all spans about the order, or all roots if no span is about the order."""
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
        # A batch is shown below the span that waited for it, not below its parent.
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
                continue  # not collected, or not yet
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
        """True if all calls of the trace only read."""
        return all(root.kind == "SERVER" and root.name.rpartition("/")[2].startswith(_READS) for root in self.roots)

    def children(self, span: Span) -> list[Span]:
        return self._children[span.id]

    def batches_for(self, span: Span) -> list[Span]:
        """Return the batches that link to this span."""
        return self._batches[span.id]

    def is_of_others(self, span: Span) -> bool:
        """Return whether this span and all spans below it are about other orders."""
        return self._order_id is not None and bool(span.orders) and span.id not in self._leads_to_order

    def size(self, span: Span) -> int:
        """Return the number of spans in the subtree of this one."""
        return 1 + sum(self.size(child) for child in self.children(span))

    def _mark(self, span: Span | None) -> None:
        while span is not None and span.id not in self._leads_to_order:
            self._leads_to_order.add(span.id)
            span = self.spans.get(span.parent) if span.parent else None


def _is_batch(span: Span) -> bool:
    """Return whether the span is a batch, whose links name the spans that it acts for. One of them is its parent."""
    return span.parent in span.links


def _awaited(span: Span) -> Sequence[SpanId]:
    """Return the ids of the batches that this span waited for."""
    return () if _is_batch(span) else span.links


def _is_complete(traces: Sequence[_Trace]) -> bool:
    spans = [span for trace in traces for span in trace.spans.values()]
    if not spans:
        return False
    quiet_seconds = time.time() - max(span.end_ns for span in spans) / 1e9
    # The parent of a call may be the span of an outside client, which we never collect.
    awaits_parent = any(root.parent and root.kind != "SERVER" for trace in traces for root in trace.roots)
    return quiet_seconds > (CALL_SECONDS_MAX if awaits_parent else QUIET_SECONDS)
