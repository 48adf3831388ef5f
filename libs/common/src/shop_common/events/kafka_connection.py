"""How Kafka clients reach the brokers: addresses, TLS, login and further options of librdkafka.

Every producer, consumer and admin client is made from `KafkaConnection.configuration`. librdkafka reads certificates
and passwords only once, when a client is made; `CredentialFiles` reports when a client must be replaced.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from shop_common.environment.settings import FileUnusable, value_in
from shop_common.telemetry import logs

LOOK_SECONDS = 1.0
RETRY_SECONDS = 30.0
"""How long credentials that no broker accepts wait before they are tried again."""

CHECK_SECONDS = 2.0
"""Time limit for a broker to accept new credentials. The client does nothing else meanwhile."""

_log = logs.get(__name__)


class SecurityProtocol(StrEnum):
    """How clients talk to brokers: with TLS or without, with a login or without."""

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
    """How a client proves that it knows its password. PLAIN sends the password itself."""

    SCRAM_SHA_512 = "SCRAM-SHA-512"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    PLAIN = "PLAIN"


@dataclass(frozen=True)
class Login:
    """A user and its password. Where a path is given, the file is read for each new client."""

    mechanism: SaslMechanism
    username: str
    password: str = field(repr=False)
    username_path: Path | None = None
    password_path: Path | None = None

    def configuration(self) -> dict[str, str]:
        """Raises FileUnusable."""
        return {
            "sasl.mechanism": self.mechanism,
            "sasl.username": value_in(self.username_path) if self.username_path else self.username,
            "sasl.password": value_in(self.password_path) if self.password_path else self.password,
        }


class KafkaUnreachable(Exception):
    """No broker accepts the connection; the message is librdkafka's reason."""


@dataclass(frozen=True)
class KafkaConnection:
    """What all clients of a process have in common. By default: without TLS and without a login."""

    bootstrap_servers: str
    security_protocol: SecurityProtocol = SecurityProtocol.PLAINTEXT
    login: Login | None = None
    ca_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further options of librdkafka; the options of a client override them."""

    def configuration(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of a client with these options of its own. Raises FileUnusable."""
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
        """Connect with a client of its own. Raises KafkaUnreachable if no broker accepts it within the time."""
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
        """The files that hold credentials, or the CAs that sign the brokers' certificates."""
        login = (self.login.username_path, self.login.password_path) if self.login else ()
        yield from (path for path in (self.ca_path, self.cert_path, self.key_path, *login) if path is not None)


class CredentialFiles:
    """The credential files of one client, which must be replaced when they change. For one thread."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._files = tuple(connection.files())
        self._used = self._seen = self._digest()
        self._refused: bytes | None = None
        self._look_at = self._retry_at = 0.0

    def note(self) -> None:
        """Note what the files hold. To be called just before a client is made from them."""
        self._used = self._digest()

    def renewed(self) -> bool:
        """Return True if the files have changed and a broker accepts what they hold now: make the client anew.

        Looks at most once a second, and waits for the broker for up to `CHECK_SECONDS` after a change. Until a broker
        accepts the new credentials, the connections of the old client are better than none.
        """
        now = time.monotonic()
        if not self._files or now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        before, self._seen = self._seen, self._digest()
        if self._seen == self._used:
            self._refused = None
            return False
        # Files are replaced one after another: a new certificate beside the old key is not for use.
        is_settled = self._seen == before
        if not is_settled or (self._seen == self._refused and now < self._retry_at):
            return False
        return self._try(self._seen)

    def _try(self, digest: bytes) -> bool:
        try:
            self._connection.check()
        except KafkaUnreachable as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if digest != self._refused:
                self._refused = digest
                _log.warning("new Kafka credentials are not accepted: the old ones stay in use", error=str(error))
            return False
        self._used, self._refused = digest, None
        _log.info("new Kafka credentials are in use", files=[str(path) for path in self._files])
        return True

    def _digest(self) -> bytes:
        # By content: how files are replaced (renamed, rewritten, a symbolic link moved) makes no difference then.
        digest = hashlib.sha256()
        for path in self._files:
            try:
                content = path.read_bytes()
            except OSError:
                content = b""
            digest.update(hashlib.sha256(content).digest())
        return digest.digest()


class ErrorCause:
    """Why a client has no connection, from the errors that librdkafka reports to it."""

    def __init__(self) -> None:
        self.text = ""

    def note(self, error: KafkaError) -> None:
        """An `error_cb`. That all brokers are down follows from an earlier error, which says why."""
        if not self.text or error.name() != "_ALL_BROKERS_DOWN":
            self.text = error.str()


def text_of(error: Exception) -> str:
    """The error in the words of librdkafka, if it comes from there."""
    cause = error.args[0] if error.args else error
    return cause.str() if isinstance(cause, KafkaError) else str(error)
