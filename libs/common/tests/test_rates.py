"""Limits on the lines that a caller may send per second."""

import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from devstack.servers.issuer import AUDIENCE, Issuer
from libs.common.tests.echo_service import Echo, EchoSettings, echo_stub, serving
from shop_common.identity import rate
from shop_common.identity.authenticator import Authenticator
from shop_common.identity.grants import Grants
from shop_common.identity.key_set import KeySet
from shop_common.identity.rate import Buckets, Rate, RateLimited
from shop_common.identity.rate_limits import RateLimits
from shop_common.identity.tokens import TokenVerifier
from shop_common.rpc.request_lines import lines_of
from shop_common.rpc.status import STATUS_KEY
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.order.v1 import order_pb2

RATE = Rate(lines_per_second=10, burst=100)


class Clock:
    """The time of the buckets, which stands still unless a test advances it."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate, "time", clock)
    return clock


@pytest.fixture
def buckets(clock: Clock) -> Buckets:
    return Buckets()


def wait_of(buckets: Buckets, key: str = "caller") -> float:
    """The time that a refused caller has to wait."""
    with pytest.raises(RateLimited) as refused:
        buckets.check(key, RATE)
    return refused.value.retry_after_seconds


def test_a_caller_may_send_its_burst_at_once_and_then_its_rate(buckets: Buckets, clock: Clock) -> None:
    for _ in range(10):
        buckets.take("caller", RATE, 10)
    assert wait_of(buckets) == pytest.approx(0.1)

    clock.now += 1
    for _ in range(10):
        buckets.take("caller", RATE, 1)
    with pytest.raises(RateLimited):
        buckets.take("caller", RATE, 1)


def test_after_the_time_in_the_refusal_the_next_call_is_served(buckets: Buckets, clock: Clock) -> None:
    buckets.take("caller", RATE, 137)

    clock.now += wait_of(buckets) + 1e-6

    buckets.take("caller", RATE, 1)


def test_a_request_larger_than_the_burst_is_served_and_paid_for_later(buckets: Buckets, clock: Clock) -> None:
    buckets.take("caller", RATE, 5_000)

    assert wait_of(buckets) == pytest.approx(490.1)
    with pytest.raises(RateLimited):
        buckets.take("caller", RATE, 5_000)
    assert wait_of(buckets) == pytest.approx(490.1)


def test_a_pause_earns_no_more_than_the_burst(buckets: Buckets, clock: Clock) -> None:
    buckets.take("caller", RATE, 1)
    clock.now += 1e6

    buckets.take("caller", RATE, 100)

    assert wait_of(buckets) == pytest.approx(0.1)


def test_each_caller_has_its_own_bucket(buckets: Buckets) -> None:
    buckets.take("one", RATE, 100)

    buckets.take("other", RATE, 100)

    assert wait_of(buckets, "one") == wait_of(buckets, "other")


def test_full_buckets_are_forgotten_first(buckets: Buckets, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "BUCKETS_MAX", 3)
    buckets.take("empty", RATE, 100)
    buckets.take("used", RATE, 1)
    buckets.take("also used", RATE, 1)
    clock.now += 1

    buckets.take("new", RATE, 1)

    assert set(buckets._buckets) == {"empty", "also used", "new"}
    assert len(buckets._buckets) == 3


def test_without_a_full_bucket_the_one_used_least_recently_is_forgotten(
    buckets: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "BUCKETS_MAX", 2)
    for key in ("one", "two", "one", "three"):
        buckets.take(key, RATE, 10)

    assert set(buckets._buckets) == {"one", "three"}


def test_a_token_has_the_highest_limit_of_its_scopes() -> None:
    limits = RateLimits(scopes={"shopper": Rate(10, 100), "partner": Rate(50, 60)})

    assert limits.of_scopes(["shopper", "partner", "other"]) == Rate(50, 60)
    assert limits.of_scopes(["other"]) is None


@pytest.mark.parametrize(
    ("request_", "lines"),
    [
        (inventory_pb2.ReserveStockRequest(product_id=1, quantity=99), 1),
        (order_pb2.CreateOrderRequest(), 1),
        (order_pb2.CreateOrderRequest(items=[order_pb2.CreateOrderItem()] * 3), 3),
        (
            inventory_pb2.BatchReserveStockRequest(
                orders=[
                    inventory_pb2.OrderLines(lines=[inventory_pb2.Line()] * 4),
                    inventory_pb2.OrderLines(lines=[inventory_pb2.Line()] * 2),
                    inventory_pb2.OrderLines(),
                ]
            ),
            7,
        ),
    ],
    ids=["no list", "empty list", "list", "lists in a list"],
)
def test_the_lines_of_a_request_are_counted(
    request_: inventory_pb2.BatchReserveStockRequest | order_pb2.CreateOrderRequest, lines: int
) -> None:
    assert lines_of(request_) == lines


@pytest.fixture
def limited() -> Iterator[tuple[Echo, Issuer]]:
    """A server that accepts three calls of a caller with the scope `slow`, and then one in a thousand seconds."""
    grants = Grants(
        scopes={"slow": frozenset({"inventory.read"}), "free": frozenset({"inventory.read"})},
        limits=RateLimits(scopes={"slow": Rate(0.001, 3)}),
    )
    with Issuer() as issuer:
        keys = KeySet(issuer.url, jwks_url=None)
        keys.start(lambda _ready: None)
        verifier = TokenVerifier(issuer=issuer.url, audience=AUDIENCE, user_claim="sub", keys=keys)
        settings = EchoSettings(listen_host="127.0.0.1")
        with serving(lambda request, _: request, settings, authenticator=Authenticator(grants, verifier)) as running:
            yield running, issuer
        keys.stop()


def test_a_caller_over_its_limit_is_refused_with_the_time_to_wait(limited: tuple[Echo, Issuer]) -> None:
    running, issuer = limited

    def call(subject: int, scope: str) -> None:
        headers = (("authorization", f"Bearer {issuer.token(subject, scope)}"),)
        echo_stub(running.channel)(StringValue(), timeout=60, metadata=headers)

    for _ in range(3):
        call(1, "slow")  # each time with a new token
    with pytest.raises(grpc.RpcError) as refused:
        call(1, "slow")
    call(2, "slow")
    for _ in range(10):
        call(1, "free")

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error: Any = refused.value  # grpcio raises the call itself; its stubs declare only RpcError
    status = Status.FromString(dict(error.trailing_metadata())[STATUS_KEY])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert [status.details[0].Unpack(info), status.details[1].Unpack(retry)] == [True, True]
    assert info.reason == "RATE_LIMITED"
    assert 900 < retry.retry_delay.seconds <= 1_000
