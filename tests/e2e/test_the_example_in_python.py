"""examples/python/checkout.py, as a process of its own, sells the stock of a running system over HTTP."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from devstack.stack import Stack
from testkit.eventually import eventually
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, ShopDriver

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "python" / "checkout.py"
BUYER = 7


@pytest.fixture(scope="module")
def product(stack: Stack) -> int:
    """The product in the example's catalogue."""
    with ShopDriver.connect(stack) as driver:
        return driver.new_id()


@pytest.fixture(scope="module")
def address(stack: Stack, product: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the running example."""
    folder = tmp_path_factory.mktemp("checkout")
    example = EXAMPLE.read_text()
    assert "PRICES = {1:" in example
    (folder / "checkout.py").write_text(example.replace("PRICES = {1:", f"PRICES = {{{product}:"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOP_")}
    # Long enough for a busy machine; a test never waits for it.
    environment |= {"SHOP_TIMEOUT_SECONDS": "60"}
    environment |= {"SHOP_INVENTORY_TARGET": stack.inventory_address, "SHOP_ORDER_TARGET": stack.orders_address}
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "checkout:app", "--port", "0"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        found = eventually(lambda: re.findall(r"running on (http://[\d.:]+)", log.read_text()), 120, log.read_text)
        yield found[0]
        process.terminate()
        process.wait(60)
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def buyer(address: str, shop: ShopDriver) -> Iterator[httpx.Client]:
    """A buyer. The system is ready."""
    with httpx.Client(base_url=address, headers={"X-User": str(BUYER)}, timeout=120) as client:
        yield client


def order(buyer: httpx.Client, product: int, quantity: int = 1, key: str | None = None) -> httpx.Response:
    cart = {"lines": [{"product_id": product, "quantity": quantity}]}
    return buyer.post("/orders", json=cart, headers={"Idempotency-Key": key or str(uuid4())})


def assert_problem(response: httpx.Response, status: int, reason: str) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content: dict[str, object] = response.json()
    assert (content["status"], content["reason"]) == (status, reason)
    return content


def test_an_order_is_created_and_confirmed(buyer: httpx.Client, shop: ShopDriver, product: int) -> None:
    shop.add_stock(product, 3)
    before = buyer.get(f"/products/{product}/stock").json()["available"]

    created = order(buyer, product, 2)

    assert created.status_code == 201, created.text
    assert (created.json()["status"], created.json()["total"]) == ("PENDING", "39.98")
    assert created.json()["pay_until"] is not None
    assert buyer.get(f"/products/{product}/stock").json()["available"] == before - 2

    order_id = created.json()["id"]
    confirmed = buyer.post(f"/orders/{order_id}/confirmation")
    assert (confirmed.status_code, confirmed.json()["status"]) == (200, "CONFIRMED")
    assert buyer.get(f"/orders/{order_id}").json() == confirmed.json()
    assert shop.order(order_id).status == CONFIRMED


def test_a_cancelled_order_gives_its_stock_back(buyer: httpx.Client, shop: ShopDriver, product: int) -> None:
    shop.add_stock(product, 1)
    before = shop.available(product)
    order_id = order(buyer, product).json()["id"]

    cancelled = buyer.post(f"/orders/{order_id}/cancellation")

    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "CANCELLED")
    assert shop.order(order_id).status == CANCELLED
    shop.eventually(lambda: shop.available(product) == before)
    refused = assert_problem(buyer.post(f"/orders/{order_id}/confirmation"), 409, "ILLEGAL_TRANSITION")
    assert refused["legal"] == []


def test_a_repeated_request_creates_one_order(buyer: httpx.Client, shop: ShopDriver, product: int) -> None:
    shop.add_stock(product, 2)
    before, key = shop.available(product), str(uuid4())

    with ThreadPoolExecutor(4) as threads:
        responses = list(threads.map(lambda _: order(buyer, product, key=key), range(4)))

    assert {response.status_code for response in responses} == {201}
    assert len({response.json()["id"] for response in responses}) == 1
    assert shop.available(product) == before - 1
    assert_problem(order(buyer, product, 2, key), 422, "REQUEST_ID_REUSED")


def test_a_refusal_says_how_many_units_are_left(buyer: httpx.Client, shop: ShopDriver, product: int) -> None:
    left = shop.available(product)

    problem = assert_problem(order(buyer, product, 100), 409, "INSUFFICIENT_STOCK")

    assert (problem["product_id"], problem["available"]) == (product, left)


def test_a_buyer_sees_only_own_orders(buyer: httpx.Client, shop: ShopDriver, product: int) -> None:
    shop.add_stock(product, 1)
    order_id = order(buyer, product).json()["id"]

    for method, path in (("GET", ""), ("POST", "/confirmation"), ("POST", "/cancellation")):
        response = buyer.request(method, f"/orders/{order_id}{path}", headers={"X-User": str(BUYER + 1)})
        assert response.status_code == 404
    assert_problem(buyer.get(f"/orders/{uuid4()}"), 404, "ORDER_NOT_FOUND")
    assert_problem(buyer.get("/orders/no-uuid"), 422, "INVALID_FIELD")


@pytest.mark.parametrize("product_id", [0, 2**63, "shoe"])
def test_an_impossible_product_is_refused(buyer: httpx.Client, product_id: object) -> None:
    assert buyer.get(f"/products/{product_id}/stock").status_code == 422


@pytest.mark.parametrize(
    ("cart", "status"),
    [
        ({"lines": []}, 422),
        ({"lines": [{"product_id": 0, "quantity": 1}]}, 422),
        ({"lines": [{"product_id": 1, "quantity": 10**30}]}, 422),
        ({"lines": [{"product_id": 10**30, "quantity": 1}]}, 404),
    ],
)
def test_a_bad_cart_is_refused(buyer: httpx.Client, cart: object, status: int) -> None:
    response = buyer.post("/orders", json=cart, headers={"Idempotency-Key": str(uuid4())})

    assert response.status_code == status
