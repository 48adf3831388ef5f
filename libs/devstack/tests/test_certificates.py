"""The certificates that devstack makes, verified by OpenSSL through the ssl module."""

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from devstack import certificates
from devstack.certificates import Authority, Files
from shopctl.system.layout import INVENTORY_API, ORDER_API


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Files]:
    return certificates.make(tmp_path / "certificates")


def test_each_workload_has_a_certificate_with_its_spiffe_id(made: dict[str, Files]) -> None:
    for workload, files in made.items():
        cert = x509.load_pem_x509_certificate(files.cert.read_bytes())
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://shop/{workload}"]
        assert names.get_values_for_type(x509.DNSName) == [workload, "localhost"]
        assert cert.not_valid_after_utc - cert.not_valid_before_utc == certificates.VALID


def test_certificates_for_a_cluster_also_have_the_names_of_the_services(tmp_path: Path) -> None:
    made = certificates.make(tmp_path, namespace="shop")

    cert = x509.load_pem_x509_certificate(made[ORDER_API].cert.read_bytes())
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {
        "localhost",
        "order-api",
        "order-api.shop",
        "order-api.shop.svc",
        "order-api.shop.svc.cluster.local",
    }


def test_only_the_owner_may_read_the_files(made: dict[str, Files]) -> None:
    folder = made[ORDER_API].folder.parent
    assert folder.stat().st_mode & 0o777 == 0o700
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 2 + 3 * len(certificates.WORKLOADS)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_two_workloads_verify_each_other(made: dict[str, Files]) -> None:
    server, client = made[INVENTORY_API], made[ORDER_API]

    assert _handshake(server, client, host="localhost") == "spiffe://shop/order-api"


def test_renewed_certificates_have_new_keys_of_the_same_ca(made: dict[str, Files]) -> None:
    folder = made[ORDER_API].folder.parent
    before = (folder / "ca.crt").read_bytes(), made[ORDER_API].key.read_bytes()

    renewed = certificates.make(folder)

    assert (folder / "ca.crt").read_bytes() == before[0]
    assert renewed[ORDER_API].key.read_bytes() != before[1]
    assert _handshake(renewed[INVENTORY_API], renewed[ORDER_API], host="127.0.0.1") == "spiffe://shop/order-api"


def test_a_certificate_of_another_ca_is_refused(made: dict[str, Files], tmp_path: Path) -> None:
    stranger = Files(tmp_path / "stranger")
    Authority.create().issue(ORDER_API, stranger, trusts=[Authority.load(made[ORDER_API].folder.parent)])

    with pytest.raises(ssl.SSLError):
        _handshake(made[INVENTORY_API], stranger, host="localhost")


def _handshake(server: Files, client: Files, *, host: str) -> str:
    """The URI in the client's certificate, as the server sees it."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server.cert, server.key)
    serving.load_verify_locations(server.ca)
    serving.verify_mode = ssl.CERT_REQUIRED
    calling = ssl.create_default_context(cafile=str(client.ca))
    calling.load_cert_chain(client.cert, client.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    at_server = serving.wrap_bio(to_server, to_client, server_side=True)
    at_client = calling.wrap_bio(to_client, to_server, server_hostname=host)
    waiting = [at_client, at_server]
    while waiting:
        for side in tuple(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    peer = x509.load_der_x509_certificate(at_server.getpeercert(binary_form=True) or b"")
    names = peer.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uri
