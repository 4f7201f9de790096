"""HTTPS for clients: the context of the listener, and certificates that a peer makes for itself.

A certificate of one's own is P-256 (RFC 5480): browsers take no Ed25519. It is valid for 822 days, because Apple's
systems refuse every server certificate that is valid for more than 825, also one that a person trusted by hand
(https://support.apple.com/HT210176). Its dates begin two days early: the other machine's clock may be slow. It is no
authority: who is told to trust it trusts one server, not whatever that server's key may sign.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificatePublicKeyTypes,
    PrivateKeyTypes,
    PublicKeyTypes,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gossip.private import write_private
from mesh.errors import StartError
from mesh.private import private_folder

CERT_FILE, KEY_FILE = "cert.pem", "key.pem"
VALID_BEFORE = timedelta(days=2)
VALID_AFTER = timedelta(days=820)
EXPIRES_SOON = timedelta(days=14)
"""Public authorities renew 30 days before the end; who is at 14 has a renewal that does not work."""
SUBJECTS_MAX = 100
_FILE_BYTES_MAX = 1024 * 1024
_COMMON_NAME_MAX = 64
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_NAMES = x509.SubjectAlternativeName
_PRIVATE_KEY = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfSigned:
    """A certificate with its key, both files. `fingerprint` is the SHA-256 of the certificate, in hex."""

    cert: Path
    key: Path
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a person may want to know of a certificate."""

    names: tuple[str, ...]
    valid_until: datetime
    fingerprint: str


