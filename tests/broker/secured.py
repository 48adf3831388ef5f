"""An Apache Kafka with TLS, logins and access rules, and the credentials of its clients."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from devstack.certificates import Authority, Files
from devstack.kafka import IMAGE, Kafka, container_settings
from devstack.ports import free_ports
from devstack.servers.containers import Container
from shop_common.events.kafka_connection import (
    KafkaConnection,
    KafkaUnreachable,
    Login,
    SaslMechanism,
    SecurityProtocol,
)
from testkit.eventually import eventually

ADMIN = "admin"
ADMIN_PASSWORD = "admin password"
TOPIC_ADMIN = "topics"
"""A super user that logs in with SCRAM."""

ADMIN_SECONDS = 30
_LISTENER = "listener.name.secure"


@dataclass(frozen=True)
class Credentials:
    """The files of one client, as they would be mounted into its container."""

    name: str
    folder: Path

    @property
    def tls(self) -> Files:
        return Files(self.folder)

    @property
    def password(self) -> Path:
        return self.folder / "password"

    def settings(self, bootstrap: str) -> dict[str, str]:
        """The settings of a process that logs in with them."""
        return {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_USERNAME": self.name,
            "KAFKA_SASL_PASSWORD_FILE": str(self.password),
            "KAFKA_CA_PATH": str(self.tls.ca),
            "KAFKA_CERT_PATH": str(self.tls.cert),
            "KAFKA_KEY_PATH": str(self.tls.key),
        }

    def connection(self, bootstrap: str, mechanism: SaslMechanism = SaslMechanism.SCRAM_SHA_512) -> KafkaConnection:
        return KafkaConnection(
            bootstrap,
            SecurityProtocol.SASL_SSL,
            Login(mechanism, self.name, "", password_path=self.password),
            ca_path=self.tls.ca,
            cert_path=self.tls.cert,
            key_path=self.tls.key,
        )

    def write_password(self, password: str) -> None:
        part = self.password.with_suffix(".part")
        part.write_text(password)
        part.replace(self.password)


class SecuredBroker:
    """A broker in a container. `kafka` is connected as its super user."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authority = Authority.create()
        self._own_files = Files(folder / "kafka")
        self.authority.issue("kafka", self._own_files)
        self.admin = Credentials(ADMIN, folder / ADMIN)
        self.authority.issue(ADMIN, self.admin.tls)
        self.admin.write_password(ADMIN_PASSWORD)
        (port,) = free_ports(1)
        self.bootstrap = f"127.0.0.1:{port}"
        self._container = Container.start(IMAGE, port, self._container_settings(port), inside=port)
        # The super user logs in with PLAIN, which the broker knows before the first SCRAM user exists.
        connection = self.admin.connection(self.bootstrap, SaslMechanism.PLAIN)
        self.kafka = Kafka(self.bootstrap, f"secured {IMAGE}", self._container, connection)

    @property
    def admin_settings(self) -> dict[str, str]:
        """The settings of a program that connects as the super user."""
        return self.admin.settings(self.bootstrap) | {"KAFKA_SASL_MECHANISM": SaslMechanism.PLAIN}

    def stop(self) -> None:
        self._container.stop()

    def create_user(self, name: str, password: str = "first password") -> Credentials:
        """Create a user with a password and a certificate, and no rights. Returns once the broker accepts it."""
        user = Credentials(name, self._folder / name)
        self.authority.issue(name, user.tls)
        user.write_password(password)
        self.set_password(name, password)
        eventually(lambda: accepts(user.connection(self.bootstrap)))
        return user

    def set_password(self, name: str, password: str) -> None:
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(name, info, password.encode(), os.urandom(16))
        admin = self.kafka.admin()
        (changed,) = admin.alter_user_scram_credentials([change]).values()
        changed.result(ADMIN_SECONDS)

    def trust(self, *authorities: Authority) -> None:
        """Accept client certificates of these CAs only. Connections that are open stay open."""
        pem = b"".join(authority.pem for authority in authorities).decode()
        self._configure({"ssl.truststore.certificates": pem})

    def renew_certificate(self, authority: Authority) -> None:
        """Serve new connections with a new certificate that this CA has signed."""
        authority.issue("kafka", self._own_files)
        chain, key = self._own_files.cert.read_text(), self._own_files.key.read_text()
        self._configure({"ssl.keystore.certificate.chain": chain, "ssl.keystore.key": key})

    def restart(self) -> None:
        """End all connections, so that each client has to log in again."""
        self.kafka.kill()
        self.kafka.start_again()

    def execute(self, *command: str) -> str:
        """Run a program in the container and return its output. Raises RuntimeError."""
        return self._container.execute(*command)

    def _configure(self, settings: Mapping[str, str]) -> None:
        entries = [
            ConfigEntry(f"{_LISTENER}.{name}", value, incremental_operation=AlterConfigOpType.SET)
            for name, value in settings.items()
        ]
        resource = ConfigResource(ResourceType.BROKER, "1", incremental_configs=entries)
        admin = self.kafka.admin()
        (changed,) = admin.incremental_alter_configs([resource]).values()
        changed.result(ADMIN_SECONDS)

    def _container_settings(self, port: int) -> dict[str, str]:
        # A properties file has one line per setting, and Kafka accepts spaces for the line ends in PEM.
        chain, key, authorities = (
            path.read_text().replace("\n", " ")
            for path in (self._own_files.cert, self._own_files.key, self._own_files.ca)
        )
        security = "org.apache.kafka.common.security"
        plain = f'{security}.plain.PlainLoginModule required user_{ADMIN}="{ADMIN_PASSWORD}";'
        prefix = "KAFKA_LISTENER_NAME_SECURE"
        return container_settings(port) | {
            "KAFKA_LISTENERS": f"SECURE://:{port},INTERNAL://localhost:9094,CONTROLLER://localhost:9093",
            "KAFKA_ADVERTISED_LISTENERS": f"SECURE://{self.bootstrap},INTERNAL://localhost:9094",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "SECURE:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "KAFKA_INTER_BROKER_LISTENER_NAME": "INTERNAL",
            "KAFKA_AUTHORIZER_CLASS_NAME": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The broker's internal listeners need no login, because only the broker itself reaches them.
            "KAFKA_SUPER_USERS": f"User:ANONYMOUS;User:{ADMIN};User:{TOPIC_ADMIN}",
            f"{prefix}_SASL_ENABLED_MECHANISMS": "SCRAM-SHA-512,PLAIN",
            f"{prefix}_PLAIN_SASL_JAAS_CONFIG": plain,
            f"{prefix}_SCRAM___SHA___512_SASL_JAAS_CONFIG": f"{security}.scram.ScramLoginModule required;",
            f"{prefix}_SSL_CLIENT_AUTH": "required",
            f"{prefix}_SSL_KEYSTORE_TYPE": "PEM",
            f"{prefix}_SSL_KEYSTORE_CERTIFICATE_CHAIN": chain,
            f"{prefix}_SSL_KEYSTORE_KEY": key,
            f"{prefix}_SSL_TRUSTSTORE_TYPE": "PEM",
            f"{prefix}_SSL_TRUSTSTORE_CERTIFICATES": authorities,
        }


@contextmanager
def secured_broker(folder: Path) -> Iterator[SecuredBroker]:
    """A broker without topics, users and rules."""
    broker = SecuredBroker(folder)
    try:
        broker.kafka.wait_until_it_answers()
        yield broker
    finally:
        broker.stop()


def accepts(connection: KafkaConnection) -> bool:
    """Whether a broker accepts the connection."""
    try:
        connection.check()
    except KafkaUnreachable:
        return False
    return True
