"""Who a peer is: an Ed25519 key made on its first start, the id that follows from it, and its certificate.

`peer_id` is base32 of SHA-256 of the raw public key (RFC 8032), lower case, 52 characters: never a host name, an
address or a MAC. The certificate is self-signed (RFC 5280, RFC 8410) and says nothing about the machine: each field
follows from the key. It is valid from 2020 to 2120, so that a machine with a wrong clock can join.

Not here: who belongs to a mesh (gossip.roster), how a connection is checked (gossip.tls).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gossip.errors import BadCertificate, UnusableIdentity
from gossip.private import private_folder, require_private, write_private

PeerId = str

IDENTITY_FILE = "identity.pem"
"""Key and certificate in one file: they are replaced together or not at all."""
CERTIFICATE_BYTES_MAX = 2048
"""Ours have about 470 bytes; more than this is nobody's of ours."""

_NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(2120, 1, 1, tzinfo=UTC)
_BEFORE_SIGNATURE = bytes.fromhex("300506032b6570 034100")
"""The algorithm, Ed25519, and the head of a bit string of 64 bytes (RFC 8410, section 3)."""
# What cryptography was seen to raise for bytes that are no certificate; warnings, where they are made errors.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    Warning,
)
_BEGIN_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A key with its id and certificate. The key never shows in a repr."""

    peer_id: PeerId
    certificate_der: bytes = field(repr=False)
    _key: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def generate(cls) -> Identity:
        """A new one, of a key nobody had before."""
        return cls.of(Ed25519PrivateKey.generate())

    @classmethod
    def of(cls, key: Ed25519PrivateKey) -> Identity:
        """The one that follows from this key: same key, same certificate, byte for byte."""
        certificate = _certificate(key)
        return cls(peer_id=peer_id_of_key(public_bytes(key.public_key())), certificate_der=certificate, _key=key)

    def sign(self, data: bytes) -> bytes:
        """64 bytes. What is signed for one purpose must not read as something else: begin `data` with the purpose."""
        return self._key.sign(data)

    @property
    def public_key(self) -> bytes:
        """The raw key, 32 bytes."""
        return public_bytes(self._key.public_key())

    @property
    def certificate_pem(self) -> str:
        return pem_of(self.certificate_der)

    @property
    def key_pem(self) -> str:
        """PKCS #8, not encrypted: for the private file and for OpenSSL."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def load_or_create(folder: Path) -> Identity:
    """The identity kept in this folder, made on the first call. Blocks on the disk; one process at a time.

    Raises UnusableIdentity when others may enter the folder or read the file, or when the file is damaged: a key is
    never silently replaced, for the mesh knows this machine by it.
    """
    private_folder(folder)
    path = folder / IDENTITY_FILE
    require_private(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        identity = Identity.generate()
        write_private(path, (identity.key_pem + identity.certificate_pem).encode("ascii"))
        return identity
    except OSError as error:
        raise UnusableIdentity(f"{path} cannot be read: {error.strerror}") from None
    return _loaded(data, path)


def peer_id_of(certificate_der: bytes) -> PeerId:
    """The id of the peer that made this certificate.

    Raises BadCertificate unless it is one of ours: Ed25519, signed by itself, named by its own id, and no authority
    (a member could else sign others, and TLS would take them).
    """
    return _peer_id_of(bytes(certificate_der))


def peer_id_of_key(public_key: bytes) -> PeerId:
    """The id of the peer with this raw public key."""
    return base32(hashlib.sha256(public_key).digest())


def verify(certificate_der: bytes, data: bytes, signature: bytes) -> bool:
    """True if the owner of this certificate signed `data`. Raises BadCertificate if it is none of ours."""
    peer_id_of(certificate_der)
    key = x509.load_der_x509_certificate(certificate_der).public_key()
    assert isinstance(key, Ed25519PublicKey)
    return _is_signed(key, data, signature)


def verify_with_key(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """True if the owner of this raw public key signed `data`. False for what is no key."""
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError:
        return False
    return _is_signed(key, data, signature)


def short(peer_id: PeerId) -> str:
    """The first 8 characters: for people. Not unique against somebody who makes keys on purpose."""
    return peer_id[:8]


def uuid_of(peer_id: PeerId) -> uuid.UUID:
    """A UUID for interfaces that want one: version 8 (RFC 9562) over the first 16 bytes of the hash."""
    value = bytearray(base64.b32decode(peer_id.upper() + "====")[:16])
    value[6] = value[6] & 0x0F | 0x80
    value[8] = value[8] & 0x3F | 0x80
    return uuid.UUID(bytes=bytes(value))


def pem_of(certificate_der: bytes) -> str:
    """The certificate as text."""
    body = base64.encodebytes(certificate_der).decode("ascii").replace("\n", "")
    lines = "\n".join(body[at : at + 64] for at in range(0, len(body), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


def base32(data: bytes) -> str:
    """Lower case, no padding (RFC 4648): fit for DNS labels, file names and reading aloud."""
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def public_bytes(key: Ed25519PublicKey) -> bytes:
    """The raw 32 bytes of a public key."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _loaded(data: bytes, path: Path) -> Identity:
    what = f"{path} is damaged: it holds no usable key and certificate"
    fix = "restore it from a backup, or make a new identity with `llm-router identity reset`"
    try:
        key = load_pem_private_key(data, password=None)
        at = data.index(_BEGIN_CERTIFICATE)
        certificate = x509.load_pem_x509_certificate(data[at:]).public_bytes(Encoding.DER)
        peer_id = peer_id_of(certificate)
    except (*_UNREADABLE, BadCertificate):
        raise UnusableIdentity(what, fix=fix) from None
    if not isinstance(key, Ed25519PrivateKey) or peer_id != peer_id_of_key(public_bytes(key.public_key())):
        raise UnusableIdentity(what, fix=fix)
    return Identity(peer_id=peer_id, certificate_der=certificate, _key=key)


def _certificate(key: Ed25519PrivateKey) -> bytes:
    """The DER of the one certificate that this key has. The common name is the id: OpenSSL finds anchors by it."""
    public = key.public_key()
    hashed = hashlib.sha256(public_bytes(public)).digest()
    peer_id = base32(hashed)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, peer_id)])
    identifier = x509.SubjectKeyIdentifier(hashed[:20])
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
        .public_key(public)
        # 16 octets with the top bit clear and the next one set: positive, not zero, always as long (RFC 5280, 4.1.2.2).
        .serial_number(int.from_bytes(hashed[:16]) & (1 << 126) - 1 | 1 << 126)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(peer_id)]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, algorithm=None)
        .public_bytes(Encoding.DER)
    )


@functools.lru_cache(maxsize=4096)
def _peer_id_of(certificate_der: bytes) -> PeerId:
    if len(certificate_der) > CERTIFICATE_BYTES_MAX:
        raise BadCertificate(f"the certificate has {len(certificate_der)} bytes, allowed are {CERTIFICATE_BYTES_MAX}")
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        key = certificate.public_key()
        names = [str(attribute.value) for attribute in certificate.subject]
        is_self_issued = certificate.issuer == certificate.subject
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        if not isinstance(key, Ed25519PublicKey):
            raise BadCertificate("the certificate's key is not an Ed25519 key")
        key.verify(certificate.signature, certificate.tbs_certificate_bytes)
    except InvalidSignature:
        raise BadCertificate("the certificate is not signed by its own key") from None
    except _UNREADABLE:
        raise BadCertificate("the certificate cannot be read") from None
    peer_id = peer_id_of_key(public_bytes(key))
    # What is around the signature is not signed: there is one way to write it, so that a key has one certificate.
    is_plain = certificate_der.endswith(_BEFORE_SIGNATURE + certificate.signature)
    if names != [peer_id] or not is_plain or not is_self_issued or is_authority:
        raise BadCertificate("the certificate is none that a peer makes")
    return peer_id


def _is_signed(key: Ed25519PublicKey, data: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True
