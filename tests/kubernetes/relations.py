"""Checks of relations between rendered objects: selectors, ports, calls and network policies. See checks.py."""

from collections.abc import Iterator

from tests.kubernetes import network
from tests.kubernetes.checks import deployments
from tests.kubernetes.processes import PROCESSES, addresses
from tests.kubernetes.rendered import Cluster, Object, Workload, selects

_HEALTH = "-health"


def selectors_match_one_workload(cluster: Cluster) -> Iterator[str]:
    """A workload, Service or PodDisruptionBudget selects the pods of the workload with its name and no others.

    The name of a Service for health and metrics ends in `-health`.
    """
    for workload in cluster.workloads("Deployment", "StatefulSet"):
        if cluster.selected(workload.object["spec"]["selector"]) != [workload.name]:
            yield f"{workload}: selects {cluster.selected(workload.object['spec']['selector'])}"
        for constraint in workload.pod.get("topologySpreadConstraints", []):
            if not selects(constraint["labelSelector"], workload.labels):
                yield f"{workload}: is not spread: its topology constraint does not select its own pods"
    for service in cluster.of_kind("Service"):
        yield from _selects_its_own(cluster, service, {"matchLabels": service["spec"]["selector"]})
    for budget in cluster.of_kind("PodDisruptionBudget"):
        yield from _selects_its_own(cluster, budget, budget["spec"]["selector"])
    for policy in cluster.of_kind("NetworkPolicy"):
        if not cluster.selected(policy["spec"]["podSelector"]):
            yield f"NetworkPolicy {policy['metadata']['name']}: selects nothing"


def _selects_its_own(cluster: Cluster, manifest: Object, selector: Object) -> Iterator[str]:
    name = manifest["metadata"]["name"]
    if cluster.selected(selector) != [name.removesuffix(_HEALTH)]:
        yield f"{manifest['kind']} {name}: selects {cluster.selected(selector)}"


def services_target_open_ports(cluster: Cluster) -> Iterator[str]:
    """Services are headless, since clients balance themselves, and name the ports that the containers open."""
    workloads = {workload.name: workload for workload in cluster.workloads()}
    for service in cluster.of_kind("Service"):
        name, spec = service["metadata"]["name"], service["spec"]
        if spec.get("clusterIP") != "None":
            yield f"Service {name}: is not headless"
        for port in spec["ports"]:
            # A headless Service maps no ports: clients connect to the port of the container.
            if workloads[name.removesuffix(_HEALTH)].ports.get(port["targetPort"]) != port["port"]:
                yield f"Service {name}: {port['name']} targets {port['targetPort']}, which is not {port['port']}"
    for workload in deployments(cluster):
        if "grpc" in workload.ports and not _service(cluster, workload.name):
            yield f"{workload}: has no Service"


def calls_reach_services(cluster: Cluster) -> Iterator[str]:
    """If the host of an address is a rendered Service, the Service has the port of the address."""
    for workload in cluster.workloads():
        for host, port in addresses(cluster.environment(workload.container)):
            service = _service(cluster, host)
            if service and port not in {each["port"] for each in service["spec"]["ports"]}:
                yield f"{workload}: {host} has no port {port}"
            if host in PROCESSES and not service:
                yield f"{workload}: there is no Service {host}"


def _service(cluster: Cluster, name: str) -> Object | None:
    return next((service for service in cluster.of_kind("Service") if service["metadata"]["name"] == name), None)


def network_policies_allow_exactly_what_is_needed(cluster: Cluster) -> Iterator[str]:
    """The policies allow only the flows that the settings need. Databases and brokers may connect anywhere."""
    for workload in cluster.workloads():
        needs = {"ingress": network.needed_ingress(cluster, workload)}
        if network.is_ours(workload):
            needs["egress"] = network.needed_egress(cluster, workload)
        for direction, needed in needs.items():
            if not network.is_restricted(cluster, workload, direction):
                yield f"{workload}: no policy restricts its {direction}"
            allowed = network.allowed(cluster, workload, direction)
            if needed - allowed:
                yield f"{workload}: {direction} lacks {sorted(needed - allowed)}"
            if allowed - needed:
                yield f"{workload}: {direction} allows more than is needed: {sorted(allowed - needed)}"


def autoscalers_are_valid(cluster: Cluster) -> Iterator[str]:
    targets = {workload.name: workload for workload in deployments(cluster)}
    for scaler in cluster.of_kind("HorizontalPodAutoscaler"):
        spec, name = scaler["spec"], scaler["metadata"]["name"]
        target = targets.get(spec["scaleTargetRef"]["name"])
        if target is None:
            yield f"HorizontalPodAutoscaler {name}: has no Deployment to scale"
            continue
        if "replicas" in target.object["spec"]:
            yield f"{target}: sets replicas, so that each rollout would undo what its autoscaler did"
        if not 2 <= spec["minReplicas"] < spec["maxReplicas"]:
            yield f"HorizontalPodAutoscaler {name}: from {spec['minReplicas']} to {spec['maxReplicas']}"
        down = spec["behavior"]["scaleDown"]
        if down["stabilizationWindowSeconds"] < 60 or any(policy["type"] != "Pods" for policy in down["policies"]):
            yield f"HorizontalPodAutoscaler {name}: scales down too fast"


def rollouts_and_evictions_complete(cluster: Cluster) -> Iterator[str]:
    """A rollout removes a pod only when its replacement is ready, and a node can always be drained."""
    budgets = {budget["metadata"]["name"]: budget["spec"] for budget in cluster.of_kind("PodDisruptionBudget")}
    for workload in deployments(cluster):
        rolling = workload.object["spec"]["strategy"]["rollingUpdate"]
        if rolling["maxUnavailable"] != 0 or rolling["maxSurge"] in {0, "0%"}:
            yield f"{workload}: a rollout removes a pod before its replacement is ready"
        budget = budgets.get(workload.name)
        if budget is None:
            yield f"{workload}: has no PodDisruptionBudget"
        elif budget.get("maxUnavailable", 0) < 1 or "minAvailable" in budget:
            yield f"{workload}: its PodDisruptionBudget can refuse every eviction"
        elif budget.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"{workload}: a pod that never becomes ready would block the draining of its node"


def metrics_are_scraped(cluster: Cluster) -> Iterator[str]:
    """A PodMonitor selects every process, and names the port of its metrics."""
    for monitor in cluster.of_kind("PodMonitor"):
        spec = monitor["spec"]
        if cluster.selected(spec["selector"]) != sorted(each.name for each in deployments(cluster)):
            yield f"PodMonitor: selects {cluster.selected(spec['selector'])}"
        for workload in deployments(cluster):
            yield from _has_metrics(cluster, workload, spec["podMetricsEndpoints"][0]["port"])


def _has_metrics(cluster: Cluster, workload: Workload, port: str) -> Iterator[str]:
    if str(workload.ports.get(port)) != cluster.environment(workload.container).get("METRICS_PORT"):
        yield f"{workload}: has no metrics on its port {port}"
