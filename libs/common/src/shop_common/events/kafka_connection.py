"""The connection of Kafka clients to the brokers: addresses, TLS, login and other options of librdkafka.

Every producer, consumer and admin client is created with `KafkaConnection.configuration`. librdkafka reads certificates
and passwords only once, when a client is created. `CredentialFiles` detects when a client must be replaced.
"""

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from shop_common.environment.files import FileUnusable, value_in
from shop_common.telemetry import logs

CHECK_INTERVAL_SECONDS = 1.0
RETRY_SECONDS = 30.0
"""Time until credentials that no broker accepted are tried again."""

CHECK_SECONDS = 10.0
"""Time limit for a broker to accept new credentials."""

_log = logs.get(__name__)


class SecurityProtocol(StrEnum):
    """Whether connections use TLS, a login, both or neither."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"

    @property
    def has_tls(self) -> bool:
        return self in {SecurityProtocol.SSL, SecurityProtocol.SASL_SSL}

    @property
    def has_login(self) -> bool:
        return self in {SecurityProtocol.SASL_PLAINTEXT, SecurityProtocol.SASL_SSL}


class SaslMechanism(StrEnum):
    """The login method. PLAIN sends the password itself, SCRAM only proves that the client knows it."""

    SCRAM_SHA_512 = "SCRAM-SHA-512"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    PLAIN = "PLAIN"


@dataclass(frozen=True)
class Login:
    """A user and its password. If a path is set, each new client takes the value from that file instead."""

    mechanism: SaslMechanism
    username: str
    password: str = field(repr=False)
    username_path: Path | None = None
    password_path: Path | None = None

    def configuration(self) -> dict[str, str]:
        """Return the options of librdkafka for this login. Raises FileUnusable."""
        return {
            "sasl.mechanism": self.mechanism,
            "sasl.username": value_in(self.username_path) if self.username_path else self.username,
            "sasl.password": value_in(self.password_path) if self.password_path else self.password,
        }


class KafkaUnreachable(Exception):
    """No broker accepts the connection. The message has librdkafka's reason."""


@dataclass(frozen=True)
class KafkaConnection:
    """The options that all clients of a process share. The default has neither TLS nor a login."""

    bootstrap_servers: str
    security_protocol: SecurityProtocol = SecurityProtocol.PLAINTEXT
    login: Login | None = None
    ca_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further options of librdkafka; the options of a client override them."""

    def configuration(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of a client. `own` has the options of this client only. Raises FileUnusable."""
        tls = {
            "ssl.ca.location": self.ca_path,
            "ssl.certificate.location": self.cert_path,
            "ssl.key.location": self.key_path,
        }
        return (
            dict(self.options)
            | dict(own)
            | {"bootstrap.servers": self.bootstrap_servers, "security.protocol": self.security_protocol}
            | {name: str(path) for name, path in tls.items() if path is not None}
            | (self.login.configuration() if self.login else {})
        )

    def check(self, seconds: float = CHECK_SECONDS) -> None:
        """Connect with a temporary client. Raises KafkaUnreachable if no broker accepts it in time."""
        cause = ErrorCause()
        try:
            client = AdminClient(self.configuration({"error_cb": cause.note, "log_level": 0}))
        except (KafkaException, FileUnusable) as error:
            raise KafkaUnreachable(text_of(error)) from error
        try:
            client.list_topics(timeout=seconds)
        except KafkaException as error:
            client.poll(0)  # calls error_cb
            raise KafkaUnreachable(cause.text or text_of(error)) from error

    def files(self) -> Iterator[Path]:
        """Yield the files with credentials, and the file with the CAs of the brokers."""
        login = (self.login.username_path, self.login.password_path) if self.login else ()
        yield from (path for path in (self.ca_path, self.cert_path, self.key_path, *login) if path is not None)


class CredentialFiles:
    """Watches the credential files of one client. Use it from one thread only."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._files = tuple(connection.files())
        self._used = self._seen = self._digest()
        self._rejected: bytes | None = None
        self._check: _Check | None = None
        self._check_at = self._retry_at = 0.0

    def note(self) -> None:
        """Record the content of the files. Call it just before creating a client from them."""
        self._used = self._digest()

    def renewed(self) -> bool:
        """Return True if the files have changed and a broker accepts their new content: replace the client.

        Never waits, and reads the files at most once a second. The old client stays in use until a broker accepts the
        new credentials.
        """
        now = time.monotonic()
        if not self._files or now < self._check_at:
            return False
        self._check_at = now + CHECK_INTERVAL_SECONDS
        before, self._seen = self._seen, self._digest()
        if self._check is not None:
            return not self._check.is_alive() and self._end(self._check)
        if self._seen == self._used:
            self._rejected = None
            return False
        # Files are replaced one after another. A new certificate with the old key must not be used.
        is_settled = self._seen == before
        if is_settled and (self._seen != self._rejected or now >= self._retry_at):
            self._check = _Check(self._connection, self._seen)
            self._check.start()
        return False

    def _end(self, check: "_Check") -> bool:
        self._check = None
        if check.digest != self._seen:
            return False  # the files have changed since, and are checked again
        if check.error is None:
            self._used, self._rejected = check.digest, None
            _log.info("new Kafka credentials are in use", files=[str(path) for path in self._files])
            return True
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if check.digest != self._rejected:
            self._rejected = check.digest
            error = str(check.error)
            _log.warning("no broker accepts the new Kafka credentials; the old ones stay in use", error=error)
        return False

    def _digest(self) -> bytes:
        # Compare the content: files may be replaced in several ways, such as a rename, a write or a symbolic link.
        digest = hashlib.sha256()
        for path in self._files:
            try:
                content = path.read_bytes()
            except OSError:
                content = b""
            digest.update(hashlib.sha256(content).digest())
        return digest.digest()


class _Check(threading.Thread):
    """Connects with new credentials, on a thread of its own, so that the client can continue its work."""

    def __init__(self, connection: KafkaConnection, digest: bytes) -> None:
        super().__init__(name="check of Kafka credentials", daemon=True)
        self.digest = digest
        self.error: Exception | None = None
        self._connection = connection

    def run(self) -> None:
        try:
            self._connection.check()
        except Exception as error:  # after any failure, the old credentials stay in use
            self.error = error


class ErrorCause:
    """Records why a client has no connection, from the errors that librdkafka reports."""

    def __init__(self) -> None:
        self.text = ""

    def note(self, error: KafkaError) -> None:
        """Record an error; use it as `error_cb`. Ignores _ALL_BROKERS_DOWN if an earlier error has the actual cause."""
        if not self.text or error.name() != "_ALL_BROKERS_DOWN":
            self.text = error.str()


def text_of(error: Exception) -> str:
    """Return the message of an error; for a KafkaException, only the text from librdkafka."""
    cause = error.args[0] if error.args else error
    return cause.str() if isinstance(cause, KafkaError) else str(error)
