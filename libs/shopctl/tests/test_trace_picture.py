import io
from collections.abc import Mapping

import pytest
from rich.cells import cell_len
from rich.console import Console

from shopctl.tracing import trace_picture
from shopctl.tracing.spans import Span, Value
from shopctl.tracing.traces import Node, Tree

TRACE, OTHER_TRACE = "1" * 32, "2" * 32
MS = 1_000_000
SELECT = "SELECT orders.id,\n orders.status FROM orders WHERE orders.id IN (?, ?) ORDER BY orders.id FOR UPDATE"


@pytest.fixture
def tree() -> Tree:
    statement = Node(_span("SELECT orders", 4, 1, attributes={"db.query.text": SELECT}))
    batch_about = {"shop.batch.size": 12, "shop.batch.calls": 3}
    batch = Node(_span("insert batch", 3, 5, trace=OTHER_TRACE, attributes=batch_about), True, [statement])
    wait = Node(_span("insert coalesced", 2, 7, attributes={"shop.queue.seconds": 0.001}), children=[batch])
    wait.shown_elsewhere.append(_span("hold batch", 0, 1))
    refused = {"rpc.method": "shop.order.v1.OrderService/CreateOrder", "error.type": "INSUFFICIENT_STOCK"}
    root = Node(_span("shop.order.v1.OrderService/CreateOrder", 0, 10, attributes=refused), children=[wait])
    root.spans_of_others = 1_234
    return Tree(TRACE, [root])


def test_a_tree_reads_from_the_call_to_its_statements(tree: Tree) -> None:
    beginnings = [
        f"trace {TRACE}",
        "OrderService/CreateOrder",
        "│  ✗ INSUFFICIENT_STOCK",
        "│  (1,234 spans about other orders left out)",
        "└─ insert coalesced",
        "   │  ⇢ hold batch, shown below another span",
        "   └─ ⇢ insert batch",
        f"      │  in trace {OTHER_TRACE}",
        "      └─ SELECT … FROM orders WHERE orders.id IN (?…",
    ]
    for line, beginning in zip(_lines(tree, 120), beginnings, strict=True):
        assert line.startswith(beginning)


def test_a_bar_stands_where_its_span_does(tree: Tree) -> None:
    root, _, _, wait, _, batch, _, statement = _lines(tree, 120)[1:]
    first, width = root.index("━"), root.count("━")

    for line, start, took in ((root, 0, 10), (wait, 2, 7), (batch, 3, 5), (statement, 4, 1)):
        assert line.index("━") - first == width * start // 10
        assert line.count("━") == round(width * took / 10)


def test_each_row_shows_process_start_and_duration(tree: Tree) -> None:
    batch = next(line for line in _lines(tree, 160) if "insert batch" in line)

    assert "12 requests of 3 calls" in batch
    assert "order-api   +3.00 ms    5.00 ms" in batch


@pytest.mark.parametrize("width", [40, 60, 80, 120, 300])
@pytest.mark.parametrize("sql", [False, True])
def test_nothing_is_wider_than_the_terminal(tree: Tree, width: int, sql: bool) -> None:
    assert max(cell_len(line) for line in _lines(tree, width, sql=sql)) <= width


def test_sql_is_shown_whole_when_asked_for(tree: Tree) -> None:
    shown = "\n".join(_lines(tree, 60, sql=True)).replace("│", " ")

    assert " ".join(SELECT.split()) in " ".join(shown.split())


def test_control_characters_are_replaced(tree: Tree) -> None:
    tree.roots[0].children[0].children[0].children[0] = Node(_span("\x1b[2J", 1, 1))

    assert "\x1b" not in "\n".join(_lines(tree, 120))


def _lines(tree: Tree, width: int, *, sql: bool = False) -> list[str]:
    out = io.StringIO()
    trace_picture.draw(Console(file=out, width=width, highlight=False), tree, sql=sql)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def _span(
    name: str,
    start_ms: int,
    took_ms: int,
    *,
    trace: str = TRACE,
    attributes: Mapping[str, Value] | None = None,
) -> Span:
    return Span(
        id=(trace, f"{start_ms:016x}"),
        parent=None,
        name=name,
        kind="INTERNAL",
        process="order-api",
        instance="",
        start_ns=start_ms * MS,
        end_ns=(start_ms + took_ms) * MS,
        failed=False,
        message="",
        attributes=attributes or {},
        events=(),
        links=(),
    )
