"""The objects that Kustomize renders from an overlay, by kind and name, with their pods and environments."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
Labels = Mapping[str, str]

RENDER_SECONDS_MAX = 60

Rendered = Callable[[str], "Cluster"]
"""The fixture `rendered`: folder of the repository → rendered objects."""

WORKLOADS = ("Deployment", "StatefulSet", "Job")


def renderer() -> list[str] | None:
    """The command that renders a folder, with kustomize or kubectl. None if neither is on the PATH."""
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            return command
    return None


def render(command: list[str], folder: Path) -> "Cluster":
    """Render the overlay in this folder. Raises AssertionError with Kustomize's message."""
    done = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, timeout=RENDER_SECONDS_MAX, check=False
    )
    assert done.returncode == 0, done.stderr
    return Cluster([manifest for manifest in yaml.safe_load_all(done.stdout) if manifest])


@dataclass(frozen=True)
class Workload:
    """A Deployment, StatefulSet or Job, with its pod template."""

    object: Object

    @property
    def kind(self) -> str:
        return str(self.object["kind"])

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its pods."""
        return dict(self.object["spec"]["template"]["metadata"]["labels"])

    @property
    def pod(self) -> Object:
        return dict(self.object["spec"]["template"]["spec"])

    @property
    def container(self) -> Object:
        """The only container of its pods."""
        (container,) = self.pod["containers"]
        return dict(container)

    @property
    def ports(self) -> dict[str, int]:
        """The ports of its container, by name."""
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Cluster:
    """All objects of one overlay."""

    objects: list[Object]

    def of_kind(self, *kinds: str) -> list[Object]:
        return [manifest for manifest in self.objects if manifest["kind"] in kinds]

    def named(self, kind: str, name: str) -> Object:
        """Raises LookupError if there is no such object."""
        for manifest in self.of_kind(kind):
            if manifest["metadata"]["name"] == name:
                return manifest
        raise LookupError(f"no {kind} {name}")

    def workloads(self, *kinds: str) -> list[Workload]:
        return [Workload(manifest) for manifest in self.of_kind(*(kinds or WORKLOADS))]

    def selected(self, selector: Object) -> list[str]:
        """The names of the workloads whose pods the label selector matches."""
        return sorted(each.name for each in self.workloads() if selects(selector, each.labels))

    def environment(self, container: Object) -> dict[str, str]:
        """The container's environment variables. Raises LookupError for a source that is not rendered."""
        environment: dict[str, str] = {}
        for source in container.get("envFrom", []):
            environment |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for entry in container.get("env", []):
            environment[entry["name"]] = self._value(entry)
        return environment

    def _value(self, entry: Object) -> str:
        if "value" in entry:
            return str(entry["value"])
        ((kind, reference),) = entry["valueFrom"].items()
        if kind == "secretKeyRef":
            self.named("Secret", reference["name"])
            return "a secret"
        data = self.named("ConfigMap", reference["name"])["data"]
        return str(data[reference["key"]])


def selects(selector: Object, labels: Labels) -> bool:
    """True if the label selector matches a pod with these labels. An empty selector matches all pods."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions), "only In is supported here"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def mounted(cluster: Cluster, workload: Workload) -> Iterator[tuple[str, set[str]]]:
    """(mount path, names of the files) for each ConfigMap that the container mounts. Raises LookupError."""
    volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
    for mount in workload.container.get("volumeMounts", []):
        if source := volumes.get(mount["name"], {}).get("configMap"):
            yield mount["mountPath"], set(cluster.named("ConfigMap", source["name"])["data"])


def files(workload: Workload) -> Iterator[tuple[str, str]]:
    """(mount path, name of the Secret) for each Secret that the container mounts."""
    volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
    for mount in workload.container.get("volumeMounts", []):
        if secret := volumes.get(mount["name"], {}).get("secret"):
            yield mount["mountPath"], secret["secretName"]
