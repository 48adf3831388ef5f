"""Shares of a server's calls and threads: one caller, with any number of connections, leaves room for others."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from devstack.certificates import Authority, Files, spiffe_id
from devstack.servers.issuer import AUDIENCE, Issuer
from libs.common.tests.echo_service import EchoSettings, echo_stub, serving
from shop_common.batching.fair_queue import SHARED_SECONDS
from shop_common.identity.authenticator import Authenticator
from shop_common.identity.grants import Grants, Workload
from shop_common.identity.key_set import KeySet
from shop_common.identity.tokens import TokenVerifier
from shop_common.rpc.server import Server
from shop_common.rpc.tls import channel_credentials
from testkit.calls import outcome
from testkit.eventually import eventually

SECONDS = 60.0
READ = frozenset({"inventory.read"})
LARGE, SMALL = "large", "small"

Call: TypeAlias = "grpc._CallFuture[StringValue]"


class Gate:
    """A method that records its requests, and blocks until `open` is set."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.open = threading.Event()

    def __call__(self, request: StringValue, _context: grpc.ServicerContext) -> StringValue:
        self.entered.append(request.value)
        assert self.open.wait(SECONDS)
        return request

    def count(self, name: str) -> int:
        return self.entered.count(name)


class Callers:
    """Callers of a server. Each call has a connection of its own."""

    def __init__(self, server: Server, gate: Gate, stack: ExitStack, issuer: Issuer) -> None:
        self._server = server
        self._gate = gate
        self._stack = stack
        self._tokens = {name: issuer.token(name, "reader") for name in (LARGE, SMALL)}
        self._issuer = issuer
        self._begun: list[Call] = []
        """All calls, because grpcio cancels a call that nothing refers to."""

    def introduce(self) -> None:
        """Make one call for each caller, so that the server knows their tokens."""
        gate = self._gate
        gate.open.set()
        for name in (LARGE, SMALL):
            self.begin(name).result()
        gate.open.clear()
        gate.entered.clear()
        eventually(lambda: self._server._pool.calls == 0)

    def begin(self, name: str, *, token: str | None = None) -> Call:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = self._stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{self._server.port}", options))
        headers = (("authorization", f"Bearer {token or self._tokens[name]}"),)
        call = echo_stub(channel).future(StringValue(value=name), timeout=SECONDS, metadata=headers)
        self._begun.append(call)
        return call

    def begin_many(self, name: str, count: int) -> list[Call]:
        """Begin calls, and wait until the server has them, and runs as many as it has threads."""
        pool = self._server._pool
        total = pool.calls + count
        calls = [self.begin(name) for _ in range(count)]
        eventually(lambda: pool.calls == total and len(self._gate.entered) == min(total, pool._threads_max))
        return calls

    def other_token(self, name: str) -> str:
        return self._issuer.token(name, "reader")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def authenticator() -> Iterator[tuple[Authenticator, Issuer]]:
    with Issuer() as issuer:
        keys = KeySet(issuer.url, jwks_url=None)
        keys.start(lambda _ready: None)
        verifier = TokenVerifier(issuer=issuer.url, audience=AUDIENCE, user_claim="sub", keys=keys)
        yield Authenticator(Grants(scopes={"reader": READ}), verifier), issuer
        keys.stop()


@pytest.fixture
def callers(gate: Gate, authenticator: tuple[Authenticator, Issuer]) -> Iterator[Callers]:
    """Callers of a server with eight threads for eight calls. So a share is two calls."""
    yield from _callers(gate, authenticator, threads=8)


def _callers(gate: Gate, authenticator: tuple[Authenticator, Issuer], *, threads: int) -> Iterator[Callers]:
    settings = EchoSettings(calls_max=8, grpc_threads=threads, listen_host="127.0.0.1")
    with ExitStack() as stack, serving(gate, settings, authenticator=authenticator[0]) as running:
        callers = Callers(running.server, gate, stack, authenticator[1])
        callers.introduce()
        # After calls of several callers, the server counts as shared for some time.
        introduced_at = time.monotonic()
        eventually(lambda: time.monotonic() > introduced_at + SHARED_SECONDS)
        yield callers
        gate.open.set()


def refusal(call: Call) -> str:
    refused = outcome(call.result)
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    return refused.reason


def test_a_caller_alone_may_have_all_calls(callers: Callers, gate: Gate) -> None:
    calls = callers.begin_many(LARGE, 8)

    assert refusal(callers.begin(LARGE)) == "QUEUE_FULL"
    gate.open.set()
    assert {call.result().value for call in calls} == {LARGE}


def test_another_caller_is_admitted_while_one_has_all_calls(callers: Callers, gate: Gate) -> None:
    callers.begin_many(LARGE, 8)
    (small,) = callers.begin_many(SMALL, 1)

    assert refusal(callers.begin(LARGE)) == "QUEUE_FULL"
    gate.open.set()
    assert small.result().value == SMALL


def test_beside_another_caller_the_connections_of_one_have_a_quarter_together(callers: Callers, gate: Gate) -> None:
    calls = [*callers.begin_many(SMALL, 1), *callers.begin_many(LARGE, 2)]

    assert refusal(callers.begin(LARGE)) == "QUEUE_FULL"
    calls += callers.begin_many(SMALL, 1)
    gate.open.set()
    assert [call.result().value for call in calls] == [SMALL, LARGE, LARGE, SMALL]


def test_a_caller_has_one_share_with_all_of_its_tokens(callers: Callers, gate: Gate) -> None:
    callers.begin_many(SMALL, 1)
    for _ in range(2):
        callers.begin(LARGE, token=callers.other_token(LARGE))
    eventually(lambda: gate.count(LARGE) == 2)

    assert refusal(callers.begin(LARGE)) == "QUEUE_FULL"


def test_callers_take_turns_for_threads(gate: Gate, authenticator: tuple[Authenticator, Issuer]) -> None:
    for callers in _callers(gate, authenticator, threads=1):
        calls = callers.begin_many(LARGE, 6)
        calls += callers.begin_many(SMALL, 1)
        gate.open.set()
        for call in calls:
            call.result()

    # When the small caller arrives, one call is running and another one has already been chosen to run next.
    assert gate.entered.index(SMALL) <= 2


def test_workloads_are_known_by_their_certificates(gate: Gate, tmp_path: Path) -> None:
    authority = Authority.create()
    files = {name: Files(tmp_path / name) for name in ("server", LARGE, SMALL)}
    for name, each in files.items():
        authority.issue(name, each)
    settings = EchoSettings(
        calls_max=8,
        grpc_threads=8,
        listen_host="127.0.0.1",
        tls_cert_path=files["server"].cert,
        tls_key_path=files["server"].key,
        tls_client_ca_path=files["server"].ca,
    )
    grants = Grants(workloads={spiffe_id(name): Workload(READ) for name in (LARGE, SMALL)})
    with ExitStack() as stack, serving(gate, settings, authenticator=Authenticator(grants, None)) as running:

        def begin(name: str) -> Call:
            credentials = channel_credentials(files[name].for_clients.read())
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.secure_channel(f"localhost:{running.server.port}", credentials, options)
            return echo_stub(stack.enter_context(channel)).future(StringValue(value=name), timeout=SECONDS)

        small = begin(SMALL)
        eventually(lambda: gate.count(SMALL) == 1)
        large = [begin(LARGE) for _ in range(2)]
        eventually(lambda: gate.count(LARGE) == 2)

        assert refusal(begin(LARGE)) == "QUEUE_FULL"
        gate.open.set()
        assert [call.result().value for call in (small, *large)] == [SMALL, LARGE, LARGE]
