"""The page that `top` shows: tables of what the processes did in an interval."""

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
from shopctl.watch.away import Away
from shopctl.watch.scrape import Histogram, Interval, Key
from shopctl.watch.system_status import OLDEST_SECONDS_MAX

_Seen = TypeVar("_Seen")

_APIS = (INVENTORY_API, ORDER_API)
_NONE = "–"
_NOTHING_SEEN = Histogram(1.0, 0, 0, ())

Present: TypeAlias = Mapping[str, Interval]
"""The processes that answered at both ends of the interval."""


@dataclass(frozen=True)
class Row:
    """The cells of a row: the words that name it, then its numbers. Without numbers that move it is idle."""

    names: Sequence[str | Text]
    numbers: Sequence[str]
    moves: bool


def page(addresses: Mapping[str, str], intervals: Mapping[str, Interval | Away], *, idle: bool) -> Group:
    """What is wrong in a line, then every table; rows in which nothing moves only with `idle`."""
    present = {name: interval for name, interval in intervals.items() if isinstance(interval, Interval)}
    away = {name: interval for name, interval in intervals.items() if isinstance(interval, Away)}

    def table(title: str, names: str, numbers: str, rows: Iterator[Row], of: Sequence[str], *, idle: bool) -> Table:
        """`of` are the processes that have these numbers."""
        missing = (_missing(name, names, numbers) for name in of if name in away)
        return _table(title, names, numbers, chain(missing, rows), idle=idle)

    # What is short and tells most stands first: a terminal has only so many lines.
    return Group(
        _summary(away, present),
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
        table("what happened", "process, what, which", "times", _facts(present), of=_APIS, idle=idle),
        table("holds", "state", "now", _holds(present), of=(INVENTORY_API,), idle=True),
        table(
            "reaper",
            "task",
            "runs, failed runs, done, last success",
            _reaper(present),
            of=(REAPER,),
            idle=True,
        ),
    )


def _summary(away: Mapping[str, Away], present: Present) -> Text:
    if troubles := "; ".join(_troubles(away, present)):
        return Text(f"Trouble: {troubles}.", "bold red")
    return Text("All processes are ready.", "bold green")


def _troubles(away: Mapping[str, Away], present: Present) -> Iterator[str]:
    for name, one in away.items():
        yield f"{name} is away: {printable(one.reason)}"
    for name, interval in present.items():
        if 0 in interval.gauge("shop_ready_processes").values():
            yield f"{name} is not ready"
    for interval in present.values():
        for (database,), seconds in _sorted(interval.gauge("shop_outbox_oldest_event_age_seconds", "database")):
            if seconds > OLDEST_SECONDS_MAX:
                yield f"events of the {database} database have waited for {seconds:.0f} s to be shipped"


def _missing(name: str, names: str, numbers: str) -> Row:
    """Stands for the rows of a process that is away."""
    words: list[str | Text] = [Text(f"{name} is away", "bold red"), *[""] * names.count(",")]
    return Row(words, [""] * (numbers.count(",") + 1), moves=True)


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
        if idle or row.moves:
            cells = (cell if isinstance(cell, Text) else _coloured(cell) for cell in row.names)
            table.add_row(*cells, *row.numbers)
    if not table.row_count:
        table.add_row(Text("nothing", "dim"))
    table.add_row()
    return table


def _processes(addresses: Mapping[str, str], intervals: Mapping[str, Interval | Away]) -> Iterator[Row]:
    for name, interval in intervals.items():
        if isinstance(interval, Away):
            yield Row([name, addresses[name], Text("away", "bold red")], [""] * 4, moves=True)
            continue
        used = interval.gauge("db_client_connection_count", "state").get(("used",))
        waiting = interval.gauge("db_client_connection_pending_requests").get(())
        yield Row(
            [name, addresses[name], Text("up", "green")],
            [
                _rate(interval.histogram("rpc_server_call_duration_seconds").get((), _NOTHING_SEEN).rate),
                _rate(interval.rate("rpc_server_errors_total").get((), 0)),
                _whole(used),
                _whole(waiting),
            ],
            moves=True,
        )


def _calls(present: Present) -> Iterator[Row]:
    for name, interval in present.items():
        for (method,), seen in _sorted(interval.histogram("rpc_server_call_duration_seconds", "rpc_method")):
            yield Row([name, _short(method)], [_rate(seen.rate), *_quantiles(seen)], moves=seen.count > 0)


