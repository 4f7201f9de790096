"""Logins: known to every member, ended everywhere at once, and nothing else is taken for one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import random
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from gossip.identity import Identity
from gossip.roster import Roster
from mesh.accounts.errors import BadLogin, NotAllowed
from mesh.accounts.sessions import KNOWN_MAX, LASTS_S, LEEWAY_S, Issued, Sessions
from mesh.errors import SettingError
from mesh.secret import Secret
from web.services import Principal

START = 1_800_000_000
SECRET = "a secret of the tests, which has more than 32 bytes"
ANNA = "6f1c0c5e-0000-4000-8000-000000000001"
FOUNDER, MEMBER, GUEST, STRANGER = (Identity.generate() for _ in range(4))


def founded() -> Roster:
    roster = Roster.found(FOUNDER, "attic", START)
    roster = roster.admit(FOUNDER, MEMBER.certificate_der, "tower", "ask", "active", START)
    return roster.admit(FOUNDER, GUEST.certificate_der, "kitchen", "ask", "guest", START)


@dataclass
class House:
    """What all members know: the roster, the users, the sessions that were ended, the time."""

    roster: Roster = field(default_factory=founded)
    users: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {ANNA: {"username": "anna", "role": "admin", "epoch": "e1"}}
    )
    over: set[str] = field(default_factory=set)
    now: float = START

    def at(self, identity: Identity, secret: str | None = None) -> Sessions:
        return Sessions(
            identity=identity,
            roster=lambda: self.roster,
            is_over=self.over.__contains__,
            user=self.users.get,
            epoch=lambda user: self.users.get(user, {}).get("epoch"),
            jwt_secret=None if secret is None else Secret(secret),
            now_s=lambda: self.now,
        )


def login(sessions: Sessions) -> Issued:
    return sessions.issue(ANNA, "anna", "admin")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a token."""
    header, claims, _ = (base64.urlsafe_b64decode(part + "==") for part in token.split("."))
    return json.loads(header), json.loads(claims)


def made(header: object, claims: object, signer: Identity | str = FOUNDER) -> str:
    """A token with a good signature, whatever it says: Ed25519 of a peer, or HMAC with a text."""
    signed = b64(json.dumps(header).encode()) + "." + b64(json.dumps(claims).encode())
    if isinstance(signer, Identity):
        return f"{signed}.{b64(signer.sign(signed.encode()))}"
    return f"{signed}.{b64(hmac.digest(signer.encode(), signed.encode(), 'sha256'))}"


# -- what is a login


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_login_is_known_to_every_member_and_nowhere_else(secret: str | None) -> None:
    """F20: signed by the issuing peer and valid on every member, so logins survive a change of coordinator."""
    house = House()
    issued = login(house.at(FOUNDER, secret))
    assert issued.expires_in_s == LASTS_S == 12 * 3600
    for identity in (FOUNDER, MEMBER, GUEST):
        found = house.at(identity, secret).of(issued.token)
        assert found == Principal(user_id=ANNA, username="anna", role="admin", session_id=issued.jti, csrf=issued.csrf)
    elsewhere = House(roster=Roster.found(FOUNDER, "another mesh", START))
    assert elsewhere.at(FOUNDER, secret).of(issued.token) is None


def test_two_logins_have_nothing_in_common_and_their_repr_shows_neither() -> None:
    sessions = House().at(FOUNDER)
    one, other = login(sessions), login(sessions)
    assert one.jti != other.jti and one.csrf != other.csrf and one.token != other.token
    assert one.token not in repr(one) and one.csrf not in repr(one)


def test_name_and_role_are_the_users_as_they_are_now() -> None:
    house = House()
    sessions = house.at(MEMBER)
    token = login(sessions).token
    house.users[ANNA] |= {"username": "anne", "role": "viewer"}
    found = sessions.of(token)
    assert found is not None
    assert (found.username, found.role) == ("anne", "viewer")
    assert parts(token)[1]["role"] == "admin"


@pytest.mark.parametrize("change", ["deleted", "new password", "no role", "logged out"])
@pytest.mark.parametrize("secret", [None, SECRET])
def test_what_ends_a_login_ends_it_at_the_next_request_of_every_member(change: str, secret: str | None) -> None:
    house = House()
    at = [house.at(identity, secret) for identity in (FOUNDER, MEMBER)]
    issued, kept = login(at[0]), login(at[0])
    assert all(sessions.of(issued.token) for sessions in at)
    assert all(sessions.stands(issued.jti, ANNA, "admin") for sessions in at)
    match change:
        case "deleted":
            del house.users[ANNA]
        case "new password":
            house.users[ANNA]["epoch"] = "e2"
        case "no role":
            house.users[ANNA]["role"] = "owner"
        case "logged out":
            house.over.add(f"session/{issued.jti}")
    for sessions in at:
        assert sessions.of(issued.token) is None
        assert not sessions.stands(issued.jti, ANNA, "admin")
        assert (sessions.of(kept.token) is not None) == (change == "logged out")


