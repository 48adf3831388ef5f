"""TLS between processes: certificates that are read again after their files change, and the SPIFFE id of a client.

Every workload has a certificate with a SPIFFE id. A server presents its certificate to clients, and a client to
servers. No process needs a restart when a certificate or a CA is replaced.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import grpc

from shop_common.environment.certificates import CertificateError, CertificateFiles, Certificates
from shop_common.environment.listen import opened
from shop_common.environment.process_settings import ApiSettings, CallerSettings
from shop_common.telemetry import logs, metrics

CHECK_SECONDS = 1.0
"""The maximum age of the contents of the files when a certificate is used."""

_log = logs.get(__name__)

_expiry = metrics.gauge(
    __name__,
    "shop_tls_certificate_expiry_timestamp_seconds",
    "When the certificate in use expires, in seconds since 1970 UTC",
    over_workers="livemax",
)


class ReloadedCertificates:
    """The current certificates in these files. Safe to share between threads."""

    def __init__(self, files: CertificateFiles) -> None:
        """Read the files. Raises CertificateError."""
        self._files = files
        self._certificates = files.read()
        _report_expiry(self._certificates)
        self._fault = ""
        self._check_at = time.monotonic() + CHECK_SECONDS
        self._lock = threading.Lock()

    def current(self) -> Certificates:
        """Return the certificates that the files contained at most CHECK_SECONDS ago.

        If the contents are invalid, returns the last valid certificates. For example, while the files are being
        replaced, the key may not match the certificate yet.
        """
        with self._lock:
            now = time.monotonic()
            if now >= self._check_at:
                self._check_at = now + CHECK_SECONDS
                self._check()
            return self._certificates

    def _check(self) -> None:
        # Compare contents, not timestamps: a file may change twice within one tick of the file system's clock.
        try:
            if self._files.contents() == self._certificates:
                self._fault = ""
                return  # the usual case: the contents need no validation again
            certificates = self._files.read()
        except CertificateError as error:
            if str(error) != self._fault:  # log once per fault, not at each check
                self._fault = str(error)
                _log.warning("new certificates are not used", error=self._fault)
            return
        self._fault = ""
        self._certificates = certificates
        _report_expiry(certificates)
        _log.info("certificates reloaded", path=str(self._files.cert or self._files.authorities))


def open_port(server: grpc.Server, settings: ApiSettings) -> int:
    """Open the port of the API, with TLS if the settings name a certificate, and return its number.

    Raises PortBusy or CertificateError.
    """
    credentials = server_credentials(settings)
    if credentials is None:
        return opened(settings.listen_host, settings.grpc_port, server.add_insecure_port)
    return opened(
        settings.listen_host, settings.grpc_port, partial(server.add_secure_port, server_credentials=credentials)
    )


def server_credentials(settings: ApiSettings) -> grpc.ServerCredentials | None:
    """Return the credentials of a server, or None if the settings name no certificate. Raises CertificateError.

    Each new connection uses the certificates that the files contain at that time. Open connections keep their
    certificates until they reach their maximum age. With TLS_CLIENT_CA_PATH, a client can connect only with a
    certificate of these CAs.
    """
    if settings.tls_cert_path is None:
        return None
    reloaded = ReloadedCertificates(settings.server_certificate_files)
    used = reloaded.current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # gRPC calls this function at each handshake. None means that nothing has changed. Two concurrent handshakes may
        # both report the same change, which does no harm.
        nonlocal used
        certificates = reloaded.current()
        if certificates is used:
            return None
        used = certificates
        return _server_configuration(certificates)

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(used),
        changed,  # type: ignore[arg-type]  # the stubs do not know that it may return None
        require_client_authentication=settings.tls_client_ca_path is not None,
    )


def client_certificates(settings: CallerSettings) -> ReloadedCertificates | None:
    """Return the certificates of a client for TLS, or None if the settings name no CA. Raises CertificateError."""
    if settings.tls_ca_path is None:
        return None
    return ReloadedCertificates(settings.client_certificate_files)


def channel_credentials(certificates: Certificates) -> grpc.ChannelCredentials:
    """Return the credentials of a channel. gRPC's Python channels never read certificates again (grpc issue 41779)."""
    return grpc.ssl_channel_credentials(certificates.authorities, certificates.key or None, certificates.chain or None)


def spiffe_id(auth_context: Mapping[str, Any]) -> str | None:
    """Return the SPIFFE id in the client's certificate, from `ServicerContext.auth_context()`.

    Returns None if there is no client certificate, or if the certificate does not have exactly one URI.
    """
    # gRPC sets peer_spiffe_id for a certificate whose only URI is a valid SPIFFE id. Do not use
    # x509_subject_alternative_name: it also has DNS names, and a DNS name can look like a SPIFFE id.
    ids: Sequence[bytes] = auth_context.get("peer_spiffe_id", ())  # the stubs have another type
    return ids[0].decode() if len(ids) == 1 else None


def _report_expiry(certificates: Certificates) -> None:
    if certificates.chain:
        # Imported here: a process without TLS does not need it.
        from cryptography import x509  # noqa: PLC0415

        _expiry().set(x509.load_pem_x509_certificate(certificates.chain).not_valid_after_utc.timestamp())


def _server_configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificates.key, certificates.chain)], certificates.authorities or None
    )
