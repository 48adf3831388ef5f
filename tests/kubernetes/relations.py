"""What has to be true between the rendered objects: who selects, targets, calls and allows whom. See checks.py."""

from collections.abc import Iterator

from tests.kubernetes import network
from tests.kubernetes.checks import of_processes
from tests.kubernetes.processes import PROCESSES, addresses
from tests.kubernetes.rendered import Cluster, Object, Workload, selects


def selectors_mean_one_workload(cluster: Cluster) -> Iterator[str]:
    """Those of Services and budgets, and those of workloads their own pods and no others."""
    for workload in cluster.workloads("Deployment", "StatefulSet"):
        if cluster.selected(workload.object["spec"]["selector"]) != [workload.name]:
            yield f"{workload}: selects {cluster.selected(workload.object['spec']['selector'])}"
        for constraint in workload.pod.get("topologySpreadConstraints", []):
            if not selects(constraint["labelSelector"], workload.labels):
                yield f"{workload}: is not spread, as its constraint selects others"
    for service in cluster.of_kind("Service"):
        yield from _means_its_own(cluster, service, {"matchLabels": service["spec"]["selector"]})
    for budget in cluster.of_kind("PodDisruptionBudget"):
        yield from _means_its_own(cluster, budget, budget["spec"]["selector"])
    for policy in cluster.of_kind("NetworkPolicy"):
        if not cluster.selected(policy["spec"]["podSelector"]):
            yield f"NetworkPolicy {policy['metadata']['name']}: selects nothing"


def _means_its_own(cluster: Cluster, found: Object, selector: Object) -> Iterator[str]:
    name = found["metadata"]["name"]
    if cluster.selected(selector) != [name]:
        yield f"{found['kind']} {name}: selects {cluster.selected(selector)}"


def services_lead_to_open_ports(cluster: Cluster) -> Iterator[str]:
    """Headless, as clients balance by themselves, and on the very ports that containers open."""
    workloads = {workload.name: workload for workload in cluster.workloads()}
    for service in cluster.of_kind("Service"):
        name, spec = service["metadata"]["name"], service["spec"]
        if spec.get("clusterIP") != "None":
            yield f"Service {name}: is not headless"
        for port in spec["ports"]:
            # A headless Service does not translate: clients meet the port of the container.
            if workloads[name].ports.get(port["targetPort"]) != port["port"]:
                yield f"Service {name}: {port['name']} leads to {port['targetPort']}, which is not {port['port']}"
    for workload in of_processes(cluster):
        if "grpc" in workload.ports and not _service(cluster, workload.name):
            yield f"{workload}: has no Service"


def calls_reach_services(cluster: Cluster) -> Iterator[str]:
    """An address whose host is rendered here has a port that is open there."""
    for workload in cluster.workloads():
        for host, port in addresses(cluster.environment(workload.container)):
            service = _service(cluster, host)
            if service and port not in {each["port"] for each in service["spec"]["ports"]}:
                yield f"{workload}: {host} has no port {port}"
            if host in PROCESSES and not service:
                yield f"{workload}: there is no Service {host}"


def _service(cluster: Cluster, name: str) -> Object | None:
    return next((found for found in cluster.of_kind("Service") if found["metadata"]["name"] == name), None)


def the_network_is_what_is_needed(cluster: Cluster) -> Iterator[str]:
    """What policies allow is what settings point at: nothing less, and nothing more."""
    for workload in filter(network.is_ours, cluster.workloads()):
        needs = {
            "egress": network.needed_to_say(cluster, workload),
            "ingress": network.needed_to_hear(cluster, workload),
        }
        for direction, needed in needs.items():
            if not network.is_restricted(cluster, workload, direction):
                yield f"{workload}: its {direction} is free"
            allowed = network.allowed(cluster, workload, direction)
            if needed - allowed:
                yield f"{workload}: {direction} lacks {sorted(needed - allowed)}"
            if allowed - needed:
                yield f"{workload}: {direction} allows more than is needed: {sorted(allowed - needed)}"


def scaling_works(cluster: Cluster) -> Iterator[str]:
    deployments = {workload.name: workload for workload in of_processes(cluster)}
    for scaler in cluster.of_kind("HorizontalPodAutoscaler"):
        spec, name = scaler["spec"], scaler["metadata"]["name"]
        target = deployments.get(spec["scaleTargetRef"]["name"])
        if target is None:
            yield f"HorizontalPodAutoscaler {name}: scales nothing"
            continue
        if "replicas" in target.object["spec"]:
            yield f"{target}: each deployment would undo what its autoscaler did"
        if not 2 <= spec["minReplicas"] < spec["maxReplicas"]:
            yield f"HorizontalPodAutoscaler {name}: from {spec['minReplicas']} to {spec['maxReplicas']}"
        down = spec["behavior"]["scaleDown"]
        if down["stabilizationWindowSeconds"] < 60 or any(policy["type"] != "Pods" for policy in down["policies"]):
            yield f"HorizontalPodAutoscaler {name}: scales down in haste"


def rollouts_and_evictions_go_on(cluster: Cluster) -> Iterator[str]:
    """A rollout takes no pod away before its successor is ready; draining a node always comes to an end."""
    budgets = {budget["metadata"]["name"]: budget["spec"] for budget in cluster.of_kind("PodDisruptionBudget")}
    for workload in of_processes(cluster):
        rolling = workload.object["spec"]["strategy"]["rollingUpdate"]
        if rolling["maxUnavailable"] != 0 or rolling["maxSurge"] in {0, "0%"}:
            yield f"{workload}: a rollout takes a pod away before there is another"
        budget = budgets.get(workload.name)
        if budget is None:
            yield f"{workload}: has no PodDisruptionBudget"
        elif budget.get("maxUnavailable", 0) < 1 or "minAvailable" in budget:
            yield f"{workload}: its PodDisruptionBudget can refuse every eviction"
        elif budget.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"{workload}: a pod that never becomes ready would hold up the draining of its node"


def metrics_are_scraped(cluster: Cluster) -> Iterator[str]:
    """Where there is a PodMonitor, it finds every process, and the port on which that has metrics."""
    for monitor in cluster.of_kind("PodMonitor"):
        spec = monitor["spec"]
        if cluster.selected(spec["selector"]) != sorted(PROCESSES):
            yield f"PodMonitor: finds {cluster.selected(spec['selector'])}"
        for workload in of_processes(cluster):
            yield from _has_metrics(cluster, workload, spec["podMetricsEndpoints"][0]["port"])


def _has_metrics(cluster: Cluster, workload: Workload, port: str) -> Iterator[str]:
    if str(workload.ports.get(port)) != cluster.environment(workload.container).get("METRICS_PORT"):
        yield f"{workload}: has no metrics on its port {port}"
