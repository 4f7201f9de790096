"""Who is let in and how: meshes that merge, requests that wait, tokens that run out."""

from __future__ import annotations

import dataclasses
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.admission import (
    BEGUN_FROM_ONE_MAX,
    BEGUN_MAX,
    BEGUN_S,
    DENIED_S,
    TOKENS_MAX,
    WAITING_MAX,
    WAITING_S,
    Admission,
    Asked,
    MeshSummary,
    Mode,
    Token,
    commitment,
    digits_of,
    hash_of,
    is_token,
    plan,
    proof_of,
    revealed_bytes,
)
from gossip.errors import JoinBusy, JoinDenied, JoinExpired, NotThatMesh, TokenRefused, UnknownPeer
from gossip.identity import base32

MEMBER = b"the member's certificate"
NONCE = b"n" * 32
summaries = st.builds(
    MeshSummary,
    mesh_id=st.sampled_from(["a", "b", "c"]),
    members=st.integers(1, 4),
    is_young=st.booleans(),
    door_open=st.booleans(),
).map(lambda mesh: dataclasses.replace(mesh, door_open=mesh.door_open or mesh.is_young))


def mesh(mesh_id: str, members: int = 1, *, young: bool = False, door: bool = False) -> MeshSummary:
    return MeshSummary(mesh_id=mesh_id, members=members, is_young=young, door_open=young or door)


def asked(
    number: int, mode: Mode = "ask", *, source: str | None = None, key: int | None = None, now: float = 0
) -> Asked:
    key = number if key is None else key
    certificate = f"certificate {key}".encode()
    return Asked(
        id=f"request {number}",
        mode=mode,
        peer_id=f"peer {key}",
        certificate=certificate,
        name=f"machine {key}",
        source=source or f"10.0.0.{number}",
        commitment=commitment(NONCE, certificate),
        nonce=f"{number}".encode() * 32,
        expires_at=now + BEGUN_S,
    )


def waits(admission: Admission, request: Asked, now: float = 0) -> Asked:
    admission.begin(request, now)
    return admission.wait(admission.reveal(request.id, NONCE, MEMBER, now), now)


# -- who joins whom


@given(summaries, summaries)
def test_never_do_two_meshes_join_each_other_and_two_young_ones_always_merge(a: MeshSummary, b: MeshSummary) -> None:
    if a.mesh_id == b.mesh_id:
        assert plan(a, b) == plan(b, a) == "none"
        return
    plans = {plan(a, b), plan(b, a)}
    assert "none" in plans
    if a.is_young and b.is_young:
        assert plans == {"none", "door"}


@given(
    st.lists(
        st.tuples(st.text("abcdefgh", min_size=1, max_size=3), st.integers(1, 9)), min_size=2, unique_by=lambda x: x[0]
    )
)
def test_young_meshes_that_meet_end_as_one(meshes: list[tuple[str, int]]) -> None:
    """However they meet, someone always goes: there is one mesh that joins nobody."""
    young = [mesh(mesh_id, members, young=True) for mesh_id, members in meshes]
    stays = [one for one in young if all(plan(one, other) == "none" for other in young)]
    assert len(stays) == 1
    assert stays[0].members == max(members for _, members in meshes)


def test_who_joins_whom() -> None:
    assert plan(mesh("a", 1, young=True), mesh("b", 2, young=True)) == "door"
    assert plan(mesh("b", 1, young=True), mesh("a", 1, young=True)) == "door"
    assert plan(mesh("a", 1, young=True), mesh("b", 1, young=True)) == "none"
    assert plan(mesh("a", 3, young=True), mesh("b", 1, door=True)) == "door"
    assert plan(mesh("a", 1, young=True), mesh("b", 5)) == "ask"
    assert plan(mesh("a", 2, young=True), mesh("b", 5)) == "none"
    assert plan(mesh("a", 1), mesh("b", 5, young=True)) == "none"
    assert plan(mesh("a", 1), mesh("b", 5, door=True)) == "none"


# -- requests


