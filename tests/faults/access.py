"""How clients reach a system: the addresses of both APIs, the clients' certificate, and the tenants that they name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import grpc

from devstack.certificates import Files
from shop_common.identity.authenticator import TENANT
from shop_common.rpc.tls import channel_credentials
from tests.faults.history import DEFAULT_TENANT

CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
]
Header = tuple[str, str]


@dataclass(frozen=True)
class Access:
    """The gRPC targets of both APIs. Without `files`, the APIs check no identities, and there is one tenant only."""

    inventory_target: str
    orders_target: str
    files: Files | None = None
    tenants: tuple[str, ...] = (DEFAULT_TENANT,)

    def at(self, inventory_target: str, orders_target: str) -> Self:
        """The same access at other addresses."""
        return replace(self, inventory_target=inventory_target, orders_target=orders_target)

    @contextmanager
    def channel(self, target: str) -> Iterator[grpc.Channel]:
        """A channel without gRPC's retries, which is closed at the end of the block."""
        if self.files is None:
            made = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        else:
            # gRPC cannot verify the servers of a list of addresses without a name.
            options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", "localhost")]
            made = grpc.secure_channel(target, channel_credentials(self.files.for_clients.read()), options)
        with made as channel:
            yield channel

    def headers(self, tenant: str) -> tuple[Header, ...]:
        """The headers of a call for the tenant. The clients may act for any tenant."""
        return () if self.files is None else ((TENANT, tenant),)