def _errors(present: Present) -> Iterator[Row]:
    labels = ("rpc_method", "rpc_response_status_code", "error_type")
    for name, interval in present.items():
        for (method, status, reason), rate in _sorted(interval.rate("rpc_server_errors_total", *labels)):
            yield Row([name, _short(method), status, Text(printable(reason), "red")], [_rate(rate)], moves=rate > 0)


def _batches(present: Present) -> Iterator[Row]:
    for name, interval in present.items():
        queued = interval.gauge("shop_coalescer_queue_requests", "coalescer")
        waits = interval.histogram("shop_coalescer_wait_seconds", "coalescer")
        flushes = interval.histogram("shop_coalescer_flush_seconds", "coalescer")
        for key, seen in _sorted(interval.histogram("shop_coalescer_batch_requests", "coalescer")):
            numbers = [_whole(queued.get(key)), _rate(seen.rate), _mean(seen)]
            numbers += [*_quantiles(waits.get(key, _NOTHING_SEEN)), *_quantiles(flushes.get(key, _NOTHING_SEEN))]
            yield Row([name, *key], numbers, moves=seen.count > 0 or queued.get(key, 0) > 0)


def _outboxes(present: Present) -> Iterator[Row]:
    for interval in present.values():
        oldest = interval.gauge("shop_outbox_oldest_event_age_seconds", "database")
        shipped = interval.rate("shop_relay_shipped_events_total", "database")
        failed = interval.rate("shop_relay_failed_batches_total", "database")
        delays = interval.histogram("shop_relay_delay_seconds", "database")
        shards = interval.gauge("shop_relay_owned_shards", "database")
        for key, pending in _sorted(interval.gauge("shop_outbox_pending_events", "database")):
            numbers = [_whole(pending), _duration(oldest.get(key)), _rate(shipped.get(key, 0))]
            numbers += [*_quantiles(delays.get(key, _NOTHING_SEEN)), _rate(failed.get(key, 0)), _whole(shards.get(key))]
            yield Row(key, numbers, moves=True)


def _consumers(present: Present) -> Iterator[Row]:
    for name, interval in present.items():
        handled = interval.rate("shop_consumer_events_total", "topic")
        times = interval.histogram("shop_consumer_handling_seconds", "topic")
        letters = interval.rate("shop_consumer_dead_letters_total", "topic")
        for key, lag in _sorted(interval.gauge("shop_consumer_lag_messages", "topic")):
            numbers = [_whole(lag), _rate(handled.get(key, 0))]
            numbers += [*_quantiles(times.get(key, _NOTHING_SEEN)), _rate(letters.get(key, 0))]
            yield Row([name, *key], numbers, moves=True)


def _facts(present: Present) -> Iterator[Row]:
    counters = (
        ("event", "shop_events_written_total", "type"),
        ("stock refused", "shop_stock_refusals_total", "reason"),
        ("hold expired for a buyer in need", "shop_holds_rescued_total", ""),
    )
    for name, interval in present.items():
        for what, counter, label in counters:
            for (which, *_), rate in _sorted(interval.rate(counter, label)):
                yield Row([name, what, which], [_rate(rate)], moves=rate > 0)


def _holds(present: Present) -> Iterator[Row]:
    for interval in present.values():
        for key, held in _sorted(interval.gauge("shop_holds", "state")):
            yield Row(key, [_whole(held)], moves=True)


def _reaper(present: Present) -> Iterator[Row]:
    for interval in present.values():
        runs = interval.rate("shop_reaper_runs_total", "task", "outcome")
        done = interval.rate("shop_reaper_done_total", "task")
        for key, at in _sorted(interval.gauge("shop_reaper_last_success_timestamp_seconds", "task")):
            numbers = [_rate(runs.get((*key, outcome), 0)) for outcome in ("done", "failed")]
            ago = f"{_duration(max(0.0, time.time() - at))} ago" if at else "never"
            yield Row(key, [*numbers, _rate(done.get(key, 0)), ago], moves=True)


def _sorted(found: Mapping[Key, _Seen]) -> list[tuple[Key, _Seen]]:
    return sorted(found.items(), key=lambda pair: pair[0])


def _coloured(name: str) -> Text:
    return Text(printable(name), COLOURS.get(name, ""))


def _short(method: str) -> str:
    """A method without the package of its service."""
    return method.rpartition(".")[2]


def _rate(rate: float) -> str:
    if not rate:
        return _NONE
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.2g}/s"


def _whole(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def _mean(seen: Histogram) -> str:
    return _NONE if seen.mean is None else f"{seen.mean:,.1f}"


def _quantiles(seen: Histogram) -> list[str]:
    return [_duration(seen.quantile(quantile)) for quantile in (0.5, 0.99)]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    if seconds >= 120:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
