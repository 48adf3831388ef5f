"""Call every RPC of the running system at least once, and check the answers.

Prints each call, its time and its answer. Ends at the first wrong answer, and within about 30 seconds. Adds a few
items, reservations and orders under fresh ids, so it can be repeated, even on a system that is in use. It also fails if
it does not call every RPC.
"""

import argparse
import time
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shopctl.client import SERVICES
from shopctl.smoke.narrator import CALL_SECONDS, Narrator
from shopctl.smoke.story import Story
from shopctl.system import grpc_health, target
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, console

STORY_SECONDS = 25


def configure(parser: argparse.ArgumentParser) -> None:
    target.add_apis(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed at the first wrong answer."""
    began = time.monotonic()
    addresses = target.apis(options)
    with target.shop(options) as shop:
        tell = Narrator(shop, as_json=options.json, within_seconds=STORY_SECONDS)
        tell.chapter("Both APIs are ready, and say what they offer")
        for address in addresses:
            _health(tell, address)
        _reflection(tell, addresses)
        Story(tell).tell()
    if left_out := tell.uncalled():
        raise CommandFailed(f"the story leaves out {', '.join(left_out)}; give each its place in story.py")
    if not options.json:
        console().print(
            f"\n[bold green]All is well:[/] {len(tell.called)} of {len(tell.called)} RPCs called,"
            f" {time.monotonic() - began:.1f} s"
        )
    return 0


def _health(tell: Narrator, address: str) -> None:
    for service in ("", "liveness"):
        began = time.monotonic()
        said = grpc_health.health(address, service)
        name = f"grpc.health.v1.Health/Check {service or 'ready'}"
        tell.done(name, time.monotonic() - began, f"{address} {said}", right=said == "SERVING")


def _reflection(tell: Narrator, addresses: tuple[str, str]) -> None:
    """Both together must offer our services, and none of the shop's that we don't know; or no reflection at all."""
    offered: set[str] = set()
    began = time.monotonic()
    for address in addresses:
        names = _offered(address)
        if names is None:
            tell.done(
                "ServerReflection/ListServices", time.monotonic() - began, f"{address} REFLECTION is off", right=True
            )
            return
        offered |= {name for name in names if name.startswith("shop.")}
    known = {service.full_name for service in SERVICES}
    answer = ", ".join(sorted(name.rpartition(".")[2] for name in offered))
    tell.done("ServerReflection/ListServices", time.monotonic() - began, answer, right=offered == known)


def _offered(address: str) -> list[str] | None:
    """The services that a server offers by reflection; None if it has none, as is right beyond development."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # its types leave the methods out
        try:
            answers = list(stub.ServerReflectionInfo(iter([request]), timeout=CALL_SECONDS))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise CommandFailed(f"{address} does not answer reflection: {error.code().name}") from error
    return [service.name for answer in answers for service in answer.list_services_response.service]
