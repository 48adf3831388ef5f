"""What has to be true of the rendered objects. Each check yields a sentence for each fault that it finds."""

from collections.abc import Callable, Iterator

import yaml
from kubernetes_validate.utils import SchemaNotFoundError, ValidationError, latest_version, validate

from shop_common.process.lifecycle import FLUSH_SECONDS_MAX
from shop_common.rpc.health import LIVENESS
from testkit.contract import ASYNCAPI, Contract
from tests.kubernetes import network
from tests.kubernetes.processes import PROCESSES, SettingsRefused, addressing, loaded, setting_of
from tests.kubernetes.rendered import Cluster, Object, Workload, files

Check = Callable[[Cluster], Iterator[str]]

OLDEST, NEWEST = "1.31", latest_version()
"""The versions of Kubernetes whose schemas the objects are held against; docs/kubernetes.md names the oldest."""

USER_MAKES = {"inventory-database": "password", "orders-database": "password"}
"""The Secrets that whoever deploys has to make, and their keys, where the overlay doesn't."""

SPARE_SECONDS_MIN, SPARE_SECONDS_MAX = 5, 15
_USER = 10001


def of_processes(cluster: Cluster) -> list[Workload]:
    return cluster.workloads("Deployment")


def schemas_hold(cluster: Cluster) -> Iterator[str]:
    for found in cluster.objects:
        what = f"{found['kind']} {found['metadata']['name']}"
        if found["apiVersion"] == "monitoring.coreos.com/v1":
            continue  # the Prometheus Operator's, and not in Kubernetes' schemas; `metrics_are_scraped` looks at it
        for version in (OLDEST, NEWEST):
            try:
                validate(found, version, strict=True)
            except ValidationError as error:
                yield f"{what}, Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"
            except SchemaNotFoundError as error:
                yield f"{what}: {error.message}"


def everything_is_there(cluster: Cluster) -> Iterator[str]:
    """Each process has its Deployment, and all that is referred to is rendered, or made by the user."""
    if missing := set(PROCESSES) - {workload.name for workload in of_processes(cluster)}:
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
                if secret not in USER_MAKES:
                    cluster.named("Secret", secret)
        except LookupError as error:
            yield f"{workload}: {error}"


def probes_ask_what_is_served(cluster: Cluster) -> Iterator[str]:
    for workload in of_processes(cluster):
        process = PROCESSES[workload.name]
        settings = loaded(process, cluster.environment(workload.container))
        port = settings.health_port
        # The parent of several workers knows no names of services; the empty name is known everywhere.
        for kind, names in (("startup", {LIVENESS}), ("liveness", {LIVENESS}), ("readiness", {""})):
            probe = workload.container.get(f"{kind}Probe", {}).get("grpc")
            if probe is None:
                yield f"{workload}: has no {kind} probe by gRPC"
                continue
            if (service := probe.get("service", "")) not in names:
                yield f"{workload}: {kind} asks for {service!r}, which is none of {sorted(names)}"
            if probe["port"] != port:
                yield f"{workload}: {kind} asks port {probe['port']}, the process listens on {port}"


def settings_are_accepted(cluster: Cluster) -> Iterator[str]:
    """Every variable is a setting of the process that gets it, all are right, and each address is given."""
    for workload in cluster.workloads():
        process = PROCESSES.get(workload.name.removesuffix("-migration"))
        if process is None:
            continue  # not a process of ours
        environment = cluster.environment(workload.container)
        if unknown := sorted(name for name in environment if setting_of(name) not in process.names):
            yield f"{workload}: no such setting: {', '.join(unknown)}"
        try:
            loaded(process, environment)
        except SettingsRefused as error:
            yield f"{workload}: {error}"
        given = {setting_of(name) for name in environment}
        if workload.kind == "Deployment" and (missing := sorted(set(addressing(process)) - given)):
            yield f"{workload}: keeps the default of {', '.join(missing)}"


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
                elif key not in _keys(cluster, secrets[folder]):
                    yield f"{workload}: the Secret {secrets[folder]} has no {key}"
        if secrets and workload.pod["securityContext"].get("fsGroup") != _USER:
            yield f"{workload}: has no fsGroup by which it may read its Secrets"


