"""Writes requirements/*.txt: locked versions of all declared dependencies, with hashes and without host names.

lock.py                    adds new dependencies and removes old ones; other versions change only if they must
lock.py --upgrade [NAME …] takes the newest version of the named packages, or of all packages
lock.py --check            fails if a declaration has changed since the last lock; needs no network
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tomllib
from typing import Any

from install import REQUIREMENTS, ROOT, VENV, members, uv_settings

# dev.txt has every package, so that one resolution decides all versions. The other files take their versions from it.
DEV = "dev"
SOURCES = {
    DEV: ["pyproject.toml", "--group=bootstrap", "--group=run", "--group=dev"],
    "bootstrap": ["--group=bootstrap"],  # installs the rest
    "runtime": ["pyproject.toml", "--group=run"],  # the four processes, devstack, shopctl and `task`
    # One file for each image.
    "shopctl": ["libs/shopctl/pyproject.toml"],
    "inventory-api": ["services/inventory-api/pyproject.toml"],
    "order-api": ["services/order-api/pyproject.toml"],
    "reservation-reaper": ["services/reservation-reaper/pyproject.toml"],
    "event-relay": ["services/event-relay/pyproject.toml"],
    "console": ["services/console/pyproject.toml"],
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="./task lock", description="Lock the dependencies.")
    parser.add_argument("--check", action="store_true", help="fail if a declaration has changed since the last lock")
    parser.add_argument("--upgrade", nargs="*", metavar="NAME", help="take the newest version of these or all packages")
    options = parser.parse_args()
    if options.check:
        check()
    else:
        lock(options.upgrade)


def check() -> None:
    for name in SOURCES:
        file = REQUIREMENTS / f"{name}.txt"
        content = file.read_text() if file.exists() else ""
        if digest() not in content:
            sys.exit(f"requirements: {file.name} is not made from the present pyproject.toml files; run ./task lock")
        if "://" in content:
            sys.exit(f"requirements: {file.name} has an address; a dependency must be declared by its name")
    print("requirements: agree with the pyproject.toml files")


def lock(upgrade: list[str] | None) -> None:
    """Write all files, or none if the declarations contradict each other. An empty list upgrades every package."""
    upgrades = ["--upgrade"] if upgrade == [] else [f"--upgrade-package={name}" for name in upgrade or []]
    compile_file(DEV, *upgrades)
    for name in SOURCES:
        if name != DEV:
            compile_file(name, f"--constraints=requirements/{DEV}.txt")


def compile_file(name: str, *options: str) -> None:
    """Write one file. uv keeps the versions that the file has, unless an option or a declaration rules them out."""
    command = [
        *(str(VENV / "bin" / "uv"), "pip", "compile", "--quiet", *SOURCES[name]),
        "--universal",  # for all platforms
        f"--python-version={oldest_python()}",  # and all later versions
        "--generate-hashes",
        "--annotation-style=line",
        f"--custom-compile-command=./task lock (declarations: {digest()})",
        *(f"--no-emit-package={project['name']}" for project in declarations()),
        *options,
        f"--output-file=requirements/{name}.txt",
    ]
    if subprocess.run(command, cwd=ROOT, env=os.environ | uv_settings(), check=False).returncode != 0:
        sys.exit(f"requirements: could not lock {name}.txt, see above")


def oldest_python() -> str:
    requires = str(declarations()[0]["requires-python"])
    return requires.removeprefix(">=")


def digest() -> str:
    """Return a hash of everything that the pyproject.toml files declare."""
    return "sha256:" + hashlib.sha256(json.dumps(declarations(), sort_keys=True).encode()).hexdigest()


def declarations() -> list[dict[str, Any]]:
    """Return the declarations of each project, the root first."""
    contents = [tomllib.loads((folder / "pyproject.toml").read_text()) for folder in (ROOT, *members())]
    return [
        {
            "name": content["project"]["name"],
            "requires-python": content["project"]["requires-python"],
            "dependencies": content["project"].get("dependencies", []),
            "dependency-groups": content.get("dependency-groups", {}),
        }
        for content in contents
    ]


if __name__ == "__main__":
    main()
