"""What a machine that means harm tries from inside the mesh: it came by the open door, or is a guest, or was put out.

Until a mesh is claimed whoever comes by its door counts as a full member, but it cannot revoke anybody and gets at no
cloud of another machine. So it must not make itself an administrator either, who could do both: not by rows of the
admin map, not by sessions that it signs, not by callers that it makes up.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gossip.codec import pack
from gossip.roster import Roster
from mesh.accounts.accounts import Accounts
from mesh.accounts.book import CLAIMED, KEY, USER
from mesh.accounts.errors import BadLogin, NotAllowed, TooManyTries
from mesh.accounts.limits import KeyUse, Use
from mesh.accounts.passwords import Passwords
from mesh.accounts.sessions import Sessions
from mesh.admin.admin import Admin
from mesh.admin.clock import NEVER, Clock
from mesh.admin.rows import ENDED, Row, signed, written
from mesh.adopted.agents import Agents
from mesh.history import query
from mesh.history.export import cell
from mesh.history.query import HistoryQuery
from mesh.history.store import HistoryStore
from mesh.secret import Secret
from tests.fixtures.peer import Peer, until
from tests.fixtures.peer_accounts import NOW, PASSWORD, PERSON, peer_accounts
from tests.fixtures.recorded import ATTIC, NOW_MS, end, mesh_of, start
from tests.mesh.admin.house import EPOCH_MS, MemoryStore, who
from web.errors import HttpRefusal
from web.services import Caller

LAN = Caller(ip="10.0.0.9")
SECRET = f"sk-mesh-{'a' * 8}-{'b' * 43}"


def by_the_door(*names: str) -> Roster:
    """ "a" founded the mesh, the others came in by its open door."""
    roster = Roster.found(who("a"), "a", 1)
    for name in names:
        roster = roster.admit(who("a"), who(name).certificate_der, name, "door", "active", 2)
    return roster


class Machine:
    """The admin map and the accounts of one peer. `roster` is what it knows of the mesh."""

    def __init__(self, name: str, roster: Roster, folder: Path) -> None:
        self.name = name
        self.roster = roster
        self.folder = folder
        self.claimed: list[Any] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Machine]:
        self.admin = Admin(
            identity=who(self.name),
            roster=lambda: self.roster,
            store=MemoryStore(),
            is_coordinator=lambda: self.name == "a",
            now_ms=lambda: EPOCH_MS,
        )
        await self.admin.start()
        self.accounts: Accounts = peer_accounts(
            self.folder, book=self.admin, identity=who(self.name), roster=lambda: self.roster, claimed=self.claimed
        )
        async with self.accounts:
            yield self
        await self.admin.close()

    async def hears(self, *rows: Row) -> int:
        """How many of them it took in."""
        return (await self.admin.replica.take([written(row) for row in rows], "")).accepted


def rows_by(name: str, mesh: Roster, key: str, fields: Mapping[str, Any], at_ms: int = EPOCH_MS) -> list[Row]:
    """What that machine signs, whatever its own program would let it."""
    return [
        signed(
            who(name),
            mesh.mesh_id,
            key=key,
            field=field,
            value=json.dumps(value).encode(),
            clock=Clock(at_ms, 0),
            over=NEVER,
        )
        for field, value in fields.items()
    ]


@pytest.fixture
async def attic(tmp_path: Path) -> AsyncIterator[Machine]:
    """The machine that founded the mesh, into which "d" came by the door."""
    async with Machine("a", by_the_door("d"), tmp_path).running() as machine:
        yield machine


async def forged_admin() -> dict[str, Any]:
    passwords = Passwords()
    password_hash = await passwords.hashed(PASSWORD)
    passwords.close()
    return {
        "username": "mallory",
        "role": "admin",
        "password_hash": password_hash,
        "epoch": 1,
        "created_at": 1.0,
        "created_by": "x",
    }


def forged_key(*scopes: str) -> dict[str, Any]:
    limits = {"requests_per_minute": None, "tokens_per_minute": None, "tokens_per_day": None}
    return limits | {
        "name": "x",
        "scopes": list(scopes),
        "models": [],
        "expires_at": None,
        "recording": None,
        "sha256": hashlib.sha256(SECRET.encode()).hexdigest(),
        "created_at": 1.0,
        "created_by": "x",
    }


# -- rows


async def test_an_administrator_made_by_a_machine_that_nobody_confirmed_is_none(attic: Machine) -> None:
    assert await attic.hears(*rows_by("d", attic.roster, f"{USER}u1", await forged_admin())) == 6
    with pytest.raises(BadLogin):
        await attic.accounts.login("mallory", PASSWORD, LAN)
    assert attic.accounts.users.all() == [] and attic.accounts.claim.needed()
    assert attic.accounts.claim.link("http://x") is not None  # the set-up is still there for who reads the terminal


async def test_once_the_machine_is_confirmed_what_it_wrote_counts(attic: Machine) -> None:
    await attic.hears(*rows_by("d", attic.roster, f"{USER}u1", await forged_admin()))
    attic.roster = attic.roster.trust(who("a"), who("d").peer_id, 3)
    assert [user.username for user in attic.accounts.users.all()] == ["mallory"]


async def test_a_key_of_a_machine_that_nobody_confirmed_is_for_inference_alone(attic: Machine) -> None:
    await attic.hears(*rows_by("d", attic.roster, f"{KEY}aaaaaaaa", forged_key("inference", "cloud", "admin")))
    found = attic.accounts.keys.of_secret(SECRET)
    assert found is not None and found.scopes == {"inference"}
    attic.roster = attic.roster.trust(who("a"), who("d").peer_id, 3)
    found = attic.accounts.keys.of_secret(SECRET)
    assert found is not None and found.scopes == {"inference", "cloud", "admin"}


async def test_who_puts_its_own_secret_into_an_administrators_key_has_no_administrators_key(attic: Machine) -> None:
    made = await attic.accounts.keys.create({"name": "ops", "scopes": ["admin"]}, PERSON)
    stolen = f"sk-mesh-{made['id']}-{'b' * 43}"
    sha256 = hashlib.sha256(stolen.encode()).hexdigest()
    assert await attic.hears(*rows_by("d", attic.roster, KEY + made["id"], {"sha256": sha256}, EPOCH_MS + 1000)) == 1
    found = attic.accounts.keys.of_secret(stolen)
    assert found is None or found.scopes == set()


async def test_who_marks_the_mesh_as_claimed_keeps_no_administrator_from_being_made(attic: Machine) -> None:
    await attic.hears(*rows_by("d", attic.roster, CLAIMED, {"at": 1.0}))
    assert await attic.accounts.claim.first_admin("anna", Secret(PASSWORD))


async def test_a_machine_that_nobody_confirmed_says_so_where_it_may_not(tmp_path: Path) -> None:
    async with Machine("d", by_the_door("d"), tmp_path).running() as door:
        with pytest.raises(NotAllowed, match="open door"):
            await door.accounts.create_user({"username": "bob", "password": PASSWORD, "role": "admin"}, PERSON)
        for scope in ("admin", "admin:read", "cloud", "metrics"):
            with pytest.raises(NotAllowed, match="open door"):
                await door.accounts.keys.create({"name": "x", "scopes": ["inference", scope]}, PERSON)
        made = await door.accounts.keys.create({"name": "x"}, PERSON)
        found = door.accounts.keys.of_secret(made["key"])
        assert found is not None and found.scopes == {"inference"}


# -- sessions


async def test_nobody_is_logged_in_by_a_machine_that_nobody_confirmed(attic: Machine) -> None:
    made = await attic.accounts.users.create({"username": "anna", "password": PASSWORD, "role": "admin"}, PERSON)
    user = attic.accounts.users.find(made["id"])
    assert user is not None
    trusted = by_the_door("d").trust(who("a"), who("d").peer_id, 3)
    forger = Sessions(
        identity=who("d"),
        roster=lambda: trusted,
        is_over=lambda key: False,
        user=lambda user_id: user.brief(),
        epoch=lambda user_id: user.epoch,
        jwt_secret=None,
        now_s=attic.accounts.sessions._now_s,
    )
    token = forger.issue(user.id, "anna", "admin").token
    assert attic.accounts.sessions.of(token) is None
    attic.roster = attic.roster.trust(who("a"), who("d").peer_id, 3)
    assert attic.accounts.sessions.of(token) is not None


# -- claiming


async def test_the_first_administrator_claims_the_mesh_however_it_is_made(attic: Machine) -> None:
    await attic.accounts.create_user({"username": "vera", "password": PASSWORD, "role": "viewer"}, PERSON)
    assert attic.claimed == []
    await attic.accounts.create_user({"username": "anna", "password": PASSWORD, "role": "admin"}, PERSON)
    assert attic.claimed == [frozenset()] and not attic.accounts.claim.needed()
    await attic.accounts.create_user({"username": "otto", "password": PASSWORD, "role": "admin"}, PERSON)
    assert attic.claimed == [frozenset()]


async def test_a_viewer_who_becomes_the_first_administrator_claims_the_mesh(attic: Machine) -> None:
    await attic.accounts.create_user({"username": "vera", "password": PASSWORD}, PERSON)
    await attic.accounts.change_user("vera", {"role": "admin"}, PERSON)
    assert attic.claimed == [frozenset()]


async def test_a_crash_after_the_first_administrator_leaves_no_mesh_that_is_not_claimed(tmp_path: Path) -> None:
    async with Machine("a", by_the_door("d"), tmp_path).running() as machine:
        await machine.accounts.users.create({"username": "anna", "password": PASSWORD, "role": "admin"}, PERSON)
        await machine.accounts.claim.start()
        assert machine.claimed == [frozenset()] and machine.admin.get(CLAIMED) is not None


# -- what stays when the machine goes


@pytest.mark.parametrize("how", ["guest", "revoked"])
async def test_what_a_machine_wrote_that_nobody_wanted_goes_with_it(attic: Machine, how: str) -> None:
    mesh = attic.roster
    await attic.accounts.keys.create({"name": "ours"}, PERSON)
    await attic.hears(*rows_by("d", mesh, f"{USER}u1", await forged_admin()))
    await attic.hears(*rows_by("d", mesh, f"{KEY}aaaaaaaa", forged_key("admin")))
    await attic.hears(*rows_by("d", mesh, "setting/history_days", {"value": "1"}))
    await attic.hears(*rows_by("d", mesh, f"{KEY}cccccccc", {ENDED: "over"}))
    away = mesh.demote if how == "guest" else mesh.revoke
    attic.roster = away(who("a"), who("d").peer_id, 4)
    await attic.admin.replica.tend()
    assert {row.author for row in attic.admin.replica.map.all_rows()} == {who("a").peer_id}
    assert [key.name for key in attic.accounts.keys.all()] == ["ours"] and attic.accounts.users.all() == []
    assert attic.admin.get("setting/history_days") is None and not attic.admin.is_ended(f"{KEY}cccccccc")
    attic.roster = attic.roster.trust(who("a"), who("d").peer_id, 5) if how == "guest" else attic.roster
    assert attic.accounts.keys.of_secret(SECRET) is None


async def test_what_a_machine_wrote_that_left_by_itself_stays_but_for_users_and_keys(attic: Machine) -> None:
    mesh = attic.roster
    await attic.hears(*rows_by("d", mesh, f"{KEY}aaaaaaaa", forged_key("admin")))
    await attic.hears(*rows_by("d", mesh, "setting/history_days", {"value": "9"}))
    attic.roster = mesh.revoke(who("d"), who("d").peer_id, 4)
    await attic.admin.replica.tend()
    assert attic.admin.get("setting/history_days") == {"value": "9"}
    assert attic.accounts.keys.of_secret(SECRET) is None


async def test_what_a_confirmed_machine_wrote_stays_when_it_is_put_out(attic: Machine) -> None:
    attic.roster = attic.roster.trust(who("a"), who("d").peer_id, 3)
    await attic.hears(*rows_by("d", attic.roster, f"{KEY}aaaaaaaa", forged_key("metrics")))
    attic.roster = attic.roster.revoke(who("a"), who("d").peer_id, 4)
    await attic.admin.replica.tend()
    found = attic.accounts.keys.of_secret(SECRET)
    assert found is not None and found.scopes == {"metrics"}
    assert {row.author for row in attic.admin.replica.map.all_rows()} == {who("a").peer_id}


# -- replay


async def test_a_row_of_another_mesh_is_no_row_of_this_one(attic: Machine) -> None:
    """Also when the very same machines are in both."""
    other = Roster.found(who("a"), "a", 99)
    assert other.mesh_id != attic.roster.mesh_id
    assert await attic.hears(*rows_by("a", other, f"{USER}u1", await forged_admin())) == 0


async def test_an_ending_that_was_captured_ends_nothing_again(attic: Machine) -> None:
    """A row that was replaced comes again: nothing changes. An ended key does not come to life by its old rows."""
    made = await attic.accounts.keys.create({"name": "x"}, PERSON)
    old = list(attic.admin.replica.map.fields(KEY + made["id"]).values())
    await attic.accounts.keys.delete(made["id"], PERSON)
    assert await attic.hears(*old) == 0
    found = attic.accounts.keys.of_secret(made["key"])
    assert found is not None and found.refusal is not None


# -- what whoever may look makes this machine do


async def test_a_search_that_is_made_to_be_slow_ends_in_time_and_says_how_far_it_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long texts of one letter, and a search for nearly the same: a second for each body, and 4,096 to a piece."""
    monkeypatch.setattr(query, "SEARCH_S", 0.2)
    store = await HistoryStore.open(tmp_path / "router.db", ATTIC)
    for number in range(12):
        await store.append([start(str(number), NOW_MS - number, "a" * 500_000), end(str(number), NOW_MS)])
    history = HistoryQuery(store, mesh_of(store), now_ms=lambda: NOW_MS)
    answer = await history.records({"q": "a" * 999 + "b"})
    assert (answer["records"], answer["total_count"]) == ([], 0)
    assert answer["searched_back_to"].startswith("20")
    assert (await history.records({}))["total_count"] == 12  # its place is free again
    await store.close()


