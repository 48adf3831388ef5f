"""Locks what the pyproject.toml files declare into requirements/*.txt, with hashes and without host names.

    lock.py                    adds what is new and drops what is gone; all else keeps its version
    lock.py --upgrade [NAME …] takes the newest of the named packages, or of all
    lock.py --check            fails when a pyproject.toml has changed since; needs no network

These files are the lock. A uv.lock would name the hosts that it was resolved from, so it is only made on the
way, in a temporary folder.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from install import REQUIREMENTS, ROOT, members, uv_settings

EXPORTS = {
    "bootstrap": ["--only-group=bootstrap"],  # what installs the rest
    "runtime": ["--no-default-groups", "--group=run"],  # the four processes, devstack, shopctl and `task`
    "dev": ["--only-group=dev"],  # on top of runtime
    # One for each image.
    "shopctl": ["--package=shopctl", "--no-default-groups"],
    "inventory-api": ["--package=inventory-api", "--no-default-groups"],
    "order-api": ["--package=order-api", "--no-default-groups"],
    "reservation-reaper": ["--package=reservation-reaper", "--no-default-groups"],
    "event-relay": ["--package=event-relay", "--no-default-groups"],
}

PIN = re.compile(r"^([a-z0-9-]+==[^\\\n]+?) \\$", re.MULTILINE)  # name==version, or name==version ; marker


def main() -> None:
    parser = argparse.ArgumentParser(prog="./task lock", description="Lock the dependencies.")
    parser.add_argument("--check", action="store_true", help="fail when a pyproject.toml has changed since")
    parser.add_argument("--upgrade", nargs="*", metavar="NAME", help="take the newest of these, or of all")
    options = parser.parse_args()
    if options.check:
        check()
    else:
        lock(upgrade=options.upgrade)


def check() -> None:
    stale = [name for name in EXPORTS if not path(name).exists() or header() not in path(name).read_text()]
    if stale:
        files = ", ".join(f"{name}.txt" for name in stale)
        sys.exit(f"requirements: {files} not made from the present pyproject.toml files; run ./task lock")
    print("requirements: agree with the pyproject.toml files")


def lock(upgrade: list[str] | None) -> None:
    kept = pins()
    if upgrade is not None:
        # No name given: nothing is kept.
        kept = {pin for pin in kept if upgrade and pin.partition("==")[0] not in upgrade}
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        for project in (ROOT, *members()):
            copy = workspace / project.relative_to(ROOT) / "pyproject.toml"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((project / "pyproject.toml").read_bytes())
        constrain(workspace / "pyproject.toml", kept)
        uv("lock", folder=workspace)
        for name, selection in EXPORTS.items():
            exported = uv("export", "--frozen", "--no-header", "--no-emit-workspace", *selection, folder=workspace)
            if "://" in exported:
                sys.exit(f"requirements: {name} depends on something that is fetched by its address")
            path(name).write_text(header() + exported)
            print(f"requirements: {name}.txt, {len(PIN.findall(exported))} packages")


def pins() -> set[str]:
    """What is locked at present, as `name==version ; marker`."""
    return {pin for name in EXPORTS if path(name).exists() for pin in PIN.findall(path(name).read_text())}


def constrain(pyproject: Path, kept: set[str]) -> None:
    # uv reads constraints on a lock from the root's pyproject.toml and from nowhere else.
    table = "[tool.uv]\n"
    before, found, after = pyproject.read_text().partition(table)
    if not found:
        sys.exit("requirements: no [tool.uv] in the root's pyproject.toml")
    pyproject.write_text(f"{before}{table}constraint-dependencies = {json.dumps(sorted(kept))}\n{after}")


def uv(*arguments: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(
        ["uv", "--quiet", *arguments],
        cwd=folder,
        env=environment | uv_settings(),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit("requirements: nothing written; if a locked version is in the way: ./task lock --upgrade NAME")
    return done.stdout


def header() -> str:
    """Ties a requirements file to all that the pyproject.toml files declare."""
    declared = []
    for project in (ROOT, *members()):
        content = tomllib.loads((project / "pyproject.toml").read_text())
        about = content["project"]
        groups = content.get("dependency-groups", {})
        declared.append([about["name"], about["requires-python"], about.get("dependencies", []), groups])
    digest = hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()
    return f"# Made by ./task lock, do not edit. Declarations: sha256:{digest}\n"


def path(name: str) -> Path:
    return REQUIREMENTS / f"{name}.txt"


if __name__ == "__main__":
    main()
