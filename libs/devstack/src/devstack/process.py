"""Runs a child process in its own process group, reads its output line by line, and can stop, freeze or kill it."""

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psutil

from devstack import watchdog
from shopctl.system.grpc_health import health

LOG_LINES_MAX = 20_000
TAIL_LINES = 25
_POLL_SECONDS = 0.05
_HEALTH_SECONDS = 1
_KILL_SECONDS = 60
_FREEZE_SECONDS = 60

# The variables that any program needs. All other variables are passed explicitly: a GRPC_PORT or DATABASE_URL that the
# caller has exported must never reach a child process by accident.
_INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
)


class ProcessEnded(Exception):
    """A process that should be running has ended; the message contains the end of its log."""


def inherited_environment() -> dict[str, str]:
    """Return the variables of this process that every child inherits."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


class Process:
    """A program that can be started, stopped and started again. Its output, stderr included, is kept.

    `health_address` is the address of its grpc.health.v1 service. `on_line` is called on a separate thread with each
    line of output, without the line end.
    """

    def __init__(
        self,
        name: str,
        args: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        health_address: str | None = None,
        on_line: Callable[[str], None] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.args = list(args)
        self.env = dict(env or {})
        self.health_address = health_address
        self._on_line = on_line
        self._folder = folder
        self._lines: deque[str] = deque(maxlen=LOG_LINES_MAX)
        self._child: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._group_gone = True

    def start(self) -> Self:
        """Start the process. Its log continues the log of the earlier runs."""
        if self.alive:
            raise RuntimeError(f"{self.name} is running already")
        self._child = subprocess.Popen(
            self.args,
            env=inherited_environment() | {"PYTHONUNBUFFERED": "1"} | self.env,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # In a new session, the child does not get the terminal's Ctrl-C. We stop the children in the right order.
            start_new_session=True,
        )
        try:
            watchdog.watch(self._child.pid)
        except BaseException:
            self._child.kill()
            raise
        self._group_gone = False
        reader = threading.Thread(target=self._read, args=(self._child,), name=f"log of {self.name}", daemon=True)
        reader.start()
        # Assign the thread only after its start: Ctrl-C during a thread's start leaves a thread that cannot be joined.
        self._reader = reader
        return self

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def alive(self) -> bool:
        return self._child is not None and self.exit_code is None

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while the process is running; the negated number of the signal if a signal ended it."""
        code = self._started().poll()
        if code is not None:
            # From now on its pid may belong to another process.
            watchdog.forget(self.pid)
        return code

    @property
    def log(self) -> str:
        """The output so far, at most the last 20,000 lines."""
        return "\n".join(self._lines)

    def terminate(self) -> None:
        """Send SIGTERM to the process, but not to its children, which the process ends itself. Then call `wait`."""
        # A frozen process does not handle signals.
        self.thaw()
        self.send_signal(signal.SIGTERM)

    def send_signal(self, signum: signal.Signals) -> None:
        """Send a signal to the process, but not to its children. Does nothing if the process has ended."""
        self._started().send_signal(signum)

    def kill(self) -> None:
        """Kill the process and its children (SIGKILL), which acts like a crash, and wait until the process has ended.

        May be repeated.
        """
        self._signal_group(signal.SIGKILL)
        self.wait(_KILL_SECONDS)
        self._group_gone = True

    def freeze(self) -> None:
        """Freeze the process and its children until `thaw`. Their connections stay open."""
        self._signal_group(signal.SIGSTOP)
        leader = psutil.Process(self.pid)
        wait_until_stopped([leader, *leader.children(recursive=True)])

    def thaw(self) -> None:
        self._signal_group(signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def wait(self, seconds: float) -> int:
        """Wait until the process has ended and its output is in the log. Returns the exit code. Raises TimeoutError."""
        child = self._started()
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} did not end within {seconds:g} s\n{self.tail()}") from None
        watchdog.forget(child.pid)
        if self._reader is not None:
            self._reader.join(1)
        return code

    def stop(self, seconds: float = 10) -> int:
        """End the process gracefully, or kill it after `seconds`. Returns the exit code. May be repeated."""
        self.terminate()
        return self.finish(seconds)

    def finish(self, seconds: float) -> int:
        """Do the rest of `stop` after `terminate`.

        Sends no second SIGTERM, because a process may end at once when it receives one.
        """
        try:
            code = self.wait(seconds)
        except TimeoutError:
            code = -signal.SIGKILL
        # Also kill the children that the process left behind.
        self.kill()
        return code

    def is_ready(self, service: str = "") -> bool:
        """Return whether the health service reports SERVING for `service`: '' is readiness, 'liveness' is liveness.

        Raises ProcessEnded, with the end of the log, if the process has ended.
        """
        if self.health_address is None:
            raise ValueError(f"{self.name} has no health service")
        if not self.alive:
            raise ProcessEnded(f"{self.name} ended with exit code {self.wait(1)}\n{self.tail()}")
        return health(self.health_address, service, timeout_seconds=_HEALTH_SECONDS) == "SERVING"

    def wait_ready(self, seconds: float, service: str = "") -> None:
        """Wait until `is_ready` returns true. Raises ProcessEnded as soon as the process ends, or TimeoutError."""
        deadline = time.monotonic() + seconds
        while not self.is_ready(service):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} is not ready after {seconds:g} s\n{self.tail()}")
            time.sleep(_POLL_SECONDS)

    def wait_for_line(self, text: str, seconds: float) -> str:
        """Wait until the log has a line with `text`. Returns the first one. Raises ProcessEnded or TimeoutError."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended = not self.alive
            if ended:
                self.wait(1)
            for line in list(self._lines):
                if text in line:
                    return line
            if ended:
                raise ProcessEnded(f"{self.name} ended with exit code {self.exit_code}\n{self.tail()}")
            time.sleep(_POLL_SECONDS)
        raise TimeoutError(f"{self.name} did not print {text!r} within {seconds:g} s\n{self.tail()}")

    def tail(self) -> str:
        """Return the end of the log, indented, for error messages."""
        return "\n".join(f"    {line}" for line in list(self._lines)[-TAIL_LINES:])

    def _read(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        with child.stdout as output:
            for line in output:
                self._lines.append(line.rstrip("\n"))
                if self._on_line is not None:
                    self._on_line(self._lines[-1])

    def _started(self) -> subprocess.Popen[str]:
        if self._child is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._child

    def _signal_group(self, signum: signal.Signals) -> None:
        # The id of a group that is gone may belong to another group now.
        if self._group_gone:
            return
        # The group may be gone. For a group of zombies, macOS raises PermissionError.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._started().pid, signum)


def wait_until_stopped(processes: Sequence[psutil.Process]) -> None:
    """Wait until SIGSTOP has stopped all processes, which takes time on a busy machine. Raises TimeoutError."""
    deadline = time.monotonic() + _FREEZE_SECONDS
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{process} does not stop")
                time.sleep(_POLL_SECONDS)
