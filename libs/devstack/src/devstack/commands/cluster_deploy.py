"""Build the images, bring them to the nodes of a Kubernetes cluster, and deploy the system with PostgreSQL and Kafka.

The cluster is that of the current context of kubectl. Repeat the command after a change: it migrates the databases
again and restarts the processes.
"""

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from shopctl.system import compose, docker
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import console, print_table, whole

OVERLAY = Path("deploy/kubernetes/overlays/local")
NAMESPACE_FILE = "deploy/kubernetes/namespace.yaml"
NAMESPACE = "shop"
WAIT = "--timeout=10m"

_OURS = "app.kubernetes.io/part-of=shop"
_MIGRATIONS = "app.kubernetes.io/component=migration"
_KIND = "kind-"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--load",
        metavar="COMMAND",
        help="brings the images that follow it to the nodes (default for a cluster of kind: kind load docker-image)",
    )
    parser.add_argument("--no-build", action="store_true", help="use the images that exist")
    parser.add_argument(
        "--overlay", type=Path, default=OVERLAY, metavar="FOLDER", help="what to deploy (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed."""
    if shutil.which("kubectl") is None:
        raise CommandFailed("kubectl is not installed")
    load = shlex.split(options.load) if options.load else _load_command(_kubectl("config", "current-context").strip())
    if not options.no_build:
        compose.show("build")
    _show(str(OVERLAY / "make-passwords"))
    images = _images(_kubectl("kustomize", str(options.overlay)))
    _show(*load, *(image for image in images if _is_in_the_engine(image)))
    _deploy(options.overlay)
    services = (("inventory-api", 50053), ("order-api", 50054))
    rows = [(name, f"{name}.{NAMESPACE}:{port}") for name, port in services]
    print_table("listening inside the cluster", ["", whole("address")], rows)
    console().print(f"\nOn this machine: kubectl port-forward -n {NAMESPACE} deployment/order-api 50054")
    console().print(
        f"\nTry: kubectl get pods -n {NAMESPACE}; kubectl delete namespace {NAMESPACE} removes all.", style="dim"
    )
    return 0


def _load_command(context: str) -> list[str]:
    """Return the command that brings images to a cluster of kind. Raises CommandFailed for other clusters."""
    if not context.startswith(_KIND):
        raise CommandFailed(
            f"the context {context} is not a cluster of kind: set --load to a command that brings images to its nodes"
        )
    return ["kind", "load", "docker-image", "--name", context.removeprefix(_KIND)]


def _images(rendered: str) -> list[str]:
    """Return the images of all pods in the rendered objects, sorted."""
    return sorted(set(re.findall(r"^[ -]*image: (\S+)$", rendered, re.MULTILINE)))


def _is_in_the_engine(image: str) -> bool:
    """Return whether Docker has the image. The nodes pull the others from their registries."""
    return docker.run("image", "ls", "--quiet", image).strip() != ""


def _deploy(overlay: Path) -> None:
    _show("kubectl", "apply", "-f", NAMESPACE_FILE)
    in_namespace = ["kubectl", "-n", NAMESPACE]
    exists = _kubectl("-n", NAMESPACE, "get", "deployment", "-l", _OURS, "-o", "name") != ""
    # A Job cannot be changed.
    _show(*in_namespace, "delete", "job", "-l", _MIGRATIONS, "--ignore-not-found")
    _show(*in_namespace, "apply", "-k", str(overlay))
    _show(*in_namespace, "wait", "--for=condition=complete", "job", "-l", _MIGRATIONS, WAIT)
    if exists:
        # The new image has the tag of the old one, so Kubernetes does not notice it.
        _show(*in_namespace, "rollout", "restart", "deployment", "-l", _OURS)
    _show(*in_namespace, "rollout", "status", "deployment", "-l", _OURS, WAIT)


def _kubectl(*words: str) -> str:
    """Run kubectl and return its output. Raises CommandFailed."""
    done = subprocess.run(["kubectl", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(f"kubectl {words[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _show(*command: str) -> None:
    """Run a command with its output on the terminal. Raises CommandFailed."""
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        raise CommandFailed(f"{command[0]} cannot run: {error.strerror}") from error
    if done.returncode != 0:
        raise CommandFailed(f"{shlex.join(command)} failed, see above")
