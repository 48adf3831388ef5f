"""Mutual TLS between real processes: who may connect, and certificates that are replaced while calls run."""

import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
import structlog
from cryptography import x509
from google.protobuf.wrappers_pb2 import StringValue

from devstack.certificates import Authority, Files, spiffe_id
from devstack.ports import free_ports
from devstack.process import Process
from libs.common.tests.echo_service import echo_service, echo_stub
from shop_common.environment.certificates import CertificateFiles
from shop_common.errors import Unavailable
from shop_common.rpc.client import Client
from shop_common.rpc.tls import ReloadedCertificates
from shopctl.system.grpc_health import health
from testkit.eventually import eventually

PROGRAM = str(Path(__file__).with_name("echo_service.py"))
SERVER, CALLER = "server", "caller"
CALLERS = 4

Start = Callable[..., Process]


@pytest.fixture
def authority() -> Authority:
    return Authority.create()


@pytest.fixture
def server_files(tmp_path: Path, authority: Authority) -> Files:
    files = Files(tmp_path / SERVER)
    authority.issue(SERVER, files)
    return files


@pytest.fixture
def caller_files(tmp_path: Path, authority: Authority) -> Files:
    files = Files(tmp_path / CALLER)
    authority.issue(CALLER, files)
    return files


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the echo process with these settings, and stops it after the test."""
    with ExitStack() as after:

        def start_process(*, wait: bool = True, **settings: object) -> Process:
            grpc_port, health_port = free_ports(2)
            environment = {"DRAIN_SECONDS": "0", "LOG_FORMAT": "json", "GRPC_PORT": str(grpc_port)}
            environment |= {"HEALTH_PORT": str(health_port)}
            environment |= {name.upper(): str(value) for name, value in settings.items()}
            process = Process("echo", [sys.executable, PROGRAM], environment, health_address=f"localhost:{health_port}")
            after.callback(process.stop)
            process.start()
            if wait:
                process.wait_ready(60)
            return process

        yield start_process


@pytest.fixture
def server(start: Start, server_files: Files) -> Process:
    """The echo process with mutual TLS."""
    return start(tls_cert_path=server_files.cert, tls_key_path=server_files.key, tls_client_ca_path=server_files.ca)


def test_a_client_with_the_right_certificate_is_served_and_known(server: Process, caller_files: Files) -> None:
    with client(server, caller_files) as say:
        assert say("hello") == "hello"
        assert say("whoami") == spiffe_id(CALLER)


def test_a_client_without_a_certificate_is_refused(server: Process, caller_files: Files) -> None:
    with client(server, caller_files, has_certificate=False) as say, pytest.raises(Unavailable):
        say("hello")


def test_plain_text_is_refused(server: Process) -> None:
    with grpc.insecure_channel(address(server)) as channel, pytest.raises(grpc.RpcError) as refused:
        echo_stub(channel)(StringValue(value="hello"), timeout=10)

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_of_another_ca_is_refused(server: Process, authority: Authority, tmp_path: Path) -> None:
    stranger = Files(tmp_path / "stranger")
    Authority.create().issue(CALLER, stranger, trusts=[authority])

    with client(server, stranger) as say, pytest.raises(Unavailable):
        say("hello")


def test_a_server_of_another_ca_is_refused(server: Process, caller_files: Files) -> None:
    Authority.create().save(caller_files.folder)  # as ca.crt

    with client(server, caller_files) as say, pytest.raises(Unavailable):
        say("hello")


def test_an_expired_certificate_is_refused(server: Process, authority: Authority, caller_files: Files) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    authority.issue(CALLER, caller_files, valid_from=yesterday, valid=timedelta(hours=1))

    with client(server, caller_files) as say, pytest.raises(Unavailable):
        say("hello")


@pytest.mark.parametrize(
    "names",
    [
        [x509.UniformResourceIdentifier("spiffe://shop/a"), x509.UniformResourceIdentifier("spiffe://shop/b")],
        [x509.UniformResourceIdentifier("https://shop/order-api")],
        [x509.DNSName("spiffe://shop/order-api")],
        [x509.DNSName("order-api")],
    ],
    ids=["two URIs", "no SPIFFE URI", "a DNS name", "no URI"],
)
def test_only_a_single_spiffe_uri_is_an_identity(
    server: Process, authority: Authority, caller_files: Files, names: list[x509.GeneralName]
) -> None:
    authority.issue(CALLER, caller_files, names=names)

    with client(server, caller_files) as say:
        assert say("whoami") == "None"


def test_a_client_needs_no_certificate_where_no_ca_for_clients_is_set(
    start: Start, server_files: Files, caller_files: Files
) -> None:
    server = start(tls_cert_path=server_files.cert, tls_key_path=server_files.key)

    with client(server, caller_files, has_certificate=False) as say:
        assert say("whoami") == "None"


def test_probes_reach_the_health_port_in_plain_text(server: Process) -> None:
    assert health(server.health_address or "") == "SERVING"
    assert health(server.health_address or "", "liveness") == "SERVING"


def test_new_certificates_and_a_new_ca_fail_no_call(
    server: Process, authority: Authority, server_files: Files, caller_files: Files
) -> None:
    new_authority = Authority.create("the next CA")
    sides = ((SERVER, server_files), (CALLER, caller_files))
    with client(server, caller_files) as say, calling(say) as calls:

        def replace(signed_by: Authority, trusts: list[Authority]) -> None:
            for workload, files in sides:
                signed_by.issue(workload, files, trusts=trusts)
                reloaded(server, say, server_files, caller_files)
            calls.wait_for_more()

        replace(authority, [authority])
        # First all processes trust both CAs. Then all get certificates of the new CA. Then the old CA is removed.
        replace(authority, [authority, new_authority])
        replace(new_authority, [authority, new_authority])
        replace(new_authority, [new_authority])

    assert calls.failures == []
    old = Files(caller_files.folder.with_name("old"))
    authority.issue(CALLER, old, trusts=[new_authority])
    with client(server, old) as say, pytest.raises(Unavailable):
        say("hello")


def test_a_certificate_without_its_key_does_not_replace_the_old_pair(
    server: Process, authority: Authority, server_files: Files, caller_files: Files, tmp_path: Path
) -> None:
    new = Files(tmp_path / "new")
    authority.issue(SERVER, new)
    before = presented(server, caller_files)

    new.cert.replace(server_files.cert)
    eventually(lambda: presented(server, caller_files) == before and "new certificates are not used" in server.log)
    # Each connection reads the files again, but the fault is logged once.
    assert presented(server, caller_files) == before
    assert server.log.count("new certificates are not used") == 1
    assert "is not the key of the certificate in TLS_CERT_PATH" in server.log

    new.key.replace(server_files.key)
    eventually(lambda: presented(server, caller_files) != before)


def test_the_expiry_of_the_certificate_in_use_is_a_metric(
    start: Start, authority: Authority, server_files: Files, caller_files: Files
) -> None:
    (port,) = free_ports(1)
    server = start(metrics_port=port, tls_cert_path=server_files.cert, tls_key_path=server_files.key)

    def expiry() -> float:
        with urlopen(f"http://localhost:{port}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        (value,) = [line.split()[1] for line in lines if line.startswith("shop_tls_certificate_expiry_timestamp_se")]
        return float(value)

    def in_file() -> float:
        return x509.load_pem_x509_certificate(server_files.cert.read_bytes()).not_valid_after_utc.timestamp()

    assert expiry() == in_file()
    authority.issue(SERVER, server_files, valid=timedelta(days=30))
    eventually(lambda: presented(server, caller_files).not_valid_after_utc.timestamp() == expiry() == in_file())


def test_a_client_keeps_its_connection_until_its_new_certificate_is_accepted(
    server: Process, authority: Authority, server_files: Files, caller_files: Files
) -> None:
    new_authority = Authority.create("the next CA")
    with client(server, caller_files) as say, calling(say) as calls:
        old = say("certificate")
        new_authority.issue(CALLER, caller_files, trusts=[authority])
        with structlog.testing.capture_logs() as lines:
            eventually(lambda: calls.failures or "cannot connect with new certificates yet" in str(lines))
        calls.wait_for_more()
        assert calls.failures == []
        assert say("certificate") == old

        server_files.ca.write_bytes(authority.pem + new_authority.pem)
        eventually(lambda: say("certificate") != old)

    assert calls.failures == []


def test_listening_to_other_machines_without_tls_is_refused(start: Start) -> None:
    process = start(listen_host="0.0.0.0", wait=False)

    assert process.wait(60) == 2
    assert "LISTEN_HOST: other machines reach '0.0.0.0'" in process.log
    for setting in ("TLS_CERT_PATH", "TLS_KEY_PATH", "INSECURE=true"):
        assert setting in process.log


def test_listening_to_other_machines_in_plain_text_can_be_allowed(start: Start) -> None:
    process = start(listen_host="0.0.0.0", insecure="true")

    assert health(address(process)) == "SERVING"


def test_listening_to_other_machines_with_tls_needs_no_permission(
    start: Start, server_files: Files, caller_files: Files
) -> None:
    process = start(listen_host="0.0.0.0", tls_cert_path=server_files.cert, tls_key_path=server_files.key)

    with client(process, caller_files, has_certificate=False) as say:
        assert say("hello") == "hello"


def test_files_that_cannot_be_used_are_reported_at_once(start: Start, server_files: Files, tmp_path: Path) -> None:
    server_files.key.write_text("no key")
    server_files.ca.write_text("no certificate")
    process = start(
        tls_cert_path=server_files.cert,
        tls_key_path=server_files.key,
        tls_client_ca_path=server_files.ca,
        wait=False,
    )

    assert process.wait(60) == 2
    assert f"TLS_KEY_PATH: '{server_files.key}' must hold an unencrypted private key in PEM format" in process.log
    assert f"TLS_CLIENT_CA_PATH: '{server_files.ca}' must hold certificates in PEM format" in process.log
    assert "Traceback" not in process.log


def test_files_that_are_missing_are_reported_at_once(start: Start, tmp_path: Path) -> None:
    process = start(tls_cert_path=tmp_path / "a", tls_key_path=tmp_path / "b", wait=False)

    assert process.wait(60) == 2
    assert f"TLS_CERT_PATH: cannot read '{tmp_path / 'a'}': No such file or directory" in process.log
    assert f"TLS_KEY_PATH: cannot read '{tmp_path / 'b'}': No such file or directory" in process.log


class Calls:
    """Calls that several threads make without a pause, until the block ends."""

    def __init__(self, say: Callable[[str], str]) -> None:
        self.failures: list[Exception] = []
        self.count = 0
        self._say = say
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(CALLERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self) -> None:
        enough = self.count + 50 * CALLERS
        eventually(lambda: self.count >= enough or self.failures)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._say("hello")
                self.count += 1
            except Exception as error:
                self.failures.append(error)
                return


@contextmanager
def calling(say: Callable[[str], str]) -> Iterator[Calls]:
    calls = Calls(say)
    calls.start()
    try:
        yield calls
    finally:
        calls.stop()


@contextmanager
def client(server: Process, files: Files, *, has_certificate: bool = True) -> Iterator[Callable[[str], str]]:
    """A Client with these files. Without `has_certificate`, it presents no certificate."""
    own_cert, own_key = (files.cert, files.key) if has_certificate else (None, None)
    connected = Client(
        address(server),
        echo_service(),
        repeatable=(),
        unavailable_reason="ECHO_UNAVAILABLE",
        certificates=ReloadedCertificates(CertificateFiles(own_cert, own_key, files.ca, "TLS_CA_PATH")),
    )
    stub = echo_stub(connected.channel)
    try:
        yield lambda text: connected.call(stub, StringValue(value=text), timeout_seconds=30).value
    finally:
        connected.close()


def reloaded(server: Process, say: Callable[[str], str], server_files: Files, caller_files: Files) -> None:
    """Wait until both sides use the certificates that the files hold."""
    caller_cert = x509.load_pem_x509_certificate(caller_files.cert.read_bytes())
    server_cert = x509.load_pem_x509_certificate(server_files.cert.read_bytes())
    eventually(lambda: x509.load_pem_x509_certificate(say("certificate").encode()) == caller_cert)
    eventually(lambda: presented(server, caller_files) == server_cert)


def presented(server: Process, files: Files) -> x509.Certificate:
    """The certificate that the process presents to a new connection."""
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    host, _, port = address(server).partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=30) as connection,
        context.wrap_socket(connection, server_hostname=host) as secured,
    ):
        return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")


def address(server: Process) -> str:
    return f"localhost:{server.env['GRPC_PORT']}"
