"""Credentials: each call sends the token of its own caller, and a batch has the reservations of one caller only."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from devstack import certificates
from devstack.certificates import OPERATOR, Files
from devstack.kafka import Kafka
from devstack.servers.issuer import AUDIENCE, Issuer
from devstack.stack import Databases, Options, Stack
from shop_client import AsyncShop, Reservation, Settings, Shop, ShopError, Tls, errors
from shop_client.settings import TokenSource
from shopctl.system.layout import INVENTORY_API, ORDER_API
from testkit.apis import WITHOUT_EVENTS, running

SCOPES = ("inventory.read", "inventory.write", "stock.reserve")


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """The certificate files of each workload."""
    return certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secured(
    issuer: Issuer, files: dict[str, Files], embedded_broker: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Both APIs with mutual TLS. They accept tokens with the scopes above."""
    folder = tmp_path_factory.mktemp("secured")
    grants = folder / "grants.yaml"
    grants.write_text(yaml.safe_dump({"scopes": {scope: [scope] for scope in SCOPES}}))
    identity = {"GRANTS_PATH": str(grants), "OIDC_ISSUER": issuer.url, "OIDC_AUDIENCE": AUDIENCE}
    options = Options(
        environment=WITHOUT_EVENTS,
        per_process={INVENTORY_API: identity, ORDER_API: identity},
        certificates=files,
    )
    yield from running(Stack(Databases.in_folder(folder), embedded_broker, options=options))


@pytest.fixture(scope="module")
def tls(files: dict[str, Files]) -> Tls:
    own = files[OPERATOR]
    return Tls(ca_path=own.ca, cert_path=own.cert, key_path=own.key)


def settings_of(stack: Stack, tls: Tls, token: TokenSource | str) -> Settings:
    return Settings(stack.inventory_address, stack.orders_address, timeout_seconds=60, token=token, tls=tls)


def test_a_batch_without_accepted_credentials_is_refused_for_each_of_its_callers(
    secured: Stack, tls: Tls, product: int
) -> None:
    with Shop(settings_of(secured, tls, "not-a-token")) as shop, ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(shop.reserve, product, 1, f"order-{n}", request_id=f"{product}-{n}") for n in range(8)]
        refusals = [call.exception() for call in calls]

        assert {type(each) for each in refusals} == {errors.TokenInvalid}
        # Each caller has an error of its own.
        assert [each.request_id for each in refusals if isinstance(each, ShopError)] == [
            f"{product}-{n}" for n in range(8)
        ]
        with pytest.raises(errors.TokenInvalid):
            shop.check_stock(product)


def test_a_missing_permission_is_named(secured: Stack, tls: Tls, issuer: Issuer, product: int) -> None:
    with Shop(settings_of(secured, tls, issuer.token(1, "inventory.read"))) as shop:
        assert shop.check_stock(product).available_quantity == 0
        with pytest.raises(errors.PermissionMissing) as refused:
            shop.reserve(product, 1, "order-1")

    assert refused.value.permission == "stock.reserve"


def test_each_thread_reserves_with_its_own_token(secured: Stack, tls: Tls, issuer: Issuer, product: int) -> None:
    """Half of the callers may not reserve. Their calls are never in a batch with those of the other half."""
    current = threading.local()

    def token() -> str:
        value: str = current.token
        return value

    allowed, denied = issuer.token(1, *SCOPES), issuer.token(2, "inventory.read")
    with Shop(settings_of(secured, tls, token)) as shop:
        current.token = allowed
        shop.add_stock(product, 1000)

        def reserve(number: int) -> type:
            current.token = denied if number % 2 else allowed
            try:
                return type(shop.reserve(product, 1, f"order-{number}"))
            except errors.PermissionMissing as refused:
                return type(refused)

        with ThreadPoolExecutor(16) as callers:
            outcomes = list(callers.map(reserve, range(64)))

        assert outcomes == [Reservation, errors.PermissionMissing] * 32
        assert shop.check_stock(product).available_quantity == 1000 - 32


def test_each_task_reserves_with_its_own_token(secured: Stack, tls: Tls, issuer: Issuer, product: int) -> None:
    current: ContextVar[str] = ContextVar("token")

    async def token() -> str:
        await asyncio.sleep(0)  # as a client that fetches tokens would
        return current.get()

    allowed, denied = issuer.token(1, *SCOPES), issuer.token(2, "inventory.read")

    async def reserve(shop: AsyncShop, number: int) -> type:
        current.set(denied if number % 2 else allowed)
        try:
            return type(await shop.reserve(product, 1, f"order-{number}"))
        except errors.PermissionMissing as refused:
            return type(refused)

    async def run() -> list[type]:
        async with AsyncShop(settings_of(secured, tls, token)) as shop:
            current.set(allowed)
            await shop.add_stock(product, 1000)
            return await asyncio.gather(*(reserve(shop, number) for number in range(64)))

    assert asyncio.run(run()) == [Reservation, errors.PermissionMissing] * 32


def test_the_threads_client_refuses_a_coroutine_function(secured: Stack, tls: Tls, product: int) -> None:
    async def token() -> str:
        return "never used"

    with Shop(settings_of(secured, tls, token)) as shop, pytest.raises(TypeError, match="AsyncShop"):
        shop.check_stock(product)


def test_a_server_with_a_certificate_of_another_ca_gets_no_call(
    secured: Stack, tls: Tls, tmp_path: Path, product: int
) -> None:
    other = certificates.make(tmp_path)[OPERATOR]
    settings = Settings(
        secured.inventory_address, secured.orders_address, timeout_seconds=2, tls=replace(tls, ca_path=other.ca)
    )

    with Shop(settings) as shop, pytest.raises(ShopError) as failed:
        shop.check_stock(product)

    assert isinstance(failed.value, errors.Unavailable | errors.DeadlineExceeded)
