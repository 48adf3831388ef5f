"""The settings of Kafka connections: the options that follow from them, and which settings are refused."""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
import structlog
from cryptography.hazmat.primitives import serialization

from devstack.certificates import Authority, Files
from devstack.kafka import Kafka
from shop_common.environment.settings import WrongSettings, help_text, load, read, shown
from shop_common.events import kafka_connection, topic_reader
from shop_common.events.kafka_connection import (
    KafkaConnection,
    KafkaUnreachable,
    Login,
    SaslMechanism,
    SecurityProtocol,
)
from shop_common.events.kafka_settings import OWN_OPTIONS, KafkaSettings
from testkit.eventually import eventually

LOGIN = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_USERNAME": "order-api",
    "KAFKA_SASL_PASSWORD": "hunter2",
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, object]], KafkaSettings]:
    """Read the settings from this environment."""

    def with_environment(environment: Mapping[str, object]) -> KafkaSettings:
        for name in [name for name in os.environ if name.startswith("KAFKA_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        return read(KafkaSettings)

    return with_environment


@pytest.fixture
def complaints(settings: Callable[[Mapping[str, object]], KafkaSettings]) -> Callable[[Mapping[str, object]], str]:
    """Return the faults of these settings, one in each line."""

    def refused(environment: Mapping[str, object]) -> str:
        with pytest.raises(WrongSettings) as error:
            settings(environment)
        return "\n".join(error.value.errors)

    return refused


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A certificate, its key and its CA."""
    made = Files(tmp_path / "tls")
    Authority.create().issue("order-api", made)
    return made


def test_by_default_the_connection_has_neither_tls_nor_a_login(
    settings: Callable[[Mapping[str, object]], KafkaSettings],
) -> None:
    assert settings({}).kafka == KafkaConnection("localhost:9092")
    assert settings({}).kafka.configuration({"client.id": "test"}) == {
        "client.id": "test",
        "bootstrap.servers": "localhost:9092",
        "security.protocol": "PLAINTEXT",
    }


def test_tls_and_a_login_become_options_of_librdkafka(
    settings: Callable[[Mapping[str, object]], KafkaSettings], files: Files
) -> None:
    environment = LOGIN | {
        "KAFKA_BOOTSTRAP_SERVERS": "one:9092,two:9092",
        "KAFKA_SASL_MECHANISM": "scram-sha-256",
        "KAFKA_CA_PATH": files.ca,
        "KAFKA_CERT_PATH": files.cert,
        "KAFKA_KEY_PATH": files.key,
        "KAFKA_OPTIONS": '{"socket.keepalive.enable": true, "client.rack": "a", "socket.timeout.ms": 10000}',
    }

    connection = settings(environment).kafka

    assert connection.security_protocol is SecurityProtocol.SASL_SSL
    assert connection.configuration({}) == {
        "bootstrap.servers": "one:9092,two:9092",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": "order-api",
        "sasl.password": "hunter2",
        "ssl.ca.location": str(files.ca),
        "ssl.certificate.location": str(files.cert),
        "ssl.key.location": str(files.key),
        "socket.keepalive.enable": "true",
        "client.rack": "a",
        "socket.timeout.ms": "10000",
    }


def test_the_default_mechanism_never_sends_the_password(
    settings: Callable[[Mapping[str, object]], KafkaSettings],
) -> None:
    login = settings(LOGIN).kafka.login

    assert login is not None
    assert login.mechanism is SaslMechanism.SCRAM_SHA_512


def test_a_login_from_files_is_read_for_each_client(
    settings: Callable[[Mapping[str, object]], KafkaSettings], tmp_path: Path
) -> None:
    user, password = tmp_path / "user", tmp_path / "password"
    user.write_text("order-api\n")
    password.write_text("first\n")
    connection = settings(
        {
            "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA_SASL_USERNAME_FILE": user,
            "KAFKA_SASL_PASSWORD_FILE": password,
        }
    ).kafka
    assert connection.configuration({})["sasl.password"] == "first"

    user.write_text("order-api-2\n")
    password.write_text("second\n")

    assert list(connection.files()) == [user, password]
    assert connection.configuration({})["sasl.username"] == "order-api-2"
    assert connection.configuration({})["sasl.password"] == "second"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"},
            [
                "KAFKA_SASL_USERNAME: must be set when KAFKA_SECURITY_PROTOCOL is SASL_SSL",
                "KAFKA_SASL_PASSWORD: must be set when KAFKA_SECURITY_PROTOCOL is SASL_SSL",
            ],
        ),
        (
            {"KAFKA_SASL_USERNAME": "a", "KAFKA_SASL_PASSWORD": "hunter2", "KAFKA_SASL_MECHANISM": "PLAIN"},
            [
                "KAFKA_SASL_MECHANISM: is set, but KAFKA_SECURITY_PROTOCOL is PLAINTEXT, which has no login",
                "KAFKA_SASL_USERNAME: is set, but KAFKA_SECURITY_PROTOCOL is PLAINTEXT, which has no login",
                "KAFKA_SASL_PASSWORD: is set, but KAFKA_SECURITY_PROTOCOL is PLAINTEXT, which has no login",
            ],
        ),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SASL_USERNAME": "a"},
            ["KAFKA_SASL_USERNAME: is set, but KAFKA_SECURITY_PROTOCOL is SSL, which has no login"],
        ),
        (
            {"KAFKA_SECURITY_PROTOCOL": "TLS", "KAFKA_SASL_MECHANISM": "GSSAPI", "KAFKA_OPTIONS": "[]"},
            [
                "KAFKA_SECURITY_PROTOCOL: must be 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL', but is 'TLS'",
                "KAFKA_SASL_MECHANISM: must be 'SCRAM-SHA-512', 'SCRAM-SHA-256' or 'PLAIN', but is 'GSSAPI'",
                'KAFKA_OPTIONS: must be a JSON object such as {"debug": "broker"} (value not shown)',
            ],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_all_at_once(
    complaints: Callable[[Mapping[str, object]], str], environment: dict[str, str], expected: list[str]
) -> None:
    assert complaints(environment).splitlines() == expected


def test_certificates_need_a_protocol_with_tls_and_come_with_their_key(
    complaints: Callable[[Mapping[str, object]], str], files: Files
) -> None:
    plain = {"KAFKA_CA_PATH": files.ca, "KAFKA_CERT_PATH": files.cert, "KAFKA_KEY_PATH": files.key}
    assert complaints(plain).count("KAFKA_SECURITY_PROTOCOL is PLAINTEXT, which has no TLS") == 3

    tls = {"KAFKA_SECURITY_PROTOCOL": "SSL"}
    assert (
        complaints(tls | {"KAFKA_CERT_PATH": files.cert}) == "KAFKA_KEY_PATH: must be set when KAFKA_CERT_PATH is set"
    )
    assert complaints(tls | {"KAFKA_KEY_PATH": files.key}) == "KAFKA_CERT_PATH: must be set when KAFKA_KEY_PATH is set"


def test_files_that_cannot_be_used_are_refused_at_the_start_all_at_once(
    settings: Callable[[Mapping[str, object]], KafkaSettings], files: Files, tmp_path: Path
) -> None:
    def faults(ca: Path, cert: Path, key: Path, options: str = "{}") -> list[str]:
        paths = {"KAFKA_CA_PATH": ca, "KAFKA_CERT_PATH": cert, "KAFKA_KEY_PATH": key}
        return list(settings(paths | {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_OPTIONS": options}).start_faults())

    assert faults(files.ca, files.cert, files.key) == []

    other = Files(tmp_path / "other")
    Authority.create().issue("order-api", other)
    assert faults(files.ca, files.cert, other.key) == [
        f"KAFKA_KEY_PATH: '{other.key}' is not the key of the certificate in KAFKA_CERT_PATH"
    ]
    missing = tmp_path / "missing"
    assert faults(missing, files.cert, missing) == [
        f"KAFKA_KEY_PATH: cannot read '{missing}': No such file or directory",
        f"KAFKA_CA_PATH: cannot read '{missing}': No such file or directory",
    ]
    assert faults(files.key, files.cert, files.ca) == [
        f"KAFKA_CA_PATH: '{files.key}' must hold certificates in PEM format",
        f"KAFKA_KEY_PATH: '{files.ca}' must hold an unencrypted private key in PEM format",
    ]

    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    encryption = serialization.BestAvailableEncryption(b"hunter2")
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    assert faults(files.ca, files.cert, encrypted, '{"ssl.key.password": "hunter2"}') == []
    assert faults(files.ca, files.cert, encrypted) == [
        f"KAFKA_KEY_PATH: '{encrypted}' must hold an unencrypted private key in PEM format"
    ]
    assert faults(files.ca, files.cert, encrypted, '{"ssl.key.password": "wrong"}') == [
        f"KAFKA_KEY_PATH: '{encrypted}' must hold a private key with this password in PEM format"
    ]


def test_wrong_options_are_refused_by_name_all_at_once_and_no_value_is_shown(
    complaints: Callable[[Mapping[str, object]], str],
) -> None:
    said = complaints(
        {
            "KAFKA_OPTIONS": '{"group.id": "hunter2", "acks": 1, "debug": "hunter2", "no.such.option": "hunter2", '
            '"client.rack": null, "enable.ssl.certificate.verification": false, "stats_cb": "hunter2"}'
        }
    )

    assert said == (
        "KAFKA_OPTIONS: must not contain acks, enable.ssl.certificate.verification, group.id, which cannot be chosen; "
        "must give 'debug' another value: librdkafka refuses this one; "
        "must not contain 'no.such.option', which librdkafka does not have; "
        "must give 'client.rack' a string, a number or a boolean; "
        "must not contain 'stats_cb', which cannot be given as JSON (value not shown)"
    )


def test_secrets_are_never_shown(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: Callable[[Mapping[str, object]], KafkaSettings],
) -> None:
    found = settings(LOGIN | {"KAFKA_OPTIONS": '{"ssl.key.password": "hunter2"}'})
    assert "hunter2" not in f"{found!r} {found.kafka!r} {list(found.facts())} {help_text(KafkaSettings)} {shown(found)}"

    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT")
    with pytest.raises(SystemExit):
        load(KafkaSettings)
    said = capsys.readouterr().err
    assert "KAFKA_SASL_PASSWORD: is set" in said
    assert "hunter2" not in said


def test_help_lists_the_settings_but_not_where_their_files_are() -> None:
    told = help_text(KafkaSettings)

    assert "KAFKA_SASL_MECHANISM = SCRAM-SHA-512" in told
    assert "KAFKA_SASL_PASSWORD\n" in told
    assert "  KAFKA_SASL_PASSWORD_FILE" not in told


def test_consumers_have_no_option_that_could_be_overridden() -> None:
    assert set(topic_reader.options("group", session_seconds=6)) <= OWN_OPTIONS


class _InPlainText(StreamRequestHandler):
    """A server that answers the first record of a handshake in plain text, and waits for the client to leave."""

    def handle(self) -> None:
        self.request.recv(1)
        self.request.sendall(b"this is not TLS")
        with contextlib.suppress(ConnectionResetError):  # the client leaves without reading everything
            self.rfile.read()


def test_a_broker_is_checked_with_the_reason_of_librdkafka(embedded_broker: Kafka, files: Files) -> None:
    embedded_broker.connection.check()

    # A broker without TLS may reset the connection. Then the reason depends on how much librdkafka has read before.
    # librdkafka names the handshake or quotes the error of OpenSSL, depending on which thread reports it first.
    with ThreadingTCPServer(("127.0.0.1", 0), _InPlainText) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        secured = KafkaConnection(f"127.0.0.1:{server.server_address[1]}", SecurityProtocol.SSL, ca_path=files.ca)
        with pytest.raises(KafkaUnreachable, match=r"SSL handshake failed|SSL routines::wrong version number"):
            secured.check()
        server.shutdown()


@pytest.fixture
def watched(embedded_broker: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KafkaConnection:
    """A connection with the file of a CA. The broker has no TLS, so the content of the file does not matter."""
    monkeypatch.setattr(kafka_connection, "CHECK_INTERVAL_SECONDS", 0)
    monkeypatch.setattr(kafka_connection, "RETRY_SECONDS", 0)
    (tmp_path / "ca.crt").write_text("first")
    return KafkaConnection(embedded_broker.bootstrap, ca_path=tmp_path / "ca.crt")


def test_a_client_is_renewed_once_its_files_have_changed_and_are_at_rest(
    watched: KafkaConnection, tmp_path: Path
) -> None:
    files = kafka_connection.CredentialFiles(watched)
    assert [files.renewed() for _ in range(3)] == [False, False, False]

    (tmp_path / "ca.crt").write_text("second")
    eventually(files.renewed)
    assert not files.renewed()

    # A file that is rewritten with the same content has not changed.
    (tmp_path / "ca.crt").write_text("second")
    assert [files.renewed() for _ in range(3)] == [False, False, False]


def test_a_client_that_was_made_anew_for_another_reason_has_the_newest_files(
    watched: KafkaConnection, tmp_path: Path
) -> None:
    files = kafka_connection.CredentialFiles(watched)
    (tmp_path / "ca.crt").write_text("second")

    files.note()

    assert [files.renewed() for _ in range(3)] == [False, False, False]


def test_credentials_that_no_broker_accepts_are_reported_once_and_tried_again(
    watched: KafkaConnection, tmp_path: Path
) -> None:
    login = Login(SaslMechanism.SCRAM_SHA_512, "user", "first", password_path=tmp_path / "password")
    (tmp_path / "password").write_text("first")
    connection = replace(watched, security_protocol=SecurityProtocol.SASL_PLAINTEXT, login=login)
    files = kafka_connection.CredentialFiles(connection)
    (tmp_path / "password").write_text("")

    with structlog.testing.capture_logs() as lines:
        eventually(lambda: files.renewed() or lines)
        tried_again = files._retry_at
        eventually(lambda: files.renewed() or files._retry_at > tried_again)

    (line,) = lines
    assert line["event"] == "no broker accepts the new Kafka credentials; the old ones stay in use"
    assert line["error"] == f"'{tmp_path}/password' is empty"


def test_files_that_change_while_they_are_checked_are_checked_again(watched: KafkaConnection, tmp_path: Path) -> None:
    files = kafka_connection.CredentialFiles(watched)
    (tmp_path / "ca.crt").write_text("second")
    eventually(lambda: files.renewed() or files._check)

    (tmp_path / "ca.crt").write_text("third")

    assert not files.renewed()
    eventually(files.renewed)
    assert files._used == kafka_connection.CredentialFiles(watched)._used


def test_without_files_there_is_nothing_to_renew(embedded_broker: Kafka) -> None:
    assert not kafka_connection.CredentialFiles(embedded_broker.connection).renewed()
