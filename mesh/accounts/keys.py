"""API keys: `sk-mesh-<id>-<43 characters>`, of which the mesh keeps only the SHA-256.

    inference     make tokens on the machines of the mesh        cloud       and in clouds, which costs money
    metrics       read /metrics                                  admin:read  see what the dashboard shows, history too
    admin         everything but what only a person may: users, keys with the scopes `admin` and `admin:read`, and
                  letting machines in

A key that leaks must not be able to make itself permanent: so no key makes users or keys of administrators. `admin`
contains the other scopes. There is no cache: a deleted key is no key from the next request on.

Until a mesh is claimed any machine may come in by its open door and write keys. One that such a machine wrote on is for
inference alone, whatever it says, until somebody confirms the machine: it must not take the mesh, nor use its clouds.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast, get_args

from inference.errors import InvalidRequest
from inference.openai.fields import Fields, bad_value, missing, not_one_of, wrong_type
from mesh.accounts.book import FIRST_KEY, KEY, Book, moment, number_of, text_of, texts_of
from mesh.accounts.errors import NoSuchAccount, NotAllowed, not_vouched
from mesh.accounts.limits import Quota
from web.guards import UNCONFIRMED
from web.services import Caller, Principal, Recording

SCOPES = ("inference", "cloud", "metrics", "admin:read", "admin")
SCOPES_DEFAULT = ("inference",)
SCOPES_OF_PEOPLE = frozenset({"admin:read", "admin"})
"""Who gives these must be a person: an administrator's login, or the command line on the machine."""
SCOPES_OF_ANYBODY = frozenset({"inference"})
"""What a machine may give that came by the door and that nobody confirmed."""
PREFIX = "sk-mesh-"
NAME_LENGTH_MAX = 64
MODELS_MAX = 64
GLOB_LENGTH_MAX = 256
LIMIT_MAX = 10**12
KEYS_MAX = 10_000

_SECRET = re.compile(r"sk-mesh-([a-z2-7]{8})-[A-Za-z0-9_-]{43}")
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_NOBODYS = "0" * 64
# Unix seconds of the years 1970 and 9999.
_MOMENT_MAX = 253_402_300_799
_LIMITS = ("requests_per_minute", "tokens_per_minute", "tokens_per_day")
_FIELDS = ("name", "scopes", "models", *_LIMITS, "expires_at", "recording")
"""A key has all of them from the beginning: one of which some have not arrived yet is none, not a less limited one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key, without its secret. Times in unix seconds."""

    id: str
    name: str
    sha256: str
    scopes: tuple[str, ...]
    models: tuple[str, ...]
    quota: Quota
    expires_at: float | None
    recording: Recording | None
    created_at: float
    created_by: str

    def as_json(self, now: float) -> dict[str, Any]:
        """What lists show."""
        return {
            "id": self.id,
            "name": self.name,
            "prefix": f"{PREFIX}{self.id}",
            "scopes": list(self.scopes),
            "models": list(self.models),
            **{limit: getattr(self.quota, limit) for limit in _LIMITS},
            "recording": self.recording,
            "expires_at": moment(self.expires_at),
            "expired": self.is_expired(now),
            "created_at": moment(self.created_at),
            "created_by": self.created_by,
        }

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and now >= self.expires_at


