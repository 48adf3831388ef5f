"""The settings that inventory-api reads from the environment."""

from pydantic import Field

from shop_common.db.settings import DatabaseSettings, DatabaseUrl
from shop_common.environment.process_settings import ApiSettings, CallerSettings, GrpcPort, HealthPort, Target
from shop_common.events.kafka_settings import KafkaSettings
from shop_common.identity.settings import IdentitySettings


class InventorySettings(ApiSettings, CallerSettings, IdentitySettings, DatabaseSettings, KafkaSettings):
    """Settings of inventory-api."""

    database_url: DatabaseUrl = "sqlite:///./inventory.db"
    grpc_port: GrpcPort = 50053
    health_port: HealthPort = 50063
    order_target: Target | None = Field(
        None, description="order-api, from which API keys are read: HOST:PORT; unset: no API keys are accepted"
    )
    reservation_ttl: float = Field(
        1800.0, ge=1, le=7 * 24 * 3600, description="seconds that a reservation is held if the request sets no ttl"
    )
    consumer_enabled: bool = Field(True, description="consume order-events; if false, this process handles only calls")

    withholding_enabled: bool = Field(
        True, description="withhold units for BatchChangeStock; off until no process of a release without it runs"
    )

    @property
    def calls_apis(self) -> bool:
        return self.order_target is not None