def forged_server(via: str, host: str = "127.0.0.1", port: int = 11434) -> dict[str, Any]:
    return {
        "machine_name": "x",
        "ip_address": host,
        "runtime_port": port,
        "scheme": "http",
        "host": host,
        "port": port,
        "address": host,
        "registered_at": 1.0,
        "token_hash": "0" * 64,
        "via": via,
        "models": [["m", "m", False]],
    }


async def test_nobody_makes_another_machine_knock_at_its_own_ports(attic: Machine) -> None:
    """What listens on loopback only, as Ollama does, and the peer itself, which asks no key of its own machine."""
    a, d = who("a").peer_id, who("d").peer_id
    agents = Agents(me=a, admin=attic.admin, coordinator=lambda: a)
    server = "agent/3f2504e0-4f89-41d3-9a0c-0305e82c3301"
    await attic.hears(*rows_by("d", attic.roster, server, forged_server(via=a)))
    assert list(agents) == []
    ours = server[:-1] + "2"
    await attic.admin.put(ours, forged_server(via=a))
    assert [agent.port for agent in agents] == [11434]
    await attic.hears(*rows_by("d", attic.roster, ours, {"custom_name": "loft"}, EPOCH_MS + 1000))
    assert [agent.name for agent in agents] == ["loft"]  # what it is called anybody may say
    await attic.hears(*rows_by("d", attic.roster, ours, {"port": 8080}, EPOCH_MS + 1000))
    assert list(agents) == []
    theirs = server[:-1] + "3"
    await attic.hears(*rows_by("d", attic.roster, theirs, forged_server(via=d)))
    assert [agent.via for agent in agents] == [d]  # its own loopback is its own business