def test_both_sides_see_the_same_digits_and_a_person_says_yes() -> None:
    admission = Admission()
    request = waits(admission, asked(1))
    assert request.digits == digits_of(MEMBER, request.nonce, NONCE, request.certificate)
    assert len(request.digits) == 7 and request.digits[3] == " " and request.digits.replace(" ", "").isdecimal()
    assert admission.waiting(1) == (request,)
    assert admission.polled(request.id, 1).answer is None
    admission.answer(admission.found(request.digits.replace(" ", ""), 2), True, 2)
    assert admission.polled(request.id, 3).answer is True
    assert admission.polled(request.id, 4).answer is True  # the answer may get lost on its way
    assert admission.waiting(3) == ()
    with pytest.raises(UnknownPeer):
        admission.found(request.digits, 3)


def test_a_joiner_cannot_choose_its_number_after_it_saw_the_members() -> None:
    admission = Admission()
    admission.begin(asked(1), 0)
    with pytest.raises(NotThatMesh, match="committed"):
        admission.reveal("request 1", b"m" * 32, MEMBER, 0)
    with pytest.raises(JoinExpired):  # one try
        admission.reveal("request 1", NONCE, MEMBER, 0)


@given(st.permutations([b"a", b"b", b"c", b"d"]))
def test_digits_and_signatures_depend_on_each_part_and_its_place(parts: list[bytes]) -> None:
    straight = (b"a", b"b", b"c", b"d")
    assert (revealed_bytes(*parts) == revealed_bytes(*straight)) == (tuple(parts) == straight)
    assert revealed_bytes(b"ab", b"", b"c", b"d") != revealed_bytes(b"a", b"b", b"c", b"d")
    assert commitment(b"ab", b"c") != commitment(b"a", b"bc")


def test_five_at_most_wait_for_a_person_and_a_place_comes_free() -> None:
    admission = Admission()
    for number in range(WAITING_MAX):
        waits(admission, asked(number))
    with pytest.raises(JoinBusy, match="5 machines"):
        admission.begin(asked(9), 0)
    admission.answer(admission.found("request 0", 0), True, 0)
    waits(admission, asked(9))
    admission.begin(asked(10, "door"), 0)  # who needs no person is not held up
    admission.begin(asked(11, "token"), 0)


def test_those_that_began_together_do_not_slip_past_the_limit() -> None:
    admission = Admission()
    for number in range(WAITING_MAX + 1):
        admission.begin(asked(number), 0)
    for number in range(WAITING_MAX):
        admission.wait(admission.reveal(f"request {number}", NONCE, MEMBER, 1), 1)
    last = admission.reveal(f"request {WAITING_MAX}", NONCE, MEMBER, 1)
    with pytest.raises(JoinBusy):
        admission.wait(last, 1)


def test_one_address_has_one_request_and_a_machine_that_asks_again_replaces_its_own() -> None:
    admission = Admission()
    waits(admission, asked(1, source="10.0.0.1"))
    with pytest.raises(JoinBusy, match="address"):
        admission.begin(asked(2, source="10.0.0.1"), 0)
    again = waits(admission, asked(3, source="10.0.0.1", key=1), 5)
    assert admission.waiting(5) == (again,)
    with pytest.raises(JoinExpired):
        admission.polled("request 1", 5)


def test_nobody_displaces_anothers_request_before_it_proves_its_key() -> None:
    admission = Admission()
    request = waits(admission, asked(1))
    admission.begin(asked(2, key=1), 0)
    assert admission.waiting(0) == (request,)


def test_requests_expire() -> None:
    admission = Admission()
    admission.begin(asked(1), 0)
    with pytest.raises(JoinExpired):
        admission.reveal("request 1", NONCE, MEMBER, BEGUN_S)
    waits(admission, asked(2), 0)
    assert len(admission.waiting(WAITING_S - 1)) == 1
    assert admission.waiting(WAITING_S) == ()
    with pytest.raises(JoinExpired, match="ten minutes"):
        admission.polled("request 2", WAITING_S)


def test_a_denial_blocks_the_key_for_an_hour_but_not_a_token() -> None:
    admission = Admission()
    waits(admission, asked(1))
    admission.answer(admission.found("request 1", 0), False, 0)
    with pytest.raises(JoinDenied):
        admission.polled("request 1", 1)
    modes: tuple[Mode, ...] = ("ask", "door")
    for mode in modes:
        with pytest.raises(JoinDenied, match="60 minutes"):
            admission.begin(asked(2, mode, source="10.9.9.9", key=1), 1)
    admission.begin(asked(3, "token", key=1), 1)
    with pytest.raises(JoinDenied, match="1 minutes"):
        admission.begin(asked(4, key=1), DENIED_S - 1)
    admission.begin(asked(4, key=1), DENIED_S)


