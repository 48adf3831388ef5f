"""Checks out another revision and installs its environment."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]


class NoSuchRevision(Exception):
    """The revision cannot be checked out, or its requirements cannot be installed."""


@dataclass(frozen=True)
class Tree:
    """The files of one revision, and the Python interpreter with its packages."""

    name: str
    folder: Path
    python: str


PRESENT = Tree("now", ROOT, sys.executable)


@contextmanager
def checked_out(revision: str) -> Iterator[Tree]:
    """Check out the revision into a temporary worktree and install its locked requirements. Removes both afterwards.

    Raises NoSuchRevision.
    """
    with TemporaryDirectory(prefix="shop-compare-") as parent:
        folder = Path(parent, "tree")
        _run("git", "worktree", "add", "--quiet", "--detach", str(folder), revision, at=ROOT)
        try:
            _run(sys.executable, "-I", "requirements/install.py", "runtime", at=folder)
            name = _run("git", "rev-parse", "--short", "HEAD", at=folder).strip()
            yield Tree(name, folder, str(folder / ".venv" / "bin" / "python"))
        finally:
            _run("git", "worktree", "remove", "--force", str(folder), at=ROOT)


def _run(*command: str, at: Path) -> str:
    done = subprocess.run(command, cwd=at, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoSuchRevision(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
