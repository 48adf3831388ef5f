"""The shell commands of docs/kubernetes.md, by section."""

import sys
from pathlib import Path

from tests.markdown import code_blocks

ROOT = Path(__file__).resolve().parents[2]

SECURED = "tests/cluster/secured"
"""overlays/production with a database and a broker in the cluster."""

_PLACEHOLDER = "overlay=path/to/your/overlay\n"
_FIRST_TIME = "# The first time:"


def try_it() -> str:
    """Return the commands that deploy the trial, without those that build and load images or forward a port."""
    _, block = code_blocks(_section("Try it on a small cluster"), "sh")
    elsewhere = ("./task", "kind", "kubectl port-forward")
    return "".join(line for line in block.splitlines(keepends=True) if not line.startswith(elsewhere))


def port_forward() -> str:
    """Return the command that makes a port of an API available on this machine."""
    _, block = code_blocks(_section("Try it on a small cluster"), "sh")
    (line,) = (line for line in block.splitlines() if line.startswith("kubectl port-forward"))
    return line


def upgrade(overlay: str, first_time: str = "") -> str:
    """Return the commands that deploy an overlay, or upgrade to it.

    `first_time` are commands for the first deployment. They run after the migrations.
    """
    deploy, _ = code_blocks(_section("Deploy and upgrade"), "sh")
    assert deploy.startswith(_PLACEHOLDER)
    lines = [first_time + "\n" if line.startswith(_FIRST_TIME) else line for line in deploy.splitlines(keepends=True)]
    return "".join(lines).replace(_PLACEHOLDER, f"overlay={overlay}\n")


def database_secrets() -> str:
    """Return the commands that create the Secrets of the database roles from files with passwords."""
    (block,) = code_blocks(_section("Prepare production"), "text")
    return block


def certificates(namespace: str) -> str:
    """Return the commands that make certificates for all options, or renew them, and put them into Secrets."""
    block, *_ = code_blocks(_section("Certificates"), "text")
    task, names = "./task certificates --folder certificates --namespace shop", "reservation-reaper; do"
    assert task in block
    assert names in block
    made = f"{sys.executable} -m devstack certificates --folder certificates --namespace {namespace}"
    return block.replace(task, made).replace(names, "reservation-reaper shopctl; do")


def rollback(overlay: str) -> str:
    """Return the commands that go back to an overlay."""
    _, back = code_blocks(_section("Deploy and upgrade"), "sh")
    return f"overlay={overlay}\n{back}"


def _section(heading: str) -> str:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