def _keys(cluster: Cluster, secret: str) -> set[str]:
    if secret in USER_MAKES:
        return {USER_MAKES[secret]}
    return set(cluster.named("Secret", secret)["data"])


def there_is_time_to_drain(cluster: Cluster) -> Iterator[str]:
    for workload in of_processes(cluster):
        settings = loaded(PROCESSES[workload.name], cluster.environment(workload.container))
        needed = settings.drain_seconds + settings.grace_seconds + FLUSH_SECONDS_MAX
        given = workload.pod.get("terminationGracePeriodSeconds", 30)
        if not needed + SPARE_SECONDS_MIN <= given <= needed + SPARE_SECONDS_MAX:
            yield f"{workload}: is killed after {given} s, and needs {needed:g} s to end well"
        if settings.drain_seconds < 1:
            yield f"{workload}: no time for clients to see that it leaves"


def images_are_pinned(cluster: Cluster) -> Iterator[str]:
    """No `latest`, and a migration is of the very image whose process needs it."""
    images = {workload.name: workload.container["image"] for workload in cluster.workloads()}
    for name, image in images.items():
        _, _, tag = image.rpartition("/")[2].partition(":")
        if tag in {"", "latest"}:
            yield f"{name}: the image {image} has no version"
    for workload in cluster.workloads("Job"):
        process = workload.name.removesuffix("-migration")
        if process in PROCESSES and images[workload.name] != images[process]:
            yield f"{workload}: its image is {images[workload.name]}, that of {process} is {images[process]}"
    for process in PROCESSES:
        if not images[process].rpartition(":")[0].endswith(f"shop/{process}"):
            yield f"Deployment {process}: its image is {images[process]}"


def databases_are_migrated(cluster: Cluster) -> Iterator[str]:
    """Each process with a database of its own has a Job that migrates just that."""
    jobs = {workload.name: workload for workload in cluster.workloads("Job")}
    for name, process in PROCESSES.items():
        if "database_url" not in process.names:
            continue
        job = jobs.get(f"{name}-migration")
        if job is None:
            yield f"{name}: nothing migrates its database"
            continue
        if job.container.get("args") != ["migrate"] or "command" in job.container:
            yield f"{job}: does not migrate"
        (deployment,) = (workload for workload in of_processes(cluster) if workload.name == name)
        theirs = (cluster.environment(each.container)["DATABASE_URL"] for each in (job, deployment))
        if len(set(theirs)) > 1:
            yield f"{job}: migrates another database than {name} has"


def topics_are_those_of_the_contract(cluster: Cluster) -> Iterator[str]:
    topics = set(Contract(yaml.safe_load(ASYNCAPI.read_text())).topics)
    for workload in cluster.workloads("Job"):
        if workload.name == "topics":
            (script,) = workload.container["args"]
            made = set(script.partition("for topic in ")[2].partition(";")[0].split())
            if made != topics:
                yield f"{workload}: makes {sorted(made)}, the contract has {sorted(topics)}"


def pods_are_restricted(cluster: Cluster) -> Iterator[str]:
    """Pod Security `restricted`, for all; and for ours a user of their own and a root that nobody writes to."""
    for workload in cluster.workloads():
        pod, container = workload.pod, workload.container
        security = pod.get("securityContext", {}) | container.get("securityContext", {})
        wanted: Object = {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        if network.is_ours(workload):
            wanted |= {"runAsUser": _USER, "runAsGroup": _USER, "readOnlyRootFilesystem": True}
        for name, value in wanted.items():
            if security.get(name) != value:
                yield f"{workload}: {name} is {security.get(name)}, not {value}"
        # What is injected for Services named `grpc` or `health` would be read as settings.
        for name in ("automountServiceAccountToken", "enableServiceLinks"):
            if pod.get(name) is not False:
                yield f"{workload}: {name} is not off"
        if pod.get("initContainers") or pod.get("hostNetwork") or pod.get("hostPID") or pod.get("hostIPC"):
            yield f"{workload}: has what these checks don't look into"


def pods_have_resources(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.workloads():
        resources = workload.container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        if not {"cpu", "memory"} <= set(requests) or "memory" not in limits:
            yield f"{workload}: says not what it needs, or has no limit of memory"
