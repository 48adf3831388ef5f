"""What the relay reads from the environment."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from shop_common.settings import CommonSettings, DatabaseAddress, HealthPort, KafkaSettings

_URL = "database whose outbox is shipped: sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME; unset is none"
_SECRET = {"secret": True}


class RelaySettings(CommonSettings, KafkaSettings):
    """The relay's settings. At least one of the two databases is given."""

    inventory_database_url: Annotated[
        DatabaseAddress | None, Field(description=_URL, repr=False, json_schema_extra=_SECRET)
    ] = None
    orders_database_url: Annotated[
        DatabaseAddress | None, Field(description=_URL, repr=False, json_schema_extra=_SECRET, validate_default=True)
    ] = None
    health_port: HealthPort = 50056
    lease_seconds: float = Field(
        10.0,
        ge=1,
        le=300,
        description="after so long without a sign of life a relay's shards go to another; two thirds of it are "
        "the time that a batch may take",
    )
    poll_seconds: float = Field(
        0.02,
        ge=0.001,
        le=10,
        description="wait after a look that found nothing to ship; five times that when nothing came for a second",
    )

    @field_validator("orders_database_url")
    @classmethod
    def _one_at_least(cls, orders: str | None, info: ValidationInfo) -> str | None:
        # A wrong one is not in `data`, and is complained of already.
        if orders is None and info.data.get("inventory_database_url", "wrong") is None:
            raise ValueError("must be set, or INVENTORY_DATABASE_URL: there is nothing to ship")
        return orders
