"""The shell commands of docs/kubernetes.md, by section."""

from pathlib import Path

from tests.markdown import code_blocks

ROOT = Path(__file__).resolve().parents[2]

_PLACEHOLDER = "overlay=path/to/your/overlay\n"


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


def upgrade(overlay: str) -> str:
    """Return the commands that deploy an overlay, or upgrade to it."""
    deploy, _ = code_blocks(_section("Deploy and upgrade"), "sh")
    assert deploy.startswith(_PLACEHOLDER)
    return deploy.replace(_PLACEHOLDER, f"overlay={overlay}\n")


def rollback(overlay: str) -> str:
    """Return the commands that go back to an overlay."""
    _, back = code_blocks(_section("Deploy and upgrade"), "sh")
    return f"overlay={overlay}\n{back}"


def _section(heading: str) -> str:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
