"""An operator with the permission `delegate` chooses the tenant whose rows a command reads and creates."""

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from testkit.tasks import main
from tests.tenants.conftest import System

Shell = Callable[[str], list[Any]]


@pytest.fixture
def shell(system: System, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs a command with the operator's certificate, and returns the lines that it prints."""
    files = system.files
    for name, path in (("CA", files.ca), ("CERT", files.cert), ("KEY", files.key)):
        monkeypatch.setenv(f"TLS_{name}_PATH", str(path))
    addresses = ["--inventory", system.stack.inventory_address, "--orders", system.stack.orders_address, "--json"]

    def run(command: str) -> list[Any]:
        assert main([*command.split(), *addresses]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_a_command_reads_the_rows_of_the_named_tenant(system: System, shell: Shell) -> None:
    name = f"acme-{uuid4().hex[:8]}"
    shop = system.shop(name)
    product = shop.stocked_product(units=3)
    order = shop.create_order((product, 1))

    assert [row["id"] for row in shell(f"query-orders --tenant {name}")] == [order.id]
    assert [row["product_id"] for row in shell(f"query-inventory --tenant {name}")] == [product]
    assert order.id not in [row["id"] for row in shell("query-orders --all")]
    assert shell(f"query-inventory --product-id {product}") == []


def test_a_catalogue_is_created_for_the_named_tenant(system: System, shell: Shell) -> None:
    name = f"acme-{uuid4().hex[:8]}"
    first = system.shop(name).new_id()

    shell(f"seed-data --products 2 --warehouses 1 --first-product {first} --tenant {name}")

    # The items were created concurrently, and are listed by id.
    assert {row["product_id"] for row in shell(f"query-inventory --tenant {name}")} == {first, first + 1}
    assert shell(f"query-inventory --product-id {first}") == []


@pytest.mark.parametrize("name", ["ACME", "a/b", ""])
def test_a_malformed_tenant_is_refused_before_any_call(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["query-orders", "--tenant", name])

    assert ended.value.code == 2
    assert "must be 1 to 64 characters" in capsys.readouterr().err
