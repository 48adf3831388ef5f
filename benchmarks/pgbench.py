"""Runs the statements of one reservation with pgbench, to measure the database alone."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg
from sqlalchemy.engine import URL, make_url

from benchmarks import cpu, stock
from benchmarks.generator import Outcome, summary
from benchmarks.http2 import LoadError
from benchmarks.scenarios import HOT_PRODUCT, PRODUCTS, RESERVE_HOT, RESERVE_SPREAD, Scenario
from benchmarks.subjects import fill_inventory
from devstack import watchdog
from devstack.postgres import PostgresServer

CONNECT_SECONDS = 30
WARMUP_SECONDS_PER_CLIENT = 0.01
END_SECONDS = 300
STOP_SECONDS = 60
_POLL_SECONDS = 0.05
_CONNECTED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = %s AND application_name = 'pgbench' AND state <> '' AND query <> ''
"""

_PRODUCTS = {
    RESERVE_HOT: f"{HOT_PRODUCT}",
    RESERVE_SPREAD: f"random({PRODUCTS.start}, {PRODUCTS.stop - 1})",
}

# The statements of one reservation, as our services write them. But each reservation has its own transaction, and there
# is no logic.
_TRANSACTION = """\
\\set product {product}
BEGIN;
SELECT id AS item FROM inventory_items
 WHERE product_id = :product AND quantity - reserved_quantity >= 1 ORDER BY id LIMIT 1 FOR UPDATE \\gset
UPDATE inventory_items SET reserved_quantity = reserved_quantity + 1, updated_at = clock_timestamp() WHERE id = :item;
INSERT INTO stock_reservations (id, product_id, quantity, order_id, state, created_at, expires_at)
 VALUES (gen_random_uuid(), :product, 1, gen_random_uuid()::text, 'HELD', clock_timestamp(),
         clock_timestamp() + interval '30 minutes')
 RETURNING id AS reservation \\gset
INSERT INTO reservation_allocations (reservation_id, item_id, quantity) VALUES (:reservation, :item, 1);
INSERT INTO outbox (shard, event_id, topic, key, type, payload, created_at)
 VALUES (7, gen_random_uuid(), 'inventory-events', :product::bigint::text, 'STOCK_RESERVED', '{payload}',
         clock_timestamp());
COMMIT;
"""
_PAYLOAD = "x" * 360  # the length of the JSON of a STOCK_RESERVED event


class Pgbench:
    """pgbench on its own database, with one client per concurrent call."""

    name = "pgbench"
    database = "postgresql"

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._program = _program(server)
        self._url = make_url(server.new_database("pgbench"))
        self._text_url = self._url.render_as_string(hide_password=False)
        self._files = ExitStack()
        self._folder = Path()
        self._done = 0

    def start(self) -> None:
        self._folder = Path(self._files.enter_context(tempfile.TemporaryDirectory(prefix="shop-pgbench-")))
        fill_inventory(self._text_url)

    def stop(self) -> None:
        self._files.close()

    def measures(self, scenario: Scenario) -> bool:
        return scenario in _PRODUCTS

    def measure(self, scenario: Scenario, calls: int, seconds: float, warmup_seconds: float) -> Outcome:
        script = self._folder / "script.sql"
        script.write_text(_TRANSACTION.format(product=_PRODUCTS[scenario], payload=_PAYLOAD))
        arguments = ["-n", "-M", "prepared", "-l", "-c", str(calls), "-T", str(END_SECONDS), "-f", str(script)]
        output = self._folder / "output"
        with output.open("w") as said:
            child = subprocess.Popen(
                [self._program, *arguments, str(self._url.database)],
                cwd=self._folder,
                env={**os.environ, **_connection(self._url)},
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        watchdog.watch(child.pid)
        try:
            self._wait_until_connected(child, calls)
            # Skip the first transaction of each client, which prepares the statements.
            time.sleep(warmup_seconds + calls * WARMUP_SECONDS_PER_CLIENT)
            begin, before = time.time(), self._cpu(child)
            time.sleep(seconds)
            end, after = time.time(), self._cpu(child)
            # pgbench's own timer sends the same signal: pgbench then ends after its current transactions.
            child.send_signal(signal.SIGALRM)
            code = child.wait(STOP_SECONDS)
        finally:
            child.kill()
            child.wait()
            watchdog.forget(child.pid)
        transactions = self._transactions()
        self._done += len(transactions)
        latencies = [latency for ended, latency in transactions if begin <= ended < end]
        if code or not latencies:
            raise LoadError(f"pgbench failed: {output.read_text().strip()}")
        return summary(
            len(latencies) / (end - begin),
            latencies,
            {kind: after[kind] - before[kind] for kind in before},
            succeeded=len(transactions),
        )

    def check(self) -> None:
        stock.check_inventory(self._text_url, self._done, events=True)

    def _wait_until_connected(self, child: subprocess.Popen[bytes], calls: int) -> None:
        # pgbench's timer already runs while it opens its connections, which takes time for 128 of them.
        deadline = time.monotonic() + CONNECT_SECONDS
        url = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            while child.poll() is None and time.monotonic() < deadline:
                if connection.execute(_CONNECTED, [self._url.database]).fetchone() == (calls,):
                    return
                time.sleep(_POLL_SECONDS)

    def _cpu(self, child: subprocess.Popen[bytes]) -> dict[str, float]:
        return {"database": cpu.seconds(self._server.pid), "client": cpu.seconds(child.pid)}

    def _transactions(self) -> list[tuple[float, float]]:
        """Return the end time and the duration of each transaction from pgbench's log, and remove the log."""
        found: list[tuple[float, float]] = []
        for log in self._folder.glob("pgbench_log.*"):
            for line in log.read_text().splitlines():
                _, _, micros, _, epoch, epoch_micros = line.split()
                found.append((int(epoch) + int(epoch_micros) / 1e6, int(micros) / 1e6))
            log.unlink()
        return found


def _program(server: PostgresServer) -> str:
    beside = server.bin_folder / "pgbench"
    program = str(beside) if beside.exists() else shutil.which("pgbench")
    if program is None:
        raise PgbenchMissing(f"pgbench was not found beside {server.description} or in PATH")
    return program


class PgbenchMissing(Exception):
    """pgbench cannot run; the message contains the reason."""


def _connection(url: URL) -> dict[str, str]:
    named = {"PGHOST": url.host, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password}
    return {name: str(value) for name, value in named.items()}
