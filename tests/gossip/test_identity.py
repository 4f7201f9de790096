"""Who a peer is: the id follows from the key, the file is private, foreign certificates are refused."""

from __future__ import annotations

import base64
import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import BadCertificate, UnusableIdentity
from gossip.identity import (
    IDENTITY_FILE,
    Identity,
    base32,
    load_or_create,
    peer_id_of,
    peer_id_of_key,
    pem_of,
    short,
    uuid_of,
    verify,
)


def certificate(
    key: Ed25519PrivateKey | EllipticCurvePrivateKey,
    name: str,
    *,
    issuer: str | None = None,
    signed_by: Ed25519PrivateKey | None = None,
    is_authority: bool = False,
) -> bytes:
    """One as somebody else might make it."""
    signer = signed_by or key
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]) if issuer else subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .sign(signer, None if isinstance(signer, Ed25519PrivateKey) else hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def test_the_id_is_the_hash_of_the_public_key() -> None:
    identity = Identity.generate()
    expected = base64.b32encode(hashlib.sha256(identity.public_key).digest()).decode().lower().rstrip("=")
    assert identity.peer_id == expected == peer_id_of(identity.certificate_der)
    assert len(identity.peer_id) == 52
    assert short(identity.peer_id) == expected[:8]


def test_same_key_same_certificate_and_nothing_of_the_machine_in_it() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    identity = Identity.of(key)
    assert identity == Identity.of(key)
    assert hashlib.sha256(identity.certificate_der).hexdigest() == (
        "562722e6894fa28b2f5b0b5dcb40e94cf9cc8f14c20923d9fe6530fd7f5c3405"
    ), "the certificate of a key must be the same in every version: rosters hold it"
    made = x509.load_der_x509_certificate(identity.certificate_der)
    assert made.subject.rfc4514_string() == made.issuer.rfc4514_string() == f"CN={identity.peer_id}"
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [identity.peer_id]
    assert made.not_valid_before_utc == datetime(2020, 1, 1, tzinfo=UTC)
    assert made.not_valid_after_utc == datetime(2120, 1, 1, tzinfo=UTC)


def test_a_second_start_finds_the_same_identity_in_a_private_file(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first = load_or_create(folder)
    assert load_or_create(folder) == first
    assert [path.name for path in folder.iterdir()] == [IDENTITY_FILE]
    if os.name == "posix":
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / IDENTITY_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("what", "mode"), [(IDENTITY_FILE, 0o640), (IDENTITY_FILE, 0o604), (".", 0o750)])
def test_a_key_that_others_may_read_stops_the_start_and_says_what_to_do(tmp_path: Path, what: str, mode: int) -> None:
    folder = tmp_path / "data"
    load_or_create(folder)
    (folder / what).chmod(mode)
    with pytest.raises(UnusableIdentity, match=f"{mode:04o}") as caught:
        load_or_create(folder)
    assert caught.value.fix.startswith("chmod ")


@pytest.mark.parametrize("damage", ["empty", "cut", "no certificate", "another's certificate", "another kind of key"])
def test_a_damaged_key_is_never_replaced(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "data"
    identity = load_or_create(folder)
    path = folder / IDENTITY_FILE
    whole = path.read_text()
    damaged = {
        "empty": "",
        "cut": whole[: len(whole) // 2],
        "no certificate": identity.key_pem,
        "another's certificate": identity.key_pem + Identity.generate().certificate_pem,
        "another kind of key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
        + identity.certificate_pem,
    }[damage]
    path.write_text(damaged)
    with pytest.raises(UnusableIdentity, match="damaged") as caught:
        load_or_create(folder)
    assert path.read_text() == damaged
    assert "PRIVATE KEY" not in str(caught.value)


def test_the_key_shows_in_no_repr() -> None:
    identity = Identity.generate()
    assert identity.peer_id in repr(identity)
    assert "key" not in repr(identity).lower().replace(identity.peer_id, "")


def test_only_the_owner_of_a_certificate_signs_for_it() -> None:
    mine, other = Identity.generate(), Identity.generate()
    signature = mine.sign(b"data")
    assert verify(mine.certificate_der, b"data", signature)
    assert not verify(mine.certificate_der, b"date", signature)
    assert not verify(other.certificate_der, b"data", signature)
    assert not verify(mine.certificate_der, b"data", b"")
    with pytest.raises(BadCertificate):
        verify(b"none", b"data", signature)


def test_certificates_that_no_peer_makes_are_refused() -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    mine = Identity.of(key)
    assert peer_id_of(certificate(key, mine.peer_id)) == mine.peer_id  # the shape itself is taken
    elliptic = ec_key(SECP256R1())
    foreign = {
        "an elliptic curve": certificate(elliptic, mine.peer_id),
        "signed by another key": certificate(key, mine.peer_id, signed_by=other),
        "issued by another name": certificate(key, mine.peer_id, issuer="an authority"),
        "another name": certificate(key, "attic"),
        "another's name": certificate(key, Identity.generate().peer_id),
        "an authority": certificate(key, mine.peer_id, is_authority=True),
        "too long": mine.certificate_der + bytes(4096),
        "with a tail": mine.certificate_der + b"\0",
    }
    for what, data in foreign.items():
        with pytest.raises(BadCertificate):
            pytest.fail(f"{what} was taken for {peer_id_of(data)}")


@given(st.binary(max_size=600))
def test_garbage_is_no_certificate(data: bytes) -> None:
    with pytest.raises(BadCertificate):
        peer_id_of(data)


def test_a_certificate_with_a_changed_byte_is_refused_wherever_it_is() -> None:
    whole = Identity.of(Ed25519PrivateKey.from_private_bytes(bytes(32))).certificate_der
    for at in range(len(whole)):
        for change in (1, 2, 0x80):
            data = bytearray(whole)
            data[at] ^= change
            with pytest.raises(BadCertificate):
                pytest.fail(f"byte {at} changed by {change} gave {peer_id_of(bytes(data))}")


@given(st.binary(min_size=32, max_size=32))
def test_the_uuid_keeps_122_bits_of_the_id(key: bytes) -> None:
    peer_id = peer_id_of_key(key)
    made = uuid_of(peer_id)
    assert made.version == 8
    assert made.variant == "specified in RFC 4122"
    mask = ~((0xF << 76) | (0b11 << 62))
    assert made.int & mask == int.from_bytes(hashlib.sha256(key).digest()[:16]) & mask


@given(st.binary(min_size=1, max_size=100))
def test_text_forms(data: bytes) -> None:
    assert base64.b32decode(base32(data).upper() + "=" * (-len(base32(data)) % 8)) == data
    body = pem_of(data).splitlines()
    assert base64.b64decode("".join(body[1:-1])) == data
    assert all(len(line) <= 64 for line in body)
