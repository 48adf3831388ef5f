"""The settings of order-api."""

from collections.abc import Iterator

from pydantic import Field

from shop_common.db.settings import DatabaseSettings, DatabaseUrl
from shop_common.environment.process_settings import ApiSettings, CallerSettings, GrpcPort, HealthPort, Target
from shop_common.events.kafka_settings import KafkaSettings
from shop_common.identity.settings import IdentitySettings


class OrderSettings(ApiSettings, CallerSettings, IdentitySettings, DatabaseSettings, KafkaSettings):
    """The environment variables that order-api reads."""

    database_url: DatabaseUrl = "sqlite:///./orders.db"
    grpc_port: GrpcPort = 50054
    health_port: HealthPort = 50064
    inventory_target: Target = Field(
        "localhost:50053", description="inventory-api: HOST:PORT; every address of the host is used"
    )
    inventory_call_seconds: float = Field(
        5.0, gt=0, le=60, description="time limit of a call of inventory-api, including its retries"
    )
    consumer_enabled: bool = Field(
        True, description="consume inventory-events; off where consumers are scaled separately from the API"
    )

    partial_changes_enabled: bool = Field(
        True,
        description=(
            "serve CreateShipment, CancelOrderItems, CreateReturn, ChangeOrder and ReinstateOrder; "
            "off until no process of a release without them runs"
        ),
    )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.grace_seconds < self.inventory_call_seconds:
            yield (
                f"GRACE_SECONDS: must not be less than INVENTORY_CALL_SECONDS ({self.inventory_call_seconds:g}), "
                f"but is {self.grace_seconds:g}: a restart would interrupt calls that create orders"
            )

    def facts(self) -> Iterator[tuple[str, object]]:
        yield from super().facts()
        yield "inventory", self.inventory_target
