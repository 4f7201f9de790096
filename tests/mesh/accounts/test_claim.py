"""Who owns a new mesh: whoever reads the terminal, once; nobody else, and never a mesh that is half claimed."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inference.errors import InferenceError, InvalidRequest, ModelUnavailable
from mesh.accounts.claim import FILE, Claim
from mesh.accounts.errors import AlreadyClaimed, TooManyTries, WrongCode
from mesh.errors import SettingError
from mesh.secret import Secret

posix_only = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
URL = "http://127.0.0.1:8080"
LAN = "192.168.1.50"
PEERS = {"id-tower": "tower-peer", "tower": "tower-peer", "id-cellar": "cellar-peer"}
Step = Callable[[], None]


class Crash(BaseException):
    """The process ends here."""


class NoSuchPeer(InferenceError):
    status = 404


@dataclass
class Mesh:
    """The admin map and the roster as the claim sees them, and what was done to them in order."""

    folder: Path
    users: list[dict[str, Any]] = field(default_factory=list)
    is_marked: bool = False
    claimed_with: frozenset[str] | None = None
    done: list[str] = field(default_factory=list)
    before: dict[str, Step] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    now: float = 1000.0

    async def step(self, name: str) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self.before.pop(name, lambda: None)()
        self.done.append(name)

    def check(self, username: str, password: str) -> None:
        if len(password) < 8:
            raise InvalidRequest("a password has at least 8 characters", param="password")
        if not username:
            raise InvalidRequest("a name has at least a letter", param="username")

    async def create(self, username: str, password: str) -> Mapping[str, Any]:
        await self.step("admin")
        self.users.append({"id": "u1", "username": username, "role": "admin"})
        return self.users[-1]

    async def claim(self, confirmed: frozenset[str]) -> None:
        await self.step("mesh")
        self.claimed_with = confirmed

    async def mark(self) -> None:
        await self.step("mark")
        self.is_marked = True

    def peer_of(self, who: str) -> str:
        if who not in PEERS:
            raise NoSuchPeer(f"no machine is called {who}")
        return PEERS[who]

    def start(self) -> Claim:
        return Claim(
            folder=self.folder,
            has_admin=lambda: bool(self.users),
            was_claimed=lambda: self.is_marked,
            mark_claimed=self.mark,
            check_admin=self.check,
            create_admin=self.create,
            claim_mesh=self.claim,
            unconfirmed=lambda: [{"id": "id-tower", "name": "tower"}, {"id": "id-cellar", "name": "cellar"}],
            peer_of=self.peer_of,
            now_s=lambda: self.now,
        )


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path)


def code_of(claim: Claim) -> str:
    link = claim.link(URL)
    assert link is not None
    before, _, code = link.partition("#setup=")
    assert before == f"{URL}/dashboard"
    return code


def body(claim_or_code: Claim | str, **more: Any) -> dict[str, Any]:
    code = claim_or_code if isinstance(claim_or_code, str) else code_of(claim_or_code)
    return {"code": code, "username": "anna", "password": "a long password"} | more


async def started(mesh: Mesh) -> Claim:
    claim = mesh.start()
    await claim.start()
    return claim


# -- the code


async def test_a_new_mesh_has_a_link_whose_code_nobody_guesses(mesh: Mesh) -> None:
    """F22: no password set: a one-time setup link is printed."""
    codes = set()
    for _ in range(50):
        codes.add(code_of(await started(mesh)))
        (mesh.folder / FILE).unlink()
    assert len(codes) == 50
    assert {len(code) for code in codes} == {32}, "192 bits"


async def test_a_restart_shows_the_same_link(mesh: Mesh) -> None:
    first = code_of(await started(mesh))
    assert code_of(await started(mesh)) == first


@posix_only
async def test_the_file_is_its_owners_only(mesh: Mesh) -> None:
    before = os.umask(0)
    try:
        await started(mesh)
    finally:
        os.umask(before)
    assert stat.S_IMODE((mesh.folder / FILE).stat().st_mode) == 0o600


@posix_only
async def test_a_code_that_others_may_have_read_is_replaced(mesh: Mesh) -> None:
    first = code_of(await started(mesh))
    (mesh.folder / FILE).chmod(0o644)
    again = await started(mesh)
    assert code_of(again) != first
    with pytest.raises(WrongCode):
        again.check(first, LAN)
    assert stat.S_IMODE((mesh.folder / FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "\n", "short", "a" * 33, "é" * 32, "a" * 31 + "#", "\x00" * 32])
async def test_a_damaged_file_is_replaced(mesh: Mesh, text: str) -> None:
    (mesh.folder / FILE).write_text(text, encoding="utf-8")
    (mesh.folder / FILE).chmod(0o600)
    code = code_of(await started(mesh))
    assert code != text and len(code) == 32


async def test_the_code_is_in_no_log(mesh: Mesh, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        claim = await started(mesh)
        code = code_of(claim)
        with pytest.raises(WrongCode):
            claim.check("wrong", LAN)
        await claim.claim(body(code), LAN)
    assert code not in str([vars(record) for record in caplog.records])


async def test_an_administrator_made_elsewhere_ends_the_code_here(mesh: Mesh) -> None:
    claim = await started(mesh)
    code = code_of(claim)
    claim.changed(frozenset({"setting/x"}))
    assert code_of(claim) == code
    mesh.users.append({"role": "admin"})
    claim.changed(frozenset({"user/u1"}))
    assert claim.link(URL) is None
    assert not (mesh.folder / FILE).exists()
    with pytest.raises(AlreadyClaimed):
        claim.check(code, LAN)


async def test_a_mesh_with_an_administrator_has_no_code_at_a_start_and_one_that_was_left_behind_goes(
    mesh: Mesh,
) -> None:
    await started(mesh)
    mesh.users.append({"role": "admin"})
    claim = await started(mesh)
    assert (claim.link(URL), claim.needed()) == (None, False)
    assert not (mesh.folder / FILE).exists()
    assert mesh.is_marked


async def test_an_administrator_that_arrives_while_the_code_is_written_wins(mesh: Mesh) -> None:
    claim = mesh.start()
    starting = asyncio.create_task(claim.start())
    await asyncio.sleep(0)
    mesh.users.append({"role": "admin"})
    await starting
    assert claim.link(URL) is None
    assert not (mesh.folder / FILE).exists()


# -- who may


async def test_whoever_has_no_code_owns_nothing(mesh: Mesh) -> None:
    claim = await started(mesh)
    code = code_of(claim)
    wrong: list[dict[str, Any]] = [
        {"code": ""},
        {"code": None},
        {"code": code[:-1]},
        {"code": code.swapcase()},
    ]
    for number, change in enumerate(wrong):
        with pytest.raises(WrongCode) as error:
            await claim.claim(body(claim) | change, f"192.168.1.{number}")
        assert error.value.status == 403
        assert code not in error.value.message
    with pytest.raises(WrongCode):
        claim.check("\ud800", LAN)
    assert (mesh.done, claim.needed()) == ([], True)


async def test_before_the_code_is_there_none_is_right(mesh: Mesh) -> None:
    claim = mesh.start()
    with pytest.raises(WrongCode):
        claim.check("", LAN)
    assert claim.link(URL) is None


async def test_five_wrong_codes_a_minute_and_then_not_even_the_right_one(mesh: Mesh) -> None:
    claim = await started(mesh)
    for _ in range(5):
        with pytest.raises(WrongCode):
            claim.check("wrong", LAN)
    for code in ("wrong", code_of(claim)):
        with pytest.raises(TooManyTries) as error:
            claim.check(code, LAN)
        assert (error.value.status, error.value.retry_after_s) == (429, 60)
    claim.check(code_of(claim), "192.168.1.51")
    mesh.now += 60
    claim.check(code_of(claim), LAN)


async def test_right_codes_are_not_counted(mesh: Mesh) -> None:
    claim = await started(mesh)
    for _ in range(20):
        claim.check(code_of(claim), LAN)
        with pytest.raises(InvalidRequest):
            await claim.claim(body(claim, password="short"), LAN)


# -- what it does


@pytest.mark.parametrize(
    ("confirm", "confirmed"),
    [
        ({}, frozenset[str]()),
        ({"confirm": []}, frozenset[str]()),
        ({"confirm": None}, frozenset[str]()),
        ({"confirm": "all"}, frozenset({"tower-peer", "cellar-peer"})),
        ({"confirm": ["id-tower"]}, frozenset({"tower-peer"})),
        ({"confirm": ["tower", "id-cellar"]}, frozenset({"tower-peer", "cellar-peer"})),
    ],
)
async def test_the_claim_makes_the_admin_and_confirms_only_the_machines_that_were_named(
    mesh: Mesh, confirm: dict[str, Any], confirmed: frozenset[str]
) -> None:
    claim = await started(mesh)
    assert claim.setup() == {
        "needed": True,
        "machines": [{"id": "id-tower", "name": "tower"}, {"id": "id-cellar", "name": "cellar"}],
    }
    user = await claim.claim(body(claim, **confirm), LAN)
    assert user["username"] == "anna"
    assert mesh.done == ["mesh", "admin", "mark"]
    assert mesh.claimed_with == confirmed
    assert claim.setup() == {"needed": False, "machines": []}
    assert not (mesh.folder / FILE).exists()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"username": None}, 400),
        ({"password": None}, 400),
        ({"password": "short"}, 400),
        ({"password": 7}, 400),
        ({"password": "a" * 5000}, 400),
        ({"username": ["anna"]}, 400),
        ({"code": 7}, 400),
        ({"confirm": "tower"}, 400),
        ({"confirm": [7]}, 400),
        ({"confirm": ["tower"] * 2000}, 400),
        ({"confirm": {"tower": True}}, 400),
        ({"confirm": ["attic"]}, 404),
    ],
)
async def test_what_cannot_be_is_told_before_anything_is_done(mesh: Mesh, change: dict[str, Any], status: int) -> None:
    claim = await started(mesh)
    with pytest.raises(InferenceError) as error:
        await claim.claim(body(claim) | change, LAN)
    assert error.value.status == status
    assert mesh.done == []
    await claim.claim(body(claim), LAN)


async def test_of_two_claims_at_once_the_second_is_told(mesh: Mesh) -> None:
    claim = await started(mesh)
    mesh.gate = asyncio.Event()
    both = [
        asyncio.create_task(claim.claim(body(claim, username=name), f"192.168.1.{at}"))
        for at, name in enumerate(["anna", "ben"])
    ]
    await asyncio.sleep(0)
    mesh.gate.set()
    first, second = await asyncio.gather(*both, return_exceptions=True)
    assert isinstance(first, dict) and first["username"] == "anna"
    assert isinstance(second, AlreadyClaimed) and second.status == 409
    assert mesh.done == ["mesh", "admin", "mark"]


async def test_after_a_claim_that_failed_the_waiting_one_goes_on(mesh: Mesh) -> None:
    claim = await started(mesh)
    mesh.gate = asyncio.Event()
    mesh.before["admin"] = raising(ModelUnavailable("the disk is full"))
    both = [
        asyncio.create_task(claim.claim(body(claim, username=name), f"192.168.1.{at}"))
        for at, name in enumerate(["anna", "ben"])
    ]
    await asyncio.sleep(0)
    mesh.gate.set()
    first, second = await asyncio.gather(*both, return_exceptions=True)
    assert isinstance(first, ModelUnavailable)
    assert isinstance(second, dict) and second["username"] == "ben"


async def test_a_machine_that_may_not_claim_says_so_and_makes_no_admin(mesh: Mesh) -> None:
    claim = await started(mesh)
    mesh.before["mesh"] = raising(NoSuchPeer("this machine itself came by the door; claim the mesh on attic"))
    with pytest.raises(NoSuchPeer, match="on attic"):
        await claim.claim(body(claim), LAN)
    assert (mesh.users, mesh.done) == ([], [])


@pytest.mark.parametrize("at", ["mesh", "admin"])
async def test_after_a_crash_before_the_admin_was_made_the_same_link_finishes_the_work(mesh: Mesh, at: str) -> None:
    claim = await started(mesh)
    code = code_of(claim)
    mesh.before[at] = raising(Crash())
    with pytest.raises(Crash):
        await claim.claim(body(code, confirm=["tower"]), LAN)
    again = await started(mesh)
    assert code_of(again) == code
    await again.claim(body(code, confirm=["tower"]), LAN)
    assert mesh.claimed_with == frozenset({"tower-peer"})
    assert (len(mesh.users), mesh.is_marked, again.needed()) == (1, True, False)


async def test_after_a_crash_once_the_admin_was_made_the_link_is_over_and_the_start_does_the_rest(mesh: Mesh) -> None:
    claim = await started(mesh)
    mesh.before["mark"] = raising(Crash())
    with pytest.raises(Crash):
        await claim.claim(body(claim), LAN)
    again = await started(mesh)
    assert (again.link(URL), mesh.is_marked, (mesh.folder / FILE).exists()) == (None, True, False)


async def test_a_mark_that_cannot_be_left_does_not_fail_what_is_done(mesh: Mesh) -> None:
    claim = await started(mesh)
    mesh.before["mark"] = raising(ModelUnavailable("the disk is full"))
    assert (await claim.claim(body(claim), LAN))["username"] == "anna"


async def test_a_client_that_leaves_in_the_midst_can_come_back(mesh: Mesh) -> None:
    claim = await started(mesh)
    mesh.gate = asyncio.Event()
    going = asyncio.create_task(claim.claim(body(claim), LAN))
    await asyncio.sleep(0)
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    mesh.gate = None
    assert (await claim.claim(body(claim), LAN))["username"] == "anna"


# -- by the settings


async def test_the_settings_make_the_first_admin_once(mesh: Mesh) -> None:
    """F21-F22: used only when the mesh is formed; a second start with another name makes no other user."""
    claim = await started(mesh)
    assert await claim.first_admin("root", Secret("a long password"))
    assert mesh.done == ["mesh", "admin", "mark"]
    assert mesh.claimed_with == frozenset()
    assert claim.link(URL) is None
    again = await started(mesh)
    assert not await again.first_admin("other", Secret("another password"))
    assert [user["username"] for user in mesh.users] == ["root"]


async def test_a_mesh_that_had_an_admin_once_gets_none_from_the_settings(mesh: Mesh) -> None:
    mesh.is_marked = True
    claim = await started(mesh)
    assert not await claim.first_admin("root", Secret("a long password"))
    assert mesh.done == []


async def test_without_a_password_there_is_the_link(mesh: Mesh) -> None:
    claim = await started(mesh)
    assert not await claim.first_admin("admin", None)
    assert claim.link(URL) is not None


@pytest.mark.parametrize(
    ("username", "password", "name"), [("root", "hunter2", "password"), ("", "long enough", "username")]
)
async def test_a_name_or_password_that_cannot_be_is_a_wrong_setting_and_not_shown(
    mesh: Mesh, username: str, password: str, name: str
) -> None:
    claim = await started(mesh)
    with pytest.raises(SettingError, match=f"admin_{name}") as error:
        await claim.first_admin(username, Secret(password))
    assert password not in str(error.value)
    assert mesh.done == []


async def test_on_a_machine_that_may_not_claim_the_settings_do_nothing(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    claim = await started(mesh)
    mesh.before["mesh"] = raising(NoSuchPeer("this machine itself came by the door"))
    assert not await claim.first_admin("root", Secret("a long password"))
    assert mesh.users == []
    assert "the first admin is not made here" in caplog.messages


async def test_a_crash_between_mesh_and_admin_leaves_it_to_the_next_start(mesh: Mesh) -> None:
    claim = await started(mesh)
    mesh.before["admin"] = raising(Crash())
    with pytest.raises(Crash):
        await claim.first_admin("root", Secret("a long password"))
    assert await (await started(mesh)).first_admin("root", Secret("a long password"))


def raising(error: BaseException) -> Step:
    def step() -> None:
        raise error

    return step
