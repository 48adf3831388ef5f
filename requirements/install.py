"""Creates .venv and installs the locked requirements: `install.py runtime` or `install.py dev`.

`runtime` contains the packages that the four processes and all operators' tasks need. `dev` adds linters, type checkers
and test tools. The script can run before every task: it returns within milliseconds if everything is installed, and
parallel calls wait for each other. It uses only the standard library, because it runs before anything is installed.
"""

import ast
import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements"
LAYERS = {"runtime": ["runtime"], "dev": ["runtime", "dev"]}

# The user configures package indexes for pip. uv does not read pip's settings, so we pass them to uv as variables.
UV_NAMES = {
    "cert": "SSL_CERT_FILE",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_DEFAULT_INDEX",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "trusted-host": "UV_INSECURE_HOST",
}


def main() -> None:
    for layer in LAYERS[sys.argv[1]]:
        if not is_installed(layer):
            with one_at_a_time():
                if not is_installed(layer):  # unless a parallel call has installed it meanwhile
                    install(layer)


def install(layer: str) -> None:
    if not is_usable():
        make_venv()
    say(f"installing requirements/{layer}.txt")
    run("python", "-m", "pip", "install", "--quiet", "--only-binary=:all:", *locked("bootstrap"))
    settings = uv_settings()
    uv_install = ("pip", "install", "--python", str(VENV / "bin" / "python"))
    run("uv", *uv_install, *locked(layer), **settings)
    if layer == "runtime":
        editable = [word for member in members() for word in ("--editable", str(member))]
        run("uv", *uv_install, "--no-deps", "--no-build-isolation", *editable, **settings)
    stamp(layer).write_text(fingerprint(layer))


def is_usable() -> bool:
    """Return False if .venv is missing, incomplete, moved, or broken by an upgrade of Python."""
    library = VENV / "lib" / "python{}.{}".format(*sys.version_info)
    pip = VENV / "bin" / "pip"  # created last; this script contains the path of .venv
    return library.is_dir() and pip.is_file() and str(VENV) in pip.read_text()


def make_venv() -> None:
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(f"task: {sys.executable} lacks venv and ensurepip (on Debian: install python3-venv)")
    say(f"making .venv with Python {sys.version.split()[0]}")
    venv.create(VENV, clear=True, symlinks=True, with_pip=True, prompt="shop")


def run(program: str, *arguments: str, **settings: str) -> None:
    quiet = ["--quiet"] if program == "uv" and not sys.stderr.isatty() else []
    # As with pip, any index may serve a package: the hash ensures that it is the right package.
    environment = {"UV_INDEX_STRATEGY": "unsafe-best-match"} | os.environ | settings
    done = subprocess.run([VENV / "bin" / program, *arguments, *quiet], cwd=ROOT, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"task: could not install, see above ({program} ended with {done.returncode})")


def locked(name: str) -> list[str]:
    return ["--require-hashes", "--requirement", str(REQUIREMENTS / f"{name}.txt")]


def members() -> list[Path]:
    """Return the packages of the workspace: folders with a pyproject.toml."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]
    return sorted(found.parent for pattern in patterns for found in ROOT.glob(f"{pattern}/pyproject.toml"))


def uv_settings() -> dict[str, str]:
    """Return pip's settings, from its files and PIP_… variables, as variables for uv.

    Leaves out the variables of uv that the user has set, because these have priority.
    """
    listed = subprocess.run(
        [VENV / "bin" / "python", "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    found: dict[str, tuple[bool, str]] = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        variable = UV_NAMES.get(name.removeprefix("default-"))
        if variable is None or section not in (":env:", "global", "install"):
            continue
        words = str(ast.literal_eval(value)).split()
        if variable == "UV_FIND_LINKS":  # pip ignores a missing folder, but uv fails
            words = [",".join(word for word in words if "://" in word or Path(word).is_dir())]
        setting = section == ":env:", " ".join(words)
        found[variable] = max(found.get(variable, setting), setting)  # the environment wins over files
    return {variable: value for variable, (_, value) in found.items() if variable not in os.environ}


def is_installed(layer: str) -> bool:
    return stamp(layer).is_file() and stamp(layer).read_text() == fingerprint(layer)


def stamp(layer: str) -> Path:
    return VENV / f"{layer}.installed"


def fingerprint(layer: str) -> str:
    """Return a hash of everything that determines the installation."""
    sources = [REQUIREMENTS / "bootstrap.txt", REQUIREMENTS / f"{layer}.txt"]
    sources += [member / "pyproject.toml" for member in members()] if layer == "runtime" else []
    digest = hashlib.sha256(f"{ROOT} {sys.version_info[:2]}".encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    with Path(__file__).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another ./task to finish installing")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(message: str) -> None:
    print(f"task: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
