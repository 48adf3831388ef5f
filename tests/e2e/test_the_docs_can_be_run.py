"""Runs every shell command of the documentation as it is written, or gives a reason for not running it.

The commands run in page order, in a copy of this repository in which `./task dev` runs.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from devstack.dev.options import port_option
from devstack.ports import free_ports
from devstack.process import Process
from devstack.stack import Ports
from tests.e2e.docs import ROOT, ShellLine, named_files, named_tasks, shell_lines
from tests.markdown import code_block_languages

READY_SECONDS = 180
LINE_SECONDS = 120
CALL_SECONDS = 30
PORT_OPTIONS = {"--inventory-port": "50053", "--order-port": "50054", "--reaper-port": "50055", "--relay-port": "50056"}
"""Options of `./task dev`, with the default port that each replaces."""
OTHER_PORT_OPTIONS = sorted({"--kafka-port", *(port_option(field.name) for field in fields(Ports))} - set(PORT_OPTIONS))

DEV = "./task dev"
CLUSTER = "needs a cluster; tests/cluster runs it where TEST_KUBECONFIG names one"
ITSELF = "runs tests, of which this is one"
REASONS = {
    "./task test": ITSELF,
    "./task test services/inventory-api -k expired": ITSELF,
    "./task lint": "takes minutes; .ci/run has it as a step of its own",
    "./task format": "rewrites files of the repository",
    "./task hooks": "installs hooks into the repository",
    "./task faults --short": "takes minutes; .ci/run has it as a step of its own",
    "./task faults --rounds 50": "takes hours",
    "./task faults --rounds 20 --seed 1524288945 --only killed": "takes hours",
    "FAULTS_REQUESTS=1000000 ./task faults --only generated": "takes hours",
    "./task docker-build": "takes minutes; .ci/run has it as a step of its own",
    "./task docker-run": "tests/compose/test_containers.py starts the same composition, on ports of its own",
    "docker compose up --wait --scale order-api=3 --scale inventory-api=3 --scale event-relay=2": (
        "tests/compose/test_containers.py scales the same composition, on ports of its own"
    ),
    "./task docker-stop": "tests/compose/test_containers.py stops the same composition",
    "docker compose --profile observability --profile load up --wait": (
        "tests/compose/test_containers.py starts the same profiles, on ports of its own"
    ),
    "docker compose --profile console up --wait": (
        "tests/compose/test_containers.py starts the same profile, on ports of its own"
    ),
    "./task cluster-deploy": CLUSTER,
    "TEST_KUBECONFIG=$HOME/.kube/config ./task test tests/cluster -rP": ITSELF,
    "deploy/kubernetes/overlays/local/make-passwords": "tests/kubernetes runs it in a copy; it writes files",
    "overlay=path/to/your/overlay": CLUSTER,
}
REASONS_BY_PROGRAM = {"kubectl": CLUSTER, "kind": CLUSTER}
WRITTEN = shell_lines()


def reason_not_to_run(line: ShellLine) -> str | None:
    if line.document == "docs/backup.md":
        return "tests/e2e/test_back_up_and_restore.py runs each command of that page"
    return REASONS.get(line.command) or REASONS_BY_PROGRAM.get(line.command.split()[0])


RUN = [line for line in WRITTEN if reason_not_to_run(line) is None and line.command != DEV]


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """Documented port → the free port that this test uses instead."""
    return dict(zip(PORT_OPTIONS.values(), free_ports(len(PORT_OPTIONS)), strict=True))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]) -> Iterator[Path]:
    """A folder with links to all files of this repository, in which `./task dev` runs with its own run folder."""
    folder = tmp_path_factory.mktemp("clone")
    for each in ROOT.iterdir():
        if each.name != "run":
            (folder / each.name).symlink_to(each)
    options = [f"{option}={ports[port]}" for option, port in PORT_OPTIONS.items()]
    others = zip(OTHER_PORT_OPTIONS, free_ports(len(OTHER_PORT_OPTIONS)), strict=True)
    options += [f"{option}={port}" for option, port in others]
    dev = Process("dev", [*shlex.split(DEV), *options], folder=folder).start()
    try:
        dev.wait_for_line("next: ", READY_SECONDS)
        yield folder
    finally:
        dev.kill()


@pytest.mark.timeout(READY_SECONDS + LINE_SECONDS)
@pytest.mark.parametrize("line", [line for line in RUN if not line.command.startswith("grpcurl")], ids=str)
def test_a_documented_command_succeeds_and_prints_something(clone: Path, line: ShellLine) -> None:
    done = subprocess.run(
        line.command, shell=True, cwd=clone, capture_output=True, text=True, timeout=LINE_SECONDS, check=False
    )

    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert done.stdout.strip(), f"{line} printed nothing"


@pytest.mark.timeout(READY_SECONDS + LINE_SECONDS)
def test_the_documented_grpcurl_calls_succeed(clone: Path, ports: dict[str, int]) -> None:
    """Calls as grpcurl does, with the descriptors that server reflection returns."""
    order_id, status = "THE-ORDER-ID", ""
    calls = [line for line in RUN if line.command.startswith("grpcurl")]
    assert len(calls) == 3
    for line in calls:
        answer = grpcurl(line.command.replace("THE-ORDER-ID", order_id), ports)
        if order := answer.get("order"):
            order_id, status = order["id"], order["status"]
    assert status == "ORDER_STATUS_CONFIRMED"


def grpcurl(command: str, ports: dict[str, int]) -> dict[str, Any]:
    _, plaintext, option, data, address, path = shlex.split(command.replace("\\\n", " "))
    assert (plaintext, option) == ("-plaintext", "-d")
    host, _, port = address.partition(":")
    service, _, method = path.partition("/")
    with grpc.insecure_channel(f"{host}:{ports[port]}") as channel:
        known = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(service)
        described = known.methods_by_name[method]
        call: Any = channel.unary_unary(
            f"/{path}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(described.output_type).FromString,
        )
        request = ParseDict(json.loads(data), GetMessageClass(described.input_type)())
        answered: dict[str, Any] = MessageToDict(call(request, timeout=CALL_SECONDS))
        return answered


def test_every_reason_belongs_to_a_documented_command() -> None:
    assert set(REASONS) <= {line.command for line in WRITTEN}


def test_every_test_that_a_reason_names_exists() -> None:
    for reason in REASONS.values():
        for path in re.findall(r"tests/[\w/]+(?:\.py)?", reason):
            assert (ROOT / path).exists(), reason


def test_every_task_that_a_page_names_exists() -> None:
    tasks = yaml.safe_load((ROOT / "Taskfile.yml").read_text())["tasks"]

    assert {(page, name) for page, name in named_tasks() if name not in tasks} == set()


def test_every_file_that_a_page_names_exists() -> None:
    # A page names a folder once, and then files relative to it.
    patterns = ("deploy/*", "libs/*/src", "libs/*/src/*", "services/*/src", "services/*/src/*")
    folders = [ROOT, *(folder for pattern in patterns for folder in ROOT.glob(pattern))]

    def exists(page: str, path: str) -> bool:
        return any((folder / path).exists() for folder in [(ROOT / page).parent, *folders])

    # CHANGELOG also names files that were removed later.
    named = [(page, path) for page, path in named_files() if page != "CHANGELOG.md"]
    assert [(page, path) for page, path in named if not exists(page, path)] == []


def test_every_code_block_names_its_language() -> None:
    """These tests would not find the commands of a block without a language."""
    for page in {line.document for line in WRITTEN}:
        languages = code_block_languages((ROOT / page).read_text())
        assert languages <= {"sh", "python", "json", "sql", "yaml", "ini", "text", "mermaid"}, page
