"""The settings of the relay."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from event_relay.leases import SECONDS_MAX
from shop_common.db.settings import DatabaseAddress, PasswordPath, password_of, shown
from shop_common.environment.process_settings import CommonSettings, HealthPort
from shop_common.environment.settings import SECRET
from shop_common.events.kafka_settings import KafkaSettings

_URL = "database whose outbox is shipped: sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME; may be unset"

_Url = Annotated[DatabaseAddress | None, Field(description=_URL, repr=False, json_schema_extra=SECRET)]


class RelaySettings(CommonSettings, KafkaSettings):
    """The relay's settings. At least one of the two database URLs must be set."""

    inventory_database_password: str | None = Field(
        None, description=password_of("INVENTORY_DATABASE_URL"), repr=False, json_schema_extra=SECRET
    )
    inventory_database_password_file: PasswordPath = None
    inventory_database_url: _Url = None
    orders_database_password: str | None = Field(
        None, description=password_of("ORDERS_DATABASE_URL"), repr=False, json_schema_extra=SECRET
    )
    orders_database_password_file: PasswordPath = None
    orders_database_url: _Url = None
    health_port: HealthPort = 50056
    lease_seconds: float = Field(
        10.0,
        ge=1,
        le=SECONDS_MAX,
        description="a relay that has not renewed its leases for this time loses its shards to other relays; "
        "a batch may take two thirds of it",
    )
    poll_seconds: float = Field(
        0.02,
        ge=0.001,
        le=10,
        description="pause after a poll without events. Right after an event it is a tenth of this, grows to this "
        "within a second, and is five times this later",
    )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        inventory, orders = self.inventory_database_url, self.orders_database_url
        if inventory is None and orders is None:
            yield "ORDERS_DATABASE_URL: must be set, or INVENTORY_DATABASE_URL: there is nothing to ship"
        elif inventory == orders:
            yield "ORDERS_DATABASE_URL: must be another database than INVENTORY_DATABASE_URL: each service has its own"
        if inventory is None and self.inventory_database_password is not None:
            yield "INVENTORY_DATABASE_PASSWORD: is set without INVENTORY_DATABASE_URL"
        if orders is None and self.orders_database_password is not None:
            yield "ORDERS_DATABASE_PASSWORD: is set without ORDERS_DATABASE_URL"
        # The longest pause is five times POLL_SECONDS, and a lease must be renewed at least twice before it ends.
        if self.poll_seconds > self.lease_seconds / 10:
            yield (
                f"POLL_SECONDS: must be at most a tenth of LEASE_SECONDS ({self.lease_seconds:g}), "
                f"but is {self.poll_seconds:g}: shards would be lost between two polls"
            )

    def facts(self) -> Iterator[tuple[str, object]]:
        yield from super().facts()
        for name, url in (("inventory", self.inventory_database_url), ("orders", self.orders_database_url)):
            if url is not None:
                yield name, shown(url)
