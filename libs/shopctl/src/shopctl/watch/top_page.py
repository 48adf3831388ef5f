"""The page that `top` shows: tables of the activity of the processes in an interval."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias, TypeVar

from rich.console import Group
from rich.table import Table
from rich.text import Text

from shopctl.system.layout import INVENTORY_API, ORDER_API, REAPER, RELAY
from shopctl.terminal.colours import COLOURS
from shopctl.terminal.output import number, printable, whole
from shopctl.watch.backlog import OLDEST_SECONDS_MAX
from shopctl.watch.scrape import Histogram, Interval, Key
from shopctl.watch.unavailable import Unavailable

_Value = TypeVar("_Value")

_APIS = (INVENTORY_API, ORDER_API)
_NONE = "–"
_NOTHING = Histogram(1.0, 0, 0, ())

Present: TypeAlias = Mapping[str, Interval]
"""The processes that responded at both ends of the interval."""


@dataclass(frozen=True)
class Row:
    """The cells of a row: names, then numbers. A row is active if its numbers changed in the interval."""

    names: Sequence[str | Text]
    numbers: Sequence[str]
    active: bool


def page(addresses: Mapping[str, str], intervals: Mapping[str, Interval | Unavailable], *, idle: bool) -> Group:
    """Return a line that lists the problems, and all tables below it. Inactive rows are shown only with `idle`."""
    present = {name: interval for name, interval in intervals.items() if isinstance(interval, Interval)}
    unavailable = {name: interval for name, interval in intervals.items() if isinstance(interval, Unavailable)}

    def table(title: str, names: str, numbers: str, rows: Iterator[Row], of: Sequence[str], *, idle: bool) -> Table:
        """Return a table. `of` names the processes that provide its numbers."""
        missing = (_missing(name, names, numbers) for name in of if name in unavailable)
        return _table(title, names, numbers, chain(missing, rows), idle=idle)

    # Short and important tables come first: a terminal has few lines.
    return Group(
        _summary(unavailable, present),
        Text(),
        table(
            "processes",
            "process, metrics, state",
            "calls, errors, db in use, waiting",
            _processes(addresses, intervals),
            of=(),
            idle=True,
        ),
        table(
            "outboxes and their relay",
            "database",
            "pending, oldest, shipped, commit to broker p50, p99, failed batches, shards",
            _outboxes(present),
            of=(RELAY,),
            idle=True,
        ),
        table(
            "consumers",
            "process, topic",
            "lag, events, handling p50, p99, dead letters",
            _consumers(present),
            of=_APIS,
            idle=True,
        ),
        table(
            "refused and failed calls",
            "process, method, status, reason",
            "calls",
            _errors(present),
            of=_APIS,
            idle=idle,
        ),
        table("calls", "process, method", "calls, p50, p99", _calls(present), of=_APIS, idle=idle),
        table(
            "batches",
            "process, coalescer",
            "queued, batches, requests in one, wait p50, p99, batch p50, p99",
            _batches(present),
            of=_APIS,
            idle=idle,
        ),
        table("counters", "process, counter, label", "rate", _counters(present), of=_APIS, idle=idle),
        table("stock", "what, state", "count", _stock(present), of=(INVENTORY_API,), idle=True),
        table(
            "reaper",
            "task",
            "runs, failed runs, done, last success",
            _reaper(present),
            of=(REAPER,),
            idle=True,
        ),
    )


def _summary(unavailable: Mapping[str, Unavailable], present: Present) -> Text:
    if problems := "; ".join(_problems(unavailable, present)):
        return Text(f"Trouble: {problems}.", "bold red")
    return Text("All processes are ready.", "bold green")


def _problems(unavailable: Mapping[str, Unavailable], present: Present) -> Iterator[str]:
    for name, one in unavailable.items():
        yield f"{name} is unavailable: {printable(one.reason)}"
    for name, interval in present.items():
        if 0 in interval.gauge("shop_ready_processes").values():
            yield f"{name} is not ready"
    for interval in present.values():
        for (database,), seconds in _sorted(interval.gauge("shop_outbox_oldest_event_age_seconds", "database")):
            if seconds > OLDEST_SECONDS_MAX:
                yield f"events of the {database} database have waited for {seconds:.0f} s"


def _missing(name: str, names: str, numbers: str) -> Row:
    """Return one row that replaces the rows of an unavailable process."""
    words: list[str | Text] = [Text(f"{name} is unavailable", "bold red"), *[""] * names.count(",")]
    return Row(words, [""] * (numbers.count(",") + 1), active=True)


def _table(title: str, names: str, numbers: str, rows: Iterator[Row], *, idle: bool) -> Table:
    table = Table(
        *map(whole, names.split(", ")),
        *map(number, numbers.split(", ")),
        title=title,
        title_justify="left",
        title_style="bold",
        show_edge=False,
        box=None,
        header_style="dim",
        pad_edge=False,
    )
    for row in rows:
        if idle or row.active:
            cells = (cell if isinstance(cell, Text) else _coloured(cell) for cell in row.names)
            table.add_row(*cells, *row.numbers)
    if not table.row_count:
        table.add_row(Text("none", "dim"))
    table.add_row()
    return table


def _processes(addresses: Mapping[str, str], intervals: Mapping[str, Interval | Unavailable]) -> Iterator[Row]:
    for name, interval in intervals.items():
        if isinstance(interval, Unavailable):
            yield Row([name, addresses[name], Text("unavailable", "bold red")], [""] * 4, active=True)
            continue
        used = interval.gauge("db_client_connection_count", "state").get(("used",))
        waiting = interval.gauge("db_client_connection_pending_requests").get(())
        yield Row(
            [name, addresses[name], Text("up", "green")],
            [
                _rate(interval.histogram("rpc_server_call_duration_seconds").get((), _NOTHING).rate),
                _rate(interval.rate("rpc_server_errors_total").get((), 0)),
                _whole(used),
                _whole(waiting),
            ],
            active=True,
        )


def _calls(present: Present) -> Iterator[Row]:
    for name, interval in present.items():
        for (method,), calls in _sorted(interval.histogram("rpc_server_call_duration_seconds", "rpc_method")):
            yield Row([name, _short(method)], [_rate(calls.rate), *_quantiles(calls)], active=calls.count > 0)


def _errors(present: Present) -> Iterator[Row]:
    labels = ("rpc_method", "rpc_response_status_code", "error_type")
    for name, interval in present.items():
        for (method, status, reason), rate in _sorted(interval.rate("rpc_server_errors_total", *labels)):
            yield Row([name, _short(method), status, Text(printable(reason), "red")], [_rate(rate)], active=rate > 0)


def _batches(present: Present) -> Iterator[Row]:
    for name, interval in present.items():
        queued = interval.gauge("shop_coalescer_queue_requests", "coalescer")
        waits = interval.histogram("shop_coalescer_wait_seconds", "coalescer")
        flushes = interval.histogram("shop_coalescer_flush_seconds", "coalescer")
        for key, batches in _sorted(interval.histogram("shop_coalescer_batch_requests", "coalescer")):
            numbers = [_whole(queued.get(key)), _rate(batches.rate), _mean(batches)]
            numbers += [*_quantiles(waits.get(key, _NOTHING)), *_quantiles(flushes.get(key, _NOTHING))]
            yield Row([name, *key], numbers, active=batches.count > 0 or queued.get(key, 0) > 0)


def _outboxes(present: Present) -> Iterator[Row]:
    for interval in present.values():
        oldest = interval.gauge("shop_outbox_oldest_event_age_seconds", "database")
        shipped = interval.rate("shop_relay_shipped_events_total", "database")
        failed = interval.rate("shop_relay_failed_batches_total", "database")
        delays = interval.histogram("shop_relay_delay_seconds", "database")
        shards = interval.gauge("shop_relay_owned_shards", "database")
        for key, pending in _sorted(interval.gauge("shop_outbox_pending_events", "database")):
            numbers = [_whole(pending), _duration(oldest.get(key)), _rate(shipped.get(key, 0))]
            numbers += [
                *_quantiles(delays.get(key, _NOTHING)),
                _rate(failed.get(key, 0)),
                _whole(shards.get(key)),
            ]
            yield Row(key, numbers, active=True)


def _consumers(present: Present) -> Iterator[Row]:
    for name, interval in present.items():
        handled = interval.rate("shop_consumer_events_total", "topic")
        times = interval.histogram("shop_consumer_handling_seconds", "topic")
        letters = interval.rate("shop_consumer_dead_letters_total", "topic")
        for key, lag in _sorted(interval.gauge("shop_consumer_lag_messages", "topic")):
            numbers = [_whole(lag), _rate(handled.get(key, 0))]
            numbers += [*_quantiles(times.get(key, _NOTHING)), _rate(letters.get(key, 0))]
            yield Row([name, *key], numbers, active=True)


def _counters(present: Present) -> Iterator[Row]:
    counters = (
        ("event", "shop_events_written_total", "type"),
        ("stock refused", "shop_stock_refusals_total", "reason"),
        ("reservation expired on demand", "shop_holds_rescued_total", ""),
    )
    for name, interval in present.items():
        for what, counter, label in counters:
            for (which, *_), rate in _sorted(interval.rate(counter, label)):
                yield Row([name, what, which], [_rate(rate)], active=rate > 0)


def _stock(present: Present) -> Iterator[Row]:
    for interval in present.values():
        for (state,), held in _sorted(interval.gauge("shop_holds", "state")):
            yield Row(["held reservations", state], [_whole(held)], active=True)
        for withheld in interval.gauge("shop_withheld_units").values():
            yield Row(["units", "withheld"], [_whole(withheld)], active=True)


def _reaper(present: Present) -> Iterator[Row]:
    for interval in present.values():
        runs = interval.rate("shop_reaper_runs_total", "task", "outcome")
        done = interval.rate("shop_reaper_done_total", "task")
        for key, at in _sorted(interval.gauge("shop_reaper_last_success_timestamp_seconds", "task")):
            numbers = [_rate(runs.get((*key, outcome), 0)) for outcome in ("done", "failed")]
            ago = f"{_duration(max(0.0, time.time() - at))} ago" if at else "never"
            yield Row(key, [*numbers, _rate(done.get(key, 0)), ago], active=True)


def _sorted(found: Mapping[Key, _Value]) -> list[tuple[Key, _Value]]:
    return sorted(found.items(), key=lambda pair: pair[0])


def _coloured(name: str) -> Text:
    return Text(printable(name), COLOURS.get(name, ""))


def _short(method: str) -> str:
    """Return a method without the package of its service."""
    return method.rpartition(".")[2]


def _rate(rate: float) -> str:
    if not rate:
        return _NONE
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.2g}/s"


def _whole(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def _mean(histogram: Histogram) -> str:
    return _NONE if histogram.mean is None else f"{histogram.mean:,.1f}"


def _quantiles(histogram: Histogram) -> list[str]:
    return [_duration(histogram.quantile(quantile)) for quantile in (0.5, 0.99)]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    if seconds >= 120:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
