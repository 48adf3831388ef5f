"""Reads and validates the PEM files of the TLS settings."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from shop_common.environment.files import FileUnusable, bounded_bytes

FILE_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True)
class Certificates:
    """The contents of the files, in PEM format. Empty if a file is not configured."""

    chain: bytes
    key: bytes = field(repr=False)
    authorities: bytes
    """The CAs that sign the certificates of peers."""


class CertificateError(Exception):
    """Files are unusable. Each fault is one line that begins with the name of a setting."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class CertificateFiles:
    """The paths of a certificate with its private key, of a file with CAs, or of both."""

    cert: Path | None
    key: Path | None
    authorities: Path | None
    authorities_setting: str
    """The setting with the path of the CAs. Servers and clients have different settings for it."""
    cert_setting: str = "TLS_CERT_PATH"
    key_setting: str = "TLS_KEY_PATH"
    key_password: str = field(default="", repr=False)
    """The password of the private key. Empty if the key is not encrypted."""

    def faults(self) -> list[str]:
        """Return one line for each fault of the files. Each line begins with the name of a setting."""
        try:
            self.read()
        except CertificateError as error:
            return error.faults
        return []

    def read(self) -> Certificates:
        """Read all files. Raises CertificateError if one is unusable or the key does not belong to the certificate."""
        certificates = self.contents()
        # OpenSSL's check of a pair takes paths, so it reads the files again.
        faults = [*self._certificate_faults(certificates), *self._pair_faults()]
        if faults:
            raise CertificateError(faults)
        if self.contents() != certificates:
            raise CertificateError([f"{self.cert_setting}: the files changed while they were read"])
        return certificates

    def contents(self) -> Certificates:
        """Read all files without a check of what they contain. Raises CertificateError if one cannot be read."""
        faults = []

        def content(setting: str, path: Path | None) -> bytes:
            try:
                return b"" if path is None else bounded_bytes(path, FILE_BYTES_MAX)
            except FileUnusable as error:
                faults.append(f"{setting}: {error}")
                return b""

        certificates = Certificates(
            content(self.cert_setting, self.cert),
            content(self.key_setting, self.key),
            content(self.authorities_setting, self.authorities),
        )
        if faults:
            raise CertificateError(faults)
        return certificates

    def _certificate_faults(self, certificates: Certificates) -> list[str]:
        faults = []
        for setting, path, content in (
            (self.cert_setting, self.cert, certificates.chain),
            (self.authorities_setting, self.authorities, certificates.authorities),
        ):
            if path is not None:
                try:
                    # CA bundles contain comments between the certificates, with characters that are not ASCII.
                    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(
                        cadata=content.decode("ascii", "ignore")
                    )
                except (ssl.SSLError, ValueError):
                    faults.append(f"{setting}: {str(path)!r} must hold certificates in PEM format")
        return faults

    def _pair_faults(self) -> list[str]:
        if self.cert is None:
            return []
        try:
            # Without a password function, OpenSSL would prompt on the terminal for the password of an encrypted key.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.cert, self.key, password=lambda: self.key_password
            )
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                return [
                    f"{self.key_setting}: {str(self.key)!r} is not the key of the certificate in {self.cert_setting}"
                ]
            kind = "a private key with this password" if self.key_password else "an unencrypted private key"
            return [f"{self.key_setting}: {str(self.key)!r} must hold {kind} in PEM format"]
        except OSError as error:  # a file was removed after it was read
            return [f"{self.key_setting}: cannot read the files: {error.strerror}"]
        return []