def test_what_has_begun_is_bounded_in_all_and_from_one_address() -> None:
    admission = Admission()
    for number in range(BEGUN_FROM_ONE_MAX):
        admission.begin(asked(number, "door", source="10.0.0.1"), 0)
    with pytest.raises(JoinBusy):
        admission.begin(asked(99, "door", source="10.0.0.1"), 0)
    for number in range(BEGUN_FROM_ONE_MAX, BEGUN_MAX):
        admission.begin(asked(number, "door"), 0)
    with pytest.raises(JoinBusy):
        admission.begin(asked(99, "token"), 0)
    admission.begin(asked(99, "token"), BEGUN_S)


def test_equal_digits_are_told_apart_by_id() -> None:
    admission = Admission()
    for number in (1, 2):
        request = asked(number)
        admission.begin(request, 0)
        revealed = admission.reveal(request.id, NONCE, MEMBER, 0)
        admission.wait(dataclasses.replace(revealed, digits="111 222"), 0)
    with pytest.raises(UnknownPeer, match="2 machines"):
        admission.found("111222", 0)
    assert admission.found("request 2", 0).peer_id == "peer 2"


# -- tokens


def test_a_token_has_its_uses_and_its_time() -> None:
    admission = Admission()
    secret = secrets.token_urlsafe(32)
    stored = admission.invite(secret, uses=2, seconds=100, now_s=1000)
    assert stored.secret_hash == hash_of(secret)
    assert secret not in repr(admission.tokens)
    with pytest.raises(TokenRefused):
        admission.redeem(secrets.token_urlsafe(32), 1000)
    admission.redeem(secret, 1001)
    assert [token.uses_left for token in admission.tokens] == [1]
    again = Admission(admission.tokens)  # after a restart
    with pytest.raises(TokenRefused):
        again.redeem(secret, 1100)
    again.redeem(secret, 1099)
    assert again.tokens == ()
    with pytest.raises(TokenRefused):
        again.redeem(secret, 1099)


def test_a_proof_holds_for_one_certificate_and_as_long_as_the_token() -> None:
    admission = Admission()
    secret = secrets.token_urlsafe(32)
    admission.invite(secret, uses=1, seconds=100, now_s=0)
    proof = proof_of(secret, MEMBER)
    admission.check_proof(proof, MEMBER, 1)
    for wrong, at in ((proof_of(secret, b"another"), 1), (proof_of("other", MEMBER), 1), (b"", 1), (proof, 100)):
        with pytest.raises(TokenRefused):
            admission.check_proof(wrong, MEMBER, at)


def test_tokens_are_bounded_and_the_first_to_expire_goes() -> None:
    admission = Admission()
    for number in range(TOKENS_MAX + 3):
        admission.invite(f"secret {number}", uses=1, seconds=100 + number, now_s=0)
    assert len(admission.tokens) == TOKENS_MAX
    with pytest.raises(TokenRefused):
        admission.redeem("secret 2", 1)
    admission.redeem("secret 3", 1)


@given(st.binary(min_size=32, max_size=32), st.lists(st.sampled_from(["10.0.0.1:81", "[fd00::1]:81"]), min_size=1))
def test_a_token_line_is_read_as_it_was_written(mesh_hash: bytes, addresses: list[str]) -> None:
    token = Token(mesh_id=base32(mesh_hash), secret=secrets.token_urlsafe(32), addresses=tuple(addresses))
    assert Token.parse(f" {token.line}\n") == token
    assert is_token(token.line)
    assert token.secret not in repr(token)


@pytest.mark.parametrize("line", ["", "llmr1-", "llmr1-abc-def@10.0.0.1:81", "10.0.0.1:81"])
def test_what_is_no_token_is_refused(line: str) -> None:
    with pytest.raises(TokenRefused, match="no token"):
        Token.parse(line)
    assert not is_token("10.0.0.1:81")


@given(st.text())
def test_any_text_is_a_token_or_refused(text: str) -> None:
    with pytest.raises(TokenRefused):
        Token.parse(f"llmr1-{text}")
