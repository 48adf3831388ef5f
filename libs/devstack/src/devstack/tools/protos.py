"""Generates the code of the gRPC API, lints it, and detects breaking changes.

    python -m devstack.tools.protos generate|lint|breaking|check|baseline

protoc compiles the protos into an image, and buf reads the image. Nothing is downloaded: google/type and google/rpc
come from the installed googleapis-common-protos.

`proto/baseline.binpb` is the last released API, committed beside the protos. `breaking` compares the protos
with it. `baseline` rewrites it. Run `baseline` at a release, after `breaking` has passed, and never to hide a breaking
change.
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
# Matches imports, `from shop.order.v1 import …`, and names of modules.
_MODULES = re.compile(rf"\b{_PACKAGE}\.(?=[\w.]+_pb2\b|[\w.]+ import )")
_IMPORTS = Path(money_pb2.__file__).parents[2]
_SCRIPTS = Path(sysconfig.get_path("scripts"))


class ToolRefused(Exception):
    """A tool found errors in the protos or the generated code; the message lists them."""


def generate(proto: Path = PROTO) -> None:
    """Write the Python code of all protos to `gen/shop_protos`, replacing its contents."""
    with tempfile.TemporaryDirectory() as fresh:
        _generate_into(Path(fresh), proto)
        target = proto / "gen" / _PYTHON_PACKAGE
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(fresh) / _PYTHON_PACKAGE, target)


def lint(proto: Path = PROTO) -> None:
    """Check the protos by the lint rules of buf.yaml. Raises ToolRefused with all findings."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.binpb")
        _compile(image, proto, "--include_source_info")
        _buf("lint", image, proto)


def breaking(proto: Path = PROTO) -> None:
    """Compare the protos with the baseline. Raises ToolRefused with all breaking changes."""
    against = _baseline(proto)
    if not against.exists():
        raise ToolRefused(
            f"{against} is missing; `python -m devstack.tools.protos baseline` creates it from the protos"
        )
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.binpb")
        _compile(image, proto, "--include_source_info")
        _buf("breaking", image, proto, "--against", str(against))


def check(proto: Path = PROTO) -> None:
    """Compare `gen/shop_protos` with newly generated code. Raises ToolRefused with all files that differ."""
    with tempfile.TemporaryDirectory() as folder:
        _generate_into(Path(folder), proto)
        expected, actual = _contents(Path(folder)), _contents(proto / "gen")
    drifted = [
        f"  {name}: {_verdict(name, expected, actual)}"
        for name in sorted(expected.keys() | actual.keys())
        if expected.get(name) != actual.get(name)
    ]
    if drifted:
        raise ToolRefused("\n".join(["proto/gen is not up to date; run `./task proto`:", *drifted]))


def baseline(proto: Path = PROTO) -> None:
    """Write the current protos to the baseline."""
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
        # Our servers and clients are synchronous. Stubs that also support async would give every call a union type.
        f"--mypy_out=quiet:{folder}",
        f"--mypy_grpc_out=quiet,only_sync:{folder}",
        # Give the paths of the plugins: protoc looks for them on the PATH, which may lack this environment's scripts.
        *(f"--plugin={name}={_SCRIPTS / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
    )
    # protoc names modules after the proto package `shop`. Rename it: users may have their own package `shop`.
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
    # Check only our package: the image also contains the imported protos.
    arguments = [command, str(image), "--config", "buf.yaml", "--path", _PACKAGE, *options]
    _run([str(_SCRIPTS / "buf"), *arguments], proto)


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolRefused((done.stdout + done.stderr).strip() or f"{command[0]} ended with {done.returncode}")


def _contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _verdict(name: str, expected: Mapping[str, bytes], actual: Mapping[str, bytes]) -> str:
    if name not in actual:
        return "is missing"
    return "differs" if name in expected else "is left over"


_COMMANDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "generate": (generate, "write the Python code of the protos to proto/gen"),
    "lint": (lint, "check the protos by the lint rules of proto/buf.yaml"),
    "breaking": (breaking, "fail on a change that breaks clients of the last released API"),
    "check": (check, "fail if proto/gen is not up to date"),
    "baseline": (baseline, "record the current API as the baseline of `breaking`"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 with the findings on standard error."""
    parser = argparse.ArgumentParser(prog="python -m devstack.tools.protos", description="The gRPC API under proto/.")
    parser.add_argument("--proto", type=Path, default=PROTO, metavar="FOLDER", help="the folder of the protos")
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
