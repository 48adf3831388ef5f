"""The spans of `dev`, in one SQLite file: `dev` writes them, and `./task trace` reads them.

The number of spans is limited; the oldest are deleted first. The file outlives `dev`.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

from opentelemetry.proto.trace.v1 import trace_pb2 as pb

from shopctl.system import runfile
from shopctl.tracing.spans import Span, attributes_of, orders_in

PATH = runfile.PATH.with_name("traces.db")

SPANS_MAX = 100_000
"""Limit on the number of stored spans. That many spans take about 100 MB."""

_CREATE_ORDER = "/CreateOrder"
_VERSION = 1
_BUSY_SECONDS = 5.0

# The body is the OTLP span; the other columns are only those that queries need.
_SCHEMA = """
CREATE TABLE spans (
    id INTEGER PRIMARY KEY,
    trace_id BLOB NOT NULL,
    span_id BLOB NOT NULL,
    parent_id BLOB NOT NULL,
    kind INTEGER NOT NULL,
    process TEXT NOT NULL,
    instance TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (trace_id, span_id)
);
CREATE TABLE orders (span INTEGER NOT NULL, order_id TEXT NOT NULL);
CREATE INDEX orders_by_id ON orders (order_id, span);
CREATE INDEX orders_by_span ON orders (span);
CREATE TABLE links (span INTEGER NOT NULL, trace_id BLOB NOT NULL);
CREATE INDEX links_by_target ON links (trace_id, span);
CREATE INDEX links_by_span ON links (span);
"""


class SpanStore:
    """The stored spans. One process writes them; any number of processes may read them."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def to_write(cls, path: Path = PATH) -> Iterator[Self]:
        """Open the file to write, for one thread at a time. Creates it, or replaces a file of another version."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and _version_of(path) != _VERSION:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        # The file contains calls and SQL statements, so only its owner may read it.
        path.touch(mode=0o600)
        with closing(
            sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        ) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            if _version(connection) != _VERSION:
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
            yield cls(connection)

    @classmethod
    @contextmanager
    def to_read(cls, path: Path = PATH) -> Iterator[Self]:
        """Open the file to read. Raises FileNotFoundError if it does not exist or is of another version."""
        if not path.is_file() or _version_of(path) != _VERSION:
            raise FileNotFoundError(path)
        with closing(_reader(path)) as connection:
            yield cls(connection)

    def add(self, received: Iterable[pb.ResourceSpans], spans_max: int = SPANS_MAX) -> None:
        """Store the spans, and delete the oldest above the limit. Spans that are already stored stay as they are."""
        with self._writing() as tx:
            (last,) = tx.execute("SELECT coalesce(max(id), 0) FROM spans").fetchone()
            rows = _Rows(last)
            for resource_spans in received:
                rows.add(resource_spans)
            tx.executemany("INSERT OR IGNORE INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows.spans)
            tx.executemany("INSERT INTO orders VALUES (?, ?)", rows.orders)
            tx.executemany("INSERT INTO links VALUES (?, ?)", rows.links)
            for table, column in (("spans", "id"), ("orders", "span"), ("links", "span")):
                tx.execute(f"DELETE FROM {table} WHERE {column} <= ?", [rows.last - spans_max])  # noqa: S608 - our own names

    def traces_of(self, order_id: str) -> list[str]:
        """Return the ids of the traces with a span about the order, in order of arrival."""
        return self._traces(
            "SELECT trace_id FROM orders JOIN spans ON id = span WHERE order_id = ? GROUP BY trace_id ORDER BY min(id)",
            order_id,
        )

    def newest_order(self) -> str | None:
        """Return the order id of the last stored CreateOrder call, or None."""
        calls = self._connection.execute(
            "SELECT order_id, body FROM orders JOIN spans ON id = span WHERE kind = ? ORDER BY id DESC",
            [pb.Span.SPAN_KIND_SERVER],
        )
        created = (order_id for order_id, body in calls if pb.Span.FromString(body).name.endswith(_CREATE_ORDER))
        return next(created, None)

    def trace(self, trace_id: str) -> list[Span]:
        """Return all spans of a trace, sorted by start time."""
        return self._spans("trace_id = ?", trace_id)

    def linking_to(self, trace_id: str) -> list[Span]:
        """Return the spans, of any trace, that link to a span of this trace, sorted by start time."""
        return self._spans("id IN (SELECT span FROM links WHERE trace_id = ?)", trace_id)

    def _traces(self, query: str, *values: object) -> list[str]:
        return [found.hex() for (found,) in self._connection.execute(query, values)]

    def _spans(self, condition: str, trace_id: str) -> list[Span]:
        query = f"SELECT body, process, instance FROM spans WHERE {condition}"  # noqa: S608 - our own text
        found = [
            Span.of(pb.Span.FromString(body), process, instance)
            for body, process, instance in self._connection.execute(query, [bytes.fromhex(trace_id)])
        ]
        return sorted(found, key=lambda span: (span.start_ns, -span.end_ns))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


class _Rows:
    """The rows of received spans, numbered from `last` + 1."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.spans: list[tuple[Any, ...]] = []
        self.orders: list[tuple[int, str]] = []
        self.links: list[tuple[int, bytes]] = []

    def add(self, received: pb.ResourceSpans) -> None:
        resource = attributes_of(received.resource.attributes)
        process = str(resource.get("service.name", "?"))
        instance = str(resource.get("service.instance.id", ""))
        for scope in received.scope_spans:
            for span in scope.spans:
                self.last += 1
                about = attributes_of([pair for pair in span.attributes if pair.key.startswith("shop.order_id")])
                self.orders += [(self.last, order_id) for order_id in orders_in(about)]
                self.links += [(self.last, trace_id) for trace_id in {link.trace_id for link in span.links}]
                ids = (span.trace_id, span.span_id, span.parent_span_id)
                self.spans.append((self.last, *ids, span.kind, process, instance, span.SerializeToString()))


def _reader(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)


def _version_of(path: Path) -> int:
    """Return the version; 0 for a file that is not a span store."""
    try:
        with closing(_reader(path)) as connection:
            return _version(connection)
    except sqlite3.DatabaseError:
        return 0


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