@pytest.mark.parametrize("secret", [None, SECRET])
@pytest.mark.parametrize("change", ["revoked", "demoted"])
def test_the_sessions_of_a_peer_that_is_no_full_member_any_more_are_over(change: str, secret: str | None) -> None:
    house = House()
    theirs, ours = login(house.at(MEMBER, secret)), login(house.at(FOUNDER, secret))
    sessions = house.at(FOUNDER, secret)
    assert sessions.of(theirs.token) is not None
    act = house.roster.revoke if change == "revoked" else house.roster.demote
    house.roster = act(FOUNDER, MEMBER.peer_id, START + 1)
    assert sessions.of(theirs.token) is None
    assert house.at(FOUNDER, secret).of(theirs.token) is None
    assert not sessions.stands(theirs.jti, ANNA, "admin")
    assert sessions.of(ours.token) is not None


def test_what_runs_ends_when_the_role_changes() -> None:
    house = House()
    sessions = house.at(FOUNDER)
    jti = login(sessions).jti
    house.users[ANNA]["role"] = "viewer"
    assert not sessions.stands(jti, ANNA, "admin")
    assert not sessions.stands("", ANNA, "admin")
    assert not sessions.stands(jti, "somebody else", "admin")


def test_a_guest_logs_nobody_in_and_says_where_to_go() -> None:
    with pytest.raises(NotAllowed, match="another machine"):
        login(House().at(GUEST))
    with pytest.raises(NotAllowed):
        login(House().at(GUEST, SECRET))


def test_a_user_who_went_while_the_password_was_checked_is_not_logged_in() -> None:
    house = House()
    del house.users[ANNA]
    with pytest.raises(BadLogin):
        login(house.at(FOUNDER))


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_login_lasts_twelve_hours_with_a_minute_for_clocks_that_differ(secret: str | None) -> None:
    house = House()
    sessions = house.at(FOUNDER, secret)
    token = login(sessions).token
    for now, is_good in [
        (START - LEEWAY_S - 1, False),
        (START - LEEWAY_S, True),
        (START + LASTS_S + LEEWAY_S - 1, True),
        (START + LASTS_S + LEEWAY_S, False),
    ]:
        house.now = now
        assert (sessions.of(token) is not None) == is_good
        assert (house.at(MEMBER, secret).of(token) is not None) == is_good


def test_an_epoch_may_be_a_number() -> None:
    house = House()
    house.users[ANNA]["epoch"] = 1
    sessions = house.at(FOUNDER)
    token = login(sessions).token
    assert sessions.of(token) is not None
    house.users[ANNA]["epoch"] = 11
    assert sessions.of(token) is None


# -- what is none


WRONG_HEADERS: list[dict[str, Any]] = [
    {"alg": "none"},
    {"alg": "None"},
    {"alg": "HS512"},
    {"alg": ["EdDSA", "HS256"]},
    {"alg": None},
    {"typ": "at+jwt"},
    {"crit": ["exp"]},
    {"crit": []},
    {"b64": False},
    {"b64": True},
    {"jku": "https://evil.example/keys"},
    {"jwk": {"kty": "oct", "k": "AAAA"}},
    {"x5c": [FOUNDER.certificate_pem]},
    {"kid": "../../../../dev/null"},
    {"kid": "' OR 1=1 --"},
    {"kid": ""},
    {"kid": None},
    {"kid": 1},
    {"kid": [FOUNDER.peer_id]},
    {"kid": FOUNDER.peer_id.upper()},
    {"kid": GUEST.peer_id},
    {"kid": STRANGER.peer_id},
    {"kid": MEMBER.peer_id},
]
CLAIMS = ("iss", "aud", "sub", "jti", "iat", "nbf", "exp", "csrf")


