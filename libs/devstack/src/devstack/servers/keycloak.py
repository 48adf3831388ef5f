"""Provides Keycloak, an OpenID Connect provider, on a loopback port.

It runs on the Java of this machine. Maven downloads it at the first use; later uses take it from the user's cache.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from devstack import watchdog
from devstack.ports import free_ports
from devstack.process import Process, ProcessEnded

VERSION = "26.7.3"
SHA256 = "27a6535553c3cdcd083872ba40629efafb3475e3b758e0c6f691395561dd0f1f"
_ARTIFACT = f"org.keycloak:keycloak-quarkus-dist:{VERSION}:zip"
_ARCHIVE = f"keycloak-quarkus-dist-{VERSION}.zip"

JAVA_OLDEST = 17
JAVA_SECONDS = 60
DOWNLOAD_SECONDS = 600
START_SECONDS = 200
REQUEST_SECONDS = 60
_STARTED = "Listening on"
_KEYS_PATH = "/protocol/openid-connect/certs"
_ADMIN = "admin"

_JAVA_OPTIONS = (
    "-Xms256m -Xmx512m -XX:MaxMetaspaceSize=256m -XX:+UseSerialGC"
    # A test ends before the optimizing compiler would pay off.
    " -XX:TieredStopAtLevel=1"
    # Run the archive's own build. By default, the first start builds again for the given options, which takes longer
    # than the start itself.
    " -Dkc.config.built=true"
)


class KeycloakUnavailable(Exception):
    """Keycloak cannot be run on this machine; the message contains the reason."""


class Keycloak:
    """A Keycloak server. Its realms and keys survive a restart."""

    def __init__(self, home: Path) -> None:
        """Do not start yet. `home` is the folder of the unpacked distribution."""
        self._home = home
        self._password = secrets.token_urlsafe(24)
        (self._port,) = free_ports(1)
        self._process: Process | None = None
        self._keys_requested_at = float("-inf")
        self.url = f"http://127.0.0.1:{self._port}"

    def issuer(self, realm: str) -> str:
        """Return the issuer of the realm's tokens."""
        return f"{self.url}/realms/{realm}"

    @property
    def seconds_since_keys_were_requested(self) -> float:
        """The time since a client last fetched the keys of any realm; infinite if no client ever did."""
        return time.monotonic() - self._keys_requested_at

    def start(self) -> None:
        """Start, and wait until the server listens. May be repeated after `stop`. Raises ProcessEnded, TimeoutError."""
        # A new object for each start: `wait_for_line` must not find a line of the previous start.
        self._process = self._new_process()
        self._process.start()
        watchdog.watch(self._process.pid, then_remove=self._home)
        self._process.wait_for_line(_STARTED, START_SECONDS)

    def stop(self) -> None:
        """Stop the server, in any state. May be repeated."""
        if self._process is not None:
            self._process.stop()

    def token(self, realm: str, client: str, user: str, password: str, *scopes: str) -> str:
        """Return an access token for the user, from the realm's token endpoint. Raises HTTPError if it is refused.

        The client must allow direct access grants, so that no browser is needed.
        """
        form = {"grant_type": "password", "client_id": client, "username": user, "password": password}
        body = urlencode(form | ({"scope": " ".join(scopes)} if scopes else {})).encode()
        response = _response(Request(f"{self.issuer(realm)}/protocol/openid-connect/token", body))  # noqa: S310 - loopback
        return str(response["access_token"])

    def admin(self, method: str, path: str, content: object = None) -> Any:
        """Call the admin API; `path` begins after `/admin/realms`. Returns the parsed response, or None if it is empty.

        Raises HTTPError if the call is refused.
        """
        token = self.token("master", "admin-cli", _ADMIN, self._password)
        body = None if content is None else json.dumps(content).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return _response(Request(f"{self.url}/admin/realms{path}", body, headers, method=method))  # noqa: S310 - loopback

    def _new_process(self) -> Process:
        java_home = {"JAVA_HOME": os.environ["JAVA_HOME"]} if "JAVA_HOME" in os.environ else {}
        environment: Mapping[str, str] = {
            **java_home,
            "JAVA_OPTS": _JAVA_OPTIONS,
            "KC_BOOTSTRAP_ADMIN_USERNAME": _ADMIN,
            "KC_BOOTSTRAP_ADMIN_PASSWORD": self._password,
        }
        arguments = ["--http-host=127.0.0.1", f"--http-port={self._port}", "--http-access-log-enabled=true"]
        # Run the script by sh: the files of the unpacked archive are not executable.
        command = ["sh", str(self._home / "bin" / "kc.sh"), "start-dev", *arguments]
        return Process("keycloak", command, environment, on_line=self._on_line)

    def _on_line(self, line: str) -> None:
        if _KEYS_PATH in line:
            self._keys_requested_at = time.monotonic()


