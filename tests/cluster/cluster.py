"""The cluster of these tests: runs kubectl, the documented commands, and programs in its pods."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]

NAMESPACE = "shop"
"""The namespace of the system, as in docs/kubernetes.md."""
CLIENTS = "shop-test-clients"
"""A namespace of callers, with the label shop-clients."""
MONITORING = "shop-test-monitoring"
"""A namespace with the label shop-monitoring."""
STRANGERS = "shop-test-strangers"
"""A namespace with neither label. Pods in it may share the process namespace of their node."""

SECURED = "shop-test-secured"
"""A namespace with a second system, which has certificates, logins and roles."""

NAMESPACES = (NAMESPACE, CLIENTS, MONITORING, STRANGERS, SECURED)

CALLER = "caller"
"""A pod in CLIENTS that may call both APIs."""
ADDRESSES = (f"inventory-api.{NAMESPACE}:50053", f"order-api.{NAMESPACE}:50054")

TEST_IMAGE = "shop/shopctl:dev"
OURS = "app.kubernetes.io/part-of=shop"
PROCESSES = f"{OURS},app.kubernetes.io/component=process"

COMMAND_SECONDS = 720
_IN_POD = Path(__file__).with_name("in_pod")


@dataclass(frozen=True)
class Cluster:
    """`kubeconfig` has the namespace of the system as its default. `folder` has a copy of deploy/."""

    kubeconfig: Path
    folder: Path

    def kubectl(self, *words: str, given: str | None = None, check: bool = True) -> str:
        """Run kubectl and return its standard output; without `check`, also standard error.

        Raises AssertionError with the whole output if it fails, unless `check` is false.
        """
        done = self._run(["kubectl", *words], given)
        assert done.returncode == 0 or not check, _report(words, done)
        return done.stdout if check else done.stdout + done.stderr

    def fails(self, *words: str) -> bool:
        """Run kubectl and return whether it fails."""
        return self._run(["kubectl", *words], None).returncode != 0

    def shell(self, script: str) -> None:
        """Run a script in the folder with the copy of deploy/. Raises AssertionError at the first failing command."""
        done = self._run(["bash", "-euc", script], None)
        assert done.returncode == 0, _report([script], done)

    def apply(self, objects: Sequence[Object]) -> None:
        self.kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def objects(self, *words: str) -> list[Object]:
        """Return the objects that `kubectl get` lists."""
        items: list[Object] = json.loads(self.kubectl("get", "-o", "json", *words))["items"]
        return items

    def pods(self, name: str) -> list[Object]:
        """Return the pods of a workload that are not terminating."""
        pods = self.objects("pods", "-l", f"app.kubernetes.io/name={name}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    @contextmanager
    def without(self, *nodes: str) -> Iterator[None]:
        """Let no new pod run on these nodes, during the `with` block."""
        for node in nodes:
            self.kubectl("cordon", node)
        try:
            yield
        finally:
            for node in nodes:
                self.kubectl("uncordon", node)

    def python(self, namespace: str, pod: str, program: str, *arguments: str) -> list[str]:
        """Return the command that runs a program of the folder in_pod in a pod."""
        return ["kubectl", "exec", "-i", "-n", namespace, pod, "--", *python_command(program, *arguments)]

    def run_python(self, namespace: str, pod: str, program: str, *arguments: str) -> Any:
        """Run a program of the folder in_pod in a pod. Returns the JSON document that it prints."""
        done = self._run(self.python(namespace, pod, program, *arguments), None)
        assert done.returncode == 0, _report([program], done)
        return json.loads(done.stdout)

    def environment(self) -> Mapping[str, str]:
        return os.environ | {"KUBECONFIG": str(self.kubeconfig)}

    def wait_until_ready(self) -> None:
        """Wait until every Deployment has all its replicas and no old ones."""
        self.kubectl("rollout", "status", "deployment", "-l", OURS, "--timeout=10m")

    def state(self) -> str:
        """Return the pods and the last events of the system, for the report of a failed test."""
        events = self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False).splitlines()
        return "\n".join([self.kubectl("get", "pods", "-o", "wide", check=False), *events[-30:]])

    def _run(self, command: Sequence[str], given: str | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            input=given,
            # A command that asks a question must fail instead of waiting for input.
            stdin=None if given is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )


def python_command(program: str, *arguments: str) -> list[str]:
    """Return the command of a container that runs a program of the folder in_pod."""
    return ["python", "-c", (_IN_POD / program).read_text(), *arguments]


def namespace(name: str, *labels: str) -> Object:
    """Return a namespace that has these labels with the value "true"."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": dict.fromkeys(labels, "true")},
    }


def pod(name: str, namespace: str, labels: Mapping[str, str]) -> Object:
    """Return a pod that runs nothing, in which the tests run their programs."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "python",
                    "image": TEST_IMAGE,
                    "command": ["python", "-c", "import signal; signal.pause()"],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


def _report(words: Sequence[str], done: subprocess.CompletedProcess[str]) -> str:
    return f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
