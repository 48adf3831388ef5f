"""Checks that the rendered system is secure: TLS, identities, permissions and database roles. See checks.py."""

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import URL, make_url

from devstack.certificates import spiffe_id
from shop_common.environment.process_settings import ApiSettings, CallerSettings
from shop_common.identity import grants
from shopctl.system.layout import CONSOLE, INVENTORY_API, ORDER_API, REAPER
from tests.kubernetes.checks import deployments, secret_keys
from tests.kubernetes.network import is_ours
from tests.kubernetes.processes import PROCESSES, addresses, loaded
from tests.kubernetes.rendered import Cluster, Object, Workload, files, mounted

NEEDED = {
    INVENTORY_API: {"keys.read"},
    ORDER_API: {"stock.reserve", "delegate"},
    REAPER: {"maintenance"},
    # The console calls with the tokens of its viewers. A call without a token has the permissions of the certificate.
    CONSOLE: set(),
}
"""The permissions that each process needs for its own calls."""


def apis_authenticate_their_callers(cluster: Cluster) -> Iterator[str]:
    """Each API serves mutual TLS only, checks permissions, and shows no descriptors."""
    for workload in deployments(cluster):
        settings = loaded(PROCESSES[workload.name], cluster.environment(workload.container))
        if not isinstance(settings, ApiSettings):
            continue
        if settings.insecure:
            yield f"{workload}: INSECURE lets it serve plain text"
        if settings.reflection:
            yield f"{workload}: REFLECTION is on"
        for name in ("tls_cert_path", "tls_key_path", "tls_client_ca_path", "grants_path"):
            if getattr(settings, name) is None:
                yield f"{workload}: {name.upper()} is not set"


def callers_have_certificates(cluster: Cluster) -> Iterator[str]:
    """Each process that calls an API verifies it, and presents a certificate of its own."""
    for workload in deployments(cluster):
        settings = loaded(PROCESSES[workload.name], cluster.environment(workload.container))
        if isinstance(settings, CallerSettings) and settings.calls_apis:
            for name in ("tls_cert_path", "tls_key_path", "tls_ca_path"):
                if getattr(settings, name) is None:
                    yield f"{workload}: {name.upper()} is not set"


def files_of_settings_are_mounted(cluster: Cluster) -> Iterator[str]:
    """Every file that a setting or a database URL names is in a Secret or ConfigMap that the container mounts."""
    for workload in filter(is_ours, cluster.workloads()):
        present = {folder: secret_keys(cluster, secret) for folder, secret in files(workload)}
        present |= dict(mounted(cluster, workload))
        for name, path in _paths(cluster.environment(workload.container)):
            folder, _, file = path.rpartition("/")
            if file not in present.get(folder, set()):
                yield f"{workload}: {name} is {path}, which is not mounted"


def _paths(environment: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in environment.items():
        if name.endswith("_PATH"):
            yield name, value
        for path in re.findall(r"[?&]sslrootcert=([^&]*)", value):
            yield name, path


def certificates_have_identities(cluster: Cluster) -> Iterator[str]:
    """If cert-manager makes the certificates, each has one identity and the names by which others call its process."""
    made = {each["spec"]["secretName"]: each["spec"] for each in cluster.of_kind("Certificate")}
    issuers = {each["metadata"]["name"] for each in cluster.of_kind("Issuer")}
    for workload in cluster.workloads("Deployment") if made else ():
        for _, secret in (each for each in files(workload) if each[1].endswith("-tls")):
            if secret not in made:
                yield f"{workload}: no Certificate makes {secret}"
                continue
            yield from _faults_of_certificate(cluster, workload, made[secret], issuers)


def _faults_of_certificate(cluster: Cluster, workload: Workload, spec: Object, issuers: set[str]) -> Iterator[str]:
    # The identity belongs to the service account: everyone who may run pods with it has the certificate.
    expected = spiffe_id(workload.pod["serviceAccountName"])
    if spec.get("uris") != [expected]:
        yield f"{workload}: its certificate has the URIs {spec.get('uris')}, not only {expected}"
    called = {
        host
        for other in cluster.workloads("Deployment")
        for host, _ in addresses(cluster.environment(other.container))
        if host == workload.name
    }
    if missing := called - set(spec.get("dnsNames", [])):
        yield f"{workload}: its certificate lacks the name {', '.join(missing)}, by which others call it"
    if not {"server auth", "client auth"} <= set(spec["usages"]):
        yield f"{workload}: its certificate is not for both servers and clients"
    if spec["issuerRef"]["name"] not in issuers:
        yield f"{workload}: no Issuer {spec['issuerRef']['name']}"


def processes_have_the_permissions_that_they_need(cluster: Cluster) -> Iterator[str]:
    """The grants file is valid, and each process has the permissions for its calls and no others."""
    (content,) = (each["data"] for each in cluster.of_kind("ConfigMap") if "grants.yaml" in each["data"])
    with TemporaryDirectory() as folder:
        path = Path(folder, "grants.yaml")
        path.write_text(content["grants.yaml"])
        try:
            granted = grants.read(path)
        except grants.GrantsError as error:
            yield str(error)
            return
    for process, needed in NEEDED.items():
        permissions = granted.of_workload(spiffe_id(process)).permissions
        if permissions != needed:
            yield f"{process}: has the permissions {sorted(permissions)}, and needs {sorted(needed)}"


def databases_have_a_role_for_each_use(cluster: Cluster) -> Iterator[str]:
    """No two workloads share a role of a database or the Secret of a role."""
    users: dict[tuple[str | None, str | None, str | None], str] = {}
    owners: dict[str, str] = {}
    for workload in filter(is_ours, cluster.workloads()):
        for url in _databases(cluster, workload):
            role = (url.host, url.database, url.username)
            if (other := users.setdefault(role, str(workload))) != str(workload):
                yield f"{workload}: uses the role {url.username} of {other}"
        for _, secret in files(workload):
            if "-database" in secret and (other := owners.setdefault(secret, str(workload))) != str(workload):
                yield f"{workload}: mounts the Secret {secret} of {other}"


def databases_are_verified(cluster: Cluster) -> Iterator[str]:
    """Connections verify the name of the server and who issued its certificate. Other modes accept any certificate."""
    for workload in filter(is_ours, cluster.workloads()):
        for url in _databases(cluster, workload):
            if url.query.get("sslmode") != "verify-full" or "sslrootcert" not in url.query:
                yield f"{workload}: its connections to {url.host} do not verify the server"


def kafka_clients_are_authenticated(cluster: Cluster) -> Iterator[str]:
    """Each client of Kafka verifies the brokers, and logs in as a user of its own."""
    users: dict[str, str] = {}
    for workload in filter(is_ours, cluster.workloads()):
        environment = cluster.environment(workload.container)
        if "KAFKA_BOOTSTRAP_SERVERS" not in environment:
            continue
        if environment.get("KAFKA_SECURITY_PROTOCOL") != "SASL_SSL" or "KAFKA_CA_PATH" not in environment:
            yield f"{workload}: connects to Kafka without TLS or without a login"
            continue
        folder = environment.get("KAFKA_SASL_USERNAME_FILE", "").rpartition("/")[0]
        secret = dict(files(workload)).get(folder, "")
        if (other := users.setdefault(secret, str(workload))) != str(workload):
            yield f"{workload}: logs in to Kafka with the Secret {secret!r} of {other}"


def _databases(cluster: Cluster, workload: Workload) -> Iterator[URL]:
    for name, value in cluster.environment(workload.container).items():
        if name.endswith("DATABASE_URL"):
            yield make_url(value)
