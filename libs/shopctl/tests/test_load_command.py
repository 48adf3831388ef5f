import re
import signal
import sys
from collections.abc import Iterator

import pytest

from devstack import kafka
from devstack.ports import free_ports
from devstack.process import Process
from devstack.stack import Databases, Stack
from shop_protos.order.v1 import order_pb2 as orders
from shopctl.__main__ import main
from shopctl.client import Shop
from testkit.eventually import eventually

END_SECONDS = 60
DO_SECONDS = 90


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with kafka.provide() as broker, Stack(Databases.in_folder(tmp_path_factory.mktemp("data")), broker) as running:
        yield running


@pytest.fixture
def load(stack: Stack) -> Iterator[Process]:
    command = [sys.executable, "-m", "shopctl", "load", "--minutes", "5", "--rate", "10"]
    addresses = ["--inventory", stack.inventory_address, "--orders", stack.orders_address]
    process = Process("load", [*command, *addresses]).start()
    try:
        yield process
    finally:
        process.kill()


def test_orders_take_every_course(stack: Stack, load: Process) -> None:
    for outcome in ("changed", "delivered", "cancelled", "partly shipped", "returned", "refused INSUFFICIENT_STOCK"):
        load.wait_for_line(outcome, DO_SECONDS)
    assert " refused UNAVAILABLE" not in load.log

    load.send_signal(signal.SIGTERM)
    assert load.wait(END_SECONDS) == 0

    counts = {
        what: int(count.replace(",", "")) for count, what in re.findall(r"(\d[\d,]*) (\w+)", load.log.splitlines()[-1])
    }
    with Shop.connect(stack.inventory_address, stack.orders_address) as shop:
        delivered = orders.ListOrdersRequest(status=orders.ORDER_STATUS_DELIVERED, page_size=1000)
        assert len(shop.call(shop.orders.ListOrders, delivered).orders) == counts["delivered"]


def test_the_load_continues_after_an_api_was_unavailable(stack: Stack, load: Process) -> None:
    load.wait_for_line("ordered", DO_SECONDS)
    stack.order_api.kill()
    load.wait_for_line("refused UNAVAILABLE", DO_SECONDS)
    stack.order_api.start()
    stack.wait_ready()

    back = _ordered(load)
    eventually(lambda: _ordered(load) != back, DO_SECONDS, load.tail)
    assert load.alive


def _ordered(load: Process) -> str:
    """Return the last reported number of orders."""
    return str(re.findall(r"(\d[\d,]*) ordered", load.log)[-1])


def test_without_a_system_it_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    nobody, neither = free_ports(2)

    assert main(["load", "--inventory", f"localhost:{nobody}", "--orders", f"localhost:{neither}"]) == 1

    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "option", ["--rate=0", "--rate=501", "--rate=nan", "--rate=many", "--minutes=0", "--minutes=1441"]
)
def test_it_is_bounded(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["load", option])

    assert "must be a number from" in capsys.readouterr().err
