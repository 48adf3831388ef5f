"""Certificates for one machine: a CA, and one certificate with a SPIFFE id for each workload.

The files in a workload's folder have the names that cert-manager uses in a Secret: tls.crt, tls.key and ca.crt.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shop_common.environment.certificates import CertificateFiles
from shopctl.system import private_file, runfile
from shopctl.system.layout import CONSOLE, INVENTORY_API, ORDER_API, REAPER, RELAY

FOLDER = runfile.PATH.with_name("certificates")

TRUST_DOMAIN = "shop"
OPERATOR = "shopctl"
WORKLOADS = (INVENTORY_API, ORDER_API, REAPER, RELAY, CONSOLE, OPERATOR)

VALID = timedelta(days=90)
_CA_VALID = timedelta(days=3650)
_CLOCK_SKEW = timedelta(minutes=5)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Files:
    """The paths of a workload's certificate, of its private key, and of the CAs that it trusts."""

    folder: Path

    @property
    def cert(self) -> Path:
        return self.folder / "tls.crt"

    @property
    def key(self) -> Path:
        return self.folder / "tls.key"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def for_clients(self) -> CertificateFiles:
        """The files as a client of the APIs uses them."""
        return CertificateFiles(self.cert, self.key, self.ca, "TLS_CA_PATH")


@dataclass(frozen=True)
class Authority:
    """A CA and its private key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, name: str = "shop development CA") -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        cert = (
            _builder(subject, subject, key.public_key(), now - _CLOCK_SKEW, now + _CA_VALID)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(cert, key)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the CA that `save` wrote. Raises FileNotFoundError if there is none."""
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey), "`save` writes only keys of this type"
        return cls(x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()), key)

    def save(self, folder: Path) -> None:
        """Write ca.crt and ca.key."""
        _write(folder / "ca.key", _pem_key(self.key))
        _write(folder / "ca.crt", self.pem)

    @property
    def pem(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        workload: str,
        files: Files,
        *,
        valid_from: datetime | None = None,
        valid: timedelta = VALID,
        trusts: Sequence["Authority"] = (),
        names: Sequence[x509.GeneralName] = (),
    ) -> None:
        """Write a new certificate and key for the workload, and the CAs that the workload trusts.

        `trusts` lists these CAs; by default it is only this CA. `names` replaces the names in the certificate; by
        default they are the SPIFFE id, the workload's name and the addresses of this machine.

        Each file is replaced atomically. The three files are replaced one after another, so a reader can see a new
        certificate beside an old key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        begin = valid_from or datetime.now(UTC) - _CLOCK_SKEW
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, workload)])
        cert = (
            _builder(subject, self.cert.subject, key.public_key(), begin, begin + valid)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(
                # A workload serves and calls with the same certificate.
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names or _names(workload, None)), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        _write(files.ca, b"".join(authority.pem for authority in trusts or [self]))
        _write(files.cert, cert.public_bytes(serialization.Encoding.PEM))
        _write(files.key, _pem_key(key))


def spiffe_id(workload: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/{workload}"


def make(folder: Path, *, namespace: str | None = None) -> dict[str, Files]:
    """Write a new certificate for every workload, signed by the CA in the folder. Creates the CA if it is missing.

    `namespace` adds the names that the workloads have in this namespace of a Kubernetes cluster. Returns the files of
    each workload, by its name. May be repeated: a repeat renews the certificates, and running
    processes reload them.
    """
    try:
        authority = Authority.load(folder)
    except FileNotFoundError:
        authority = Authority.create()
        authority.save(folder)
    made = {workload: Files(folder / workload) for workload in WORKLOADS}
    for workload, files in made.items():
        authority.issue(workload, files, names=_names(workload, namespace))
    return made


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _names(workload: str, namespace: str | None) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(workload)), x509.DNSName(workload)]
    for host in _LOCAL_HOSTS:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    if namespace is not None:
        # A client may call a Service by any of these names.
        names += [x509.DNSName(f"{workload}.{namespace}{suffix}") for suffix in ("", ".svc", ".svc.cluster.local")]
    return names


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    """Replace the file atomically. Only the file's owner may read it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    private_file.replace(path, content)
