"""The health check of an image: asks grpc.health.v1 of a process, with nothing that the process itself has not.

    python -m shop_common.probe localhost:50053                       # ready for calls?
    python -m shop_common.probe localhost:50053 --service liveness    # does it work at all?

Says what the process answered. Exit code 0 is SERVING, 1 is everything else.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2

SERVING = "SERVING"


@dataclass(frozen=True)
class Answer:
    """What was said of a service: SERVING, NOT_SERVING, …, or the status of the failed call with its reason."""

    said: str
    reason: str = ""


def ask(address: str, service: str = "", *, timeout_seconds: float = 1) -> Answer:
    """Ask at HOST:PORT about a service: '' is ready for calls, `liveness` is works at all. Raises nothing."""
    # A pool of its own: in a shared one, an address that has failed waits longer and longer until it is tried again.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_seconds)
        except grpc.RpcError as error:
            return Answer(error.code().name, error.details() or "")
    return Answer(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(argv: Sequence[str] | None = None) -> int:
    """Ask once; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m shop_common.probe", description="Ask a process for its health. Exit code 0 is SERVING."
    )
    parser.add_argument("address", metavar="HOST:PORT", help="where it serves grpc.health.v1")
    parser.add_argument("--service", default="", help="liveness, or an API's full name (default: ready for calls)")
    parser.add_argument("--timeout", type=float, default=2, metavar="SECONDS", help="how long to wait (default: 2)")
    options = parser.parse_args(argv)
    answer = ask(options.address, options.service, timeout_seconds=options.timeout)
    sys.stdout.write(f"{answer.said}{f': {answer.reason}' if answer.reason else ''}\n")
    return 0 if answer.said == SERVING else 1


if __name__ == "__main__":
    raise SystemExit(main())
