"""Queries the health of a process by grpc.health.v1."""

import grpc

from shop_common.process import probe


def health(
    address: str, service: str = "", *, timeout_seconds: float = 5, credentials: grpc.ChannelCredentials | None = None
) -> str:
    """Return the health status at the address: SERVING, NOT_SERVING, …, or the status of a failed call.

    The default timeout suits a single check, even on a busy machine. A caller that polls may use a shorter one.
    """
    return probe.check(address, service, timeout_seconds=timeout_seconds, credentials=credentials).name
