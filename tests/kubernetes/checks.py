"""Checks of single rendered objects. Each check yields one message for each fault that it finds."""

from collections.abc import Callable, Iterator

import yaml
from kubernetes_validate.utils import SchemaNotFoundError, ValidationError, latest_version, validate
from sqlalchemy import make_url

from shop_common.process.lifecycle import FLUSH_SECONDS_MAX
from shop_common.rpc.health import LIVENESS
from shopctl.system.layout import CONSOLE, INVENTORY_API, ORDER_API, REAPER, RELAY
from testkit.contract import ASYNCAPI, Contract
from tests.kubernetes import network
from tests.kubernetes.processes import PROCESSES, REQUIRED, SettingsRefused, address_settings, loaded, setting_of
from tests.kubernetes.rendered import Cluster, Object, Workload, files

Check = Callable[[Cluster], Iterator[str]]

OLDEST, NEWEST = "1.31", latest_version()
"""The Kubernetes versions against whose schemas the objects are validated. docs/kubernetes.md names the oldest."""

_CERTIFICATE = {"tls.crt", "tls.key", "ca.crt"}
USER_SECRETS = {
    **{
        f"{name}-database-{role}": {"password"}
        for name in ("inventory", "orders")
        for role in ("owner", "api", "relay")
    },
    **{f"{name}-tls": _CERTIFICATE for name in (INVENTORY_API, ORDER_API, REAPER, CONSOLE, "shopctl")},
    "postgresql-ca": {"ca.crt"},
    **{f"kafka-{name}": {"username", "password", "ca.crt"} for name in (INVENTORY_API, ORDER_API, RELAY, "topics")},
}
"""Secret → keys. The user, or cert-manager, creates these Secrets if the overlay does not."""

_WITHOUT_SCHEMAS = ("monitoring.coreos.com/v1", "cert-manager.io/v1")
"""Resources of operators, without schemas here; `metrics_are_scraped` and security.py check them."""

TOOL = "tool"
"""The component of a Deployment that is not a process."""

SPARE_SECONDS_MIN, SPARE_SECONDS_MAX = 5, 15
_USER = 10001


def deployments(cluster: Cluster) -> list[Workload]:
    """Return the Deployments of processes. A tool is a pod for people: it serves nothing and has no settings."""
    return [each for each in cluster.workloads("Deployment") if each.labels.get("app.kubernetes.io/component") != TOOL]


def objects_match_their_schemas(cluster: Cluster) -> Iterator[str]:
    for manifest in cluster.objects:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        if manifest["apiVersion"] in _WITHOUT_SCHEMAS:
            continue
        for version in (OLDEST, NEWEST):
            try:
                validate(manifest, version, strict=True)
            except ValidationError as error:
                yield f"{name}, Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"
            except SchemaNotFoundError as error:
                yield f"{name}: {error.message}"


def references_are_complete(cluster: Cluster) -> Iterator[str]:
    """The required processes have Deployments. Every referenced object is rendered, or is a Secret of the user."""
    if missing := REQUIRED - {workload.name for workload in deployments(cluster)}:
        yield f"no Deployment of {', '.join(sorted(missing))}"
    accounts = {account["metadata"]["name"]: account for account in cluster.of_kind("ServiceAccount")}
    for workload in cluster.workloads():
        volumes = {volume["name"] for volume in workload.pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in workload.object["spec"].get("volumeClaimTemplates", [])}
        mounts = {mount["name"] for mount in workload.container.get("volumeMounts", [])}
        if mounts != volumes:
            yield f"{workload}: mounts {sorted(mounts)}, has volumes {sorted(volumes)}"
        account = workload.pod.get("serviceAccountName")
        if account is not None and account not in accounts:
            yield f"{workload}: no ServiceAccount {account}"
        try:
            cluster.environment(workload.container)
            for _, secret in files(workload):
                if secret not in USER_SECRETS:
                    cluster.named("Secret", secret)
        except LookupError as error:
            yield f"{workload}: {error}"


def probes_call_served_health_services(cluster: Cluster) -> Iterator[str]:
    for workload in deployments(cluster):
        process = PROCESSES[workload.name]
        settings = loaded(process, cluster.environment(workload.container))
        port = settings.health_port
        # With WORKERS > 1 the parent process serves health, and knows only liveness and the empty name.
        for kind, names in (("startup", {LIVENESS}), ("liveness", {LIVENESS}), ("readiness", {""})):
            probe = workload.container.get(f"{kind}Probe", {}).get("grpc")
            if probe is None:
                yield f"{workload}: has no gRPC {kind} probe"
                continue
            if (service := probe.get("service", "")) not in names:
                yield f"{workload}: the {kind} probe calls {service!r}, not one of {sorted(names)}"
            if probe["port"] != port:
                yield f"{workload}: the {kind} probe calls port {probe['port']}, the process listens on {port}"


def settings_are_accepted(cluster: Cluster) -> Iterator[str]:
    """Every variable is a setting of its process and is valid, and every address is set."""
    for workload in cluster.workloads():
        process = PROCESSES.get(workload.name.removesuffix("-migration"))
        if process is None:
            continue  # not one of our processes
        environment = cluster.environment(workload.container)
        if unknown := sorted(name for name in environment if setting_of(name) not in process.names):
            yield f"{workload}: no such setting: {', '.join(unknown)}"
        try:
            loaded(process, environment)
        except SettingsRefused as error:
            yield f"{workload}: {error}"
        set_here = {setting_of(name) for name in environment}
        if workload.kind == "Deployment" and (missing := sorted(set(address_settings(process)) - set_here)):
            yield f"{workload}: does not set {', '.join(missing)}"


