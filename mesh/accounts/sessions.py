"""Logins that last 12 hours: a JSON Web Token (RFC 7519) that every member can check, and that can be ended everywhere.

    header   {"alg": "EdDSA", "typ": "JWT", "kid": <peer id of the issuer>}
             {"alg": "HS256", "typ": "JWT", "kid": "secret"}                   with LLM_ROUTER_JWT_SECRET
    claims   {iss: mesh id, aud: mesh id, sub: user id, jti: <epoch>.<issuer>.<random>, iat, nbf, exp, csrf,
              username, role}

The issuer's own Ed25519 key signs, and the roster says whose keys count: full members', but not those of who came by
the open door and waits to be confirmed. A revoked or demoted peer's sessions are over with it. With a secret only that
counts, so that a new secret ends every session.

The algorithm is the settings', never a token's (RFC 8725, section 3.1). A signature is checked once; whether the login
still stands at every request, and from this peer's memory. The jti says by itself what ends it: another epoch of the
user, its issuer out of the mesh, `session/<jti>` ended. Name and role are the user's as they are now; what the token
says of them is for people who look into it.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import logging
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import HMACAlgorithm

from gossip.identity import Identity
from gossip.roster import Roster
from inference import strict_json
from inference.errors import InvalidRequest
from mesh.accounts.errors import BadLogin, NotAllowed
from mesh.errors import SettingError
from mesh.secret import Secret
from web.services import Principal, Role

log = logging.getLogger(__name__)

LASTS_S = 12 * 3600
LEEWAY_S = 60
"""How far the clocks of two members may be apart."""
TOKEN_LENGTH_MAX = 4096
"""Ours have about 700 characters, with the longest username 1,000."""
KNOWN_MAX = 1024
"""Tokens whose signature is not checked again: 100 us of each request. Far more than there are people in a house."""
SECRET_BYTES_SAFE = 32
"""RFC 7518, section 3.2."""
SESSION = "session/"
"""Where the admin map has the sessions that were ended."""

_KID_OF_SECRET = "secret"  # noqa: S105 - a name
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_JTI = re.compile(r"([A-Za-z0-9_-]{1,32})\.([a-z2-7]{52})\.[A-Za-z0-9_-]{22}")
_CSRF = re.compile(r"[A-Za-z0-9_-]{32}")
_USER_ID_LENGTH_MAX = 64
_HMAC_BLOCK_BYTES = 64

Epoch = int | str
"""What a user has another one of after each change that must end its sessions. Letters and digits, 32 at most."""
Algorithm = Literal["EdDSA", "HS256"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new session. `token` is what the cookie holds, `csrf` what the page sends as `x-csrf-token`."""

    token: str = field(repr=False)
    csrf: str = field(repr=False)
    jti: str
    expires_in_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claims:
    """What a token says whose signature is good."""

    mesh_id: str
    user_id: str
    jti: str
    csrf: str
    from_s: int
    until_s: int