def missing() -> str | None:
    """Return why Keycloak cannot be run on this machine, or None if the programs that it needs are there."""
    version = _java_version()
    if version is None:
        return "Keycloak needs Java, and neither JAVA_HOME nor the PATH has one that runs"
    if version < JAVA_OLDEST:
        return f"Keycloak needs Java {JAVA_OLDEST} or newer, and this is Java {version}"
    if shutil.which("mvn") is None and not _cached_archive().exists():
        return f"Maven downloads Keycloak to {_cached_archive()}, and `mvn` is not on the PATH"
    return None


@contextmanager
def provide() -> Iterator[Keycloak]:
    """Provide a running Keycloak for the block, without realms other than `master`. Raises KeycloakUnavailable."""
    if (reason := missing()) is not None:
        raise KeycloakUnavailable(reason)
    archive = _archive()
    folder = Path(tempfile.mkdtemp(prefix="shop-keycloak-"))
    try:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
        keycloak = Keycloak(folder / f"keycloak-{VERSION}")
        try:
            _start(keycloak)
            yield keycloak
        finally:
            keycloak.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(keycloak: Keycloak) -> None:
    try:
        keycloak.start()
    except (ProcessEnded, TimeoutError) as error:
        raise KeycloakUnavailable(f"Keycloak does not start: {error}") from error


def _java_version() -> int | None:
    """Return the major version of the Java that Keycloak's script would use, or None if there is none."""
    home = os.environ.get("JAVA_HOME")
    command = [f"{home}/bin/java" if home else "java", "-version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=JAVA_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # `openjdk version "17.0.15" 2025-04-15`. Java 8 calls itself 1.8.
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found[1]) if found and done.returncode == 0 else None


def _cached_archive() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "shop" / _ARCHIVE


def _archive() -> Path:
    """Return the path of the archive. Downloads it if it is missing. Raises KeycloakUnavailable."""
    cached = _cached_archive()
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
            _download(Path(folder))
            _verify(Path(folder) / _ARCHIVE)
            (Path(folder) / _ARCHIVE).replace(cached)
    _verify(cached)
    return cached


def _download(folder: Path) -> None:
    command = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={_ARTIFACT}", f"-DoutputDirectory={folder}"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise KeycloakUnavailable(f"Maven did not download {_ARTIFACT} within {DOWNLOAD_SECONDS} s") from error
    if done.returncode != 0:
        raise KeycloakUnavailable(f"Maven cannot download {_ARTIFACT}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def _verify(archive: Path) -> None:
    with archive.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != SHA256:
        raise KeycloakUnavailable(f"{archive} is not the expected file: its SHA-256 is {digest}, not {SHA256}")


def _response(request: Request) -> Any:
    # A proxy of this machine must not see requests to loopback.
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=REQUEST_SECONDS) as response:
            content = response.read()
    except HTTPError as error:
        error.add_note(error.read().decode(errors="replace"))
        raise
    return json.loads(content) if content else None
