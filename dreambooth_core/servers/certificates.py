"""A certificate for mutual TLS between the components of a server; the authority's key is discarded."""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dreambooth_core.errors import StageFailed
from dreambooth_core.storage.stores import written_beside

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

YEARS = 100
"""Validity: a local server must not stop when a certificate expires. Delete the files to renew them."""


class Files(NamedTuple):
    """PEM files; the key's mode is 0600."""

    authority: Path
    certificate: Path
    key: Path


def files_in(folder: Path) -> Files:
    """The files in a folder, created if one is missing.

    Raises `StageFailed` if key and certificate do not match.
    """
    files = Files(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")
    if not all(path.is_file() for path in files):
        _make(files)
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(files.authority))
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise StageFailed(
            f"{folder} has no valid certificate and key: delete it, new ones are created at the next start"
        ) from error
    return files


def _make(files: Files) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    authority_key, key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    authority = _signed(authority_key, authority_key, authority=True)
    certificate = _signed(key, authority_key, authority=False)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    contents = (authority.public_bytes(pem), certificate.public_bytes(pem), private)
    for path, content in zip(files, contents, strict=True):
        with written_beside(path) as unfinished:
            unfinished.touch(mode=0o600)
            unfinished.write_bytes(content)


def _signed(
    key: "EllipticCurvePrivateKey", by: "EllipticCurvePrivateKey", *, authority: bool
) -> "Certificate":
    """A certificate for 127.0.0.1 and localhost, signed with the key `by`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    return (
        x509.CertificateBuilder()
        .subject_name(name("authority" if authority else "server"))
        .issuer_name(name("authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=365))
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), loopback]), critical=False
        )
        .sign(by, hashes.SHA256())
    )
