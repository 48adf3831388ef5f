"""`./task dev` runs the whole system on this machine, in one terminal, until Ctrl-C.

    python -m devstack.dev [--database sqlite|postgresql://USER:PASSWORD@HOST:PORT] [--data-dir run/data]

It creates missing databases, starts the embedded broker, the four processes and the console, and shows and stores their
logs. It restarts a process that ends. If a process never becomes ready, or if the broker ends, everything ends with
exit code 1. The first signal (Ctrl-C, SIGTERM or SIGHUP) ends everything after all events were handled. A second signal
ends everything at once.

It collects spans for `./task trace`, and passes the OTEL_* variables of its environment to the four processes.
"""

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

import psutil
from confluent_kafka import KafkaException
from rich import box
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from devstack import certificates, kafka
from devstack.dev import collector, identity, run_folder
from devstack.dev import options as dev_options
from devstack.dev.drain import drain
from devstack.dev.options import CannotStart, DevOptions
from devstack.dev.screen import Screen
from devstack.dev.supervisor import Supervisor, how_it_ended
from devstack.kafka import Kafka
from devstack.process import Process, ProcessEnded
from devstack.stack import Databases, Options, Stack
from shopctl.system import log_book, runfile
from shopctl.system.grpc_health import health
from shopctl.system.layout import CONSOLE, INVENTORY_API, ORDER_API, REAPER, RELAY, reachable
from shopctl.system.log_book import LogBook
from shopctl.system.runfile import Endpoint, RunFile
from shopctl.terminal.colours import BROKER, COLOURS

DRAIN_SECONDS = 30
# One Ctrl-C may arrive twice: from the terminal and from the parent process.
_SAME_CTRL_C_SECONDS = 1.0

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
# Export spans soon: after an order, a user looks at its trace at once.
_EXPORT_SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}

