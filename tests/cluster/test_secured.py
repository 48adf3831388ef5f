"""The example for production in the cluster: certificates, database roles, and logins and access rules of Kafka."""

import base64
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytest

from devstack.certificates import Authority, Files
from testkit.eventually import eventually
from tests.cluster import documented
from tests.cluster.cluster import PROCESSES, SECURED, Cluster, Object, namespace, pod
from tests.cluster.conftest import with_namespace
from tests.cluster.load import load

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1800)]

ADMINISTRATOR = "administrator"
"""A pod that may connect to the database and the broker, with the password of each administrator and user."""
OPERATOR = "deployment/shopctl"
ADDRESSES = ("inventory-api:50053", "order-api:50054")
COMMAND = ("python", "-m", "shopctl")

USERS = ("inventory-api", "order-api", "event-relay", "topics")
"""The users of Kafka. `topics` may create topics."""

_CREATE_ROLES = """
cd /secrets
export DATABASE_PASSWORD_FILE=postgresql
export DATABASE_URL='postgresql://postgres@postgresql:5432/postgres?sslmode=verify-full&sslrootcert=/secrets/ca.crt'
for name in inventory orders; do
    OWNER_PASSWORD_FILE=$name-owner API_PASSWORD_FILE=$name-api RELAY_PASSWORD_FILE=$name-relay \\
        python -m shopctl postgres-create-roles $name
done
"""
_CREATE_USERS = """
cd /secrets
export KAFKA_BOOTSTRAP_SERVERS=kafka:9092 KAFKA_SECURITY_PROTOCOL=SASL_SSL KAFKA_CA_PATH=ca.crt
export KAFKA_SASL_MECHANISM=PLAIN KAFKA_SASL_USERNAME=admin KAFKA_SASL_PASSWORD_FILE=kafka-admin
python -m shopctl kafka-create-users inventory-api=kafka-inventory-api order-api=kafka-order-api \\
    event-relay=kafka-event-relay topics=kafka-topics
python -m shopctl kafka-create-acls
"""

RENEWED_SECONDS = 180
"""The kubelet brings a changed Secret to its pods within about a minute and a half."""


@dataclass(frozen=True)
class Secured:
    """`cluster` has the namespace of this system as its default."""

    cluster: Cluster

    def shopctl(self, *words: str) -> str:
        """Run a command in the pod of shopctl. Returns what it prints, also if it fails."""
        return self.cluster.kubectl("exec", OPERATOR, "--", *COMMAND, *words, check=False)

    def administrate(self, script: str) -> str:
        """Run a script in the pod of the administrator."""
        return self.cluster.kubectl("exec", ADMINISTRATOR, "--", "sh", "-euc", script)

    def sql(self, role: str, database: str, statement: str) -> str:
        """Run a statement with the password of a role. Returns what psql prints, also if it fails."""
        words = ["env", f"PGPASSWORD={self.password(f'{database}-{role}')}", "psql", "-h", "127.0.0.1"]
        words += ["-U", f"{database}_{role}", "-d", database, "-c", statement]
        return self.cluster.kubectl("exec", "postgresql-0", "--", *words, check=False)

    def password(self, name: str) -> str:
        return (self.cluster.folder / f"{name}.password").read_text()


@pytest.fixture(scope="module")
def secured(cluster: Cluster) -> Iterator[Secured]:
    """The system of the folder `secured`, deployed by the commands of docs/kubernetes.md."""
    kubeconfig = with_namespace(str(cluster.kubeconfig), cluster.folder / "kubeconfig-secured", SECURED)
    found = Secured(replace(cluster, kubeconfig=kubeconfig))
    try:
        _create_secrets(found.cluster)
        found.cluster.apply([_administrator()])
        # The database and the broker come first.
        found.cluster.kubectl("apply", "-k", documented.SECURED, "-l", "!app.kubernetes.io/part-of")
        for name in ("postgresql", "kafka"):
            found.cluster.kubectl("rollout", "status", f"statefulset/{name}", "--timeout=10m")
        found.cluster.kubectl("wait", "--for=condition=ready", f"pod/{ADMINISTRATOR}", "--timeout=10m")
        found.administrate(_CREATE_ROLES + _CREATE_USERS)
        again = found.cluster.folder / "create-roles"
        again.write_text(_CREATE_ROLES)
        roles = f"kubectl exec -i {ADMINISTRATOR} -- sh -eu <{again}"
        found.cluster.shell(documented.upgrade(documented.SECURED, first_time=roles))
        yield found
    except AssertionError:
        print(found.cluster.state())
        raise
    finally:
        found.cluster.kubectl("delete", "namespace", SECURED, "--ignore-not-found")


