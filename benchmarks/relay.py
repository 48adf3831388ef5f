"""Compares the relay with a plain loop and Debezium, in one run. See `python -m benchmarks.relay --help`."""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from benchmarks import command, cpu
from benchmarks.http2 import LoadError
from benchmarks.relay_debezium import PLUGIN, Debezium, downloaded, unpacked
from benchmarks.relay_outbox import TooBusy
from benchmarks.relay_results import DEBEZIUM, OURS, TWO, Backlog, Delay, Results, show
from benchmarks.relay_sides import Loop, Ours, Side
from devstack import kafka, postgres
from devstack.kafka import EMBEDDED, Kafka
from shopctl.system import docker

SIDES = (OURS, TWO, "loop", DEBEZIUM)
BACKLOG, WARM, DELAY_SECONDS = 100_000, 300_000, 20.0
"""The values for which the goals are defined."""

RATE = 1000
"""Events per second while the delay is measured."""

SETTLE_SECONDS = 1.0
ARRIVE_SECONDS = 30
MAVEN_VARIABLE = "MAVEN_REPOSITORY"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code: a wrong count fails the run, a missed goal does not."""
    options = _options(argv)
    results = command.measured(lambda console: _Run(options, console).measure())
    if results is None:
        return 1
    show(results, command.output(140))
    if options.json:
        options.json.write_text(json.dumps(results.as_json(), indent=2) + "\n")
    return 0


class _Run:
    """One run over all sides, with their shared state."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self._options = options
        self._report: Callable[[str], None] = lambda text: console.print(text, highlight=False)
        complete = options.backlog >= BACKLOG and options.warm >= WARM and options.delay_seconds >= DELAY_SECONDS
        self._results = Results(complete=complete)
        self._broker_pid: int | None = None

    def measure(self) -> Results:
        with ExitStack() as stack:
            broker = stack.enter_context(kafka.provide(containers=True, tell=self._report))
            self._report(f"broker: {broker.description}; {platform.machine()}, {os.cpu_count()} processors")
            if broker.description == EMBEDDED:
                self._report(
                    "[yellow]the embedded broker stores nothing on disk: its results are not those of Apache Kafka[/]"
                )
            else:
                self._broker_pid = _pid_of(broker.container.name)
            sides = self._sides(stack, broker)
            for side in sides:
                self._report(f"{side.name}: {side.server.description}, each commit synced")
                stack.callback(side.stop)
                side.start()
                # Callbacks run in reverse order: thaw the server first, because a side needs its server to stop.
                stack.callback(side.go)
                stack.callback(side.server.thaw)
                self._freeze(side)
            for side in sides:
                self._run_alone(side, self._warm)
            for _ in range(self._options.rounds):
                for side in sides:
                    self._run_alone(side, lambda side: self._results.add(side.name, self._backlog(side)))
            if self._options.delay_seconds:
                for side in sides:
                    self._run_alone(side, self._delays)
        return self._results

    def _sides(self, stack: ExitStack, broker: Kafka) -> list[Side]:
        def server() -> postgres.PostgresServer:
            return command.worn_in_server(stack, self._report)

        sides: list[Side] = []
        for name, count in ((OURS, 1), (TWO, 2)):
            if name in self._options.sides:
                sides.append(Ours(name, server(), broker, count))
        if "loop" in self._options.sides:
            sides.append(Loop("loop", server(), broker))
        if DEBEZIUM in self._options.sides:
            plugin = self._plugin(stack, broker)
            if plugin is not None:
                sides.append(Debezium(server(), broker, plugin))
        return sides

    def _plugin(self, stack: ExitStack, broker: Kafka) -> Path | None:
        """Return the folder of Debezium's plugin. If there is none, report why and return None."""
        given: Path | None = self._options.debezium
        if broker.description == EMBEDDED:
            self._report("[yellow]without Debezium:[/] it runs in Apache Kafka's image, which needs Docker")
            return None
        if given is None and not self._options.maven:
            self._report(f"[yellow]without Debezium:[/] use --debezium or --maven (or {MAVEN_VARIABLE})")
            return None
        if given is not None and given.is_dir():
            return given.resolve()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shop-debezium-")))
        # Kafka Connect runs as another user, and must be able to read the folder.
        folder.chmod(0o755)
        plugin = folder / "plugin"
        plugin.mkdir()
        return unpacked(given or downloaded(self._options.maven, folder), plugin)

    def _run_alone(self, side: Side, measure: Callable[[Side], None]) -> None:
        """Measure one side while all other sides are frozen."""
        side.server.thaw()
        measure(side)
        self._freeze(side)

    def _freeze(self, side: Side) -> None:
        side.hold()
        side.server.freeze()

    def _warm(self, side: Side) -> None:
        for _ in range(self._options.warm // self._options.backlog):
            found = self._backlog(side)
            self._report(f"{side.name}: warm-up, {found.rate:,.0f} events/s")

    def _backlog(self, side: Side) -> Backlog:
        """Fill the outbox while the side is paused, resume it, and wait until everything is in Kafka."""
        count, outbox = self._options.backlog, side.outbox
        arrived = outbox.arrived()
        outbox.fill(count)
        time.sleep(SETTLE_SECONDS)
        before, began = self._cpu(side), time.monotonic()
        side.go()
        seconds = outbox.wait_for(arrived + count) - began
        if side.deletes:
            outbox.wait_until_empty()
        after = self._cpu(side)
        side.hold()
        if not side.deletes:
            outbox.truncate()
        return Backlog(count / seconds, {kind: (after[kind] - before[kind]) / count for kind in before})

    def _delays(self, side: Side) -> None:
        side.go()
        try:
            self._results.add_delay(side.name, self._delay(side))
        except TooBusy as error:
            self._report(f"[yellow]the delay of {side.name} is not measured:[/] this machine is too busy: {error}")
        if not side.deletes:
            side.outbox.truncate()

    def _delay(self, side: Side) -> Delay:
        outbox, seconds = side.outbox, self._options.delay_seconds
        with outbox.arrivals() as arrivals:
            outbox.write_at(RATE, min(seconds, 3))
            before, began = self._cpu(side), time.monotonic()
            committed = outbox.write_at(RATE, seconds)
            deadline = time.monotonic() + ARRIVE_SECONDS
            while not committed.keys() <= arrivals.keys():
                if time.monotonic() > deadline:
                    raise LoadError(f"{len(committed.keys() - arrivals.keys())} events did not arrive")
                time.sleep(0.05)
            after = self._cpu(side)
        taken = time.monotonic() - began
        delays = sorted(arrivals[number] - sent for number, (sent, _) in committed.items())
        commits = statistics.median(answered - sent for sent, answered in committed.values())
        quantiles = statistics.quantiles(delays, n=1000)
        spent = {kind: (after[kind] - before[kind]) / len(committed) for kind in before}
        return Delay(len(committed) / taken, quantiles[499], quantiles[989], delays[-1], commits, spent)

    def _cpu(self, side: Side) -> dict[str, float]:
        spent = {
            "side": sum(cpu.seconds(pid) for pid in side.pids().values()),
            "database": cpu.seconds(side.server.pid),
        }
        return spent if self._broker_pid is None else spent | {"broker": cpu.seconds(self._broker_pid)}


def _pid_of(container: str) -> int:
    return int(docker.run("inspect", "--format", "{{.State.Pid}}", container))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay", description=__doc__)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="only these sides")
    parser.add_argument("--backlog", type=int, default=BACKLOG, help="rows in the outbox at the start (%(default)s)")
    parser.add_argument("--warm", type=int, default=WARM, help="warm-up events per side (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measured backlogs per side (%(default)s)")
    parser.add_argument(
        "--delay-seconds",
        type=float,
        default=DELAY_SECONDS,
        help="length of the measurement of delays, at 1,000 events/s; 0 means none (%(default)s)",
    )
    parser.add_argument(
        "--debezium",
        type=Path,
        metavar="PATH",
        help=f"the unpacked plugin's folder, or {PLUGIN} (checksum is verified)",
    )
    parser.add_argument(
        "--maven",
        metavar="URL",
        default=os.environ.get(MAVEN_VARIABLE),
        help=f"address of a Maven repository to download the plugin from (or {MAVEN_VARIABLE})",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: few events, once; its results mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    options = parser.parse_args(argv)
    if options.quick:
        options.backlog, options.warm, options.rounds, options.delay_seconds = 10_000, 10_000, 1, 2
    return options


if __name__ == "__main__":
    sys.exit(main())