def wrong_claims(claims: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"aud": "another-mesh"},
        {"aud": [claims["aud"]]},
        {"aud": None},
        {"iss": "another-mesh"},
        {"iss": FOUNDER.peer_id},
        {"aud": "another-mesh", "iss": "another-mesh"},
        {"exp": START - LEEWAY_S, "iat": START - LASTS_S, "nbf": START - LASTS_S},
        {"exp": claims["exp"] + 1},
        {"exp": 2**80},
        {"exp": str(claims["exp"])},
        {"exp": claims["exp"] + 0.5},
        {"exp": True},
        {"nbf": START + LEEWAY_S + 1},
        {"nbf": START + LEEWAY_S + 1, "iat": START + LEEWAY_S + 1},
        {"nbf": None},
        {"iat": START + 1},
        {"iat": -1},
        {"jti": ""},
        {"jti": None},
        {"jti": claims["jti"] + "x"},
        {"jti": claims["jti"] + "\n"},
        {"jti": claims["jti"].replace(FOUNDER.peer_id, GUEST.peer_id)},
        {"jti": claims["jti"].replace("e1", "e2")},
        {"sub": "nobody"},
        {"sub": ""},
        {"sub": 1},
        {"sub": "a" * 65},
        {"csrf": ""},
        {"csrf": None},
    ]


def zoo(token: str, secret: str | None) -> dict[str, Any]:
    """Tokens that are none, by name. Most are signed as a good one would be."""
    header, claims = parts(token)
    signer = FOUNDER if secret is None else secret
    other_algorithm = {"alg": "EdDSA" if secret else "HS256"}
    named = {f"header {x}": made(header | x, claims, signer) for x in [*WRONG_HEADERS, other_algorithm]}
    claimed = {f"claims {x}": made(header, claims | x, signer) for x in wrong_claims(claims)}
    missing = {f"without {x}": made(header, {k: v for k, v in claims.items() if k != x}, signer) for x in CLAIMS}
    return named | claimed | missing | signed_wrong(token, signer) | malformed(token)


