"""When this process ends for any reason, the watchdog ends the processes and containers that this process started.

A small child waits on a pipe that closes when its parent ends, even if the parent is killed. Unlike PR_SET_PDEATHSIG,
the child ends whole process groups and does not depend on the thread that started them. It also works after a change of
user, and on macOS.
"""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_GONE_WITHIN_SECONDS = 10.0


def watch(pid: int, *, with_signal: signal.Signals = signal.SIGKILL, then_remove: Path | None = None) -> None:
    """When this process ends, signal the group that `pid` leads, and remove the folder after the group has ended."""
    _watchdog.watch(pid, with_signal, then_remove)


def run(name: str, command: Sequence[str]) -> None:
    """When this process ends, run the command, which ends the container `name`."""
    _watchdog.run(name, command)


def forget(what: int | str) -> None:
    """Stop watching a process or container that has ended, since its pid may be reused. May be repeated."""
    _watchdog.forget(what)


class _Watchdog:
    """The child process, started at the first call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._watched: set[int | str] = set()

    def watch(self, pid: int, with_signal: signal.Signals, folder: Path | None) -> None:
        with self._lock:
            self._watched.add(pid)
            self._send({"what": pid, "signal": int(with_signal), "remove": folder and str(folder)})

    def run(self, name: str, command: Sequence[str]) -> None:
        with self._lock:
            self._watched.add(name)
            self._send({"what": name, "command": list(command)})

    def forget(self, what: int | str) -> None:
        with self._lock:
            if what in self._watched:
                self._watched.remove(what)
                self._send({"what": what})

    def _send(self, message: dict[str, object]) -> None:
        if self._child is None:
            self._child = self._start()
            atexit.register(self._end)
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(message).encode() + b"\n")
        self._child.stdin.flush()

    def _end(self) -> None:
        """At a regular exit, let the child finish its work, and wait for it so that it does not become a zombie."""
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
            self._child.wait(2 * _GONE_WITHIN_SECONDS)

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A new session, so that the terminal's Ctrl-C reaches only the parent.
            start_new_session=True,
        )


_watchdog = _Watchdog()


def _guard() -> None:
    watched: dict[int, tuple[int, str | None]] = {}
    commands: dict[str, list[str]] = {}
    for line in sys.stdin:
        message = json.loads(line)
        what = message["what"]
        if "signal" in message:
            watched[what] = (message["signal"], message["remove"])
        elif "command" in message:
            commands[what] = message["command"]
        else:
            watched.pop(what, None)
            commands.pop(what, None)
    for pid, (signum, _) in watched.items():
        _signal(pid, signum)
        # A frozen process would not handle the signal.
        _signal(pid, signal.SIGCONT)
    for command in commands.values():
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    deadline = time.monotonic() + _GONE_WITHIN_SECONDS
    for pid, (_, folder) in watched.items():
        if folder is None:
            continue
        while _signal(pid, 0) and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)


def _signal(pid: int, signum: int) -> bool:
    try:
        os.killpg(pid, signum)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    _guard()
