"""Runs inventory-api and order-api as processes, without the other processes, for tests that only call them."""

from collections.abc import Iterator

from devstack.stack import READY_SECONDS, Stack

WITHOUT_EVENTS = {"CONSUMER_ENABLED": "false"}
"""Settings of the APIs. Their consumers would take partitions from those of other stacks on the same broker, because
the groups have the same names."""


def running(stack: Stack) -> Iterator[Stack]:
    """Start both APIs of the stack, and yield it for the block of a fixture."""
    apis = (stack.inventory_api, stack.order_api)
    try:
        stack.migrate()
        for process in apis:
            process.start()
        for process in apis:
            process.wait_ready(READY_SECONDS)
        yield stack
    finally:
        stack.stop()
