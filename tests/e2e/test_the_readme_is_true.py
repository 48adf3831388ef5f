"""The programs in README run as they are written."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import grpc
import pytest

from devstack.stack import Stack
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from tests.e2e.shop_driver import ShopDriver
from tests.markdown import code_blocks

ROOT = Path(__file__).resolve().parents[2]
INSTALL_SECONDS = 300


def programs() -> list[str]:
    return code_blocks((ROOT / "README.md").read_text(), "python")


@pytest.mark.parametrize("number", range(len(programs())))
def test_a_program_of_the_readme_runs_as_written(shop: ShopDriver, stack: Stack, number: int) -> None:
    product = shop.stocked_product(units=10)
    program = at_the_stack(programs()[number], stack, product)

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    # Both programs take stock of the product.
    assert shop.reservations(product)


def test_the_first_order_is_the_one_in_the_readme() -> None:
    example = (ROOT / "examples" / "first_order.py").read_text()

    assert _code(programs()[0]) == _code(example.partition('"""\n')[2])


@pytest.mark.timeout(INSTALL_SECONDS)
def test_the_first_order_needs_the_generated_code_and_nothing_else_of_the_repository(
    shop: ShopDriver, stack: Stack, tmp_path: Path
) -> None:
    product = shop.stocked_product(units=10)
    example = (ROOT / "examples" / "first_order.py").read_text()
    (tmp_path / "first_order.py").write_text(at_the_stack(example, stack, product))
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"

    run(python, "-m", "pip", "install", "--quiet", str(ROOT / "proto"), folder=tmp_path)
    output = run(python, "first_order.py", folder=tmp_path)

    order_id, status, *_ = output.split()
    assert status == "ORDER_STATUS_CONFIRMED"
    assert shop.order(order_id).items[0].product_id == product


def test_the_first_order_prints_the_available_quantity_when_stock_is_insufficient(
    shop: ShopDriver, stack: Stack, tmp_path: Path
) -> None:
    """The program branches on the error's reason, not on its text."""
    product = shop.stocked_product(units=1)
    example = at_the_stack((ROOT / "examples" / "first_order.py").read_text(), stack, product)
    (tmp_path / "first_order.py").write_text(example.replace("quantity=2", "quantity=100"))

    done = subprocess.run(
        [sys.executable, tmp_path / "first_order.py"], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (1, "only 11 left\n")


def at_the_stack(program: str, stack: Stack, product: int) -> str:
    """The program with the addresses of the stack and this product."""
    program = program.replace("localhost:50053", stack.inventory_address)
    return program.replace("localhost:50054", stack.orders_address).replace("product_id=1", f"product_id={product}")


def run(*command: str | Path, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_a_client_needs_only_a_channel_and_two_imports(stack: Stack, shop: ShopDriver) -> None:
    """Uses only fields that the users' documentation names."""
    product = shop.stocked_product(units=10)
    with grpc.insecure_channel(stack.inventory_address) as channel:
        stub = inventory_pb2_grpc.InventoryServiceStub(channel)
        response = stub.CheckStock(inventory_pb2.CheckStockRequest(product_id=product, required_quantity=5))
        assert (response.available, response.available_quantity) == (True, 10)
        reserved = stub.ReserveStock(
            inventory_pb2.ReserveStockRequest(product_id=product, quantity=5, order_id="order-123")
        )
    assert reserved.reservation.quantity == 5


def _code(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