def server_context(cert: Path, key: Path, now: datetime) -> ssl.SSLContext:
    """The TLS of the client listener: 1.2 or newer, HTTP/1.1. Blocks on the disk; never asks for a passphrase.

    Raises StartError, with the way out, for files that are missing, unreadable, encrypted, expired or no pair.
    """
    first = _certificates(cert)[0]
    private = _private_key(key)
    if _public(private.public_key()) != _public(first.public_key()):
        fix = "name the two files that were made together; one's own are made with `llm-router tls self-signed --force`"
        raise StartError(f"{key} is not the key of the certificate {cert}", fix=fix)
    _check_dates(first, cert, now)
    _warn_of_readers(key)
    if isinstance(private, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        _log.warning("browsers do not take this kind of certificate", extra={"file": str(cert), "key": "EdDSA"})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")  # without one OpenSSL would ask at the terminal
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise StartError(f"OpenSSL does not take the certificate {cert} and its key: {reason}") from None
    return context


def fingerprint_of(cert: Path) -> str:
    """SHA-256 of the first certificate in the file, 64 hex digits. Raises StartError when there is none."""
    return _fingerprint(_certificates(cert)[0])


def about(cert: Path) -> About:
    """The first certificate in the file. Raises StartError when there is none."""
    found = _certificates(cert)[0]
    try:
        names = tuple(str(name.value) for name in found.extensions.get_extension_for_class(_NAMES).value)
    except (x509.ExtensionNotFound, ValueError):
        names = ()
    return About(names=names, valid_until=found.not_valid_after_utc, fingerprint=_fingerprint(found))


def shown(fingerprint: str) -> str:
    """As browsers and OpenSSL show it: `AB:CD:...`."""
    return ":".join(fingerprint[at : at + 2] for at in range(0, len(fingerprint), 2)).upper()


def self_signed(
    folder: Path, names: Sequence[str], addresses: Sequence[str], now: datetime, *, force: bool = False
) -> SelfSigned:
    """Makes `cert.pem` and `key.pem` in the folder, for these names and addresses. Blocks on the disk.

    Raises StartError when one of the files is there (unless `force`), when the folder is open to others, and for what
    is no host name. Each file appears whole, mode 0600; between the two a crash leaves files that are no pair, which
    the next start says.
    """
    private_folder(folder)
    cert, key = folder / CERT_FILE, folder / KEY_FILE
    there = [str(path) for path in (cert, key) if path.exists()]
    if there and not force:
        fix = "--force replaces it; who trusts the old certificate must then be told of the new one"
        raise StartError(f"there is a certificate already: {', '.join(there)}", fix=fix)
    private = ec.generate_private_key(ec.SECP256R1())
    made = _certificate(private, _subjects(names, addresses), now)
    try:
        write_private(key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        write_private(cert, made.public_bytes(Encoding.PEM))
    except OSError as error:
        raise StartError(f"the certificate cannot be written to {folder}: {error.strerror}") from None
    return SelfSigned(cert=cert, key=key, fingerprint=_fingerprint(made))


def is_name(text: str) -> bool:
    """True for what may stand in a certificate as a host name. Lower case."""
    return _NAME.fullmatch(text) is not None


# -- reading


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(_read(path, "certificate"))
    except (ValueError, UnsupportedAlgorithm):
        found = []
    if not found:
        raise StartError(f"{path} holds no certificate", fix="it must be PEM: `-----BEGIN CERTIFICATE-----`")
    return found


def _private_key(path: Path) -> PrivateKeyTypes:
    """The first private key in the file: beside it there may be certificates, or the parameters of a curve."""
    found = _PRIVATE_KEY.search(_read(path, "private key"))
    if found is None:
        raise StartError(f"{path} holds no private key", fix="it must be PEM: `-----BEGIN PRIVATE KEY-----`")
    try:
        return load_pem_private_key(found[0], password=None)
    except TypeError:
        fix = f"openssl pkey -in {path} -out NEW.pem; then chmod 600 NEW.pem"
        raise StartError(f"the private key {path} is encrypted, and a peer starts without asking", fix=fix) from None
    except (ValueError, UnsupportedAlgorithm):
        raise StartError(f"the private key {path} is damaged, or of a kind that is not known here") from None


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_BYTES_MAX)
    except FileNotFoundError:
        fix = "one's own is made with `llm-router tls self-signed`"
        raise StartError(f"the {what} {path} does not exist", fix=fix) from None
    except OSError as error:
        raise StartError(f"the {what} {path} cannot be read: {error.strerror}") from None


def _check_dates(certificate: x509.Certificate, path: Path, now: datetime) -> None:
    """Expired is refused. One that is not valid yet is not: more often than the certificate the clock is wrong."""
    until = certificate.not_valid_after_utc
    if until <= now:
        fix = "renew it; one's own: llm-router tls self-signed --force"
        raise StartError(f"the certificate {path} expired on {until:%Y-%m-%d}", fix=fix)
    if until - now < EXPIRES_SOON:
        _log.warning("the certificate expires soon", extra={"file": str(path), "until": f"{until:%Y-%m-%d}"})
    if certificate.not_valid_before_utc > now:
        since = f"{certificate.not_valid_before_utc:%Y-%m-%d}"
        _log.warning(
            "the certificate is not valid yet, or the clock is wrong", extra={"file": str(path), "from": since}
        )


def _warn_of_readers(key: Path) -> None:
    """Not refused: in containers secrets are often mounted so."""
    if os.name == "posix" and key.stat().st_mode & 0o004:
        _log.warning("everybody on this machine may read the private key", extra={"file": str(key)})


def _public(key: PublicKeyTypes | CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _fingerprint(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


# -- making


def _subjects(names: Sequence[str], addresses: Sequence[str]) -> list[x509.GeneralName]:
    """Each once, in the order given."""
    subjects: dict[x509.GeneralName, None] = {}
    for name in names:
        if not is_name(name.lower()):
            raise StartError(f"{name[:80]!r} is no host name")
        subjects[x509.DNSName(name.lower())] = None
    for address in addresses:
        try:
            subjects[x509.IPAddress(ipaddress.ip_address(address))] = None
        except ValueError:
            raise StartError(f"{address[:80]!r} is no IP address") from None
    if not 1 <= len(subjects) <= SUBJECTS_MAX:
        raise StartError(f"a certificate is for 1 to {SUBJECTS_MAX} names and addresses, not for {len(subjects)}")
    return list(subjects)


def _certificate(
    private: ec.EllipticCurvePrivateKey, subjects: Sequence[x509.GeneralName], now: datetime
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(subjects[0].value)[:_COMMON_NAME_MAX])])
    identifier = x509.SubjectKeyIdentifier.from_public_key(private.public_key())
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - VALID_BEFORE)
        .not_valid_after(now + VALID_AFTER)
        .add_extension(x509.SubjectAlternativeName(subjects), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(private, SHA256())
    )