def test_every_rpc_can_be_called_from_the_pod_of_shopctl(secured: Secured) -> None:
    """Its expired reservation cancels an order of the other service, so events pass Kafka as well."""
    assert "All checks passed" in (printed := secured.shopctl("test-grpc")), printed


def test_a_caller_without_a_certificate_or_without_permission_is_refused(secured: Secured) -> None:
    bare = ["env", "-u", "TLS_CERT_PATH", "-u", "TLS_KEY_PATH"]
    assert "UNAVAILABLE" in _query(secured, *bare)

    # event-relay has a certificate of the same CA, and no permission.
    folder = secured.cluster.folder / "certificates" / "event-relay"
    for name in ("tls.crt", "tls.key"):
        secured.cluster.kubectl(
            "exec", "-i", OPERATOR, "--", "sh", "-c", f"cat >/tmp/{name}", given=(folder / name).read_text()
        )
    other = ["env", "TLS_CERT_PATH=/tmp/tls.crt", "TLS_KEY_PATH=/tmp/tls.key"]
    assert "needs the permission orders.read" in _query(secured, *other)


def test_each_role_of_the_database_has_only_its_rights(secured: Secured) -> None:
    assert "count" in secured.sql("relay", "inventory", "SELECT count(*) FROM outbox")
    assert "permission denied" in secured.sql("api", "inventory", "SELECT count(*) FROM outbox")
    assert "permission denied" in secured.sql("relay", "orders", "SELECT count(*) FROM orders")


def test_only_the_relay_may_write_events(secured: Secured) -> None:
    producer = "/opt/kafka/bin/kafka-console-producer.sh"
    for user, refused in (("order-api", True), ("event-relay", False)):
        printed = secured.cluster.kubectl(
            *("exec", "-i", "kafka-0", "--", "bash", "-c"),
            f"umask 077; cat >/tmp/{user}; echo | {producer} --bootstrap-server kafka:9092 "
            f"--topic order-events.dlq --producer.config /tmp/{user} 2>&1 || true",
            given=_client_properties(user, secured.password(f"kafka-{user}"), _authorities(secured)),
        )
        assert ("TopicAuthorizationException" in printed) == refused, printed


def test_no_call_fails_in_a_rolling_restart_with_certificates(secured: Secured) -> None:
    with load(secured.cluster, OPERATOR, SECURED, ADDRESSES) as calls:
        secured.cluster.kubectl("rollout", "restart", "deployment", "-l", PROCESSES)
        secured.cluster.wait_until_ready()

    assert calls.failed == [], calls.report("rolling restart with certificates")
    calls.report("rolling restart of every process, with certificates")


def test_a_renewed_certificate_is_served_without_a_restart_and_no_call_fails(secured: Secured) -> None:
    pods = {each["metadata"]["name"] for name in ("inventory-api", "order-api") for each in secured.cluster.pods(name)}
    before = _served(secured)
    with load(secured.cluster, OPERATOR, SECURED, ADDRESSES) as calls:
        secured.cluster.shell(documented.certificates(SECURED))
        eventually(lambda: before.isdisjoint(_served(secured)), within_seconds=RENEWED_SECONDS)

    report = calls.report("renewed certificates")
    assert calls.failed == [], report
    restarted = [each for each in secured.cluster.objects("pods", "-l", PROCESSES) if _restarts(each) > 0]
    assert restarted == []
    assert pods == {
        each["metadata"]["name"] for name in ("inventory-api", "order-api") for each in secured.cluster.pods(name)
    }


