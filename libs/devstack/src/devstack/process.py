"""A real child process, in a group of its own: heard line by line, stopped, frozen or killed at will."""

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
_ASK_SECONDS = 1
_KILL_SECONDS = 60
_FREEZE_SECONDS = 60

# What a program needs to run at all. Everything else a child gets is said by who starts it: an exported
# GRPC_PORT or DATABASE_URL of the caller must never reach a process that it was not meant for.
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
    """A process ended that should be running, or never became ready; the message holds the end of its log."""


def inherited_environment() -> dict[str, str]:
    """The few variables of this process that every child may see."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


class Process:
    """One program that can be started, stopped and started again; its output, stderr included, is kept.

    `health_address` is where it serves grpc.health.v1. `on_line` is called on a thread of its own with
    each line of output, without the line's end.
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
        """Start it. Its log goes on where an earlier run of it ended."""
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
            # A session of its own: the terminal's Ctrl-C is for us, who stop the children in their order.
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
        # Not before: a Ctrl-C in the middle of a thread's start leaves one that nobody can join.
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
        """None while it runs; negative the signal that ended it."""
        code = self._started().poll()
        if code is not None:
            # Its number may be another's from now on.
            watchdog.forget(self.pid)
        return code

    @property
    def log(self) -> str:
        """All that it has printed so far (its last 20,000 lines)."""
        return "\n".join(self._lines)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM to it alone: it looks after its own children); `wait` for that."""
        # A frozen one couldn't hear it.
        self.thaw()
        self.send_signal(signal.SIGTERM)

    def send_signal(self, signum: signal.Signals) -> None:
        """Send it a signal, to it alone; nothing happens when it has ended."""
        self._started().send_signal(signum)

    def kill(self) -> None:
        """End it and its children at once, as a crash would, and wait until it is gone. Harmless when it is."""
        self._signal_group(signal.SIGKILL)
        self.wait(_KILL_SECONDS)
        self._group_gone = True

    def freeze(self) -> None:
        """Stop it and its children in the middle of whatever they do, connections open, until `thaw`."""
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
        """Its exit code, once it has ended and all of its output is in the log. Raises TimeoutError."""
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
        """End it in its own time, or by force when that is up. Its exit code; harmless when it has ended."""
        self.terminate()
        return self.finish(seconds)

    def finish(self, seconds: float) -> int:
        """`stop` for one that was told to end already: a second SIGTERM may mean to end at once."""
        try:
            code = self.wait(seconds)
        except TimeoutError:
            code = -signal.SIGKILL
        # Children of its own that it left behind go too.
        self.kill()
        return code

    def is_ready(self, service: str = "") -> bool:
        """Whether its health service says SERVING for `service` ('' is ready for calls, or 'liveness').

        Raises ProcessEnded, with the end of its log, when it has ended.
        """
        if self.health_address is None:
            raise ValueError(f"{self.name} has no health service")
        if not self.alive:
            raise ProcessEnded(f"{self.name} ended with exit code {self.wait(1)}\n{self.tail()}")
        return health(self.health_address, service, timeout_seconds=_ASK_SECONDS) == "SERVING"

    def wait_ready(self, seconds: float, service: str = "") -> None:
        """Wait until it `is_ready`. Raises ProcessEnded as soon as it has ended, and TimeoutError."""
        deadline = time.monotonic() + seconds
        while not self.is_ready(service):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} is not ready after {seconds:g} s\n{self.tail()}")
            time.sleep(_POLL_SECONDS)

    def wait_for_line(self, text: str, seconds: float) -> str:
        """The first line of its log that contains `text`. Raises as `wait_ready` does."""
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
        """The end of its log, indented, for messages."""
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
        # The number of a group that is gone may be another's by now.
        if self._group_gone:
            return
        # None of it may be left (macOS calls a group of zombies a matter of permission).
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._started().pid, signum)


def wait_until_stopped(processes: Sequence[psutil.Process]) -> None:
    """SIGSTOP was sent: wait until none of them runs any more, which on a busy machine takes a moment."""
    deadline = time.monotonic() + _FREEZE_SECONDS
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{process} does not stop")
                time.sleep(_POLL_SECONDS)
