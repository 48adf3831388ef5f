"""The README's programs run as they are written there."""

import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from devstack.stack import Stack
from shop.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from tests.e2e.shop import Shop

ROOT = Path(__file__).resolve().parents[2]


def programs() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(programs())))
def test_a_program_of_the_readme_runs_as_written(shop: Shop, stack: Stack, number: int) -> None:
    product = shop.stocked_product(units=10)
    program = programs()[number].replace("localhost:50053", stack.inventory_address)
    program = program.replace("localhost:50054", stack.orders_address).replace("product_id=1", f"product_id={product}")

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    # Both programs take stock of the product.
    assert shop.reservations(product)


def test_the_first_order_is_the_one_in_the_readme() -> None:
    example = (ROOT / "examples" / "first_order.py").read_text()

    assert _code(programs()[0]) == _code(example.partition('"""\n')[2])


def test_a_client_of_bare_names_needs_only_a_channel_and_two_imports(stack: Stack, shop: Shop) -> None:
    """The fields of the users' documentation, and nothing else."""
    product = shop.stocked_product(units=10)
    with grpc.insecure_channel(stack.inventory_address) as channel:
        stub = inventory_pb2_grpc.InventoryServiceStub(channel)
        answer = stub.CheckStock(inventory_pb2.CheckStockRequest(product_id=product, required_quantity=5))
        assert (answer.available, answer.available_quantity) == (True, 10)
        reserved = stub.ReserveStock(
            inventory_pb2.ReserveStockRequest(product_id=product, quantity=5, order_id="order-123")
        )
    assert reserved.reservation.quantity == 5


def _code(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
