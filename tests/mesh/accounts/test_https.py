"""Certificates of one's own, and what a listener is started with: OpenSSL's word, and clear words for a person."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gossip.identity import Identity
from mesh.accounts.https import SUBJECTS_MAX, SelfSigned, fingerprint_of, is_name, self_signed, server_context, shown
from mesh.errors import NotPrivate, StartError

NOW = datetime.now(UTC).replace(microsecond=0)
posix_only = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")


@pytest.fixture
def made(tmp_path: Path) -> SelfSigned:
    return self_signed(tmp_path / "tls", ["attic.local", "attic"], ["127.0.0.1", "192.168.1.20", "::1"], NOW)


def loaded(made: SelfSigned) -> x509.Certificate:
    return x509.load_pem_x509_certificate(made.cert.read_bytes())


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """TLS in memory, until both sides agree. Raises what either of them does."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [here, there]
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    return here


def certificate_of(
    public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, signer: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=90))
        .sign(signer, SHA256())
    )


# -- one's own


@pytest.mark.parametrize("name", ["attic.local", "attic", "127.0.0.1", "192.168.1.20", "::1"])
def test_a_client_that_trusts_the_certificate_takes_every_name_it_was_made_for(made: SelfSigned, name: str) -> None:
    client = ssl.create_default_context(cafile=str(made.cert))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # Python 3.13's default
    client.set_alpn_protocols(["h2", "http/1.1"])
    found = handshake(server_context(made.cert, made.key, NOW), client, name)
    assert found.version() == "TLSv1.3"
    assert found.selected_alpn_protocol() == "http/1.1"


def test_a_client_that_was_not_told_or_asks_for_another_name_does_not_take_it(made: SelfSigned) -> None:
    server = server_context(made.cert, made.key, NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        handshake(server, ssl.create_default_context(), "attic.local")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, ssl.create_default_context(cafile=str(made.cert)), "cellar.local")


def test_it_is_what_browsers_and_apple_ask_for(made: SelfSigned) -> None:
    certificate = loaded(made)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= timedelta(days=825)
    assert certificate.not_valid_before_utc <= NOW - timedelta(days=1)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["attic.local", "attic"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "192.168.1.20", "::1"]


def test_it_is_no_authority_so_that_its_key_signs_for_nobody_else(made: SelfSigned) -> None:
    certificate = loaded(made)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_the_fingerprint_is_the_one_that_browsers_show(made: SelfSigned) -> None:
    der = ssl.PEM_cert_to_DER_cert(made.cert.read_text())
    assert made.fingerprint == hashlib.sha256(der).hexdigest() == fingerprint_of(made.cert)
    assert shown("00aaff") == "00:AA:FF"


@posix_only
def test_both_files_are_their_owners_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = self_signed(tmp_path / "tls", ["attic"], [], NOW)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made.cert.parent, made.cert, made.key)] == [
        0o700,
        0o600,
        0o600,
    ]
    assert sorted(path.name for path in made.cert.parent.iterdir()) == ["cert.pem", "key.pem"]


@posix_only
def test_a_folder_that_others_may_enter_gets_no_key(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    folder.mkdir(mode=0o755)
    (folder / "other").touch()
    with pytest.raises(NotPrivate):
        self_signed(folder, ["attic"], [], NOW)
    assert [path.name for path in folder.iterdir()] == ["other"]


@pytest.mark.parametrize("kept", ["cert.pem", "key.pem"])
def test_what_is_there_is_not_overwritten_unless_that_is_asked_for(made: SelfSigned, kept: str) -> None:
    folder = made.cert.parent
    for path in (made.cert, made.key):
        if path.name != kept:
            path.unlink()
    before = (folder / kept).read_bytes()
    with pytest.raises(StartError, match=kept) as error:
        self_signed(folder, ["attic"], [], NOW)
    assert "--force" in error.value.fix
    assert (folder / kept).read_bytes() == before
    again = self_signed(folder, ["attic"], [], NOW, force=True)
    assert again.fingerprint != made.fingerprint
    server_context(again.cert, again.key, NOW)


@pytest.mark.parametrize(
    "name", ["", "a b", "-a", "a-", "a..b", ".a", "a/b", "*", "*.local", "é.local", "a" * 64, "a\n"]
)
def test_what_is_no_host_name_is_refused(tmp_path: Path, name: str) -> None:
    assert not is_name(name)
    with pytest.raises(StartError, match="no host name"):
        self_signed(tmp_path / "tls", ["attic", name], [], NOW)
    assert not (tmp_path / "tls" / "key.pem").exists()


def test_odd_numbers_of_subjects_and_odd_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="1 to 100"):
        self_signed(tmp_path, [], [], NOW)
    with pytest.raises(StartError, match="not for 101"):
        self_signed(tmp_path, [f"a{number}" for number in range(SUBJECTS_MAX + 1)], [], NOW)
    with pytest.raises(StartError, match="no IP address"):
        self_signed(tmp_path, [], ["fe80::1%eth0x/64"], NOW)


def test_each_subject_stands_once_in_lower_case_and_a_long_name_still_fits(tmp_path: Path) -> None:
    long = ".".join(["a" * 60] * 3)
    made = self_signed(tmp_path / "tls", [long, "Attic", "attic", "my_nas"], ["::1", "0:0::1"], NOW)
    names = loaded(made).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [long, "attic", "my_nas"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("::1")]


