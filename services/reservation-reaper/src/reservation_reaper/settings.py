"""The settings of reservation-reaper."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

from reservation_reaper.triggers import Cron
from shop_common.environment.process_settings import CallerSettings, CommonSettings, HealthPort, Target


def _cron(expression: str) -> str:
    Cron(expression)
    return expression


class ReaperSettings(CommonSettings, CallerSettings):
    """The environment variables that reservation-reaper reads."""

    health_port: HealthPort = 50055
    inventory_target: Target = Field(default="localhost:50053", description="inventory-api: HOST:PORT")
    order_target: Target = Field(default="localhost:50054", description="order-api: HOST:PORT")
    reap_interval_seconds: float = Field(
        default=1.0,
        ge=0.05,
        le=3600,
        description="seconds between two searches for due rows",
    )
    reap_batch_max: int = Field(
        default=1000,
        ge=1,
        le=10_000,
        description="maximum number of rows that one call expires, cancels, purges or verifies",
    )
    abandoned_grace_seconds: int = Field(
        default=120,
        ge=60,
        le=7 * 24 * 3600,
        description="seconds from the end of a PENDING order's reservations to its cancellation; keep it longer than "
        "any call, which could still confirm the order",
    )
    purge_interval_seconds: float = Field(default=3600.0, ge=1, description="seconds between two purges of old history")
    purge_cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        default=None,
        description='cron expression of the purges, in UTC, instead of an interval: "0 3 * * *" is every day at three, '
        '"0 3 * * sun" every Sunday',
    )
    verify_interval_seconds: float = Field(
        default=3600.0, ge=1, description="seconds between two verifications of the stock and of the orders"
    )
    history_kept_hours: int = Field(
        default=168,
        ge=24,
        le=87_600,
        description="age in hours at which request ids and ended reservations are deleted",
    )
    # The limit is less than lifecycle.FLUSH_SECONDS_MAX, so that running calls finish at shutdown.
    call_seconds: float = Field(default=5.0, gt=0, le=8, description="time limit of a call, including its retries")

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.purge_cron and "purge_interval_seconds" in self.model_fields_set:
            yield "PURGE_CRON: must not be set together with PURGE_INTERVAL_SECONDS"

    def facts(self) -> Iterator[tuple[str, object]]:
        yield from super().facts()
        yield "inventory", self.inventory_target
        yield "orders", self.order_target
        yield "purges", self.purge_cron or f"every {self.purge_interval_seconds:g} s"
