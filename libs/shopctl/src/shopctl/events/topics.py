"""The topics of the system, and the service that consumes each of them."""

from shopctl.system.layout import INVENTORY_API, ORDER_API

TOPICS = ("order-events", "inventory-events", "order-events.dlq", "inventory-events.dlq")
PARTITIONS = 3
"""The number of partitions of each of these topics."""

READERS = {"order-events": INVENTORY_API, "inventory-events": ORDER_API}
"""The service that consumes each topic; its consumer group has the same name."""