async def test_who_guesses_a_password_keeps_nobody_out_who_was_in_from_where_he_is(attic: Machine) -> None:
    accounts = attic.accounts
    await accounts.users.create({"username": "anna", "password": PASSWORD, "role": "admin"}, PERSON)
    await accounts.login("anna", PASSWORD, LAN)
    for ip in ("10.0.0.66", "10.0.0.67"):
        for _ in range(6):
            with pytest.raises((BadLogin, TooManyTries)):
                await accounts.login("ANNA", "wrong password", Caller(ip=ip))
    with pytest.raises(TooManyTries):
        await accounts.login("anna", PASSWORD, Caller(ip="10.0.0.68"))
    await accounts.login("Anna", PASSWORD, LAN)
    for _ in range(5):  # and yet who sits there has five tries like everybody else
        with pytest.raises(BadLogin):
            await accounts.login("anna", "wrong password", LAN)
    with pytest.raises(TooManyTries):
        await accounts.login("anna", PASSWORD, LAN)


async def test_what_a_machine_told_of_the_limits_limits_nobody_once_it_is_out(attic: Machine) -> None:
    """A guest may say that a key's tokens are used up: until somebody puts it out."""
    accounts = attic.accounts
    made = await accounts.keys.create({"name": "x", "tokens_per_day": 1000, "requests_per_minute": 9}, PERSON)
    caller = Caller(ip="10.0.0.9", key_id=made["id"])
    told = KeyUse(key_id=made["id"], requests=10**6, tokens=10**9, day_tokens=10**9, idle_s=0)
    accounts.used_in("d", pack(Use(day=int(NOW // 86_400), keys=(told,))))
    with pytest.raises(HttpRefusal):
        await accounts.spend(caller, 1)
    accounts.left("d")
    await accounts.spend(caller, 1)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_no_name_of_a_model_is_a_formula_in_whatever_way_a_spreadsheet_reads_the_file(separator: str) -> None:
    """Excel takes the separator of its country, and then a quote in the midst of a line means nothing."""
    names = ["=1+1", "a;=1+1;b", "a\t@SUM(A1)\tb", "a\n=1+1", "a\r\n+1", "x;-1", '";=1+1;"', "＝1", "a;＝1;"]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["id", cell(name), cell(json.loads(json.dumps({"q": name})))] for name in names])
    lines = csv.reader(io.StringIO(file.getvalue(), newline=""), delimiter=separator)
    naive = [part for line in file.getvalue().splitlines() for part in line.split(separator)]
    for text in [*(part for line in lines for part in line), *naive]:
        assert not text.strip('"').startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")), text


# -- secrets


def test_no_secret_is_in_anything_that_a_peer_writes_or_tells(tmp_path: Path) -> None:
    """Planted values, as a peer of a person meets them; then everything is searched for them."""
    planted = {
        "password": "canary-of-a-password",
        "cloud": "sk-canary0cloud0canary0cloud0canary",
        "secret of logins": "canary-of-a-secret-for-all-the-logins",
        "typed into the wrong field": "canary-typed-as-a-name",
        "guessed": "canary-guessed-password",
    }
    env = {
        "LLM_ROUTER_ADMIN_PASSWORD": planted["password"],
        "OPENAI_API_KEY": planted["cloud"],
        "LLM_ROUTER_JWT_SECRET": planted["secret of logins"],
        "LLM_ROUTER_LOG_LEVEL": "debug",
        "LLM_NODE_LOG_LEVEL": "debug",
        "LLM_ROUTER_WORKER": "tests.fixtures.fake_worker --slots 2",
    }
    with Peer.started(tmp_path / "attic" / "data", "--name", "attic", env=env) as peer:
        until(lambda: not peer.get("/api/auth/setup").json["needed"], "an administrator")
        control = {"Authorization": f"Bearer {peer.control['token']}"}

        def ask(method: str, path: str, body: Any = None, headers: Mapping[str, str] = control) -> Any:
            data = None if body is None else json.dumps(body).encode()
            return peer.request(method, path, data, headers=headers)

        planted["key"] = ask("POST", "/api/api-keys", {"name": "x", "scopes": ["admin", "inference"]}).json["key"]
        login = ask("POST", "/api/auth/login", {"username": "admin", "password": planted["password"], "token": True})
        planted["login"], planted["csrf"] = login.json["token"], login.json["csrf"]
        for name in (planted["typed into the wrong field"], "admin"):
            ask("POST", "/api/auth/login", {"username": name, "password": planted["guessed"]}, headers={})
        ask("POST", "/api/auth/setup", {"code": planted["guessed"], "username": "x", "password": planted["guessed"]})
        planted["token of a server"] = f"agt_{'canary0' * 7}"
        text = " and ".join(value for name, value in planted.items() if name != "csrf")
        for headers in (control, {"Authorization": f"Bearer {planted['key']}"}, {"x-api-key": planted["key"] + "x"}):
            for model in ("hello", planted["key"], planted["cloud"]):
                asked = {"model": model, "messages": [{"role": "user", "content": text}], "user": planted["login"]}
                ask("POST", "/v1/chat/completions", asked, headers=headers)
        ask("POST", "/api/mesh/invite", {})
        ask("GET", "/api/users", headers={"Authorization": f"Bearer {planted['login']}"})
        ask("GET", f"/api/dashboard/request-responses?q={planted['key']}")
        told = b"\n".join(
            ask("GET", path).body
            for path in (
                "/metrics",
                "/api/status",
                "/api/users",
                "/api/api-keys",
                "/api/audit?per_page=100",
                "/api/logs?limit=1000",
                "/api/dashboard/request-responses?bodies=true&per_page=100",
                "/api/dashboard/request-responses/export?format=csv&bodies=true",
                "/api/dashboard/overview",
                "/api/settings",
                "/api/mesh",
                "/api/mesh/identity",
            )
        )
        planted["control token"] = peer.control["token"]
    data = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "control.json"}
    # Nobody can know that words in a prompt are somebody's password, unless it is one of this machine's own.
    prompted = {"typed into the wrong field", "guessed"}
    for name, value in planted.items():
        files = [path for path, content in data.items() if value.encode() in content]
        assert not [path for path in files if path.suffix in (".jsonl", ".out", ".err")], (name, files)
        assert name in prompted or (not files and value.encode() not in told), (name, files)
