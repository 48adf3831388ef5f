"""The committed protos and their generated code, and that each check detects its violations."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from devstack.tools import protos

INVENTORY = "shop/inventory/v1/inventory.proto"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of proto/ that a test may change."""
    return Path(shutil.copytree(protos.PROTO, tmp_path / "proto"))


def test_the_committed_code_is_up_to_date() -> None:
    protos.check()


def test_the_protos_follow_the_lint_rules() -> None:
    protos.lint()


def test_the_protos_break_no_client_of_the_api_as_landed() -> None:
    protos.breaking()


def test_the_package_requires_the_versions_that_its_code_was_generated_for() -> None:
    project = tomllib.loads((protos.PROTO / "pyproject.toml").read_text())["project"]
    asked = {Requirement(line).name: Requirement(line).specifier for line in project["dependencies"]}
    messages = (protos.PROTO / "gen/shop_protos/order/v1/order_pb2.py").read_text()
    services = (protos.PROTO / "gen/shop_protos/order/v1/order_pb2_grpc.py").read_text()

    assert _lowest(str(asked["protobuf"])) >= _version(r"Protobuf Python Version: (\S+)", messages)
    assert _lowest(str(asked["grpcio"])) >= _version(r"GRPC_GENERATED_VERSION = '(\S+)'", services)


def test_check_names_every_file_that_drifted(copy: Path) -> None:
    generated = copy / "gen/shop_protos/order/v1"
    (generated / "order_pb2.py").write_text("edited by hand")
    (generated / "order_pb2.pyi").unlink()
    (generated / "cart_pb2.py").touch()

    with pytest.raises(protos.ToolRefused) as refusal:
        protos.check(copy)

    assert str(refusal.value).splitlines()[1:] == [
        "  shop_protos/order/v1/cart_pb2.py: is left over",
        "  shop_protos/order/v1/order_pb2.py: differs",
        "  shop_protos/order/v1/order_pb2.pyi: is missing",
    ]


def test_check_sees_a_proto_that_changed_after_its_code_was_made(copy: Path) -> None:
    _replace(copy / INVENTORY, "int64 quantity = 2 ", "int64 amount = 2 ")

    with pytest.raises(protos.ToolRefused, match=r"inventory_pb2\.py: differs"):
        protos.check(copy)


def test_generate_restores_changed_files(copy: Path) -> None:
    (copy / "gen/shop_protos/py.typed").unlink()
    (copy / "gen/shop_protos/left_over_pb2.py").touch()

    protos.generate(copy)

    protos.check(copy)


def test_generate_leaves_the_old_code_when_a_proto_does_not_compile(copy: Path) -> None:
    _replace(copy / INVENTORY, "int64 quantity = 2 ", "int64 quantity ")

    with pytest.raises(protos.ToolRefused, match=r"inventory\.proto:\d+:\d+: .*field number"):
        protos.generate(copy)

    assert (copy / "gen/shop_protos/inventory/v1/inventory_pb2.py").exists()


def test_lint_names_a_field_without_a_comment(copy: Path) -> None:
    _replace(copy / INVENTORY, "  // Where the stock is.\n", "")

    with pytest.raises(protos.ToolRefused, match=r'inventory\.proto.*"location"'):
        protos.lint(copy)


def test_breaking_names_a_field_that_is_gone(copy: Path) -> None:
    _replace(copy / INVENTORY, "int64 available_quantity = 6;", "int64 free_quantity = 90;")

    with pytest.raises(protos.ToolRefused, match=r'"6" with name "available_quantity"'):
        protos.breaking(copy)


def test_breaking_sees_a_file_that_is_gone(copy: Path) -> None:
    (copy / "shop/order/v1/maintenance.proto").unlink()

    with pytest.raises(protos.ToolRefused, match=r"shop/order/v1/maintenance\.proto"):
        protos.breaking(copy)


def test_an_added_field_is_not_a_breaking_change(copy: Path) -> None:
    _replace(copy / INVENTORY, "  string location = 3;", "  string location = 3;\n  string shelf = 90;")

    protos.breaking(copy)


def test_breaking_without_a_baseline_explains_how_to_create_one(copy: Path) -> None:
    (copy / "baseline.binpb").unlink()

    with pytest.raises(protos.ToolRefused, match=r"devstack\.tools\.protos baseline"):
        protos.breaking(copy)

    protos.baseline(copy)
    protos.breaking(copy)


def test_the_command_ends_with_1_and_its_findings_when_it_is_not_content(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "gen/shop_protos/py.typed").unlink()

    assert protos.main(["--proto", str(copy), "check"]) == 1
    assert "shop_protos/py.typed: is missing" in capsys.readouterr().err

    assert protos.main(["--proto", str(copy), "generate"]) == 0
    assert protos.main(["--proto", str(copy), "check"]) == 0


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        protos.main(["--help"])

    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("generate", "lint", "breaking", "check", "baseline"))


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _lowest(specifier: str) -> Version:
    return Version(specifier.removeprefix(">="))


def _version(pattern: str, text: str) -> Version:
    found = re.search(pattern, text)
    assert found
    return Version(found[1])
