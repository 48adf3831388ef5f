"""What a process says of its health by grpc.health.v1."""

from shop_common.process import probe


def health(address: str, service: str = "", *, timeout_seconds: float = 5) -> str:
    """What grpc.health.v1 at the address says: SERVING, NOT_SERVING, …, or the status of a failed call.

    A busy machine takes a while to answer, and whoever asks only once wants to know. Who asks again may ask faster.
    """
    return probe.check(address, service, timeout_seconds=timeout_seconds).name
