"""Checks the health of a process by grpc.health.v1. The images' HEALTHCHECK runs it.

    python -m shop_common.process.probe localhost:50063                       # ready for calls?
    python -m shop_common.process.probe localhost:50063 --service liveness    # alive?

Prints the status. Exits with 0 for SERVING and with 1 for everything else.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2

SERVING = "SERVING"


@dataclass(frozen=True)
class HealthStatus:
    """The result of a check: SERVING, NOT_SERVING, …, or the gRPC status of a failed call, with its reason."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.reason else self.name


def check(
    address: str, service: str = "", *, timeout_seconds: float = 1, credentials: grpc.ChannelCredentials | None = None
) -> HealthStatus:
    """Call Health.Check at HOST:PORT. The service '' means ready for calls, `liveness` means alive. Raises nothing.

    The health port needs no `credentials`; the port of an API needs them if it serves TLS.
    """
    # By default channels share connections. After a failure gRPC connects again only after growing delays, and a check
    # with a shared connection would wait for them, too.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    with _channel(address, options, credentials) as channel:
        call = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            response = call(health_pb2.HealthCheckRequest(service=service), timeout=timeout_seconds)
        except grpc.RpcError as error:
            return HealthStatus(error.code().name, error.details() or "")
    return HealthStatus(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def _channel(address: str, options: list[tuple[str, int]], credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Check once, print the status and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m shop_common.process.probe",
        description="Check the health of a process. Exits with 0 if it serves.",
    )
    parser.add_argument("address", type=_address, metavar="HOST:PORT", help="address of grpc.health.v1")
    parser.add_argument("--service", default="", help="liveness, or an API's full name (default: ready for calls)")
    parser.add_argument("--timeout", type=float, default=2, metavar="SECONDS", help="time limit (default: 2)")
    options = parser.parse_args(argv)
    status = check(options.address, options.service, timeout_seconds=options.timeout)
    sys.stdout.write(f"{status}\n")
    return 0 if status.name == SERVING else 1


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError("must be HOST:PORT")
    return text


if __name__ == "__main__":
    raise SystemExit(main())
