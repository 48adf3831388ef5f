"""The settings of a process that uses Kafka. All Kafka clients of the process are created from them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from pydantic import AfterValidator, BeforeValidator, Field

from shop_common.environment.certificates import CertificateFiles
from shop_common.environment.process_settings import addresses
from shop_common.environment.settings import INTERNAL, SECRET, Settings
from shop_common.events.kafka_connection import KafkaConnection, Login, SaslMechanism, SecurityProtocol

OWN_OPTIONS = frozenset(
    {
        # These options have settings of their own, except the last two: brokers are always verified.
        *("bootstrap.servers", "metadata.broker.list", "security.protocol"),
        *("sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password"),
        *("ssl.ca.location", "ssl.ca.pem", "ssl.certificate.location", "ssl.certificate.pem"),
        *("ssl.key.location", "ssl.key.pem", "ssl.keystore.location", "ssl.keystore.password"),
        *("enable.ssl.certificate.verification", "ssl.endpoint.identification.algorithm"),
        # The guarantees of the relay and of redriven dead letters depend on these options.
        *("acks", "request.required.acks", "enable.idempotence", "enable.gapless.guarantee", "transactional.id"),
        *(
            "message.timeout.ms",
            "delivery.timeout.ms",
            "delivery.report.only.error",
            "retries",
            "message.send.max.retries",
        ),
        *("max.in.flight", "max.in.flight.requests.per.connection", "partitioner", "message.max.bytes"),
        *("batch.num.messages", "linger.ms", "queue.buffering.max.ms", "queue.buffering.max.kbytes"),
        # Consumers commit offsets and share partitions according to these options.
        *("group.id", "group.instance.id", "group.protocol", "partition.assignment.strategy"),
        *("enable.auto.commit", "auto.commit.enable", "auto.commit.interval.ms", "enable.auto.offset.store"),
        *(
            "auto.offset.reset",
            "isolation.level",
            "enable.partition.eof",
            "session.timeout.ms",
            "heartbeat.interval.ms",
        ),
        *("fetch.wait.max.ms", "queued.max.messages.kbytes", "topic.metadata.refresh.interval.ms"),
        *("client.id", "reconnect.backoff.max.ms", "error_cb", "log_level"),
    }
)
"""Options that KAFKA_OPTIONS must not contain. An option with several names is listed under all of them."""


def _options(value: str) -> str:
    """Validate KAFKA_OPTIONS. One message lists all faults. It quotes no value, because a value may be a secret."""
    try:
        options = dict(json.loads(value).items())
    except (ValueError, AttributeError, RecursionError):
        raise ValueError('must be a JSON object such as {"debug": "broker"}') from None
    owned = sorted(OWN_OPTIONS.intersection(options))
    faults = [f"must not contain {', '.join(owned)}, which cannot be chosen"] if owned else []
    for name, option in options.items():
        if name not in OWN_OPTIONS and (fault := _option_fault(name, option)):
            faults.append(fault)
    if faults:
        raise ValueError("; ".join(faults))
    return value


def _option_fault(name: str, option: object) -> str | None:
    if not isinstance(option, str | int | float):
        return f"must give {name!r} a string, a number or a boolean"
    try:
        AdminClient({name: _text(option), "log_level": 0})
    except KafkaException as error:
        if "No such configuration property" in str(error):
            return f"must not contain {name!r}, which librdkafka does not have"
        return f"must give {name!r} another value: librdkafka refuses this one"
    except (TypeError, ValueError):
        return f"must not contain {name!r}, which cannot be given as JSON"
    return None


def _text(option: str | float) -> str:
    return str(option).lower() if isinstance(option, bool) else str(option)


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class KafkaSettings(Settings):
    """The settings of a process that uses Kafka."""

    kafka_bootstrap_servers: Annotated[str, AfterValidator(addresses)] = Field(
        default="localhost:9092", description="brokers to connect to first: HOST:PORT, several separated by commas"
    )
    kafka_security_protocol: Annotated[SecurityProtocol, BeforeValidator(_upper)] = Field(
        default=SecurityProtocol.PLAINTEXT, description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    kafka_sasl_mechanism: Annotated[SaslMechanism, BeforeValidator(_upper)] = Field(
        default=SaslMechanism.SCRAM_SHA_512,
        description="how to log in with SASL_PLAINTEXT or SASL_SSL: SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN",
    )
    kafka_sasl_username: str | None = Field(
        default=None,
        description="user to log in as, with SASL_PLAINTEXT or SASL_SSL; "
        "a changed KAFKA_SASL_USERNAME_FILE is read again",
    )
    kafka_sasl_password: str | None = Field(
        default=None,
        description="the user's password; a changed KAFKA_SASL_PASSWORD_FILE is read again",
        repr=False,
        json_schema_extra=SECRET,
    )
    kafka_ca_path: Path | None = Field(
        default=None,
        description="CAs that sign the brokers' certificates, in PEM format, with SSL or SASL_SSL; "
        "unset means the CAs of the system. A changed file is read again",
    )
    kafka_cert_path: Path | None = Field(
        default=None,
        description="certificate of this process with its chain, in PEM format, with SSL or SASL_SSL; "
        "a changed file is read again",
    )
    kafka_key_path: Path | None = Field(
        default=None, description="private key of KAFKA_CERT_PATH, in PEM format; a changed file is read again"
    )
    kafka_options: Annotated[str, AfterValidator(_options)] = Field(
        default="{}",
        description="further options of librdkafka for all clients, as a JSON object",
        repr=False,
        json_schema_extra=SECRET,
    )
    # The two settings above contain the values from these files. The files are read again when they change.
    kafka_sasl_username_file: Path | None = Field(default=None, description="path", json_schema_extra=INTERNAL)
    kafka_sasl_password_file: Path | None = Field(default=None, description="path", json_schema_extra=INTERNAL)

    @property
    def kafka(self) -> KafkaConnection:
        """The connection options of all Kafka clients of this process."""
        login = None
        if self.kafka_security_protocol.has_login:
            login = Login(
                self.kafka_sasl_mechanism,
                self.kafka_sasl_username or "",
                self.kafka_sasl_password or "",
                username_path=self.kafka_sasl_username_file,
                password_path=self.kafka_sasl_password_file,
            )
        return KafkaConnection(
            self.kafka_bootstrap_servers,
            self.kafka_security_protocol,
            login,
            ca_path=self.kafka_ca_path,
            cert_path=self.kafka_cert_path,
            key_path=self.kafka_key_path,
            options={name: _text(option) for name, option in json.loads(self.kafka_options).items()},
        )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        yield from self._login_faults()
        yield from self._tls_faults()

    def start_faults(self) -> Iterator[str]:
        yield from super().start_faults()
        files = CertificateFiles(
            self.kafka_cert_path,
            self.kafka_key_path,
            self.kafka_ca_path,
            "KAFKA_CA_PATH",
            cert_setting="KAFKA_CERT_PATH",
            key_setting="KAFKA_KEY_PATH",
            key_password=self.kafka.options.get("ssl.key.password", ""),
        )
        yield from files.faults()

    def facts(self) -> Iterator[tuple[str, object]]:
        yield from super().facts()
        yield "kafka", self.kafka_bootstrap_servers
        yield "kafka_security", str(self.kafka_security_protocol)

    def _login_faults(self) -> Iterator[str]:
        protocol = self.kafka_security_protocol
        names = ("kafka_sasl_username", "kafka_sasl_password")
        if protocol.has_login:
            for name in names:
                if getattr(self, name) is None:
                    yield f"{name.upper()}: must be set when KAFKA_SECURITY_PROTOCOL is {protocol}"
        else:
            for name in ("kafka_sasl_mechanism", *names):
                if name in self.model_fields_set:
                    yield f"{name.upper()}: is set, but KAFKA_SECURITY_PROTOCOL is {protocol}, which has no login"

    def _tls_faults(self) -> Iterator[str]:
        protocol = self.kafka_security_protocol
        if not protocol.has_tls:
            for name in ("kafka_ca_path", "kafka_cert_path", "kafka_key_path"):
                if getattr(self, name) is not None:
                    yield f"{name.upper()}: is set, but KAFKA_SECURITY_PROTOCOL is {protocol}, which has no TLS"
        elif (self.kafka_cert_path is None) != (self.kafka_key_path is None):
            missing, other = ("KAFKA_CERT_PATH", "KAFKA_KEY_PATH")[:: 1 if self.kafka_cert_path is None else -1]
            yield f"{missing}: must be set when {other} is set"