class Sessions:
    """Makes and reads the tokens of logins. `is_over` is asked about keys of the admin map, `session/<jti>`.

    `user` answers a mapping with `username` and `role`, `epoch` the user's epoch; None for somebody who is gone.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        roster: Callable[[], Roster],
        is_over: Callable[[str], bool],
        user: Callable[[str], Mapping[str, Any] | None],
        epoch: Callable[[str], Epoch | None],
        jwt_secret: Secret | None,
        now_s: Callable[[], float],
    ) -> None:
        """Raises SettingError for a secret that is a key of another kind."""
        self._me = identity.peer_id
        self._roster = roster
        self._is_over = is_over
        self._user = user
        self._epoch = epoch
        self._now_s = now_s
        self._secret = _hmac_key(jwt_secret) if jwt_secret is not None else None
        self._algorithm: Algorithm = "EdDSA" if self._secret is None else "HS256"
        self._jws = jwt.PyJWS(algorithms=[self._algorithm])
        key = load_pem_private_key(identity.key_pem.encode("ascii"), password=None)
        assert isinstance(key, Ed25519PrivateKey)
        self._key = key
        self._known: OrderedDict[bytes, _Claims] = OrderedDict()

    def issue(self, user_id: str, username: str, role: Role) -> Issued:
        """A session of twelve hours for this user. Raises NotAllowed where nobody can log in, BadLogin for a user who
        is gone."""
        roster, epoch = self._roster(), self._epoch(user_id)
        if not roster.may_revoke(self._me):
            raise NotAllowed(
                "This machine is a guest of the mesh, or came by its door and waits to be confirmed: it logs nobody "
                "in. Open the dashboard of another machine, or make this one a full member there: "
                "`llm-router peers trust`."
            )
        if epoch is None:
            raise BadLogin("That user is gone.")
        now, csrf = int(self._now_s()), secrets.token_urlsafe(24)
        jti = f"{epoch}.{self._me}.{secrets.token_urlsafe(16)}"
        claims = {
            "iss": roster.mesh_id,
            "aud": roster.mesh_id,
            "sub": user_id,
            "jti": jti,
            "iat": now,
            "nbf": now,
            "exp": now + LASTS_S,
            "csrf": csrf,
            "username": username,
            "role": role,
        }
        kid = self._me if self._secret is None else _KID_OF_SECRET
        payload = json.dumps(claims, separators=(",", ":")).encode()
        token = self._jws.encode(payload, self._secret or self._key, algorithm=self._algorithm, headers={"kid": kid})
        return Issued(token=token, csrf=csrf, jti=jti, expires_in_s=LASTS_S)

    def of(self, token: str) -> Principal | None:
        """Who this token logs in now, or None. Never raises, whatever it is given."""
        if not isinstance(token, str) or len(token) > TOKEN_LENGTH_MAX or _TOKEN.fullmatch(token) is None:
            return None
        name = hashlib.sha256(token.encode("ascii")).digest()
        claims = self._known.get(name) or self._verified(token)
        if claims is None:
            return None
        self._known[name] = claims
        self._known.move_to_end(name)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        roster, now = self._roster(), self._now_s()
        is_in_time = claims.from_s <= now + LEEWAY_S and now < claims.until_s + LEEWAY_S
        if claims.mesh_id != roster.mesh_id or not is_in_time:
            return None
        return self._principal(claims)

    def stands(self, session_id: str, user_id: str, role: Role) -> bool:
        """Whether a login goes on: asked while something of that session runs. Its twelve hours are `of`'s to count."""
        user = self._user_of(session_id, user_id)
        return user is not None and user.get("role") == role

    # -- how

    def _principal(self, claims: _Claims) -> Principal | None:
        user = self._user_of(claims.jti, claims.user_id)
        if user is None or user.get("role") not in ("admin", "viewer") or not isinstance(user.get("username"), str):
            return None
        return Principal(
            user_id=claims.user_id,
            username=user["username"],
            role=user["role"],
            session_id=claims.jti,
            csrf=claims.csrf,
        )

    def _user_of(self, jti: str, user_id: str) -> Mapping[str, Any] | None:
        """The user as it is now, None when that session of it is over."""
        found = _JTI.fullmatch(jti)
        epoch = self._epoch(user_id)
        if found is None or epoch is None or found[1] != str(epoch):
            return None
        if not self._roster().may_revoke(found[2]) or self._is_over(SESSION + jti):
            return None
        return self._user(user_id)

    def _verified(self, token: str) -> _Claims | None:
        """None for whatever this mesh did not sign."""
        try:
            header = strict_json.parse_object(_decoded(token.partition(".")[0]))
            kid = header.get("kid")
            if not isinstance(kid, str) or header != {"alg": self._algorithm, "typ": "JWT", "kid": kid}:
                return None
            key = self._key_of(kid)
            if key is None:
                return None
            payload = self._jws.decode(token, key, algorithms=[self._algorithm])
            claims = strict_json.parse_object(payload)
        except (jwt.PyJWTError, InvalidRequest, binascii.Error):
            return None
        found = _claims(claims)
        is_issuers = found is not None and (self._secret is not None or found.jti.split(".")[1] == kid)
        return found if is_issuers else None

    def _key_of(self, kid: str) -> Ed25519PublicKey | bytes | None:
        """The one key that counts under that name."""
        if self._secret is not None:
            return self._secret if kid == _KID_OF_SECRET else None
        roster = self._roster()
        return _public_key(roster.members[kid].certificate) if roster.may_revoke(kid) else None


def _claims(claims: Mapping[str, Any]) -> _Claims | None:
    """What signed claims say, None when they do not say all that ours say."""
    texts: list[Any] = [claims.get(name) for name in ("iss", "aud", "sub", "jti", "csrf")]
    times: list[Any] = [claims.get(name) for name in ("iat", "nbf", "exp")]
    if not all(isinstance(text, str) for text in texts) or not all(type(time) is int for time in times):
        return None
    iss, aud, sub, jti, csrf = texts
    iat, nbf, exp = times
    is_ours = iss == aud and len(sub) <= _USER_ID_LENGTH_MAX and _JTI.fullmatch(jti) and _CSRF.fullmatch(csrf)
    if not is_ours or not iat <= nbf < exp <= iat + LASTS_S:  # a member that means harm issues none that lasts longer
        return None
    return _Claims(mesh_id=aud, user_id=sub, jti=jti, csrf=csrf, from_s=nbf, until_s=exp)


def _decoded(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


@functools.lru_cache(maxsize=256)
def _public_key(certificate_der: bytes) -> Ed25519PublicKey:
    """The key of a member, which the roster has checked."""
    key = x509.load_der_x509_certificate(certificate_der).public_key()
    assert isinstance(key, Ed25519PublicKey)
    return key


def _hmac_key(secret: Secret) -> bytes:
    """The secret as PyJWT takes it. Raises SettingError for what it does not take."""
    key = secret.reveal().encode()
    if len(key) < SECRET_BYTES_SAFE:
        log.warning(
            "LLM_ROUTER_JWT_SECRET is short: who gets hold of one login may find it out and log in as anybody",
            extra={"bytes": len(key), "safe": SECRET_BYTES_SAFE},
        )
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(key)
    except jwt.InvalidKeyError:
        what = "setting jwt_secret is a public or private key, which is no secret for HS256"
        raise SettingError(what, fix="make one with `openssl rand -base64 32`, or leave it out") from None
    # HMAC fills its key with zeros itself (RFC 2104, section 2): the same key, but PyJWT does not warn at each request.
    return key.ljust(_HMAC_BLOCK_BYTES, b"\0")
