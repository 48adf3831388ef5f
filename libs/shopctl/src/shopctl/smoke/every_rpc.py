"""Call every RPC of the running system at least once, and check the responses.

The command prints each call with its duration and its response. It stops at the first wrong response, and takes about
30 seconds at most. It adds a few items, reservations and orders with new ids, so it can be repeated, even on a system
that is in use. It also fails if it does not call every RPC.
"""

import argparse
import time
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shop_common.rpc.tls import channel_credentials
from shopctl.client import SERVICES
from shopctl.smoke.reporter import CALL_SECONDS, Reporter
from shopctl.smoke.smoke_test import SmokeTest
from shopctl.system import grpc_health, target
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, console

TEST_SECONDS_MAX = 25


def configure(parser: argparse.ArgumentParser) -> None:
    target.add_apis(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run the smoke test. Raises CommandFailed at the first wrong response."""
    began = time.monotonic()
    addresses = target.apis(options)
    certificates = target.certificates(options)
    credentials = None if certificates is None else channel_credentials(certificates.current())
    with target.shop(options) as shop:
        reporter = Reporter(shop, as_json=options.json, within_seconds=TEST_SECONDS_MAX)
        reporter.heading("Both APIs are ready and list their services")
        for address in addresses:
            _health(reporter, address, credentials)
        _reflection(reporter, addresses, credentials)
        SmokeTest(reporter).run()
    if left_out := reporter.uncalled():
        raise CommandFailed(f"the smoke test does not call {', '.join(left_out)}; add the calls to smoke_test.py")
    if not options.json:
        console().print(
            f"\n[bold green]All checks passed:[/] {len(reporter.called)} of {len(reporter.called)} RPCs called,"
            f" {time.monotonic() - began:.1f} s"
        )
    return 0


def _health(reporter: Reporter, address: str, credentials: grpc.ChannelCredentials | None) -> None:
    for service in ("", "liveness"):
        began = time.monotonic()
        status = grpc_health.health(address, service, credentials=credentials)
        name = f"grpc.health.v1.Health/Check {service or 'ready'}"
        reporter.result(name, time.monotonic() - began, f"{address} {status}", right=status == "SERVING")


def _reflection(reporter: Reporter, addresses: tuple[str, str], credentials: grpc.ChannelCredentials | None) -> None:
    """Check that both APIs together list exactly our services. An API with reflection switched off also passes."""
    listed: set[str] = set()
    began = time.monotonic()
    for address in addresses:
        names = _listed_services(address, credentials)
        if names is None:
            reporter.result(
                "ServerReflection/ListServices", time.monotonic() - began, f"{address} REFLECTION is off", right=True
            )
            return
        listed |= {name for name in names if name.startswith("shop.")}
    known = {service.full_name for service in SERVICES}
    response = ", ".join(sorted(name.rpartition(".")[2] for name in listed))
    reporter.result("ServerReflection/ListServices", time.monotonic() - began, response, right=listed == known)


def _listed_services(address: str, credentials: grpc.ChannelCredentials | None) -> list[str] | None:
    """Return the services that the server lists, or None if reflection is off, as it should be in production."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    options = [("grpc.enable_http_proxy", 0)]
    with (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    ) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # the generated type has no methods
        try:
            responses = list(stub.ServerReflectionInfo(iter([request]), timeout=CALL_SECONDS))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise CommandFailed(f"{address} does not respond to reflection: {error.code().name}") from error
    return [service.name for response in responses for service in response.list_services_response.service]
