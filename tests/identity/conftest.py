"""inventory-api and order-api as processes that check who calls them, and an issuer of tokens."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from devstack.kafka import Kafka
from devstack.servers.issuer import AUDIENCE, Issuer
from devstack.stack import READY_SECONDS, Databases, Options, Stack
from shop_common.identity.rules import PERMISSIONS
from shopctl.system.layout import INVENTORY_API, ORDER_API

WITHOUT_EVENTS = {"CONSUMER_ENABLED": "false"}
"""Consumers here would take partitions from those of other systems on the same broker, in the same groups."""


@pytest.fixture(scope="session")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


def secured(issuer: Issuer, folder: Path, *, workloads: Mapping[str, Sequence[str]] | None = None) -> dict[str, str]:
    """Settings of an API that checks its callers. Each permission is granted to the scope of the same name."""
    grants = folder / "grants.yaml"
    scopes = {permission: [permission] for permission in PERMISSIONS}
    grants.write_text(yaml.safe_dump({"scopes": scopes, "workloads": dict(workloads or {})}))
    return {"GRANTS_PATH": str(grants), "OIDC_ISSUER": issuer.url, "OIDC_AUDIENCE": AUDIENCE}


@pytest.fixture(scope="session")
def apis(issuer: Issuer, embedded_broker: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Both APIs, started once. They check the callers of every RPC."""
    folder = tmp_path_factory.mktemp("identity")
    settings = secured(issuer, folder)
    options = Options(environment=WITHOUT_EVENTS, per_process={INVENTORY_API: settings, ORDER_API: settings})
    yield from running(Stack(Databases.in_folder(folder), embedded_broker, options=options))


@pytest.fixture(scope="session")
def shop(issuer: Issuer, embedded_broker: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Both APIs; order-api checks its callers, inventory-api serves everybody."""
    folder = tmp_path_factory.mktemp("shop")
    options = Options(environment=WITHOUT_EVENTS, per_process={ORDER_API: secured(issuer, folder)})
    yield from running(Stack(Databases.in_folder(folder), embedded_broker, options=options))


def running(stack: Stack) -> Iterator[Stack]:
    """Start both APIs of the stack for the block."""
    apis = (stack.inventory_api, stack.order_api)
    try:
        stack.migrate()
        for process in apis:
            process.start()
        for process in apis:
            process.wait_ready(READY_SECONDS)
        yield stack
    finally:
        stack.stop()