def passwords_come_from_secrets(cluster: Cluster) -> Iterator[str]:
    for workload in filter(network.is_ours, cluster.workloads()):
        secrets = dict(files(workload))
        for name, value in cluster.environment(workload.container).items():
            if "PASSWORD" in name and not name.endswith("_FILE"):
                yield f"{workload}: {name} is in the environment"
            if name.endswith("_FILE"):
                folder, _, key = value.rpartition("/")
                if folder not in secrets:
                    yield f"{workload}: {name} is {value}, where no Secret is mounted"
                elif key not in secret_keys(cluster, secrets[folder]):
                    yield f"{workload}: the Secret {secrets[folder]} has no {key}"
        if secrets and workload.pod["securityContext"].get("fsGroup") != _USER:
            yield f"{workload}: has no fsGroup that lets it read its Secrets"


def secret_keys(cluster: Cluster, secret: str) -> set[str]:
    """The keys of a Secret. Raises LookupError if it is neither rendered nor the user's."""
    if secret in USER_SECRETS:
        return USER_SECRETS[secret]
    return set(cluster.named("Secret", secret)["data"])


def there_is_time_to_drain(cluster: Cluster) -> Iterator[str]:
    for workload in deployments(cluster):
        settings = loaded(PROCESSES[workload.name], cluster.environment(workload.container))
        needed = settings.drain_seconds + settings.grace_seconds + FLUSH_SECONDS_MAX
        granted = workload.pod.get("terminationGracePeriodSeconds", 30)
        if not needed + SPARE_SECONDS_MIN <= granted <= needed + SPARE_SECONDS_MAX:
            yield f"{workload}: is killed after {granted} s, and needs {needed:g} s to drain and exit"
        if settings.drain_seconds < 1:
            yield f"{workload}: gives clients no time to notice that it is not ready"


def images_are_pinned(cluster: Cluster) -> Iterator[str]:
    """No image has the tag `latest`, and a migration has the same image as its process."""
    images = {workload.name: workload.container["image"] for workload in cluster.workloads()}
    for name, image in images.items():
        _, _, tag = image.rpartition("/")[2].partition(":")
        if tag in {"", "latest"}:
            yield f"{name}: the image {image} has no version"
    for workload in cluster.workloads("Job"):
        process = workload.name.removesuffix("-migration")
        if process in PROCESSES and images[workload.name] != images[process]:
            yield f"{workload}: its image is {images[workload.name]}, that of {process} is {images[process]}"
    for process in PROCESSES.keys() & images.keys():
        if not images[process].rpartition(":")[0].endswith(f"shop/{process}"):
            yield f"Deployment {process}: its image is {images[process]}"


def databases_are_migrated(cluster: Cluster) -> Iterator[str]:
    """Each process that owns a database has a Job that migrates that database."""
    jobs = {workload.name: workload for workload in cluster.workloads("Job")}
    for name, process in PROCESSES.items():
        if "database_url" not in process.names:
            continue
        job = jobs.get(f"{name}-migration")
        if job is None:
            yield f"{name}: no Job migrates its database"
            continue
        if job.container.get("args") != ["migrate"] or "command" in job.container:
            yield f"{job}: does not migrate"
        (deployment,) = (workload for workload in deployments(cluster) if workload.name == name)
        urls = [make_url(cluster.environment(each.container)["DATABASE_URL"]) for each in (job, deployment)]
        if len({(url.host, url.port, url.database) for url in urls}) > 1:
            yield f"{job}: migrates a database that is not the one of {name}"


def topics_match_the_contract(cluster: Cluster) -> Iterator[str]:
    topics = set(Contract(yaml.safe_load(ASYNCAPI.read_text())).topics)
    for workload in cluster.workloads("Job"):
        if workload.name == "topics":
            (script,) = workload.container["args"]
            created = set(script.partition("for topic in ")[2].partition(";")[0].split())
            if created != topics:
                yield f"{workload}: creates {sorted(created)}, the contract has {sorted(topics)}"


def pods_are_restricted(cluster: Cluster) -> Iterator[str]:
    """All pods meet Pod Security `restricted`. Ours also run as a fixed user with a read-only root file system."""
    for workload in cluster.workloads():
        pod, container = workload.pod, workload.container
        security = pod.get("securityContext", {}) | container.get("securityContext", {})
        required: Object = {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        if network.is_ours(workload):
            required |= {"runAsUser": _USER, "runAsGroup": _USER, "readOnlyRootFilesystem": True}
        for name, value in required.items():
            if security.get(name) != value:
                yield f"{workload}: {name} is {security.get(name)}, not {value}"
        # A process would read the variables that Kubernetes injects for Services named `grpc` or `health` as settings.
        for name in ("automountServiceAccountToken", "enableServiceLinks"):
            if pod.get(name) is not False:
                yield f"{workload}: {name} is not off"
        if pod.get("initContainers") or pod.get("hostNetwork") or pod.get("hostPID") or pod.get("hostIPC"):
            yield f"{workload}: uses init containers or a host namespace, which these checks do not cover"


def pods_have_resources(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.workloads():
        resources = workload.container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        if not {"cpu", "memory"} <= set(requests) or "memory" not in limits:
            yield f"{workload}: has no requests for CPU and memory, or no memory limit"
