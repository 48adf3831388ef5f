"""The client of inventory-api and order-api. See docs/client.md."""

from shop_client import errors
from shop_client.async_shop import AsyncShop
from shop_client.errors import ShopError
from shop_client.settings import Settings, Tls
from shop_client.shop import Shop
from shop_client.values import (
    Allocation,
    AllocationPolicy,
    AllocationStrategy,
    Availability,
    Item,
    ItemUnits,
    Line,
    Location,
    LocationAvailability,
    Movement,
    MovementKind,
    NewItem,
    NewOrder,
    Order,
    OrderItem,
    OrderLines,
    OrderStatus,
    Reservation,
    ReservationState,
    Shipment,
    Stock,
)

__all__ = [
    "Allocation",
    "AllocationPolicy",
    "AllocationStrategy",
    "AsyncShop",
    "Availability",
    "Item",
    "ItemUnits",
    "Line",
    "Location",
    "LocationAvailability",
    "Movement",
    "MovementKind",
    "NewItem",
    "NewOrder",
    "Order",
    "OrderItem",
    "OrderLines",
    "OrderStatus",
    "Reservation",
    "ReservationState",
    "Settings",
    "Shipment",
    "Shop",
    "ShopError",
    "Stock",
    "Tls",
    "errors",
]
