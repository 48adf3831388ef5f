"""Checks out the previous commit: the one on main that the code under test is based on."""

import io
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAIN_BRANCHES = ("origin/main", "main")


def revision() -> str | None:
    """The commit from which this branch started; on main, the first parent of HEAD.

    None outside a git repository and in a clone of depth 1.
    """
    head = _git("rev-parse", "HEAD")
    for branch in MAIN_BRANCHES:
        found = _run("merge-base", "HEAD", branch)
        base = found.stdout.decode().strip()
        if found.returncode == 0 and base != head:
            return base
    # A CI job that checks out a merge commit has no branch main. The first parent of that commit is the tip of main.
    return _git("rev-parse", "--verify", "HEAD^1")


def package(source: Path, *names: str) -> str:
    """The first of these packages that exists in the commit. Packages have been renamed and split."""
    return next(name for name in names if any(source.glob(f"**/{name}/__init__.py")))


def check_out(commit: str, folder: Path) -> str:
    """Write the packages of a commit to a folder. Returns the PYTHONPATH that puts them before the installed ones."""
    archive = _run("archive", "--format=tar", commit, "libs", "services", "proto")
    assert archive.returncode == 0, archive.stderr.decode()
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    sources = [*sorted(folder.glob("libs/*/src")), *sorted(folder.glob("services/*/src")), folder / "proto" / "gen"]
    return ":".join(map(str, sources))


def _git(*arguments: str) -> str | None:
    result = _run(*arguments)
    return result.stdout.decode().strip() if result.returncode == 0 else None


def _run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
