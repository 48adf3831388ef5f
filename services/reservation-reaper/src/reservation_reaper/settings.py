"""Everything that reservation-reaper reads from the environment."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

from reservation_reaper.triggers import Cron
from shop_common.environment.settings import CommonSettings, HealthPort, Target


def _cron(expression: str) -> str:
    Cron(expression)
    return expression


class ReaperSettings(CommonSettings):
    """Settings of reservation-reaper."""

    health_port: HealthPort = 50055
    inventory_target: Target = Field(default="localhost:50053", description="inventory-api: HOST:PORT")
    order_target: Target = Field(default="localhost:50054", description="order-api: HOST:PORT")
    reap_interval_seconds: float = Field(default=1.0, ge=0.05, le=3600, description="time between two rounds")
    reap_batch_max: int = Field(default=1000, ge=1, le=10_000, description="holds or orders that one call ends at most")
    abandoned_grace_seconds: int = Field(
        default=120,
        ge=60,
        le=7 * 24 * 3600,
        description="after its hold has run out, a PENDING order is left alone for so long: longer than any call",
    )
    purge_interval_seconds: float = Field(default=3600.0, ge=1, description="time between two purges of old history")
    purge_cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        default=None,
        description='times of the purges instead of an interval, in UTC: "0 3 * * *" is each day at three, '
        '"0 3 * * sun" each Sunday',
    )
    history_kept_hours: int = Field(
        default=168, ge=24, le=87_600, description="age at which request ids and ended reservations are forgotten"
    )
    # At the end, the calls that run have lifecycle.FLUSH_SECONDS_MAX.
    call_seconds: float = Field(default=5.0, gt=0, le=8, description="what one call may take, its retries included")

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.purge_cron and "purge_interval_seconds" in self.model_fields_set:
            yield "PURGE_CRON: is set, and PURGE_INTERVAL_SECONDS is set too: only one of them can be meant"

    def facts(self) -> Iterator[tuple[str, object]]:
        yield from super().facts()
        yield "inventory", self.inventory_target
        yield "orders", self.order_target
        yield "purges", self.purge_cron or f"every {self.purge_interval_seconds:g} s"
