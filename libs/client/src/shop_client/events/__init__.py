"""Consumes the events of the system. Needs the extra `events` of shop-client. See docs/events.md."""

from shop_client.events.consumer import EventConsumer
from shop_client.events.event import Event

__all__ = ["Event", "EventConsumer"]