# -- what a listener is started with


def test_the_context_takes_tls_1_2_and_nothing_older(made: SelfSigned) -> None:
    server = server_context(made.cert, made.key, NOW)
    client = ssl.create_default_context(cafile=str(made.cert))
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(server, client, "attic").version() == "TLSv1.2"
    assert server.minimum_version == ssl.TLSVersion.TLSv1_2
    assert server.options & ssl.OP_NO_COMPRESSION and server.options & ssl.OP_NO_RENEGOTIATION


def test_files_that_are_not_there_are_named(made: SelfSigned, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"certificate .*gone\.pem does not exist"):
        server_context(tmp_path / "gone.pem", made.key, NOW)
    with pytest.raises(StartError, match=r"private key .*gone\.pem does not exist") as error:
        server_context(made.cert, tmp_path / "gone.pem", NOW)
    assert "llm-router tls self-signed" in error.value.fix
    with pytest.raises(StartError, match="cannot be read: Is a directory"):
        server_context(tmp_path, made.key, NOW)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "\x00" * 100],
)
def test_what_is_no_certificate_and_no_key_is_told(made: SelfSigned, tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.pem"
    path.write_text(text)
    with pytest.raises(StartError, match=r"odd\.pem holds no certificate"):
        server_context(path, made.key, NOW)
    with pytest.raises(StartError, match=r"odd\.pem holds no private key"):
        server_context(made.cert, path, NOW)


def test_a_damaged_key_is_told_and_not_shown(made: SelfSigned) -> None:
    lines = made.key.read_text().splitlines()
    made.key.write_text("\n".join([lines[0], lines[1][::-1], *lines[2:]]))
    with pytest.raises(StartError, match="damaged") as error:
        server_context(made.cert, made.key, NOW)
    assert lines[1][:20] not in str(error.value) and lines[1][::-1][:20] not in str(error.value)


def test_a_key_of_another_certificate_is_told(made: SelfSigned, tmp_path: Path) -> None:
    other = self_signed(tmp_path / "other", ["attic"], [], NOW)
    with pytest.raises(StartError, match="is not the key of the certificate"):
        server_context(made.cert, other.key, NOW)


def test_an_encrypted_key_is_told_with_the_way_out_and_nobody_is_asked(made: SelfSigned) -> None:
    """F22: never a prompt that blocks a headless start."""
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = BestAvailableEncryption(b"secret")
    made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    with pytest.raises(StartError, match="encrypted") as error:
        server_context(made.cert, made.key, NOW)
    assert "openssl pkey -in" in error.value.fix


def test_an_expired_certificate_is_told_and_one_that_expires_soon_is_warned_of(
    made: SelfSigned, caplog: pytest.LogCaptureFixture
) -> None:
    until = loaded(made).not_valid_after_utc
    with caplog.at_level(logging.WARNING):
        server_context(made.cert, made.key, until - timedelta(days=15))
        assert caplog.messages == []
        server_context(made.cert, made.key, until - timedelta(days=13))
        assert caplog.messages == ["the certificate expires soon"]
    with pytest.raises(StartError, match=f"expired on {until:%Y-%m-%d}") as error:
        server_context(made.cert, made.key, until)
    assert "--force" in error.value.fix


def test_a_certificate_that_is_not_valid_yet_is_served_for_the_clock_may_be_wrong(
    made: SelfSigned, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        server_context(made.cert, made.key, datetime(1970, 1, 1, tzinfo=UTC))
    assert caplog.messages == ["the certificate is not valid yet, or the clock is wrong"]


@posix_only
def test_a_key_that_everybody_may_read_is_warned_of(made: SelfSigned, caplog: pytest.LogCaptureFixture) -> None:
    made.key.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        server_context(made.cert, made.key, NOW)
    assert caplog.messages == ["everybody on this machine may read the private key"]


def test_a_certificate_of_an_authority_comes_with_its_chain_and_its_key_after_the_curves_parameters(
    made: SelfSigned, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = certificate_of(key.public_key(), ec.generate_private_key(ec.SECP256R1()))
    chain, file = tmp_path / "fullchain.pem", tmp_path / "site.key"
    chain.write_bytes(leaf.public_bytes(Encoding.PEM) + made.cert.read_bytes())
    # as `openssl ecparam -genkey` writes it
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    file.write_bytes(parameters + key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    server_context(chain, file, NOW)
    assert fingerprint_of(chain) == leaf.fingerprint(SHA256()).hex()


def test_what_openssl_finds_too_weak_is_told_in_its_words(tmp_path: Path) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    certificate = certificate_of(weak.public_key(), weak)
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(weak.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(StartError, match=r"OpenSSL does not take the certificate .*EE_KEY_TOO_SMALL"):
        server_context(tmp_path / "cert.pem", tmp_path / "key.pem", NOW)


def test_an_ed25519_certificate_is_served_with_a_warning_about_browsers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Identity.generate()
    path = tmp_path / "identity.pem"
    path.write_text(peer.key_pem + peer.certificate_pem)
    path.chmod(0o600)
    with caplog.at_level(logging.WARNING):
        server_context(path, path, NOW)
    assert caplog.messages == ["browsers do not take this kind of certificate"]
