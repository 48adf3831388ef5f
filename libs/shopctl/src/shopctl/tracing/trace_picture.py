"""Draws a trace for the terminal: a tree of spans with bars for their times."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from shopctl.terminal.colours import COLOURS
from shopctl.terminal.output import printable, time_of
from shopctl.tracing.spans import Span
from shopctl.tracing.traces import Node, Tree

_NAME_WIDTH_MIN, _NAME_PART = 24, 0.6
_BAR_WIDTH_MIN, _BAR_WIDTH_MAX = 8, 60
_TIME_WIDTH = 10
# Shortens the parts of SQL statements that carry little information.
_SQL_SHORT = [
    (re.compile(r"^SELECT .*? FROM ", re.IGNORECASE), "SELECT … FROM "),
    (re.compile(r"^(INSERT INTO [^\s(]+) .*", re.IGNORECASE), r"\1 …"),
]


def draw(console: Console, tree: Tree, *, sql: bool) -> None:
    """Print a trace, no wider than the console. With `sql`, print each complete statement on its own lines."""
    _Picture(console, tree, sql=sql).draw()


class _Picture:
    """The drawing of one trace on one console."""

    def __init__(self, console: Console, tree: Tree, *, sql: bool) -> None:
        self._console = console
        self._tree = tree
        self._sql = sql
        spans = [node.span for node in tree.walk()]
        self._began_ns = min(span.start_ns for span in spans)
        self._took_ns = max(1, max(span.end_ns for span in spans) - self._began_ns)
        self._process_width = max(len(span.process) for span in spans)
        # Each column except the first has a space before it.
        rest = console.width - (self._process_width + 1) - 2 * (_TIME_WIDTH + 1) - 1
        self._name_width = max(_NAME_WIDTH_MIN, int(rest * _NAME_PART), rest - _BAR_WIDTH_MAX)
        # On a narrow terminal, use the space of the bars for the names.
        self._bar_width = rest - self._name_width if rest - self._name_width >= _BAR_WIDTH_MIN else 0

    def draw(self) -> None:
        spans = [node.span for node in self._tree.walk()]
        began = datetime.fromtimestamp(self._began_ns / 1e9, UTC)
        size = f"{_count(len(spans), 'span')} of {_count(len({span.process for span in spans}), 'process', 'es')}"
        title = Text.assemble((f"trace {self._tree.trace_id}", "bold"), f"  {time_of(began)} UTC, ")
        self._console.print(title.append(f"{_time(self._took_ns)}, {size}"))
        for root in self._tree.roots:
            self._node(root, "", "")

    def _node(self, node: Node, guide: str, guide_below: str) -> None:
        span = node.span
        self._print(self._row(node, guide))
        notes_guide = guide_below + ("│  " if node.children else "   ")
        for note in self._notes(node):
            self._print(Text(notes_guide, "dim") + note)
        if self._sql and (statement := _statement(span)):
            width = max(_NAME_WIDTH_MIN, self._console.width - len(notes_guide))
            for line in Text(statement, "dim").wrap(self._console, width):
                self._print(Text(notes_guide, "dim") + line)
        for child in node.children:
            is_last = child is node.children[-1]
            self._node(child, guide_below + ("└─ " if is_last else "├─ "), guide_below + ("   " if is_last else "│  "))

    def _row(self, node: Node, guide: str) -> Text:
        span = node.span
        colour = COLOURS.get(span.process, "")
        name = Text.assemble((guide, "dim"), ("⇢ " if node.is_linked else "", "dim"), _name(span, sql=self._sql))
        if about := _about(span):
            name.append(f"  {about}", "dim")
        name.truncate(self._name_width, overflow="ellipsis", pad=True)
        return Text.assemble(
            name,
            f" {printable(span.process):<{self._process_width}}",
            f" {'+' + _time(span.start_ns - self._began_ns):>{_TIME_WIDTH}}",
            f" {_time(span.end_ns - span.start_ns):>{_TIME_WIDTH}} ",
            (self._bar(span), "red" if span.reason else colour),
        )

    def _bar(self, span: Span) -> str:
        if not self._bar_width:
            return ""
        scale = self._bar_width / self._took_ns
        # A very short span still gets one character.
        start = min(int((span.start_ns - self._began_ns) * scale), self._bar_width - 1)
        length = max(1, min(round((span.end_ns - span.start_ns) * scale), self._bar_width - start))
        return " " * start + "━" * length

    def _notes(self, node: Node) -> Iterator[Text]:
        if node.span.reason:
            yield Text(f"✗ {printable(node.span.reason)}", "red")
        if node.is_linked and node.span.id[0] != self._tree.trace_id:
            yield Text(f"in trace {node.span.id[0]}", "dim")
        for batch in node.shown_elsewhere:
            yield Text(f"⇢ {printable(batch.name)}, shown below another span", "dim")
        if node.spans_of_others:
            yield Text(f"({_count(node.spans_of_others, 'span')} about other orders left out)", "dim")

    def _print(self, line: Text) -> None:
        line.truncate(self._console.width, overflow="ellipsis")
        self._console.print(line, no_wrap=True)


def _name(span: Span, *, sql: bool) -> str:
    """Return a short name: an RPC without its package, or a shortened SQL statement.

    With `sql`, return only the verb of a statement, because the whole statement is printed below the name.
    """
    if statement := _statement(span):
        if sql:
            return statement.partition(" ")[0]
        for long, short in _SQL_SHORT:
            statement = long.sub(short, statement)
        return statement
    is_rpc = span.attributes.get("rpc.method") == span.name
    return printable(span.name.rpartition(".")[2] if is_rpc else span.name)


def _statement(span: Span) -> str:
    statement = span.attributes.get("db.query.text")
    return printable(" ".join(str(statement).split())) if statement else ""


def _about(span: Span) -> str:
    """Return the size of a batch, or the time that a span waited for a batch."""
    attributes = span.attributes
    waited, size, calls = (attributes.get(key) for key in ("shop.queue.seconds", "shop.batch.size", "shop.batch.calls"))
    messages = attributes.get("messaging.batch.message_count")
    if isinstance(waited, float):
        return f"waited {_time(int(waited * 1e9))}"
    if isinstance(size, int):
        return _count(size, "request") + (f" of {_count(calls, 'call')}" if isinstance(calls, int) else "")
    return _count(messages, "message") if isinstance(messages, int) else ""


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{plural if number != 1 else ''}"


def _time(ns: int) -> str:
    """Format a duration, at least one character narrower than its column: a sign may precede it."""
    if ns >= 100_000_000_000:
        return f"{ns / 1e9:,.0f} s"
    return f"{ns / 1e9:.2f} s" if ns >= 1_000_000_000 else f"{ns / 1e6:.2f} ms"