class Keys:
    """The keys of the mesh. `now` is unix seconds."""

    def __init__(self, book: Book, now: Callable[[], float]) -> None:
        self._book = book
        self._now = now

    # -- reading

    def of_secret(self, secret: str) -> Principal | None:
        """Whose key that is; with a `refusal` when it expired or was deleted, None when it never was one."""
        match = _SECRET.fullmatch(secret)
        key = self.find(match[1]) if match else None
        sha256 = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        is_right = hmac.compare_digest(sha256, key.sha256 if key else _NOBODYS)
        if key is None:
            # That this id was a key's is no secret worth keeping, and the best that can be said to its owner.
            is_ended = match is not None and self._book.is_ended(KEY + match[1])
            return Principal(key_id=match[1], refusal="API key revoked") if match and is_ended else None
        if not is_right:
            return None
        if key.is_expired(self._now()):
            return Principal(key_id=key.id, key_name=key.name, refusal="API key expired")
        return Principal(
            key_id=key.id,
            key_name=key.name,
            scopes=frozenset(key.scopes),
            models=key.models,
            recording=key.recording,
        )

    def find(self, key_id: str) -> Key | None:
        """The living key with that id."""
        fields = self._book.get(KEY + key_id)
        key = _key(key_id, fields) if fields is not None else None
        if key is None or SCOPES_OF_ANYBODY.issuperset(key.scopes) or self._book.is_vouched(KEY + key_id):
            return key
        return replace(key, scopes=tuple(scope for scope in key.scopes if scope in SCOPES_OF_ANYBODY))

    def is_over(self, key_id: str) -> bool:
        """True when it was deleted, or has expired."""
        key = self.find(key_id)
        return key is None or key.is_expired(self._now())

    def all(self) -> list[Key]:
        """The oldest first."""
        found = (self.find(each.removeprefix(KEY)) for each in self._book.keys(KEY))
        return sorted((key for key in found if key is not None), key=lambda key: (key.created_at, key.id))

    def listed(self) -> list[dict[str, Any]]:
        return [key.as_json(self._now()) for key in self.all()]

    # -- writing

    async def create(self, body: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """A new key as JSON, its secret in `key`: this once. Raises InvalidRequest, NotAllowed."""
        if not Fields(dict(body)).has("name"):
            raise missing("name")
        fields = checked_fields(body)
        self._check_giver(fields.get("scopes", ()), caller)
        return await self._made(fields, by=caller.username or caller.key_name or caller.key_id or "")

    async def change(self, key_id: str, body: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """The key as JSON after the change; null takes a limit away, what is left out stays."""
        key = self._known(key_id)
        fields = checked_fields(body)
        self._check_giver((*key.scopes, *fields.get("scopes", ())), caller)
        await self._book.put(KEY + key.id, fields)
        return self._known(key_id).as_json(self._now())

    async def delete(self, key_id: str, caller: Caller) -> dict[str, Any]:
        """Ends it for ever, everywhere; what it was."""
        key = self._known(key_id)
        self._check_giver(key.scopes, caller)
        await self._book.end(KEY + key.id, "deleted")
        return key.as_json(self._now())

    async def ensure_first(self) -> str | None:
        """The first key of this mesh, for printing once; None when it has been made."""
        if self._book.get(FIRST_KEY) is not None or self._book.is_ended(FIRST_KEY):
            return None
        made = await self._made(checked_fields({"name": "first key", "scopes": ["inference", "cloud"]}), by="the mesh")
        await self._book.put(FIRST_KEY, {"key": made["id"]})
        return str(made["key"])

    async def _made(self, fields: dict[str, Any], *, by: str) -> dict[str, Any]:
        if len(self._book.keys(KEY)) >= KEYS_MAX:
            raise InvalidRequest(f"There are {KEYS_MAX:,} keys, which is the limit: delete some.", code="too_many_keys")
        key_id = self._new_id()
        secret = f"{PREFIX}{key_id}-{secrets.token_urlsafe(32)}"
        sha256 = hashlib.sha256(secret.encode()).hexdigest()
        whole = checked_fields(dict.fromkeys(_FIELDS) | fields)
        await self._book.put(KEY + key_id, whole | {"sha256": sha256, "created_at": self._now(), "created_by": by})
        return self._known(key_id).as_json(self._now()) | {"key": secret}

    def _check_giver(self, scopes: Collection[str], caller: Caller) -> None:
        """Raises NotAllowed for what this caller, or any caller of this machine, may not give, change or delete."""
        _check_giver(scopes, caller)
        if not self._book.vouches and not SCOPES_OF_ANYBODY.issuperset(scopes):
            raise not_vouched("gives keys for inference only")

    def _new_id(self) -> str:
        while True:
            key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
            if self._book.get(KEY + key_id) is None and not self._book.is_ended(KEY + key_id):
                return key_id

    def _known(self, who: str) -> Key:
        """By id, by what begins its secret, or by a name that one key alone has."""
        key = self.find(who.removeprefix(PREFIX))
        if key is None:
            named = [each for each in self.all() if each.name == who]
            if len(named) > 1:
                raise InvalidRequest(f"{len(named)} keys are called that; say the id of the one you mean.", param="id")
            key = named[0] if named else None
        if key is None:
            raise NoSuchAccount("There is no key of that id or name: `llm-router keys list` shows those there are.")
        return key

    def found(self, who: str) -> dict[str, Any]:
        """One key as JSON. Raises NoSuchAccount."""
        return self._known(who).as_json(self._now())


def checked_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields of a key that `body` has, each in the form that is kept. Raises InvalidRequest."""
    fields = Fields(dict(body))
    found: dict[str, Any] = {}
    for name in _FIELDS:
        if not fields.has(name):
            continue
        match name:
            case "name":
                found[name] = _name(fields)
            case "scopes":
                found[name] = _scopes(fields.raw(name))
            case "models":
                found[name] = _models(fields.raw(name))
            case "expires_at":
                found[name] = parsed_moment(fields.raw(name))
            case "recording":
                found[name] = _recording(fields.raw(name))
            case _:
                found[name] = fields.integer(name, 1, LIMIT_MAX)
    return found


def parsed_moment(value: Any) -> float | None:
    """Unix seconds of a time in RFC 3339, or of a number that is so already; null: never. Raises InvalidRequest."""
    param = "expires_at"
    how = "expected a time such as 2030-01-31T12:00:00Z, or unix seconds"
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value <= _MOMENT_MAX:
            raise bad_value(param, how)
        return float(value)
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    try:
        found = datetime.fromisoformat(value.strip().replace(" ", "T", 1))
        seconds = found.timestamp()
    except (ValueError, OverflowError, OSError):
        raise bad_value(param, how) from None
    if found.tzinfo is None:
        raise bad_value(param, f"{how}: it says no time zone")
    if not 0 <= seconds <= _MOMENT_MAX:
        raise bad_value(param, how)
    return seconds


def _name(fields: Fields) -> str:
    name = (fields.string("name", NAME_LENGTH_MAX) or "").strip()
    if not name or not name.isprintable():
        raise bad_value("name", "expected a line of text that says what the key is for")
    return name


def _scopes(value: Any) -> list[str]:
    if value is None:
        return list(SCOPES_DEFAULT)
    if not isinstance(value, list):
        raise wrong_type("scopes", "an array", value)
    for scope in value:
        if scope not in SCOPES:
            raise not_one_of("scopes", scope, SCOPES)
    if not value:
        raise bad_value("scopes", "a key without scopes may do nothing")
    return [scope for scope in SCOPES if scope in value]


def _models(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong_type("models", "an array", value)
    if len(value) > MODELS_MAX:
        raise bad_value("models", f"expected at most {MODELS_MAX} patterns")
    for glob in value:
        if not isinstance(glob, str):
            raise wrong_type("models", "an array of strings", glob)
        if not 1 <= len(glob) <= GLOB_LENGTH_MAX or not glob.isprintable():
            raise bad_value("models", f"a pattern such as 'hf/qwen/*' has 1 to {GLOB_LENGTH_MAX} characters")
    return list(dict.fromkeys(value))


def _recording(value: Any) -> str | None:
    if value is not None and value not in get_args(Recording):
        raise not_one_of("recording", value, get_args(Recording))
    return cast("str | None", value)


def _check_giver(scopes: Collection[str], caller: Caller) -> None:
    """Raises NotAllowed when a key makes, changes or deletes one of an administrator's, or one for clouds that it may
    not use itself."""
    if caller.key_id == UNCONFIRMED and not SCOPES_OF_ANYBODY.issuperset(scopes):
        raise not_vouched("gives keys for inference only")
    if SCOPES_OF_PEOPLE & set(scopes) and not is_person(caller):
        raise NotAllowed(
            "Keys that see or change administration are made, changed and deleted by a person: log in as an "
            "administrator, or use `llm-router keys` on a machine of the mesh."
        )
    if "cloud" in scopes and "cloud" not in caller.scopes and not is_person(caller):
        raise NotAllowed("Keys for clouds are made, changed and deleted by who may use them.")


def is_person(caller: Caller) -> bool:
    """True for an administrator's login, and for the command line on the peer's machine."""
    return caller.key_id == "control" or (caller.key_id is None and caller.role == "admin")


def _key(key_id: str, fields: Mapping[str, Any]) -> Key | None:
    """None when the row is no whole key. What a newer peer may do more with it is left out."""
    sha256 = text_of(fields, "sha256")
    if len(sha256) != 64 or not fields.keys() >= set(_FIELDS):
        return None
    told = {name: fields[name] for name in _FIELDS}
    told["scopes"] = [scope for scope in texts_of(fields, "scopes") if scope in SCOPES]
    told["recording"] = told["recording"] if told["recording"] in get_args(Recording) else None
    try:
        found = checked_fields(told)
    except InvalidRequest:
        return None
    return Key(
        id=key_id,
        name=found["name"],
        sha256=sha256,
        scopes=tuple(found["scopes"]),
        models=tuple(found["models"]),
        quota=Quota(**{limit: found[limit] for limit in _LIMITS}),
        expires_at=found["expires_at"],
        recording=cast("Recording | None", found["recording"]),
        created_at=number_of(fields, "created_at") or 0.0,
        created_by=text_of(fields, "created_by"),
    )
