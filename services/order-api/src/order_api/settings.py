"""Everything that order-api reads from the environment."""

from pydantic import Field

from shop_common.settings import ApiSettings, DatabaseSettings, DatabaseUrl, GrpcPort, KafkaSettings


class OrderSettings(ApiSettings, DatabaseSettings, KafkaSettings):
    """Settings of order-api."""

    database_url: DatabaseUrl = "sqlite:///./orders.db"
    grpc_port: GrpcPort = 50054
    inventory_target: str = Field(
        "localhost:50053",
        min_length=1,
        description="where inventory-api is: HOST:PORT; every address of the host is used",
    )
    inventory_call_seconds: float = Field(
        5.0, gt=0, le=60, description="what one call of inventory-api may take, its retries included"
    )
    consumer_enabled: bool = Field(
        True, description="consume inventory-events; off to scale consumers apart from the API"
    )
