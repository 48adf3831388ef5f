"""What Kustomize makes of an overlay, as one looks at it in a cluster: objects by kind and name, pods, environments."""

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
"""The fixture `rendered`: what a folder of the repository is rendered to."""

WORKLOADS = ("Deployment", "StatefulSet", "Job")


def renderer() -> list[str] | None:
    """The command that renders a folder: Kustomize itself, or the one in kubectl; None where there is neither."""
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            return command
    return None


def render(command: list[str], folder: Path) -> "Cluster":
    """What the overlay in this folder makes."""
    done = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, timeout=RENDER_SECONDS_MAX, check=False
    )
    assert done.returncode == 0, done.stderr
    return Cluster([found for found in yaml.safe_load_all(done.stdout) if found])


@dataclass(frozen=True)
class Workload:
    """A Deployment, StatefulSet or Job, and the pods that it makes."""

    object: Object

    @property
    def kind(self) -> str:
        return str(self.object["kind"])

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def labels(self) -> dict[str, str]:
        """Of its pods."""
        return dict(self.object["spec"]["template"]["metadata"]["labels"])

    @property
    def pod(self) -> Object:
        return dict(self.object["spec"]["template"]["spec"])

    @property
    def container(self) -> Object:
        """The only one that its pods have."""
        (container,) = self.pod["containers"]
        return dict(container)

    @property
    def ports(self) -> dict[str, int]:
        """The ports that its container opens, by name."""
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Cluster:
    """All objects of one overlay."""

    objects: list[Object]

    def of_kind(self, *kinds: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] in kinds]

    def named(self, kind: str, name: str) -> Object:
        """Raises LookupError when there is none."""
        for found in self.of_kind(kind):
            if found["metadata"]["name"] == name:
                return found
        raise LookupError(f"no {kind} {name}")

    def workloads(self, *kinds: str) -> list[Workload]:
        return [Workload(found) for found in self.of_kind(*(kinds or WORKLOADS))]

    def selected(self, selector: Object) -> list[str]:
        """The names of the workloads whose pods a label selector means."""
        return sorted(each.name for each in self.workloads() if selects(selector, each.labels))

    def environment(self, container: Object) -> dict[str, str]:
        """What the container's process finds there; LookupError for what is not rendered."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for entry in container.get("env", []):
            found[entry["name"]] = self._value(entry)
        return found

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
    """Whether a label selector means a pod with these labels; an empty one means all."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions), "no other is used here"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def files(workload: Workload) -> Iterator[tuple[str, str]]:
    """Where the container finds Secrets: (folder, name of the Secret)."""
    volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
    for mount in workload.container.get("volumeMounts", []):
        if secret := volumes.get(mount["name"], {}).get("secret"):
            yield mount["mountPath"], secret["secretName"]
