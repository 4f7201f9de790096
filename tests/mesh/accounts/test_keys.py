"""API keys: made, read, changed, ended."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from inference.errors import InvalidRequest
from mesh.accounts.book import KEY
from mesh.accounts.errors import NoSuchAccount, NotAllowed
from mesh.accounts.keys import SCOPES, Keys, parsed_moment
from mesh.accounts.limits import Quota
from tests.fixtures.book import MemoryBook
from tests.fixtures.peer_accounts import NOW, PERSON, Clock
from web.guards import SCOPES as SCOPES_OF_GUARDS
from web.services import Caller

ADMIN = Caller(ip="10.0.0.9", user_id="u", username="ann", role="admin")
ADMIN_KEY = Caller(ip="10.0.0.9", key_id="abcdefgh", key_name="robot", scopes=frozenset(SCOPES))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book() -> MemoryBook:
    return MemoryBook()


@pytest.fixture
def keys(book: MemoryBook, clock: Clock) -> Keys:
    return Keys(book, clock)


async def made(keys: Keys, **fields: Any) -> dict[str, Any]:
    return await keys.create({"name": "scripts"} | fields, ADMIN)


async def test_a_key_is_shown_once_and_kept_as_a_hash(keys: Keys, book: MemoryBook) -> None:
    """Case 30 of the reference."""
    answer = await made(keys)
    secret = answer["key"]
    assert re.fullmatch(r"sk-mesh-[a-z2-7]{8}-[A-Za-z0-9_-]{43}", secret)
    assert secret.startswith(answer["prefix"])
    kept = repr(book.rows)
    assert secret not in kept and secret.rsplit("-", 1)[-1] not in kept
    assert hashlib.sha256(secret.encode()).hexdigest() in kept
    for shown in (keys.listed(), keys.found(answer["id"])):
        assert "sha256" not in repr(shown) and secret not in repr(shown)
    assert keys.listed()[0]["name"] == "scripts" and keys.listed()[0]["created_by"] == "ann"


async def test_a_key_is_known_by_its_secret(keys: Keys) -> None:
    answer = await made(keys, scopes=["cloud", "inference"], models=["hf/qwen/*"], recording="metadata")
    found = keys.of_secret(answer["key"])
    assert found is not None and found.refusal is None
    assert (found.key_id, found.key_name) == (answer["id"], "scripts")
    assert found.scopes == {"inference", "cloud"}
    assert (found.models, found.recording) == (("hf/qwen/*",), "metadata")


async def test_a_key_has_inference_only_unless_told_otherwise(keys: Keys) -> None:
    answer = await made(keys)
    assert answer["scopes"] == ["inference"]
    assert answer["models"] == [] and answer["expires_at"] is None


@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: s + "x", lambda s: s.upper(), lambda s: s[:-1] + "!"])
async def test_nearly_the_secret_is_nobodys(keys: Keys, change: Any) -> None:
    answer = await made(keys)
    assert keys.of_secret(change(answer["key"])) is None


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "sk-",
        "' OR 1=1 --",
        "sk-mesh-abcdefgh-' OR '1'='1",
        "sk-mesh-../../etc/passwd-" + "a" * 43,
        "sk-mesh-abcdefgh-" + "a" * 43,
        "sk-mesh-abcdefgh-" + "a" * 43 + "\n",
        "\ud800" * 10,
        "k" * 100_000,
    ],
)
async def test_what_was_never_a_key_is_nobodys(keys: Keys, book: MemoryBook, secret: str) -> None:
    await made(keys)
    before = dict(book.rows)
    assert keys.of_secret(secret) is None
    assert book.rows == before


async def test_the_last_characters_of_a_secret_count_as_much_as_the_first(keys: Keys) -> None:
    one, other = await made(keys), await made(keys)
    mixed = one["key"][:17] + other["key"][17:]
    assert keys.of_secret(mixed) is None


async def test_a_deleted_key_is_none_at_once_and_says_so(keys: Keys) -> None:
    """Case 31 of the reference."""
    answer = await made(keys)
    await keys.delete(answer["id"], ADMIN)
    found = keys.of_secret(answer["key"])
    assert found is not None and found.refusal == "API key revoked" and not found.scopes
    assert keys.is_over(answer["id"])
    assert keys.listed() == []
    with pytest.raises(NoSuchAccount):
        await keys.delete(answer["id"], ADMIN)


async def test_an_expired_key_says_so(keys: Keys, clock: Clock) -> None:
    """Case 32 of the reference."""
    answer = await made(keys, expires_at=NOW + 60)
    assert not keys.is_over(answer["id"])
    clock.now += 60
    found = keys.of_secret(answer["key"])
    assert found is not None and found.refusal == "API key expired"
    assert keys.is_over(answer["id"]) and keys.listed()[0]["expired"] is True


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (1_900_000_000, 1_900_000_000.0),
        ("2030-01-31T12:00:00Z", 1_896_091_200.0),
        ("2030-01-31T13:00:00+01:00", 1_896_091_200.0),
        ("2030-01-31 12:00:00Z", 1_896_091_200.0),
        ("2001-01-01T00:00:00Z", 978_307_200.0),  # a key that is expired already
    ],
)
def test_times_are_taken_as_rfc_3339_or_unix_seconds(value: Any, expected: float | None) -> None:
    assert parsed_moment(value) == expected


@pytest.mark.parametrize(
    "value",
    ["", "tomorrow", "2030-01-31", "2030-01-31T12:00:00", "2030-13-31T12:00:00Z", -1, 1e18, True, [], "9" * 400],
)
async def test_a_bad_time_is_refused(keys: Keys, value: Any) -> None:
    """Case 33 of the reference."""
    with pytest.raises(InvalidRequest) as refused:
        await made(keys, expires_at=value)
    assert (refused.value.status, refused.value.param) == (400, "expires_at")


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": " "},
        {"name": "a\nb"},
        {"name": "x" * 65},
        {"name": 5},
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": "inference"},
        {"scopes": [["inference"]]},
        {"models": "x"},
        {"models": [""]},
        {"models": ["x"] * 65},
        {"models": ["x" * 257]},
        {"requests_per_minute": 0},
        {"requests_per_minute": True},
        {"tokens_per_minute": 1.5},
        {"tokens_per_day": -1},
        {"tokens_per_day": 10**13},
        {"recording": "some"},
        {"recording": {}},
    ],
)
async def test_what_a_key_cannot_be_is_refused_by_name(keys: Keys, book: MemoryBook, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await made(keys, **fields)
    assert (refused.value.param or "").split("[")[0] in fields
    assert book.rows == {}


async def test_limits_are_changed_and_taken_away(keys: Keys) -> None:
    answer = await made(keys, requests_per_minute=5, tokens_per_day=1000)
    changed = await keys.change(answer["id"], {"requests_per_minute": 7, "tokens_per_day": None}, ADMIN)
    assert (changed["requests_per_minute"], changed["tokens_per_day"], changed["name"]) == (7, None, "scripts")
    found = keys.find(answer["id"])
    assert found is not None and found.quota == Quota(requests_per_minute=7)
    assert keys.of_secret(answer["key"]) is not None


async def test_a_key_is_called_by_id_prefix_or_a_name_that_one_alone_has(keys: Keys) -> None:
    one = await made(keys, name="one")
    two = await made(keys, name="two")
    await made(keys, name="two")
    assert keys.found("one")["id"] == keys.found(one["id"])["id"] == keys.found(one["prefix"])["id"] == one["id"]
    with pytest.raises(InvalidRequest, match="2 keys are called that"):
        keys.found("two")
    assert keys.found(two["id"])["name"] == "two"
    with pytest.raises(NoSuchAccount):
        keys.found("three")


@pytest.mark.parametrize("scope", ["admin", "admin:read"])
async def test_only_a_person_makes_changes_or_deletes_keys_of_administrators(keys: Keys, scope: str) -> None:
    """A key that leaked must not be able to make itself permanent."""
    for person in (ADMIN, PERSON):
        assert (await keys.create({"name": "robot", "scopes": [scope]}, person))["scopes"] == [scope]
    robots = keys.listed()
    with pytest.raises(NotAllowed):
        await keys.create({"name": "another", "scopes": ["inference", scope]}, ADMIN_KEY)
    with pytest.raises(NotAllowed):
        await keys.change(robots[0]["id"], {"expires_at": None}, ADMIN_KEY)
    with pytest.raises(NotAllowed):
        await keys.delete(robots[0]["id"], ADMIN_KEY)
    plain = await keys.create({"name": "plain"}, ADMIN_KEY)
    with pytest.raises(NotAllowed):
        await keys.change(plain["id"], {"scopes": [scope]}, ADMIN_KEY)
    await keys.delete(plain["id"], ADMIN_KEY)
    assert keys.listed() == robots


async def test_a_key_of_which_a_part_has_not_arrived_yet_is_none(keys: Keys, book: MemoryBook) -> None:
    """Its fields are rows of their own: without its models it would be for all of them."""
    answer = await made(keys, models=["hf/qwen/*"], tokens_per_day=5)
    whole = book.rows[KEY + answer["id"]]
    for field in whole:
        if field in ("created_at", "created_by"):
            continue
        book.rows[KEY + answer["id"]] = {name: value for name, value in whole.items() if name != field}
        assert keys.of_secret(answer["key"]) is None, field
    book.rows[KEY + answer["id"]] = whole
    assert keys.of_secret(answer["key"]) is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", 5),
        ("scopes", "admin"),
        ("models", {}),
        ("expires_at", "soon"),
        ("tokens_per_day", "1"),
        ("name", None),
    ],
)
async def test_garbage_in_the_map_is_no_key_rather_than_a_less_limited_one(
    keys: Keys, book: MemoryBook, field: str, value: Any
) -> None:
    answer = await made(keys)
    book.rows[KEY + answer["id"]][field] = value
    assert keys.of_secret(answer["key"]) is None
    assert keys.listed() == []


async def test_what_a_newer_peer_knows_of_a_key_is_left_out(keys: Keys, book: MemoryBook) -> None:
    answer = await made(keys, scopes=["inference", "metrics"])
    book.rows[KEY + answer["id"]] |= {"scopes": ["inference", "telepathy"], "recording": "in stone", "colour": "red"}
    found = keys.of_secret(answer["key"])
    assert found is not None and found.scopes == {"inference"} and found.recording is None


async def test_the_first_key_is_made_once_and_may_use_clouds(keys: Keys) -> None:
    secret = await keys.ensure_first()
    assert secret is not None
    found = keys.of_secret(secret)
    assert found is not None and found.key_name == "first key"
    assert found.scopes == {"inference", "cloud"}
    assert await keys.ensure_first() is None
    await keys.delete("first key", ADMIN)
    assert await keys.ensure_first() is None


def test_scopes_are_the_guards_own() -> None:
    assert set(SCOPES) == SCOPES_OF_GUARDS