_TASK_RUNNER = "task"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal or a failure. Returns 1 after a failure, or if some events were not handled; otherwise 0."""
    options = dev_options.parse(arguments)
    screen = Screen()
    try:
        with _signals_interrupt(), run_folder.owned(), _logs_stored(screen):
            return Dev(options, screen).run()
    except KeyboardInterrupt:
        screen.complain("interrupted: ended at once")
    except (CannotStart, run_folder.Owned) as refusal:
        screen.complain(str(refusal))
    except OSError as failure:
        screen.complain(f"cannot use the run folder: {failure}")
    return 1


class Dev:
    """One run of the system."""

    def __init__(self, options: DevOptions, screen: Screen) -> None:
        self._options = options
        self._screen = screen
        self._environment = _otel_variables() | dict(options.environment)
        self._collects = _ENDPOINT not in self._environment
        self._runner = _task_runner()
        self._was_up = False
        self._identity: dict[str, dict[str, str]] = {}

    def run(self) -> int:
        """Run until a signal or a failure. Returns the exit code, after all processes have ended."""
        databases = dev_options.check(self._options)
        # Collect until the very end: processes export their last spans while they end.
        with self._data_owned(), self._collected(), self._secured():
            return self._run(databases)

    def _run(self, databases: Databases) -> int:
        self._screen.say("starting, which takes a few seconds; Ctrl-C ends everything")
        address_file = runfile.PATH.with_name("broker")
        broker = kafka.embedded(address_file, lambda line: self._screen.log(BROKER, line), self._options.kafka_port)
        stack = None
        try:
            stack = self._stack(databases, kafka.start(broker, address_file))
            stack.migrate()
            stack.start()
            self._supervise(stack, broker)
            if broker.alive:
                # The task runner that started us has ended, so end, too.
                return 0 if self._drain(stack, broker) else 1
            self._screen.complain(f"the broker {how_it_ended(broker)}; its events are lost, so everything ends")
            return 1
        except (ProcessEnded, TimeoutError) as failure:
            # The message repeats the process's last log lines, because the screen mixes the lines of all processes.
            self._screen.complain(str(failure))
            return 1
        except KeyboardInterrupt:
            return 0 if self._drain(stack, broker) else 1
        finally:
            runfile.remove()
            if stack is not None:
                stack.stop()
            if broker.alive:
                broker.stop()
            self._screen.say("ended")

    @contextmanager
    def _data_owned(self) -> Iterator[None]:
        """Lock the data folder.

        Two `dev` on the same databases would have two brokers, and each broker would get only some of the events.
        """
        folder = self._options.data_folder
        with ExitStack() as ending:
            if self._options.database == "sqlite":
                try:
                    ending.enter_context(run_folder.owned(folder / run_folder.LOCK.name))
                except run_folder.Owned as other:
                    raise CannotStart(f"--data-dir {folder}: in use by another dev (pid {other.pid})") from None
            yield

    @contextmanager
    def _collected(self) -> Iterator[None]:
        """Collect the spans of the processes, unless the user has set another endpoint."""
        if not self._collects:
            yield
            return
        with ExitStack() as ending:
            try:
                port = self._options.traces_port
                endpoint = ending.enter_context(collector.collecting(self._screen.complain, port=port))
            except (OSError, sqlite3.Error) as failure:
                raise CannotStart(f"cannot store traces: {failure}") from failure
            self._environment = {_ENDPOINT: endpoint} | _EXPORT_SOON | self._environment
            yield

    @contextmanager
    def _secured(self) -> Iterator[None]:
        """With --secure, issue the users' tokens, and let the APIs check their callers."""
        if not self._options.is_secure:
            yield
            return
        with identity.provided() as self._identity:
            yield

    def _stack(self, databases: Databases, broker: Kafka) -> Stack:
        options = Options(
            listen_host=self._options.listen,
            environment=self._environment,
            # The logs concern all tenants, so the console does not show them to viewers who sign in.
            per_process=self._identity
            or {
                CONSOLE: {
                    "LOGS_PATH": str(log_book.PATH.absolute()),
                    "RUN_FILE_PATH": str(runfile.PATH.absolute()),
                }
            },
            certificates=certificates.make(certificates.FOLDER) if self._options.is_secure else None,
            has_console=self._options.has_console,
        )
        return Stack(databases, broker, self._options.ports, options, self._screen.log)

    def _supervise(self, stack: Stack, broker: Process) -> None:
        """Supervise the processes until the broker or our task runner ends.

        The broker is not restarted, because it keeps all events in memory.
        """
        self._was_up = True
        self._write_run_file(stack, broker)
        self._print_addresses(stack)
        supervisor = Supervisor(
            stack.processes,
            self._screen.say,
            self._screen.complain,
            started=lambda: self._rewrite_run_file(stack, broker),
        )
        supervisor.run(lambda: broker.alive and self._runner in (None, os.getppid()))

    def _rewrite_run_file(self, stack: Stack, broker: Process) -> None:
        """Write the run file with the new pids. A failure, such as a full disk, must not end the system."""
        try:
            self._write_run_file(stack, broker)
        except OSError as failure:
            self._screen.complain(f"cannot write the run file, so other tasks may not find the new process: {failure}")

    def _write_run_file(self, stack: Stack, broker: Process) -> None:
        me = psutil.Process()
        run = RunFile(
            pid=me.pid,
            started=me.create_time(),
            bootstrap=stack.kafka.bootstrap,
            databases=stack.databases,
            processes=_endpoints(stack, self._options.listen),
            # The user's endpoint. It is empty if the user has turned traces off.
            traces_elsewhere=None if self._collects else self._environment[_ENDPOINT],
            broker_pid=broker.pid,
            certificates=str(_operator_files().folder.absolute()) if self._options.is_secure else None,
        )
        runfile.write(run)

    def _print_addresses(self, stack: Stack) -> None:
        listen = self._options.listen
        if self._options.has_console:
            self._screen.say(f"console: http://localhost:{stack.ports.console}", "bold")
        table = Table(title="all healthy", title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("process", "address", "health", "metrics"):
            table.add_column(column, no_wrap=True)
        for name, endpoint in _endpoints(stack, listen).items():
            metrics = f"{endpoint.metrics}/metrics" if endpoint.metrics else "off"
            table.add_row(Text(name, COLOURS[name]), endpoint.address, health(endpoint.health), metrics)
        table.add_row(Text(BROKER, COLOURS[BROKER]), stack.kafka.bootstrap, "", "")
        self._screen.table(table)
        if self._options.is_secure:
            files = _operator_files()
            options = f"-cacert {files.ca} -cert {files.cert} -key {files.key}"
            self._screen.say(f"clients need a certificate: grpcurl {options} {stack.inventory_address} list")
            tokens = " or ".join(str(identity.token_file(user)) for user in identity.USERS)
            self._screen.say(
                f"users also need a token, in the metadata `authorization: Bearer …`. The tokens are in {tokens}"
            )
        elif self._options.is_open:
            self._screen.say(f"other machines can reach these ports ({listen}) without authentication", "bold yellow")
        self._screen.say("next: ./task test-grpc, then ./task trace --last, or ./task top; ./task stop ends everything")

    def _drain(self, stack: Stack | None, broker: Process) -> bool:
        """End the stack gracefully. Returns whether all events were handled."""
        if stack is None or not self._was_up:
            return True
        self._screen.say("ending: finishing the work in progress first (Ctrl-C again ends at once)")
        try:
            broker.thaw()
            for process in stack.processes:
                process.thaw()
                if not process.alive:
                    process.start()
            return drain(stack, DRAIN_SECONDS, self._screen.say)
        except KeyboardInterrupt:
            for process in stack.processes:
                process.kill()
            raise
        except (KafkaException, SQLAlchemyError) as failure:
            self._screen.complain(f"cannot check whether all events were handled: {failure}")
            return False


def _endpoints(stack: Stack, listen: str) -> dict[str, Endpoint]:
    ports = stack.ports
    served = {
        INVENTORY_API: ports.inventory,
        ORDER_API: ports.orders,
        REAPER: ports.reaper,
        RELAY: ports.relay,
        CONSOLE: ports.console,
    }

    def endpoint(process: Process) -> Endpoint:
        # The page listens on this machine only, even with --listen.
        host = "127.0.0.1" if process.name == CONSOLE else reachable(listen)
        metrics, health = ports.metrics_of(process.name), ports.health_of(process.name)
        return Endpoint(
            process.pid,
            f"{host}:{served[process.name]}",
            f"{host}:{metrics}" if metrics else None,
            f"{host}:{health}",
        )

    return {process.name: endpoint(process) for process in stack.processes}


def _operator_files() -> certificates.Files:
    """Return the files of the certificate for callers other than the four processes."""
    return certificates.Files(certificates.FOLDER / certificates.OPERATOR)


def _otel_variables() -> dict[str, str]:
    """Return the OTEL_* variables of the environment, which dev passes to the processes."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}


def _task_runner() -> int | None:
    """Return the pid of go-task if it started us. go-task does not forward signals, so dev ends when go-task ends."""
    parent = psutil.Process().parent()
    return parent.pid if parent is not None and parent.name() == _TASK_RUNNER else None


@contextmanager
def _logs_stored(screen: Screen) -> Iterator[None]:
    """Store the lines on the screen for `./task logs`."""
    with LogBook.opened(lambda failure: screen.complain(f"cannot store logs: {failure}")) as book:
        screen.book = book
        yield


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP (a closed terminal) like Ctrl-C. Ignore a signal that follows right after another."""
    last = float("-inf")

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal last
        echo = time.monotonic() - last < _SAME_CTRL_C_SECONDS
        last = time.monotonic()
        if not echo:
            raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


if __name__ == "__main__":
    sys.exit(main())
