"""Generates, lints and guards the gRPC API.

    python -m devstack.tools.protos generate|lint|breaking|check|baseline

protoc compiles the protos into an image, and buf reads that image, so that nothing has to be fetched: what we
import of google/type and google/rpc comes from the installed googleapis-common-protos.

`proto/baseline.binpb` is the API as it last landed, committed beside the protos. `breaking` compares with it,
and `baseline` rewrites it: at a landing, once `breaking` has passed, and never to silence it.
"""

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import google.type.money_pb2 as money_pb2

PROTO = Path(__file__).resolve().parents[5] / "proto"

_PACKAGE = "shop"
_PYTHON_PACKAGE = "shop_protos"
# `from shop_protos.order.v1 import …`, and the modules' own names.
_MODULES = re.compile(rf"\b{_PACKAGE}\.(?=[\w.]+_pb2\b|[\w.]+ import )")
_IMPORTS = Path(money_pb2.__file__).parents[2]
_SCRIPTS = Path(sysconfig.get_path("scripts"))


class ToolRefused(Exception):
    """A tool found fault with the protos or with what was made of them; the text says with what."""


def generate(proto: Path = PROTO) -> None:
    """Write the Python code of all protos to `gen/shop_protos`, in place of what is there."""
    with tempfile.TemporaryDirectory() as fresh:
        _generate_into(Path(fresh), proto)
        target = proto / "gen" / _PYTHON_PACKAGE
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(fresh) / _PYTHON_PACKAGE, target)


def lint(proto: Path = PROTO) -> None:
    """Hold the protos against the lint rules of buf.yaml. Raises ToolRefused with every finding."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.binpb")
        _compile(image, proto, "--include_source_info")
        _buf("lint", image, proto)


def breaking(proto: Path = PROTO) -> None:
    """Compare the protos with the baseline. Raises ToolRefused with every change that breaks a client."""
    against = _baseline(proto)
    if not against.exists():
        raise ToolRefused(f"{against} is missing; `python -m devstack.tools.protos baseline` makes it from the protos")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.binpb")
        _compile(image, proto, "--include_source_info")
        _buf("breaking", image, proto, "--against", str(against))


def check(proto: Path = PROTO) -> None:
    """Compare `gen/shop_protos` with what the protos give. Raises ToolRefused with every file that drifted."""
    with tempfile.TemporaryDirectory() as folder:
        _generate_into(Path(folder), proto)
        wanted, found = _contents(Path(folder)), _contents(proto / "gen")
    drifted = [
        f"  {name}: {_verdict(name, wanted, found)}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if drifted:
        raise ToolRefused("\n".join(["proto/gen is not what the protos give; run `task proto`:", *drifted]))


def baseline(proto: Path = PROTO) -> None:
    """Make the protos as they are now what `breaking` compares with."""
    _compile(_baseline(proto), proto)


def _baseline(proto: Path) -> Path:
    return proto / "baseline.binpb"


def _compile(image: Path, proto: Path, *options: str) -> None:
    _protoc(proto, "--include_imports", f"--descriptor_set_out={image}", *options)


def _generate_into(folder: Path, proto: Path) -> None:
    _protoc(
        proto,
        f"--python_out={folder}",
        f"--grpc_python_out={folder}",
        # Our servers and clients are synchronous; stubs for both kinds would make every call a union.
        f"--mypy_out=quiet:{folder}",
        f"--mypy_grpc_out=quiet,only_sync:{folder}",
        # protoc looks plugins up on the PATH, which need not hold this environment's scripts.
        *(f"--plugin={name}={_SCRIPTS / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
    )
    # protoc names modules for the proto package. Users may well have a package `shop` of their own.
    root = (folder / _PACKAGE).rename(folder / _PYTHON_PACKAGE)
    for file in (*root.rglob("*.py"), *root.rglob("*.pyi")):
        file.write_text(_MODULES.sub(f"{_PYTHON_PACKAGE}.", file.read_text()))
    for package in (root, *(path for path in root.rglob("*") if path.is_dir())):
        (package / "__init__.py").touch()
    (root / "py.typed").touch()


def _protoc(proto: Path, *options: str) -> None:
    sources = sorted(str(path.relative_to(proto)) for path in (proto / _PACKAGE).rglob("*.proto"))
    _run([sys.executable, "-m", "grpc_tools.protoc", "-I.", f"-I{_IMPORTS}", *options, *sources], proto)


def _buf(command: str, image: Path, proto: Path, *options: str) -> None:
    # The image holds what we import too, which is not ours to judge.
    arguments = [command, str(image), "--config", "buf.yaml", "--path", _PACKAGE, *options]
    _run([str(_SCRIPTS / "buf"), *arguments], proto)


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolRefused((done.stdout + done.stderr).strip() or f"{command[0]} ended with {done.returncode}")


def _contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _verdict(name: str, wanted: Mapping[str, bytes], found: Mapping[str, bytes]) -> str:
    if name not in found:
        return "is missing"
    return "differs" if name in wanted else "is left over"


_COMMANDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "generate": (generate, "write the Python code of the protos to proto/gen"),
    "lint": (lint, "hold the protos against the lint rules of proto/buf.yaml"),
    "breaking": (breaking, "fail on a change that would break clients of the API as it last landed"),
    "check": (check, "fail when proto/gen is not what the protos give"),
    "baseline": (baseline, "record the API as landed, for `breaking` to compare with"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it is content, else 1 with its findings on standard error."""
    parser = argparse.ArgumentParser(prog="python -m devstack.tools.protos", description="The gRPC API under proto/.")
    parser.add_argument("--proto", type=Path, default=PROTO, metavar="FOLDER", help="where they are")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, summary) in _COMMANDS.items():
        commands.add_parser(name, help=summary, description=summary)
    chosen = parser.parse_args(arguments)
    command, _ = _COMMANDS[chosen.command]
    try:
        command(chosen.proto)
    except ToolRefused as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