def signed_wrong(token: str, signer: Identity | str) -> dict[str, str]:
    header, claims = parts(token)
    by_secret = header | {"alg": "HS256"}
    ecdsa = header | {"alg": "ES256"}
    return {
        "unsigned": jwt.encode(claims, "", algorithm="none", headers={"kid": header["kid"]}),
        "HS256 with the public key": made(by_secret, claims, base64.b64encode(FOUNDER.public_key).decode()),
        "HS256 with the certificate": made(by_secret, claims, FOUNDER.certificate_pem),
        "ES256": jwt.encode(claims, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256", headers=ecdsa),
        "by a stranger": made(header, claims, STRANGER),
        "by another member": made(header, claims, MEMBER),
        "with another secret": made(header, claims, "another secret, of more than 32 bytes"),
        "a member's own, in the name of another": made(header | {"kid": MEMBER.peer_id}, claims, MEMBER),
        "a stranger's own": made(header | {"kid": STRANGER.peer_id}, claims, STRANGER),
        "a guest's own": made(
            header | {"kid": GUEST.peer_id},
            claims | {"jti": claims["jti"].replace(FOUNDER.peer_id, GUEST.peer_id)},
            GUEST,
        ),
        "no kid": made({k: v for k, v in header.items() if k != "kid"}, claims, signer),
        "no typ": made({k: v for k, v in header.items() if k != "typ"}, claims, signer),
        "a header that is a list": made([header], claims, signer),
        "claims that are a list": made(header, [claims], signer),
        "claims that are a text": made(header, "anna", signer),
        "nested": made(header, claims | {"more": json.loads("[" * 900 + "]" * 900)}, signer),
        "large claims": made(header, claims | {"more": "a" * 1_000_000}, signer),
    }


def malformed(token: str) -> dict[str, Any]:
    head, body, signature = token.split(".")
    return {
        "no signature": f"{head}.{body}.",
        "no claims": f"{head}..{signature}",
        "two parts": f"{head}.{body}",
        "four parts": f"{token}.{signature}",
        "claims twice": f"{head}.{body}.{body}.{signature}",
        "itself twice": token + token,
        "truncated": token[:-1],
        "cut in the midst": token[: len(token) // 2],
        "padded": token + "=",
        "with a space": token + " ",
        "with a line": token + "\n",
        "quoted": f'"{token}"',
        "Bearer": f"Bearer {token}",
        "upper case": token.upper(),
        "standard base64": token.replace("-", "+").replace("_", "/") + "/",
        "not ASCII": token[:-1] + "é",
        "a surrogate": token[:-1] + "\ud800",
        "large": "a" * 1_000_000,
        "empty": "",
        "dots": "..",
        "nothing": None,
        "bytes": token.encode(),
        "a number": 7,
        "a list": [token],
    }


@pytest.mark.parametrize("secret", [None, SECRET])
def test_what_is_no_login_of_this_mesh_is_nobody_and_no_error(secret: str | None) -> None:
    """What JWT libraries were broken with: algorithms a token chooses, keys it names, claims it leaves out."""
    house = House()
    sessions = house.at(MEMBER, secret)
    good = login(house.at(FOUNDER, secret)).token
    header, claims = parts(good)
    again = made(header, claims, FOUNDER if secret is None else secret)
    assert sessions.of(again) is not None, "the tokens of the zoo are signed as good ones are"
    taken = [name for name, token in zoo(good, secret).items() if sessions.of(token) is not None]
    assert taken == []
    assert sessions.of(good) is not None


@pytest.mark.parametrize("secret", [None, SECRET])
def test_no_character_of_a_token_may_be_another(secret: str | None) -> None:
    sessions = House().at(FOUNDER, secret)
    token = login(sessions).token
    at_random = random.Random(27)
    for at in range(len(token)):
        other = at_random.choice(
            [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_." if c != token[at]]
        )
        assert sessions.of(token[:at] + other + token[at + 1 :]) is None, at


@given(st.one_of(st.text(), st.from_regex(r"[A-Za-z0-9_-]{0,80}\.[A-Za-z0-9_-]{0,80}\.[A-Za-z0-9_-]{0,80}")))
def test_no_text_is_an_error(text: str) -> None:
    assert NOBODY.of(text) is None
    assert NOBODY_BY_SECRET.of(text) is None


NOBODY, NOBODY_BY_SECRET = House().at(FOUNDER), House().at(FOUNDER, SECRET)


def test_tokens_that_are_kept_are_bounded_and_what_was_dropped_is_still_good() -> None:
    house = House()
    sessions = house.at(FOUNDER, SECRET)
    first, used = login(sessions).token, login(sessions).token
    assert sessions.of(first) is not None
    for _ in range(KNOWN_MAX + 10):
        assert sessions.of(login(sessions).token) is not None
        assert sessions.of(used) is not None
    assert len(sessions._known) == KNOWN_MAX
    assert hashlib.sha256(first.encode()).digest() not in sessions._known
    assert hashlib.sha256(used.encode()).digest() in sessions._known
    assert sessions.of(first) is not None


# -- the secret of the settings


def test_with_a_secret_only_the_secret_counts_and_another_one_ends_every_login() -> None:
    house = House()
    by_key, by_secret = login(house.at(FOUNDER)).token, login(house.at(FOUNDER, SECRET)).token
    assert house.at(FOUNDER, SECRET).of(by_secret) is not None
    assert house.at(FOUNDER, SECRET).of(by_key) is None
    assert house.at(FOUNDER).of(by_secret) is None
    assert house.at(FOUNDER, SECRET + "!").of(by_secret) is None
    assert parts(by_key)[0] == {"alg": "EdDSA", "typ": "JWT", "kid": FOUNDER.peer_id}
    assert parts(by_secret)[0] == {"alg": "HS256", "typ": "JWT", "kid": "secret"}


@pytest.mark.parametrize("secret", ["short", SECRET, SECRET * 3])
def test_the_secret_is_the_hs256_key_as_it_is(secret: str) -> None:
    """F20: set: HS256 with it. Any other program that has the secret can check."""
    house = House()
    token = login(house.at(FOUNDER, secret)).token
    algorithm = jwt.algorithms.HMACAlgorithm(hashlib.sha256)
    signed, _, signature = token.rpartition(".")
    assert algorithm.verify(signed.encode(), secret.encode(), base64.urlsafe_b64decode(signature + "="))
    assert house.at(MEMBER, secret).of(token) is not None


def test_a_short_secret_is_warned_of_once_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sessions = House().at(FOUNDER, "hunter2")
        assert sessions.of(login(sessions).token) is not None
        House().at(FOUNDER, SECRET)
    (record,) = caplog.records
    assert "LLM_ROUTER_JWT_SECRET is short" in record.message
    assert "hunter2" not in str(vars(record))


@pytest.mark.parametrize("secret", [FOUNDER.certificate_pem, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5", '{"kty": "oct"}'])
def test_a_secret_that_is_a_key_of_another_kind_is_told_at_the_start(secret: str) -> None:
    with pytest.raises(SettingError, match="jwt_secret") as error:
        House().at(FOUNDER, secret)
    assert secret not in str(error.value)
    assert "openssl rand" in error.value.fix