def _query(secured: Secured, *environment: str) -> str:
    """Return what a call in the pod of shopctl prints, with a changed environment."""
    return secured.cluster.kubectl("exec", OPERATOR, "--", *environment, *COMMAND, "query-orders", check=False)


def _served(secured: Secured) -> set[str]:
    """Return the fingerprint of the certificate that each pod of the APIs serves."""
    addresses = [
        f"{each['status']['podIP']}:{port}"
        for name, port in (("inventory-api", 50053), ("order-api", 50054))
        for each in secured.cluster.pods(name)
    ]
    found: dict[str, str] = secured.cluster.run_python(SECURED, OPERATOR, "served_certificate.py", *addresses)
    assert len(found) == len(addresses)
    return set(found.values())


def _restarts(pod: Object) -> int:
    return sum(status["restartCount"] for status in pod["status"]["containerStatuses"])


def _authorities(secured: Secured) -> str:
    return (secured.cluster.folder / "certificates" / "ca.crt").read_text()


def _create_secrets(cluster: Cluster) -> None:
    """Create the namespace, the certificates and the passwords, as docs/kubernetes.md says."""
    restricted = namespace(SECURED)
    restricted["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply([restricted])
    passwords = ["postgresql", "kafka-admin", *(f"kafka-{user}" for user in USERS)]
    passwords += [f"{database}-{role}" for database in ("inventory", "orders") for role in ("owner", "api", "relay")]
    values = {name: secrets.token_urlsafe(24) for name in passwords}
    for name, value in values.items():
        (cluster.folder / f"{name}.password").write_text(value)
    cluster.shell(documented.certificates(SECURED))
    folder = cluster.folder / "certificates"
    authority = Authority.load(folder)
    for server in ("postgresql", "kafka"):
        authority.issue(server, Files(folder / server))
    (cluster.folder / "postgresql-ca.crt").write_bytes(authority.pem)
    cluster.shell(documented.database_secrets())
    ca, broker = authority.pem.decode(), Files(folder / "kafka")
    security = "org.apache.kafka.common.security"
    login = f"""KafkaServer {{
        {security}.scram.ScramLoginModule required;
        {security}.plain.PlainLoginModule required user_admin="{values["kafka-admin"]}";
    }};"""
    database = Files(folder / "postgresql")
    cluster.apply(
        [
            _secret(ADMINISTRATOR, values | {"ca.crt": ca}),
            _secret("postgresql-tls", {"tls.crt": database.cert.read_text(), "tls.key": database.key.read_text()}),
            _secret("kafka-tls", {"kafka.pem": broker.key.read_text() + broker.cert.read_text(), "jaas.conf": login}),
            *(
                _secret(f"kafka-{user}", {"username": user, "password": values[f"kafka-{user}"], "ca.crt": ca})
                for user in USERS
            ),
        ]
    )


def _secret(name: str, values: Mapping[str, str]) -> Object:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


def _administrator() -> Object:
    administrator = pod(ADMINISTRATOR, SECURED, {})
    administrator["spec"]["securityContext"]["fsGroup"] = 10001
    mount = {"name": "secrets", "mountPath": "/secrets", "readOnly": True}
    administrator["spec"]["containers"][0]["volumeMounts"] = [mount]
    administrator["spec"]["volumes"] = [
        {"name": "secrets", "secret": {"secretName": ADMINISTRATOR, "defaultMode": 0o440}}
    ]
    return administrator


def _client_properties(user: str, password: str, authorities: str) -> str:
    module = "org.apache.kafka.common.security.scram.ScramLoginModule"
    return "\n".join(
        [
            "security.protocol=SASL_SSL",
            "sasl.mechanism=SCRAM-SHA-512",
            f'sasl.jaas.config={module} required username="{user}" password="{password}";',
            "ssl.truststore.type=PEM",
            f"ssl.truststore.certificates={json.dumps(authorities)[1:-1]}",
            "",
        ]
    )
